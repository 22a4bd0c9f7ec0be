//! Each FUSE request on its way to the passthrough. Requests that are absent here (locks, ioctl, poll, DAX
//! mappings) answer ENOSYS, and the guest's kernel does without.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::abi::fuse_abi::FsOptions;
use fuse_backend_rs::abi::fuse_abi::OpenOptions;
use fuse_backend_rs::abi::fuse_abi::SetattrValid;
use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::abi::fuse_abi::statvfs64;
use fuse_backend_rs::api::filesystem::Context;
use fuse_backend_rs::api::filesystem::DirEntry;
use fuse_backend_rs::api::filesystem::Entry;
use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::filesystem::GetxattrReply;
use fuse_backend_rs::api::filesystem::ListxattrReply;
use fuse_backend_rs::api::filesystem::ZeroCopyReader;
use fuse_backend_rs::api::filesystem::ZeroCopyWriter;

use crate::identity::with_umask;
use crate::share::Share;
use crate::share::rules;

impl Share {
    /// Counts the inode that a successful request has told the guest of.
    fn told(&self, entry: io::Result<Entry>) -> io::Result<Entry> {
        entry.inspect(|entry| self.ledger.looked_up(entry.inode))
    }
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let chosen = self.passthrough.init(capable - FsOptions::PERFILE_DAX)?;
        let mut wanted = FsOptions::INIT_EXT
            | FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::CACHE_SYMLINKS;
        let acl = FsOptions::POSIX_ACL | FsOptions::DONT_MASK;
        if capable.contains(acl) {
            wanted |= acl;
        }
        Ok(chosen | wanted)
    }

    fn destroy(&self) {
        self.passthrough.destroy();
        self.ledger.clear();
    }

    fn lookup(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        rules::check_name(name)?;
        self.ledger.room_for_inode()?;
        self.told(self.passthrough.lookup(context, parent, name))
    }

    fn forget(&self, context: &Context, inode: u64, count: u64) {
        self.passthrough.forget(context, inode, count);
        self.ledger.forgot(inode, count);
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget(context, inode, count);
        }
    }

    fn getattr(&self, context: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.passthrough.getattr(context, inode, handle)
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        attributes: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.passthrough.setattr(context, inode, attributes, handle, valid)
    }

    fn readlink(&self, context: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.passthrough.readlink(context, inode)
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        rules::check_name(name)?;
        self.ledger.room_for_inode()?;
        self.told(self.passthrough.symlink(context, target, parent, name))
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        rules::check_name(name)?;
        self.ledger.room_for_inode()?;
        let make = || self.passthrough.mknod(context, parent, name, mode, device, 0);
        self.told(with_umask(umask, make))
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        rules::check_name(name)?;
        self.ledger.room_for_inode()?;
        self.told(with_umask(umask, || self.passthrough.mkdir(context, parent, name, mode, 0)))
    }

    fn unlink(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        rules::check_name(name)?;
        self.passthrough.unlink(context, parent, name)
    }

    fn rmdir(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        rules::check_name(name)?;
        self.passthrough.rmdir(context, parent, name)
    }

    fn rename(
        &self,
        context: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        rules::check_name(old_name)?;
        rules::check_name(new_name)?;
        self.passthrough.rename(context, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, context: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        rules::check_name(name)?;
        self.told(self.passthrough.link(context, inode, parent, name))
    }

    fn open(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        self.ledger.room_for_handle()?;
        let opened = self.passthrough.open(context, inode, rules::open_flags(flags), fuse_flags);
        opened.inspect(|_| self.ledger.opened())
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        rules::check_name(name)?;
        self.ledger.room_for_inode()?;
        self.ledger.room_for_handle()?;
        let flags = rules::open_flags(arguments.flags);
        let checked = CreateIn { flags, umask: 0, ..arguments };
        let create = || self.passthrough.create(context, parent, name, checked);
        with_umask(arguments.umask, create).inspect(|(entry, ..)| {
            self.ledger.looked_up(entry.inode);
            self.ledger.opened();
        })
    }

    fn read(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let flags = rules::open_flags(flags);
        self.passthrough.read(context, inode, handle, writer, size, offset, lock_owner, flags)
    }

    fn write(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let flags = rules::open_flags(flags);
        self.passthrough
            .write(context, inode, handle, reader, size, offset, lock_owner, delayed, flags, fuse_flags)
    }

    fn flush(&self, context: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        self.passthrough.flush(context, inode, handle, lock_owner)
    }

    fn fsync(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.passthrough.fsync(context, inode, data_only, handle)
    }

    fn fallocate(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.passthrough.fallocate(context, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.passthrough.release(context, inode, flags, handle, flush, flock_release, lock_owner)?;
        self.ledger.closed();
        Ok(())
    }

    fn statfs(&self, context: &Context, inode: u64) -> io::Result<statvfs64> {
        self.passthrough.statfs(context, inode)
    }

    fn setxattr(
        &self,
        context: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        rules::check_writable_attribute(name)?;
        self.passthrough.setxattr(context, inode, name, value, flags)
    }

    fn getxattr(&self, context: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        self.passthrough.getxattr(context, inode, name, size.min(rules::XATTR_MAX))
    }

    fn listxattr(&self, context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.passthrough.listxattr(context, inode, size.min(rules::XATTR_MAX))
    }

    fn removexattr(&self, context: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        rules::check_writable_attribute(name)?;
        self.passthrough.removexattr(context, inode, name)
    }

    fn opendir(&self, context: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        self.ledger.room_for_handle()?;
        let opened = self.passthrough.opendir(context, inode, rules::open_flags(flags));
        opened.inspect(|_| self.ledger.opened())
    }

    /// Built on READDIRPLUS, because the passthrough's own READDIR shows inode numbers that stat does not.
    fn readdir(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut seen = Vec::new();
        let size = size.min(rules::REPLY_MAX);
        let result = self.passthrough.readdirplus(
            context,
            inode,
            handle,
            size,
            offset,
            &mut |directory_entry, entry| {
                let added = add(directory_entry);
                // An entry that did not fit is forgotten by the passthrough.
                if !matches!(added, Ok(0)) {
                    seen.push((entry.inode, 1));
                }
                added
            },
        );
        self.passthrough.batch_forget(context, seen);
        result
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.ledger.room_for_inode()?;
        let size = size.min(rules::REPLY_MAX);
        self.passthrough.readdirplus(context, inode, handle, size, offset, &mut |directory_entry, entry| {
            let added = add(directory_entry, entry)?;
            if added > 0 {
                self.ledger.looked_up(entry.inode);
            }
            Ok(added)
        })
    }

    fn fsyncdir(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.passthrough.fsyncdir(context, inode, data_only, handle)
    }

    fn releasedir(&self, context: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.passthrough.releasedir(context, inode, flags, handle)?;
        self.ledger.closed();
        Ok(())
    }

    fn access(&self, context: &Context, inode: u64, mask: u32) -> io::Result<()> {
        self.passthrough.access(context, inode, mask)
    }

    fn lseek(&self, context: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        self.passthrough.lseek(context, inode, handle, offset, whence)
    }
}
