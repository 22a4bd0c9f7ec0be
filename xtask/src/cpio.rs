//! Writes `newc` cpio archives, the form of an initramfs (kernel: Documentation/driver-api/early-userspace).
//!
//! Deterministic: no times, no inode numbers of the source, everything owned by root. The same calls give the same
//! bytes.

/// An archive in memory, built entry by entry in the order of the calls. Folders come before what is in them.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040000;
const FILE: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const CHARACTER_DEVICE: u32 = 0o020000;

impl Archive {
    /// An archive with nothing in it.
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), entries: 0 }
    }

    /// Adds a folder. `path` has no leading slash, here and below.
    pub(crate) fn folder(&mut self, path: &str, permissions: u32) {
        self.entry(path, FOLDER | permissions, (0, 0), b"");
    }

    /// Adds a regular file.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, FILE | permissions, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device node.
    pub(crate) fn character_device(&mut self, path: &str, permissions: u32, number: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE | permissions, number, b"");
    }

    /// The archive with its trailer.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = u32::MAX;
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        let links = if mode & FOLDER == FOLDER && mode & FILE != FILE { 2 } else { 1 };
        let header = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            links,
            0, // modification time
            content.len() as u32,
            0, // device of the file system
            0,
            major,
            minor,
            path.len() as u32 + 1,
            0, // checksum: not in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_what_was_written() {
        let mut archive = Archive::new();
        archive.folder("dev", 0o755);
        archive.character_device("dev/console", 0o600, (5, 1));
        archive.file("init", 0o755, b"odd length!");
        archive.symlink("sbin", "usr/sbin");
        let mut child = Command::new("/usr/bin/busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        for expected in ["drwxr-xr-x", "dev/console", "-rwxr-xr-x", "sbin -> usr/sbin"] {
            assert!(listing.contains(expected), "{expected} is not in:\n{listing}");
        }
        assert_eq!(listing.lines().count(), 4, "{listing}");
    }
}
