//! What a guest may ask for: names, open flags and attribute names that may reach the host's kernel. Pure.

use std::ffi::CStr;
use std::io;

/// Longest reply to a directory or attribute request, in bytes: the largest FUSE message.
pub(crate) const REPLY_MAX: u32 = 1 << 20;
/// Longest extended attribute value and name list Linux knows (XATTR_SIZE_MAX, XATTR_LIST_MAX).
pub(crate) const XATTR_MAX: u32 = 1 << 16;

/// The open flags a guest may choose.
const GUEST_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_EXCL
    | libc::O_DIRECTORY
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_NOATIME;

/// Checks that `name` names an entry of its directory and nothing else. A FUSE client resolves `.` and `..`
/// itself; asking the host to would lead out of a directory that somebody moves meanwhile.
pub(crate) fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// The flags a file is really opened with. O_PATH would follow a symbolic link out of the share, O_DIRECT is
/// between the guest and its own page cache, O_TMPFILE makes a file no request asked for. O_NONBLOCK keeps a
/// file such as `/proc/kmsg`, where it is shared, from stopping the device.
pub(crate) fn open_flags(requested: u32) -> u32 {
    let requested = requested.cast_signed();
    let flags = requested & GUEST_FLAGS | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    flags.cast_unsigned()
}

/// Checks that the guest may write attribute `name`. `trusted.*` steers overlayfs, and most of `security.*`
/// the host's own security modules; a guest has no say there.
pub(crate) fn check_writable_attribute(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    let allowed = name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default");
    if allowed { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for name in [c"a", c"...", c"..a", c".a", c"a b", c"\xff\xfe"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
        for name in [c"", c".", c"..", c"/", c"a/b", c"../x", c"/etc", c"a/"] {
            assert_eq!(check_name(name).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{name:?}");
        }
    }

    #[test]
    fn flags_that_lead_elsewhere_are_dropped() {
        let all = open_flags(u32::MAX).cast_signed();
        assert_eq!(all & libc::O_PATH, 0);
        assert_eq!(all & libc::O_DIRECT, 0);
        assert_ne!(all & libc::O_TMPFILE, libc::O_TMPFILE);
        assert_ne!(all & libc::O_NOFOLLOW, 0);
        assert_ne!(all & libc::O_CLOEXEC, 0);
        assert_eq!(open_flags(0).cast_signed() & libc::O_ACCMODE, libc::O_RDONLY);
    }

    #[test]
    fn attributes_of_the_host_are_out_of_reach() {
        for name in [c"user.x", c"security.capability", c"system.posix_acl_default"] {
            assert!(check_writable_attribute(name).is_ok(), "{name:?}");
        }
        for name in [c"trusted.overlay.opaque", c"security.selinux", c"security.ima", c"system.nfs4_acl"] {
            assert!(check_writable_attribute(name).is_err(), "{name:?}");
        }
    }
}
