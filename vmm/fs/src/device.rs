//! The device as its transport sees it: configuration space, queues, activation (virtio 1.2 §5.11.2 to §5.11.5).

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use kiai_devices::io_thread::Hung;
use kiai_devices::io_thread::Pausable;
use kiai_devices::io_thread::Work;
use kiai_devices::platform::Role;
use kiai_devices::virtio::device::ActivateError;
use kiai_devices::virtio::device::Activation;
use kiai_devices::virtio::device::DeviceState;
use kiai_devices::virtio::device::VirtioDevice;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use crate::requests::Requests;
use crate::service::ServedQueue;
use crate::service::Service;
use crate::share;

/// virtio 1.2 §5: "file system device".
const DEVICE_ID: u16 = 26;
/// Length of `tag` in the configuration space.
const TAG_LENGTH: usize = 36;
/// hiprio (FORGET, INTERRUPT), then the one request queue. The guest's kernel bounds a message by the queue's
/// size: 1024 leaves room for 1 MiB in pages.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// A shared directory.
pub struct Fs {
    config: [u8; TAG_LENGTH + 4],
    directory: Arc<File>,
    /// How many descriptors the guest may hold; asked for when nobody is confined yet.
    descriptors: usize,
    work: Work<Service>,
    /// Ends the work of an active device between two requests.
    stop: Arc<AtomicBool>,
    /// The guest has it mounted, and may hold files of it.
    mounted: Arc<AtomicBool>,
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The guest finds the device by its tag, which the specification limits.
    #[error("file system tag {0:?}: it must have 1 to 36 bytes, none of them zero")]
    Tag(String),
    /// The directory is absent, not a directory, or not ours to open.
    #[error("cannot share {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl Fs {
    /// Shares `directory`, which a Linux guest mounts by `tag`. It is opened here and now, in the mount
    /// namespace of the calling thread; what is mounted inside it there later is seen by the guest as well.
    pub fn new(tag: &str, directory: &Path) -> Result<Fs, FsError> {
        let mut config = [0; TAG_LENGTH + 4];
        if tag.is_empty() || tag.len() > TAG_LENGTH || tag.contains('\0') {
            return Err(FsError::Tag(tag.to_owned()));
        }
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        let request_queues = u32::try_from(QUEUE_SIZES.len() - 1).expect("one");
        config[TAG_LENGTH..].copy_from_slice(&request_queues.to_le_bytes());

        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())
            .map_err(|errno| FsError::Directory { path: directory.to_owned(), source: errno.into() })?;
        let directory = Arc::new(directory.into());
        let descriptors = share::raise_descriptor_limit();
        Ok(Fs {
            config,
            directory,
            descriptors,
            work: Work::default(),
            stop: Arc::default(),
            mounted: Arc::default(),
        })
    }
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn threads(&self) -> Vec<Role> {
        vec![Role::Files]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let mut queues = Vec::new();
        for queue in activation.queues {
            let requests = Requests::new(&queue.queue).map_err(|error| ActivateError::Host {
                step: "take over a queue",
                source: io::Error::other(error),
            })?;
            queues.push(ServedQueue { index: queue.index, requests, notification: queue.notification });
        }
        for index in 0..QUEUE_SIZES.len() {
            let index = u16::try_from(index).expect("two queues");
            if !queues.iter().any(|queue| queue.index == index) {
                return Err(ActivateError::QueueMissing(index));
            }
        }
        let Activation { memory, interrupt, .. } = activation;
        self.stop = Arc::default();
        let service = Service {
            directory: self.directory.clone(),
            descriptors: self.descriptors,
            server: None,
            queues,
            memory,
            interrupt,
            stop: self.stop.clone(),
            mounted: self.mounted.clone(),
        };
        let descriptors = service.descriptors();
        self.work.begin((&thread, "virtio-fs"), service, &descriptors, breaks)?;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        self.stop.store(true, Ordering::Release);
        self.work.end().map(drop)
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn unsaved(&self) -> Option<&'static str> {
        self.mounted.load(Ordering::Acquire).then_some("a shared directory is mounted")
    }

    fn save(&self) -> DeviceState {
        let positions = self.work.paused().map(Service::positions).unwrap_or_default();
        DeviceState { positions, ..DeviceState::default() }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        // That its thread hangs has been said.
        let _ = self.reset();
    }
}
