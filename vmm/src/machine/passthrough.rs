//! Functions of the host in this machine: one IOMMU domain for all of them, holding guest RAM, from the first
//! one's attach to the last one's end.
//!
//! A function holds its group's membership, which holds the domain; so everything goes when nobody has it any
//! more, whatever the order.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Weak;

use kiai_devices::ioapic::IoApic;
use kiai_devices::platform::Interrupts;
use kiai_devices::vfio::Iommu;
use kiai_devices::vfio::IommuError;
use kiai_devices::vfio::KernelDevice;
use kiai_devices::vfio::VfioError;
use kiai_devices::vfio::VfioFunction;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

use crate::config::VfioGroup;
use crate::kvm::KvmVfio;
use crate::layout;
use crate::memory::Ram;
use crate::memory::Subscription;

/// Why a function of the host could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Its group.
    #[error(transparent)]
    Iommu(#[from] IommuError),
    /// Guest memory cannot be made reachable for it.
    #[error("guest memory in the IOMMU")]
    Memory(#[source] io::Error),
    /// KVM was told of the group and refused.
    #[error("KVM's VFIO device")]
    Kvm(#[source] io::Error),
    /// It is not in the group, or somebody has it.
    #[error("open it in IOMMU group {group}")]
    Open {
        /// Number of the group.
        group: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It was opened and cannot be used.
    #[error(transparent)]
    Function(#[from] VfioError),
}

/// What the machine remembers. Nothing is held but weakly.
pub(super) struct Passthrough {
    kvm: Arc<KvmVfio>,
    ram: Arc<Ram>,
    ioapic: Arc<IoApic>,
    members: Mutex<Vec<Weak<Member>>>,
}

/// A group that is in the machine.
struct Member {
    group: Arc<VfioGroup>,
    kvm: Arc<KvmVfio>,
    domain: Arc<Domain>,
}

/// The IOMMU's map, and what keeps it in step with guest RAM.
struct Domain {
    iommu: Arc<Iommu>,
    _ram: Subscription,
}

impl Passthrough {
    pub(super) fn new(vm: Arc<VmFd>, ram: Arc<Ram>, ioapic: Arc<IoApic>) -> Self {
        Self { kvm: Arc::new(KvmVfio::new(vm)), ram, ioapic, members: Mutex::default() }
    }

    /// Takes a function over. On an error everything is as it was.
    pub(super) fn open(
        &self,
        group: Arc<VfioGroup>,
        address: &str,
        interrupts: &dyn Interrupts,
    ) -> Result<Arc<VfioFunction>, PassError> {
        let member = self.join(group)?;
        let device = KernelDevice::open(&member.group.group, address, member.clone())
            .map_err(|source| PassError::Open { group: member.group.group.name().to_owned(), source })?;
        Ok(VfioFunction::new(Arc::new(device), interrupts, (&self.ioapic, layout::PCI_GSI))?)
    }

    fn join(&self, group: Arc<VfioGroup>) -> Result<Arc<Member>, PassError> {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        let present: Vec<Arc<Member>> = members.iter().filter_map(Weak::upgrade).collect();
        if let Some(member) = present.iter().find(|member| Arc::ptr_eq(&member.group, &group)) {
            return Ok(member.clone());
        }
        let domain = match present.first() {
            Some(member) => {
                member.domain.iommu.join(&group.group)?;
                member.domain.clone()
            }
            None => Arc::new(self.domain(&group)?),
        };
        self.kvm.add(group.group.as_fd()).map_err(PassError::Kvm)?;
        let member = Arc::new(Member { group, kvm: self.kvm.clone(), domain });
        members.push(Arc::downgrade(&member));
        Ok(member)
    }

    fn domain(&self, first: &VfioGroup) -> Result<Domain, PassError> {
        let container = first.container.try_clone().map_err(PassError::Memory)?;
        let iommu = Arc::new(Iommu::new(container, &first.group)?);
        let ram = self.ram.subscribe(iommu.clone()).map_err(PassError::Memory)?;
        Ok(Domain { iommu, _ram: ram })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Err(e) = self.kvm.remove(self.group.group.as_fd()) {
            tracing::error!("KVM keeps IOMMU group {}: {e}", self.group.group.name());
        }
    }
}
