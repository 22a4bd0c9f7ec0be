//! Message-signalled interrupts on irqfds: each vector owns a GSI, an eventfd and a routing entry.
//!
//! Lock order: [`KvmInterrupts`]'s table, then nothing.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kiai_devices::platform::Interrupts;
use kiai_devices::platform::MsiMessage;
use kiai_devices::platform::MsiVector;
use kvm_bindings::KVM_IRQ_ROUTING_MSI;
use kvm_bindings::KvmIrqRouting;
use kvm_bindings::kvm_irq_routing_entry;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use crate::layout;

/// KVM's limit on routing entries (KVM_MAX_IRQ_ROUTES); GSIs beyond it cannot be routed.
const LAST_GSI: u32 = 4095;

/// GSI → message; `None` while allocated but not routed.
type Table = BTreeMap<u32, Option<MsiMessage>>;

/// The interrupts of one VM.
#[derive(Clone)]
pub(crate) struct KvmInterrupts {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Table>>,
}

impl KvmInterrupts {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Arc::default() }
    }

    /// Hands the whole table to KVM, which replaces it at once.
    fn commit(&self, table: &Table) -> io::Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = table
            .iter()
            .filter_map(|(&gsi, message)| message.map(|m| (gsi, m)))
            .map(|(gsi, message)| {
                let mut entry =
                    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
                let [low, high] = [message.address & 0xffff_ffff, message.address >> 32];
                entry.u.msi.address_lo = u32::try_from(low).expect("masked to 32 bits");
                entry.u.msi.address_hi = u32::try_from(high).expect("shifted to 32 bits");
                entry.u.msi.data = message.data;
                entry
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| io::Error::other(format!("routing table of {} entries: {e:?}", entries.len())))?;
        self.vm.set_gsi_routing(&routing).map_err(errno)
    }
}

impl Interrupts for KvmInterrupts {
    fn vectors(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        let any = layout::FIRST_MSI_GSI..=LAST_GSI;
        let vector = || Ok(Arc::new(KvmVector::new(self.clone(), any.clone())?) as Arc<dyn MsiVector>);
        (0..count).map(|_| vector()).collect()
    }

    fn ioapic_pin(&self, pin: u8) -> io::Result<Arc<dyn MsiVector>> {
        // With a split irqchip KVM reports the end of level-triggered interrupts whose routes are the GSIs it
        // was told are I/O APIC pins: the first 24 (KVM api.rst 7.5).
        let gsi = u32::from(pin);
        Ok(Arc::new(KvmVector::new(self.clone(), gsi..=gsi)?))
    }
}

/// One interrupt; gives its GSI back when dropped.
struct KvmVector {
    interrupts: KvmInterrupts,
    gsi: u32,
    event: EventFd,
    /// Whether the irqfd is registered, that is: routed.
    connected: Mutex<bool>,
}

impl KvmVector {
    /// Takes the first free GSI of `among`.
    fn new(interrupts: KvmInterrupts, mut among: RangeInclusive<u32>) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let gsi = {
            let mut table = interrupts.table.lock();
            let gsi = among
                .find(|gsi| !table.contains_key(gsi))
                .ok_or_else(|| io::Error::other("no free interrupt route"))?;
            table.insert(gsi, None);
            gsi
        };
        Ok(Self { interrupts, gsi, event, connected: Mutex::new(false) })
    }
}

impl MsiVector for KvmVector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut connected = self.connected.lock();
        let vm = &self.interrupts.vm;
        if message.is_none() && *connected {
            vm.unregister_irqfd(&self.event, self.gsi).map_err(errno)?;
            *connected = false;
        }
        {
            let mut table = self.interrupts.table.lock();
            change(&mut table, self.gsi, message, |table| self.interrupts.commit(table))?;
        }
        if message.is_some() && !*connected {
            vm.register_irqfd(&self.event, self.gsi).map_err(errno)?;
            *connected = true;
        }
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }

    fn eventfd(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for KvmVector {
    fn drop(&mut self) {
        if *self.connected.lock() {
            // The VM may be half gone; then so is the irqfd.
            let _ = self.interrupts.vm.unregister_irqfd(&self.event, self.gsi);
        }
        self.interrupts.table.lock().remove(&self.gsi);
    }
}

/// Sets one message of the table. One that KVM does not take, and a guest chooses them, is not kept: it would be
/// in the way of every other vector's next change.
fn change(
    table: &mut Table,
    gsi: u32,
    message: Option<MsiMessage>,
    commit: impl FnOnce(&Table) -> io::Result<()>,
) -> io::Result<()> {
    let before = table.insert(gsi, message);
    // A masked entry may stay behind in KVM: nothing can raise it.
    if message.is_some() && before != Some(message) {
        let committed = commit(table);
        if committed.is_err() {
            table.insert(gsi, before.flatten());
        }
        return committed;
    }
    Ok(())
}

fn errno(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_the_kernel_refuses_is_in_nobodys_way() {
        let (good, bad) = (MsiMessage { address: 0xfee0_0000, data: 1 }, MsiMessage { address: 1, data: 2 });
        let kernel = |table: &Table| {
            let refused = table.values().any(|message| *message == Some(bad));
            if refused { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
        };
        let mut table = Table::from([(24, None), (25, None)]);
        change(&mut table, 24, Some(good), kernel).unwrap();
        assert!(change(&mut table, 24, Some(bad), kernel).is_err());
        assert!(change(&mut table, 25, Some(bad), kernel).is_err());
        change(&mut table, 25, Some(good), kernel).unwrap();
        assert_eq!(table, Table::from([(24, Some(good)), (25, Some(good))]));
        assert!(change(&mut table, 24, Some(good), |_| unreachable!("nothing changed")).is_ok());
    }
}
