//! Finds and opens the virtio-serial port to the host (virtio 1.2 §5.3). Waits for events, never for time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketType, bind, recv, socket};

/// The kernel's own announcements, as opposed to udev's.
const KERNEL_EVENTS: u32 = 1;

/// Announcements of devices. Opened before the driver is loaded, so that none is missed.
pub(crate) struct Announcements(rustix::fd::OwnedFd);

impl Announcements {
    /// Starts to listen.
    pub(crate) fn listen() -> io::Result<Self> {
        let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
        Ok(Self(socket))
    }

    fn wait(&self) -> io::Result<()> {
        match recv(&self.0, &mut [0; 8192], RecvFlags::empty()) {
            // Announcements were lost: whatever they said is in sysfs by now, where the caller looks next.
            Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens the port called `name` once the host has announced it and is connected to it.
pub(crate) fn open(name: &str, announcements: &Announcements) -> io::Result<File> {
    let device = loop {
        if let Some(device) = find(name)? {
            break device;
        }
        announcements.wait()?;
    };
    let port = OpenOptions::new().read(true).write(true).open(device)?;
    wait_for_host(&port)?;
    Ok(port)
}

fn find(name: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        // The name comes in a message after the one that makes the port: until then there is no such file.
        let found = fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name);
        if found {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// Until the host's message that it is connected has arrived, reads end at once as if it had hung up.
fn wait_for_host(port: &File) -> io::Result<()> {
    let wakeups = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let any = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&wakeups, port, epoll::EventData::new_u64(0), any)?;
    loop {
        let mut state = [PollFd::new(port, PollFlags::OUT)];
        poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if !state[0].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
        let mut events = Vec::with_capacity(1);
        match epoll::wait(&wakeups, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
