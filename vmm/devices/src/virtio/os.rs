//! What a device's thread has of its host: threads, locks, and what wakes them. In one place, so that a check can
//! compile the code that uses it again with others, whose order it chooses.

pub(crate) use std::os::unix::net::UnixStream;
pub(crate) use std::thread;

pub(crate) use parking_lot::Mutex;
pub(crate) use vmm_sys_util::epoll::Epoll;
pub(crate) use vmm_sys_util::eventfd::EventFd;
