//! How much memory the guest has: what it booted with and what virtio-mem has plugged since, without what is in
//! the balloon for a while.

use std::time::Duration;
use std::time::Instant;

use kiai_devices::platform::Discards;
use kiai_devices::virtio::mem::Mem;
use kiai_devices::virtio::mem::MemControl;
use kiai_devices::virtio::mem::MemRegion;

use super::BootError;
use super::Machine;
use super::attach::Kind;
use super::attach::Slot;
use crate::handle::DeviceId;
use crate::handle::Ending;
use crate::handle::MemorySizes;
use crate::layout;
use crate::memory::SECTION;

/// Why a size of memory cannot be asked for; what was asked for before still is.
#[derive(Debug, thiserror::Error)]
pub enum MemoryRequestError {
    /// The machine is over.
    #[error("the microVM has ended: {0}")]
    Ended(Ending),
    /// The guest cannot give up what it booted with, nor get more than the machine was built for.
    #[error("{mib} MiB of memory: between {least} and {most} can be had")]
    OutOfRange {
        /// Asked for.
        mib: u32,
        /// At boot.
        least: u32,
        /// At most.
        most: u32,
    },
}

/// Why nothing can be put into the balloon.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// The machine is over.
    #[error("the microVM has ended: {0}")]
    Ended(Ending),
    /// There is no balloon.
    #[error("the microVM has no balloon")]
    None,
    /// A device reaches guest RAM without the CPU: none of it can be given back.
    #[error("guest RAM is pinned for a device")]
    Pinned,
}

/// The region for a machine of `boot` MiB that may have `most`.
pub(super) fn region(boot: u32, most: u32) -> Option<MemRegion> {
    let length = (u64::from(most.saturating_sub(boot)) << 20).next_multiple_of(SECTION);
    let address = layout::hotplug_start(u64::from(boot) << 20);
    (length > 0).then(|| MemRegion { address, length, block: layout::hotplug_block(length) })
}

impl Machine {
    /// Puts the virtio-mem device on the bus, of a machine that can have more memory than at boot.
    pub(super) fn attach_hotplug(&mut self) -> Result<(), BootError> {
        if let Some(device) = self.hotplug_device() {
            let (slot, function) = self.insert(device)?;
            self.devices.get_mut().insert(DeviceId(slot), Slot { kind: Kind::Memory, function });
        }
        Ok(())
    }

    /// The device, which is not on the bus yet.
    pub(super) fn hotplug_device(&mut self) -> Option<Box<Mem>> {
        let ram = self.plugging.as_ref()?;
        let device = Mem::new(ram.region(), ram.clone());
        self.hotplug = Some(device.control());
        Some(Box::new(device))
    }

    pub(crate) fn memory(&self) -> MemorySizes {
        let boot = self.sizes.memory_mib;
        let mib = |bytes: u64| boot + u32::try_from(bytes >> 20).expect("the address map ends at 256 GiB");
        let sizes = self.hotplug.as_ref().map(MemControl::sizes).unwrap_or_default();
        MemorySizes {
            boot,
            requested: mib(sizes.requested),
            plugged: mib(sizes.plugged),
            most: mib(sizes.most),
        }
    }

    pub(crate) fn request_memory(&self, mib: u32) -> Result<(), MemoryRequestError> {
        if let Err(ending) = self.control.status() {
            return Err(MemoryRequestError::Ended(ending));
        }
        let MemorySizes { boot: least, most, .. } = self.memory();
        let out_of_range = || MemoryRequestError::OutOfRange { mib, least, most };
        let more = mib.checked_sub(least).ok_or_else(out_of_range)?;
        match &self.hotplug {
            Some(control) => {
                let bytes = (u64::from(more) << 20).next_multiple_of(control.block());
                control.request(bytes).map_err(|_| out_of_range())
            }
            None if more == 0 => Ok(()),
            None => Err(out_of_range()),
        }
    }

    pub(crate) fn await_memory(&self, patience: Duration) -> MemorySizes {
        if let Some(control) = &self.hotplug {
            control.wait(|sizes| sizes.plugged == sizes.requested, Instant::now() + patience);
        }
        self.memory()
    }

    pub(crate) fn request_balloon(&self, bytes: u64) -> Result<(), BalloonError> {
        if let Err(ending) = self.control.status() {
            return Err(BalloonError::Ended(ending));
        }
        let balloon = self.balloon.lock().clone().ok_or(BalloonError::None)?;
        // A device's pages are not given back whatever is in the balloon; this spares the guest the work.
        if bytes > 0 && !self.ram.discard(&mut || ()) {
            return Err(BalloonError::Pinned);
        }
        balloon.set_target(bytes);
        Ok(())
    }

    pub(crate) fn await_balloon(&self, patience: Duration) -> u64 {
        let Some(balloon) = self.balloon.lock().clone() else { return 0 };
        let (target, mut before) = (balloon.target(), balloon.actual());
        let strays = |actual: u64| {
            let before = std::mem::replace(&mut before, actual);
            actual == target || actual.abs_diff(target) > before.abs_diff(target)
        };
        balloon.wait(strays, Instant::now() + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_has_room_for_what_is_more_than_at_boot() {
        assert_eq!(region(256, 256), None);
        let some = region(256, 1000).unwrap();
        assert_eq!((some.address, some.length, some.block), (4 << 30, 768 << 20, 2 << 20));
        let most = region(32, 240_000).unwrap();
        assert!(most.address + most.length <= layout::PCI64);
        let high = region(200_000, 240_000).unwrap();
        assert!(high.address + high.length <= layout::PCI64);
    }
}
