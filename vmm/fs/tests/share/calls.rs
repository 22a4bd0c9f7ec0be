//! The FUSE requests the tests use, by name (`include/uapi/linux/fuse.h`).

use crate::driver::Body;
use crate::driver::Driver;
use crate::driver::u32_at;
use crate::driver::u64_at;

/// The share's root.
pub(crate) const ROOT: u64 = 1;

/// `fuse_entry_out`, the parts the tests look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) user: (u32, u32),
}

impl Entry {
    fn parse(reply: &[u8]) -> Entry {
        Entry { node: u64_at(reply, 0), ..Entry::attributes(&reply[40..]) }
    }

    fn attributes(attr: &[u8]) -> Entry {
        Entry {
            node: 0,
            ino: u64_at(attr, 0),
            size: u64_at(attr, 8),
            mode: u32_at(attr, 60),
            links: u32_at(attr, 64),
            user: (u32_at(attr, 68), u32_at(attr, 72)),
        }
    }
}

impl Driver {
    pub(crate) fn lookup(&mut self, parent: u64, name: impl AsRef<[u8]>) -> Result<Entry, i32> {
        self.call(1, parent, Body::new().name(name), 128).map(|reply| Entry::parse(&reply))
    }

    pub(crate) fn getattr(&mut self, node: u64, handle: Option<u64>) -> Result<Entry, i32> {
        let body = Body::new().u32(u32::from(handle.is_some())).u32(0).u64(handle.unwrap_or_default());
        self.call(3, node, body, 104).map(|reply| Entry::attributes(&reply[16..]))
    }

    pub(crate) fn truncate(&mut self, node: u64, size: u64) -> Result<(), i32> {
        let body = Body::new().u32(1 << 3).u32(0).u64(0).u64(size).zeroes(64);
        self.call(4, node, body, 104).map(drop)
    }

    pub(crate) fn readlink(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        self.call(5, node, Body::new(), 4096)
    }

    pub(crate) fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<Entry, i32> {
        let body = Body::new().name(name).name(target);
        self.call(6, parent, body, 128).map(|reply| Entry::parse(&reply))
    }

    pub(crate) fn mknod(&mut self, parent: u64, name: &str, mode: u32, device: u32) -> Result<Entry, i32> {
        let body = Body::new().u32(mode).u32(device).u32(0).u32(0).name(name);
        self.call(8, parent, body, 128).map(|reply| Entry::parse(&reply))
    }

    pub(crate) fn mkdir(&mut self, parent: u64, name: &str, mode: u32, umask: u32) -> Result<Entry, i32> {
        let body = Body::new().u32(mode).u32(umask).name(name);
        self.call(9, parent, body, 128).map(|reply| Entry::parse(&reply))
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: impl AsRef<[u8]>) -> Result<(), i32> {
        self.call(10, parent, Body::new().name(name), 0).map(drop)
    }

    pub(crate) fn rmdir(&mut self, parent: u64, name: impl AsRef<[u8]>) -> Result<(), i32> {
        self.call(11, parent, Body::new().name(name), 0).map(drop)
    }

    pub(crate) fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Result<(), i32> {
        let body = Body::new().u64(to.0).name(from.1).name(to.1);
        self.call(12, from.0, body, 0).map(drop)
    }

    pub(crate) fn link(&mut self, node: u64, parent: u64, name: &str) -> Result<Entry, i32> {
        let body = Body::new().u64(node).name(name);
        self.call(13, parent, body, 128).map(|reply| Entry::parse(&reply))
    }

    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = Body::new().u32(flags.cast_unsigned()).u32(0);
        self.call(14, node, body, 16).map(|reply| u64_at(&reply, 0))
    }

    pub(crate) fn read(&mut self, node: u64, handle: u64, size: u32) -> Result<Vec<u8>, i32> {
        let body = Body::new().u64(handle).u64(0).u32(size).u32(0).u64(0).u64(0);
        self.call(15, node, body, size)
    }

    /// `fuse_flags` are FUSE_WRITE_*.
    pub(crate) fn write(&mut self, node: u64, handle: u64, data: &[u8], fuse_flags: u32) -> Result<u32, i32> {
        let size = data.len() as u32;
        let body = Body::new().u64(handle).u64(0).u32(size).u32(fuse_flags).u64(0).u32(1).u32(0).raw(data);
        self.call(16, node, body, 8).map(|reply| u32_at(&reply, 0))
    }

    pub(crate) fn release(&mut self, node: u64, handle: u64) -> Result<(), i32> {
        self.call(18, node, Body::new().u64(handle).zeroes(16), 0).map(drop)
    }

    pub(crate) fn setxattr(&mut self, node: u64, name: &str, value: &[u8]) -> Result<(), i32> {
        let body = Body::new().u32(value.len() as u32).u32(0).name(name).raw(value);
        self.call(21, node, body, 0).map(drop)
    }

    pub(crate) fn getxattr(&mut self, node: u64, name: &str, size: u32, room: u32) -> Result<Vec<u8>, i32> {
        self.call(22, node, Body::new().u32(size).u32(0).name(name), room)
    }

    pub(crate) fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(Entry, u64), i32> {
        let body = Body::new().u32(flags.cast_unsigned()).u32(mode).u32(0o022).u32(0).name(name);
        self.call(35, parent, body, 144).map(|reply| (Entry::parse(&reply), u64_at(&reply, 128)))
    }

    /// The directory's entries by READDIR: name and inode number.
    pub(crate) fn names(&mut self, node: u64) -> Result<Vec<(String, u64)>, i32> {
        let flags = Body::new().u32(0).u32(0);
        let handle = u64_at(&self.call(27, node, flags, 16)?, 0);
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let body = Body::new().u64(handle).u64(offset).u32(4096).u32(0).u64(0).u64(0);
            let reply = self.call(28, node, body, 4096)?;
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let length = u32_at(rest, 16) as usize;
                names.push((String::from_utf8_lossy(&rest[24..24 + length]).into(), u64_at(rest, 0)));
                offset = u64_at(rest, 8);
                rest = &rest[(24 + length).next_multiple_of(8).min(rest.len())..];
            }
            if reply.is_empty() {
                break;
            }
        }
        self.call(29, node, Body::new().u64(handle).zeroes(16), 0)?;
        names.sort();
        Ok(names)
    }
}
