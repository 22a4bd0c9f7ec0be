//! Functions of the host in this machine: one IOMMU domain for all of them that were opened alike, holding guest
//! RAM, from the first one's attach to the last one's end.
//!
//! A function holds its group's membership or its own, which holds the domain; so everything goes when nobody has it
//! any more, whatever the order.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Weak;

use kiai_devices::ioapic::IoApic;
use kiai_devices::platform::Interrupts;
use kiai_devices::platform::RamListener;
use kiai_devices::vfio::Attachment;
use kiai_devices::vfio::Cdev;
use kiai_devices::vfio::Ioas;
use kiai_devices::vfio::IoasError;
use kiai_devices::vfio::Iommu;
use kiai_devices::vfio::IommuError;
use kiai_devices::vfio::KernelDevice;
use kiai_devices::vfio::VfioError;
use kiai_devices::vfio::VfioFunction;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

use crate::config::OpenFunction;
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
    /// Its own device file.
    #[error(transparent)]
    Ioas(#[from] IoasError),
    /// Guest memory cannot be made reachable for it.
    #[error("guest memory in the IOMMU")]
    Memory(#[source] io::Error),
    /// KVM was told of its file and refused.
    #[error("tell KVM of {file}")]
    Kvm {
        /// What the file is.
        file: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It is not in the group, or somebody has it.
    #[error("open it in IOMMU group {group}")]
    Open {
        /// Number of the group.
        group: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The device file does not say what it is.
    #[error("open {cdev}")]
    OpenCdev {
        /// Its path.
        cdev: String,
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
    present: Mutex<Present>,
}

/// Who has joined a domain: groups one, functions opened by their own files another.
#[derive(Default)]
struct Present {
    groups: Vec<Weak<Member>>,
    cdevs: Weak<Domain<Ioas>>,
}

/// A group that is in the machine.
struct Member {
    group: Arc<VfioGroup>,
    kvm: Arc<KvmVfio>,
    domain: Arc<Domain<Iommu>>,
}

/// A function in the machine by its own file. Fields in the order of their end: no more DMA, then KVM lets go of the
/// file, then the map goes.
struct Attached {
    _attachment: Attachment,
    told: Told,
    _domain: Arc<Domain<Ioas>>,
}

/// KVM knows of a function's file.
struct Told {
    cdev: Arc<Cdev>,
    kvm: Arc<KvmVfio>,
}

/// The IOMMU's map, and what keeps it in step with guest RAM.
struct Domain<Map> {
    map: Arc<Map>,
    _ram: Subscription,
}

impl Passthrough {
    pub(super) fn new(vm: Arc<VmFd>, ram: Arc<Ram>, ioapic: Arc<IoApic>) -> Self {
        Self { kvm: Arc::new(KvmVfio::new(vm)), ram, ioapic, present: Mutex::default() }
    }

    /// Takes a function over. On an error everything is as it was.
    pub(super) fn open(
        &self,
        opened: OpenFunction,
        address: &str,
        interrupts: &dyn Interrupts,
    ) -> Result<Arc<VfioFunction>, PassError> {
        let device = match opened {
            OpenFunction::Group(group) => {
                let member = self.join(group)?;
                let group = &member.group.group;
                KernelDevice::open(group, address, member.clone())
                    .map_err(|source| PassError::Open { group: group.name().to_owned(), source })?
            }
            OpenFunction::Cdev { cdev, iommufd } => {
                let attached = Arc::new(self.attach(Cdev::new(cdev.name, cdev.file.into()), iommufd)?);
                let cdev = &attached.told.cdev;
                KernelDevice::of_cdev(cdev, attached.clone())
                    .map_err(|source| PassError::OpenCdev { cdev: cdev.name().to_owned(), source })?
            }
        };
        Ok(VfioFunction::new(Arc::new(device), interrupts, (&self.ioapic, layout::PCI_GSI))?)
    }

    fn join(&self, group: Arc<VfioGroup>) -> Result<Arc<Member>, PassError> {
        let members = &mut self.present.lock().groups;
        members.retain(|member| member.strong_count() > 0);
        let present: Vec<Arc<Member>> = members.iter().filter_map(Weak::upgrade).collect();
        if let Some(member) = present.iter().find(|member| Arc::ptr_eq(&member.group, &group)) {
            return Ok(member.clone());
        }
        let domain = match present.first() {
            Some(member) => {
                member.domain.map.join(&group.group)?;
                member.domain.clone()
            }
            None => {
                let container = group.container.try_clone().map_err(PassError::Memory)?;
                Arc::new(self.domain(Iommu::new(container, &group.group)?.into())?)
            }
        };
        self.kvm.add(group.group.as_fd()).map_err(|source| PassError::Kvm {
            file: format!("IOMMU group {}", group.group.name()),
            source,
        })?;
        let member = Arc::new(Member { group, kvm: self.kvm.clone(), domain });
        members.push(Arc::downgrade(&member));
        Ok(member)
    }

    fn attach(&self, cdev: Cdev, iommufd: OwnedFd) -> Result<Attached, PassError> {
        let mut present = self.present.lock();
        self.kvm
            .add(cdev.as_fd())
            .map_err(|source| PassError::Kvm { file: cdev.name().to_owned(), source })?;
        let told = Told { cdev: Arc::new(cdev), kvm: self.kvm.clone() };
        let domain = present.cdevs.upgrade();
        let map = match &domain {
            Some(domain) => domain.map.clone(),
            None => Arc::new(Ioas::new(iommufd)?),
        };
        // Before memory is mapped: with a function behind it the map knows what it can reach.
        let attachment = map.attach(told.cdev.clone())?;
        let domain = match domain {
            Some(domain) => domain,
            None => Arc::new(self.domain(map)?),
        };
        present.cdevs = Arc::downgrade(&domain);
        Ok(Attached { _attachment: attachment, told, _domain: domain })
    }

    fn domain<Map: RamListener + 'static>(&self, map: Arc<Map>) -> Result<Domain<Map>, PassError> {
        let ram = self.ram.subscribe(map.clone()).map_err(PassError::Memory)?;
        Ok(Domain { map, _ram: ram })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Err(e) = self.kvm.remove(self.group.group.as_fd()) {
            tracing::error!("KVM keeps IOMMU group {}: {e}", self.group.group.name());
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Err(e) = self.kvm.remove(self.cdev.as_fd()) {
            tracing::error!("KVM keeps {}: {e}", self.cdev.name());
        }
    }
}
