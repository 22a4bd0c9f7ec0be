//! Applies one layer to a tree (OCI image-spec 1.1 `layer.md`): entries replace existing files, and whiteouts remove
//! files of the layers below.
//!
//! A layer is hostile. The kernel resolves every path inside the tree (openat2 RESOLVE_IN_ROOT), so that no symbolic
//! link leads out of it. Refused are names with `..`, symbolic links above the root, device nodes, hard links to files
//! outside, and more data than the limit for the size of the layer.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use flate2::bufread::MultiGzDecoder;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::Uid;
use rustix::io::Errno;
use sha2::Digest;
use sha2::Sha256;
use tar::EntryType;

use super::ImageError;

/// Maximum number of entries of a layer, including directories that it only implies.
const MOST_ENTRIES: u64 = 2_000_000;
/// Maximum size of an entry's headers with long names and attributes, which are read at once.
const LONGEST_HEADER: u64 = 1 << 20;
/// Unpacked size that every layer may have …
const ALWAYS_ALLOWED: u64 = 1 << 30;
/// … and the factor to the compressed size that allows more. Real layers stay below 20; gzip can reach 1030.
const LARGEST_RATIO: u64 = 200;
/// Maximum length of a path (PATH_MAX).
const LONGEST_PATH: usize = 4096;
/// Mode of a new file, until its own mode is set: only the owner may write.
const PRIVATE: Mode = Mode::RWXU;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies a layer of `size` compressed bytes; returns the bytes of the archive. `diff_id` is the digest the
/// image's configuration gives for them.
pub(super) fn layer(
    tree: &Path,
    name: &str,
    blob: impl BufRead,
    size: u64,
    diff_id: &str,
) -> Result<u64, ImageError> {
    let archive = decompress(blob).map_err(|e| read_error(name, &e))?;
    let limit = ALWAYS_ALLOWED.max(size.saturating_mul(LARGEST_RATIO));
    let allowance = Cell::new(None);
    let mut counted =
        Counted { inner: archive, hasher: Sha256::new(), count: 0, limit, allowance: &allowance };
    let root = open_root(tree)?;
    let mut layer = Layer { root, name, made: HashSet::new(), directories: Vec::new(), count: Cell::new(0) };
    {
        let mut archive = tar::Archive::new(&mut counted);
        let mut entries = archive.entries().map_err(|e| read_error(name, &e))?;
        loop {
            allowance.set(Some(LONGEST_HEADER));
            let Some(entry) = entries.next() else { break };
            allowance.set(None);
            let mut entry = entry.map_err(|e| read_error(name, &e))?;
            layer.one_more()?;
            layer.entry(&mut entry)?;
            // The unread rest of its content is skipped, so that the next header is read.
            io::copy(&mut entry, &mut io::sink()).map_err(|e| read_error(name, &e))?;
        }
        allowance.set(None);
    }
    layer.finish()?;
    // The bytes after the end of the archive are part of the digest.
    io::copy(&mut counted, &mut io::sink()).map_err(|e| read_error(name, &e))?;
    let found = format!("sha256:{}", hex::encode(counted.hasher.finalize()));
    if found != diff_id {
        let reason = format!("unpacked it has digest {found} instead of {diff_id}");
        return Err(ImageError::Damaged { digest: name.to_owned(), reason });
    }
    Ok(counted.count)
}

fn read_error(layer: &str, e: &io::Error) -> ImageError {
    ImageError::Damaged { digest: layer.to_owned(), reason: e.to_string() }
}

/// Detects gzip, zstd or no compression by the first bytes, as media types are not reliable.
fn decompress<'a>(mut blob: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let start = blob.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(MultiGzDecoder::new(blob)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::with_buffer(blob)?;
        // A window of at most 128 MiB.
        decoder.window_log_max(27)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(blob))
}

/// A reader that hashes its content and fails at the limit.
struct Counted<'a, R> {
    inner: R,
    hasher: Sha256,
    count: u64,
    limit: u64,
    /// Remaining bytes of the current limit, if one is set.
    allowance: &'a Cell<Option<u64>>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(allowed) = self.allowance.get() {
            let Some(left) = allowed.checked_sub(count as u64) else {
                return Err(io::Error::other(format!(
                    "names and attributes of an entry of more than {LONGEST_HEADER} bytes"
                )));
            };
            self.allowance.set(Some(left));
        }
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::other(format!("it unpacks to more than {} bytes", self.limit)));
        }
        Ok(count)
    }
}

fn open_root(tree: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, tree, flags, Mode::empty()).map_err(|e| ImageError::Io {
        action: "open",
        path: tree.to_owned(),
        source: e.into(),
    })
}

struct Layer<'a> {
    root: OwnedFd,
    name: &'a str,
    /// The paths that this layer made, with their parents: an opaque whiteout removes files of the layers below, not
    /// those of the same layer.
    made: HashSet<PathBuf>,
    /// Times of directories, which are set last, as new entries change them.
    directories: Vec<(PathBuf, Timestamps)>,
    /// Number of entries so far.
    count: Cell<u64>,
}

impl Layer<'_> {
    fn error(&self, path: &[u8], reason: impl Into<String>) -> ImageError {
        ImageError::Layer {
            layer: self.name.to_owned(),
            entry: String::from_utf8_lossy(path).chars().take(LONGEST_PATH).collect(),
            reason: reason.into(),
        }
    }

    fn one_more(&self) -> Result<(), ImageError> {
        self.count.set(self.count.get() + 1);
        if self.count.get() > MOST_ENTRIES {
            return Err(read_error(
                self.name,
                &io::Error::other(format!("more than {MOST_ENTRIES} entries")),
            ));
        }
        Ok(())
    }

    fn remember(&mut self, path: PathBuf) {
        for above in path.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty()) {
            if !self.made.insert(above.to_owned()) {
                break;
            }
        }
        self.made.insert(path);
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ImageError> {
        let raw = entry.path_bytes().into_owned();
        let path = self.inside(&raw, &raw)?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root directory exists; only its attributes are set.
            return if kind.is_dir() { self.attributes(entry, &raw, &path) } else { Ok(()) };
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if name.as_bytes() == OPAQUE {
            return self.opaque(&raw, parent);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(self.error(&raw, "a whiteout of nothing"));
            }
            if let Some(directory) = self.directory(&raw, parent, false)? {
                self.remove(&raw, &directory, OsStr::from_bytes(hidden))?;
            }
            return Ok(());
        }
        let Some(directory) = self.directory(&raw, parent, true)? else {
            return Err(self.error(&raw, "its directory cannot be made"));
        };
        let failed = |e: Errno| self.error(&raw, io::Error::from(e).to_string());
        match kind {
            EntryType::Directory => {
                let existing = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW);
                let is_directory =
                    existing.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
                if !is_directory {
                    self.remove(&raw, &directory, &name)?;
                    rustix::fs::mkdirat(&directory, &name, PRIVATE).map_err(failed)?;
                }
            }
            EntryType::Regular | EntryType::Continuous => {
                self.remove(&raw, &directory, &name)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR);
                let mut file = File::from(file.map_err(failed)?);
                io::copy(entry, &mut file).map_err(|e| self.error(&raw, e.to_string()))?;
            }
            EntryType::Symlink => {
                let target = self.link_target(entry, &raw)?;
                if climbs(&path, &target) {
                    return Err(self.error(&raw, "a symbolic link that points outside of the image"));
                }
                self.remove(&raw, &directory, &name)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &directory, &name).map_err(failed)?;
            }
            EntryType::Link => {
                let target = self.link_target(entry, &raw)?;
                if target.starts_with(b"/") && !self.made.contains(&self.inside(&raw, &target)?) {
                    return Err(self.error(&raw, "a hard link to an absolute path"));
                }
                let target = self.inside(&raw, &target)?;
                let beside = target.parent().unwrap_or(Path::new(""));
                let last = target.file_name().ok_or_else(|| self.error(&raw, "a hard link to the root"))?;
                let from = self
                    .directory(&raw, beside, false)?
                    .ok_or_else(|| self.error(&raw, "a hard link to what is not there"))?;
                self.remove(&raw, &directory, &name)?;
                rustix::fs::linkat(&from, last, &directory, &name, AtFlags::empty()).map_err(failed)?;
                self.remember(path);
                // A hard link has the attributes of its target.
                return Ok(());
            }
            EntryType::Fifo => {
                self.remove(&raw, &directory, &name)?;
                rustix::fs::mknodat(&directory, &name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                    .map_err(failed)?;
            }
            EntryType::Char if path.starts_with("dev") && is_standard(entry.header()) => return Ok(()),
            EntryType::Block | EntryType::Char => {
                return Err(self.error(&raw, "a device node; devices come from the runtime, not from images"));
            }
            other => return Err(self.error(&raw, format!("an entry of unknown type {other:?}"))),
        }
        self.attributes(entry, &raw, &path)?;
        self.remember(path);
        Ok(())
    }

    /// Normalizes a path of the archive: relative, without `.` and `..`.
    fn inside(&self, entry: &[u8], path: &[u8]) -> Result<PathBuf, ImageError> {
        if path.len() >= LONGEST_PATH || path.contains(&0) {
            return Err(self.error(entry, "its path is too long or has a zero byte"));
        }
        let mut clean = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(path)).components() {
            match component {
                Component::Normal(name) => clean.push(name),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(self.error(entry, "a path that climbs out of the layer"));
                }
            }
        }
        Ok(clean)
    }

    fn link_target<R: Read>(&self, entry: &tar::Entry<'_, R>, raw: &[u8]) -> Result<Vec<u8>, ImageError> {
        let target = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        if target.is_empty() || target.len() >= LONGEST_PATH || target.contains(&0) {
            return Err(self.error(raw, "a link to nothing"));
        }
        Ok(target)
    }

    /// Opens a directory of the tree, with symbolic links resolved inside the tree; makes missing ones if `make` is
    /// set.
    fn directory(&self, raw: &[u8], path: &Path, make: bool) -> Result<Option<OwnedFd>, ImageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let place = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match rustix::fs::openat2(&self.root, place, flags, Mode::empty(), resolve) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) if make => {
                let parent = path.parent().unwrap_or(Path::new(""));
                let (Some(above), Some(name)) = (self.directory(raw, parent, true)?, path.file_name()) else {
                    return Ok(None);
                };
                self.one_more()?;
                let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
                match rustix::fs::mkdirat(&above, name, mode) {
                    Ok(()) => {}
                    // A symbolic link to a missing directory.
                    Err(Errno::EXIST) => return Err(self.error(raw, "its directory is a dangling link")),
                    Err(e) => return Err(self.error(raw, io::Error::from(e).to_string())),
                }
                let opened = rustix::fs::openat2(&self.root, place, flags, Mode::empty(), resolve);
                opened.map(Some).map_err(|e| self.error(raw, io::Error::from(e).to_string()))
            }
            Err(Errno::NOENT | Errno::NOTDIR) if !make => Ok(None),
            Err(e) => Err(self.error(raw, format!("its directory: {}", io::Error::from(e)))),
        }
    }

    /// Removes the file or directory with this name.
    fn remove(&self, raw: &[u8], directory: &OwnedFd, name: &OsStr) -> Result<(), ImageError> {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                // The directory is held open, so the path refers to it even if it is renamed;
                // remove_dir_all does not follow links.
                let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
                std::fs::remove_dir_all(path).map_err(|e| self.error(raw, e.to_string()))
            }
            Err(e) => Err(self.error(raw, io::Error::from(e).to_string())),
        }
    }

    /// Removes the files that the layers below made in a directory.
    fn opaque(&self, raw: &[u8], path: &Path) -> Result<(), ImageError> {
        let Some(directory) = self.directory(raw, path, false)? else { return Ok(()) };
        let listing = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
        let failed = |e: io::Error| self.error(raw, e.to_string());
        for entry in std::fs::read_dir(listing).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let child = path.join(&name);
            if !self.made.contains(&child) {
                self.remove(raw, &directory, &name)?;
            }
        }
        Ok(())
    }

    /// Sets owner, then mode (of which a change of owner clears a part), extended attributes and times.
    fn attributes<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        raw: &[u8],
        path: &Path,
    ) -> Result<(), ImageError> {
        let header = entry.header();
        // An empty field means root.
        let empty = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
        let old = header.as_old();
        let number = |value: io::Result<u64>, field: &[u8], what: &str| {
            if empty(field) {
                return Ok(0);
            }
            value
                .and_then(|v| u32::try_from(v).map_err(io::Error::other))
                .map_err(|e| self.error(raw, format!("its {what}: {e}")))
        };
        let (uid, gid) = (number(header.uid(), &old.uid, "owner")?, number(header.gid(), &old.gid, "group")?);
        let mode = header.mode().map_err(|e| self.error(raw, format!("its mode: {e}")))?;
        let mtime = header.mtime().unwrap_or(0);
        let kind = header.entry_type();
        let extended = self.extended(entry, raw)?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(directory) = self.directory(raw, parent, false)? else {
            return Err(self.error(raw, "its directory is gone"));
        };
        let failed = |e: Errno| self.error(raw, io::Error::from(e).to_string());
        // Raw ids; all but one value (-1) are valid.
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        if uid == u32::MAX || gid == u32::MAX {
            return Err(self.error(raw, "its owner is no user"));
        }
        rustix::fs::chownat(&directory, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)?;
        let path_of = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        for (key, value) in extended {
            match rustix::fs::lsetxattr(&path_of, &*key, &value, rustix::fs::XattrFlags::empty()) {
                // The file system has no extended attributes: ignored, as in docker and containerd.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(e) => {
                    return Err(self.error(raw, format!("attribute {key}: {}", io::Error::from(e))));
                }
            }
        }
        if !kind.is_symlink() {
            let mode = Mode::from_raw_mode(mode & 0o7777);
            rustix::fs::chmodat(&directory, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        if kind.is_dir() {
            self.directories.push((path.to_owned(), times));
            return Ok(());
        }
        rustix::fs::utimensat(&directory, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// The `SCHILY.xattr.*` records of the PAX header. `trusted.*` is refused, as overlayfs interprets it.
    fn extended<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        raw: &[u8],
    ) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
        let mut all = Vec::new();
        let Some(extensions) = entry.pax_extensions().map_err(|e| self.error(raw, e.to_string()))? else {
            return Ok(all);
        };
        for extension in extensions {
            let extension = extension.map_err(|e| self.error(raw, e.to_string()))?;
            let Some(key) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else {
                continue;
            };
            if key.starts_with("trusted.") {
                return Err(self.error(raw, format!("attribute {key} is not for images")));
            }
            all.push((key.to_owned(), extension.value_bytes().to_vec()));
        }
        Ok(all)
    }

    /// Sets the times of directories, deepest first.
    fn finish(&mut self) -> Result<(), ImageError> {
        for (path, times) in std::mem::take(&mut self.directories).into_iter().rev() {
            let raw = path.as_os_str().as_bytes();
            // A directory that a later entry replaced is skipped.
            if let Some(directory) = self.directory(raw, &path, false)? {
                let here = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
                rustix::fs::utimensat(CWD, &here, &times, AtFlags::empty())
                    .map_err(|e| self.error(raw, io::Error::from(e).to_string()))?;
            }
        }
        Ok(())
    }
}

/// Whether a device node is one that every container has in its own /dev. Many images contain such nodes, which are not
/// needed, as /dev is mounted over them.
fn is_standard(header: &tar::Header) -> bool {
    let number = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
    matches!(number, (Some(1), Some(3 | 5 | 7 | 8 | 9)) | (Some(5), Some(0..=2)))
}

/// Whether the target of a symbolic link at `path` has enough `..` to lead above the root.
fn climbs(path: &Path, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let mut depth = i64::try_from(path.components().count()).unwrap_or(0) - 1;
    for component in Path::new(OsStr::from_bytes(target)).components() {
        match component {
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
