//! Makes the VM in the order that costs least.
//!
//! Memory slots come before the interrupt controller: with it in place each slot waits for a grace period of
//! its bus readers (milliseconds). No PIT, no PIC: a kernel with kvmclock and the TSC deadline timer needs
//! neither.

use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;
use kvm_ioctls::VmFd;
use std::sync::Arc;

use super::slots::Slots;
use crate::layout;

/// Why KVM could not give us a machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error("open /dev/kvm")]
    Open(#[source] std::io::Error),
    /// The kernel's KVM lacks something without which no microVM runs.
    #[error("this KVM has no {0}")]
    Missing(&'static str),
    /// A model-specific register of a saved vCPU has a value that it cannot have here.
    #[error("this KVM does not take {value:#x} for model-specific register {index:#x}")]
    Msr {
        /// Which.
        index: u32,
        /// What it was.
        value: u64,
    },
    /// An ioctl failed.
    #[error("KVM: {step}")]
    Ioctl {
        /// What was asked for.
        step: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

impl KvmError {
    /// For `map_err` on an ioctl.
    pub(crate) fn at(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Ioctl { step, source: std::io::Error::from_raw_os_error(e.errno()) }
    }
}

/// KVM, and a VM that has nothing yet.
///
/// The kernel starts a thread for each VM and waits until that has joined the caller's cgroups, which takes a grace
/// period of RCU: milliseconds in which the caller sleeps. Whoever has something else to do calls this from a thread.
pub(crate) fn open() -> Result<(Kvm, Arc<VmFd>), KvmError> {
    let kvm = Kvm::new().map_err(|e| KvmError::Open(std::io::Error::from_raw_os_error(e.errno())))?;
    for (capability, name) in [
        (Cap::SplitIrqchip, "split irqchip"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::UserMemory, "user memory slots"),
        (Cap::ImmediateExit, "immediate exit"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(KvmError::Missing(name));
        }
    }
    let vm = Arc::new(kvm.create_vm().map_err(KvmError::at("create VM"))?);
    Ok((kvm, vm))
}

/// Gives a VM `ram` (guest address, host address, length), in the slots that are returned, and a split interrupt
/// controller. Once for each VM.
pub(crate) fn equip(vm: &Arc<VmFd>, ram: &[(u64, u64, u64)]) -> Result<Slots, KvmError> {
    let slots = Slots::new(vm.clone());
    for &(guest, host, length) in ram {
        slots
            .add(guest, host, length, false)
            .map_err(|source| KvmError::Ioctl { step: "memory slot", source })?;
    }
    vm.set_tss_address(usize::try_from(layout::KVM_TSS).expect("x86-64 only: usize has 64 bits"))
        .map_err(KvmError::at("set TSS address"))?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = u64::from(layout::FIRST_MSI_GSI);
    vm.enable_cap(&split).map_err(KvmError::at("enable split irqchip"))?;
    Ok(slots)
}
