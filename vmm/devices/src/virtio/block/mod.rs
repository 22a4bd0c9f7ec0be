//! virtio-blk (virtio 1.2 §5.2) on a raw image or a block device.
//!
//! `request` parses a chain, `backend` does the I/O (on a `ring` of io_uring, or by system calls where that is
//! refused), `worker` carries requests between the virtqueue and the backend. No image format is ever guessed: what the file
//! holds is the disk.

mod backend;
mod request;
mod ring;
#[cfg(test)]
mod tests;
mod transfer;
mod worker;

use std::fs::File;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::device::ActivateError;
use super::device::Activation;
use super::device::DeviceState;
use super::device::VirtioDevice;
use crate::io_thread::Hung;
use crate::io_thread::Pausable;
use crate::io_thread::Work;
use crate::platform::Role;
use backend::Backend;
use request::SECTOR;
use worker::Requests;

/// Feature bits (virtio 1.2 §5.2.3).
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const QUEUE_SIZES: &[u16] = &[256];
/// Data segments of one request, the header and the status descriptor apart.
const SEGMENTS: u32 = 254;
/// Bytes of one segment. Together they stay below [`MOST_DATA`].
const SEGMENT_SIZE: u32 = 128 << 10;
/// Most bytes one request may move; more is answered with an error. A bound on the work one request can ask
/// for.
const MOST_DATA: u32 = 32 << 20;
/// Most sectors in one segment of a discard or write-zeroes request: 256 MiB. The same bound for those.
const MAX_DISCARD_SECTORS: u32 = 1 << 19;
/// Bytes under way after which the next request waits: as much as a reset may have to wait for.
const MOST_UNDER_WAY: u64 = 64 << 20;
/// Length of a device identifier (virtio 1.2 §5.2.6).
const ID_LENGTH: usize = 20;

/// Why a disk cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Its size could not be found out.
    #[error("disk {name}: size")]
    Size {
        /// The file.
        name: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// It has no whole sector.
    #[error("disk {name}: {bytes} bytes are less than one sector of 512")]
    Empty {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The serial does not fit.
    #[error("disk {name}: serial {serial:?} is not 1 to 20 printable ASCII characters")]
    Serial {
        /// The file.
        name: String,
        /// What was asked for.
        serial: String,
    },
}

/// The disk as requests see it.
pub(crate) struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; ID_LENGTH],
}

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    /// With nothing under way, while the device is idle. Made with the device: the guest's register writes make
    /// none.
    backend: Option<Backend>,
    work: Work<Requests>,
}

impl Block {
    /// A disk on `file`, open for writing unless `read_only`. `name` is what errors call it; `serial` is what
    /// the guest finds it by.
    pub fn new(mut file: File, name: String, read_only: bool, serial: String) -> Result<Self, BlockError> {
        if serial.is_empty() || serial.len() > ID_LENGTH || !serial.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BlockError::Serial { name, serial });
        }
        // Seeking works for files and block devices alike; metadata knows only the former.
        let bytes = match file.seek(SeekFrom::End(0)) {
            Ok(bytes) => bytes,
            Err(source) => return Err(BlockError::Size { name, source }),
        };
        let sectors = bytes / SECTOR;
        if sectors == 0 {
            return Err(BlockError::Empty { name, bytes });
        }
        let mut id = [0; ID_LENGTH];
        id[..serial.len()].copy_from_slice(serial.as_bytes());
        let disk = Arc::new(Disk { file, sectors, read_only, id });
        Ok(Self { disk, backend: Some(Backend::new(QUEUE_SIZES[0])), work: Work::default() })
    }

    /// Device configuration (virtio 1.2 §5.2.4), up to and with the write-zeroes fields.
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.sectors.to_le_bytes());
        put(8, &SEGMENT_SIZE.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes()); // max_discard_seg
        put(44, &8u32.to_le_bytes()); // discard_sector_alignment: 4 KiB
        put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
        config
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u16 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn threads(&self) -> Vec<Role> {
        vec![Role::Disk]
    }

    fn features(&self) -> u64 {
        let common = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        common | if self.disk.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let known = &config[from..];
        let count = known.len().min(data.len());
        data[..count].copy_from_slice(&known[..count]);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.queues.pop().ok_or(ActivateError::QueueMissing(0))?;
        let notification = queue.notification.as_raw_fd();
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        // A ring that went with a handler that panicked is not made again.
        let backend = self.backend.take().unwrap_or(Backend::Synchronous);
        let requests = Requests::new(self.disk.clone(), backend, queue, activation);
        let mut descriptors = vec![(notification, worker::NOTIFICATION)];
        descriptors.extend(requests.completions().map(|fd| (fd, worker::COMPLETION)));
        self.work.begin((&thread, "virtio-blk"), requests, &descriptors, breaks)?;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        if let Some(requests) = self.work.end()? {
            self.backend = Some(requests.into_backend());
        }
        Ok(())
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(self.work.paused().map(Requests::queue))
    }
}
