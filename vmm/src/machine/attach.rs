//! Attach and detach: one transaction each, the same before the guest's first instruction and while it runs.
//!
//! Allocate a slot, build the device, put its function on the bus. Every step before the last undoes itself
//! by being dropped; the last either happens or does not.

use std::sync::Arc;

use crate::layout::GUEST_CID;
use kiai_devices::pci::segment::InsertError;
use kiai_devices::virtio::balloon::Balloon;
use kiai_devices::virtio::block::Block;
use kiai_devices::virtio::block::BlockError;
use kiai_devices::virtio::device::VirtioDevice;
use kiai_devices::virtio::net::Net;
use kiai_devices::virtio::net::NetError;
use kiai_devices::virtio::rng::Rng;
use kiai_devices::virtio::transport::pci::VirtioPciFunction;
use kiai_devices::virtio::vsock::Vsock;
use kiai_fs::Fs;
use kiai_fs::FsError;

use super::Machine;
use super::passthrough::PassError;
use crate::config::DeviceConfig;
use crate::handle::Attached;
use crate::handle::DeviceId;
use crate::handle::Ending;

/// Why a device could not be attached; the machine is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The machine is over.
    #[error("the microVM has ended: {0}")]
    Ended(Ending),
    /// A second vsock device.
    #[error("the microVM has a vsock device already")]
    SecondVsock,
    /// A second balloon.
    #[error("the microVM has a balloon already")]
    SecondBalloon,
    /// The disk.
    #[error("block device")]
    Block(#[source] BlockError),
    /// The taps.
    #[error("network device")]
    Net(#[source] NetError),
    /// The shared directory.
    #[error("shared directory")]
    Fs(#[source] FsError),
    /// A PCI function of the host.
    #[error("PCI function {address}")]
    Vfio {
        /// On the host.
        address: String,
        /// The reason.
        #[source]
        source: PassError,
    },
    /// The host gave no interrupts or doorbells.
    #[error("interrupts and doorbells")]
    Function(#[source] std::io::Error),
    /// No slot or no address space left.
    #[error("PCI bus")]
    Bus(#[source] InsertError),
}

impl AttachError {
    /// Whether it is a function of the host that somebody else has, which shows only when its own file is bound.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Vfio { source: PassError::Ioas(error), .. } if error.is_in_use())
    }
}

/// Why a device could not be detached.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// No device has this id (any more).
    #[error("no such device on the bus")]
    NotAttached,
}

/// What the machine remembers of an attached device.
pub(super) struct Slot {
    pub(super) kind: Kind,
    /// A function of the host is its own affair.
    pub(super) function: Option<Arc<VirtioPciFunction>>,
}

/// Of which devices there can be only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vsock,
    Balloon,
    Memory,
    Any,
}

impl Kind {
    pub(super) fn of(config: &DeviceConfig) -> Self {
        match config {
            DeviceConfig::Vsock { .. } => Self::Vsock,
            DeviceConfig::Balloon => Self::Balloon,
            _ => Self::Any,
        }
    }
}

impl Machine {
    pub(crate) fn attach(&self, config: DeviceConfig) -> Result<Attached, AttachError> {
        if let Err(ending) = self.control.status() {
            return Err(AttachError::Ended(ending));
        }
        let mut devices = self.devices.lock();
        let kind = Kind::of(&config);
        if devices.values().any(|slot| slot.kind == kind) {
            match kind {
                Kind::Vsock => return Err(AttachError::SecondVsock),
                Kind::Balloon => return Err(AttachError::SecondBalloon),
                Kind::Memory | Kind::Any => {}
            }
        }
        let (slot, function) = match config {
            DeviceConfig::Vfio { opened, address } => {
                let function = self.passthrough.open(opened, &address, self.platform.interrupts.as_ref());
                let function = function.map_err(|source| AttachError::Vfio { address, source })?;
                (self.segment.insert(function).map_err(AttachError::Bus)?, None)
            }
            config => self.insert(self.device(config)?)?,
        };
        let id = DeviceId(slot);
        devices.insert(id, Slot { kind, function });
        Ok(Attached { id, pci_path: format!("{slot:02x}.0") })
    }

    /// Makes a device a function on the bus; its slot.
    pub(super) fn insert(
        &self,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(u8, Option<Arc<VirtioPciFunction>>), AttachError> {
        let function = self.virtio(device)?;
        let slot = self.segment.insert(function.clone()).map_err(AttachError::Bus)?;
        Ok((slot, Some(function)))
    }

    pub(crate) fn detach(&self, id: DeviceId) -> Result<(), DetachError> {
        let mut devices = self.devices.lock();
        devices.remove(&id).ok_or(DetachError::NotAttached)?;
        self.segment.remove(id.0);
        Ok(())
    }

    /// Stops every device; afterwards none touches guest memory.
    pub(super) fn remove_devices(&self) {
        let mut devices = self.devices.lock();
        for (id, _) in std::mem::take(&mut *devices) {
            self.segment.remove(id.0);
        }
        self.threads.let_go();
    }

    /// Makes a device a function, which is not on the bus yet.
    pub(super) fn virtio(
        &self,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<VirtioPciFunction>, AttachError> {
        VirtioPciFunction::new(device, self.memory.clone(), self.platform.clone())
            .map_err(AttachError::Function)
    }

    /// A device of ours. A function of the host is none.
    pub(super) fn device(&self, config: DeviceConfig) -> Result<Box<dyn VirtioDevice>, AttachError> {
        Ok(match config {
            DeviceConfig::Block { disk, read_only, serial } => {
                Box::new(Block::new(disk.file, disk.name, read_only, serial).map_err(AttachError::Block)?)
            }
            DeviceConfig::Fs { tag, directory } => {
                Box::new(Fs::new(&tag, &directory).map_err(AttachError::Fs)?)
            }
            DeviceConfig::Rng => Box::new(Rng::new()),
            DeviceConfig::Balloon => {
                let balloon = Balloon::unless_pinned(self.ram.clone());
                *self.balloon.lock() = Some(balloon.control());
                Box::new(balloon)
            }
            DeviceConfig::Vsock { ports } => Box::new(Vsock::new(GUEST_CID, ports)),
            DeviceConfig::Net { taps, mac, mtu } => {
                Box::new(Net::new(taps, mac, mtu).map_err(AttachError::Net)?)
            }
            DeviceConfig::Vfio { .. } => unreachable!("its caller has opened it"),
        })
    }
}
