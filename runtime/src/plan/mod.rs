//! Plans, made before anything is done: OCI spec + configuration + facts about the host -> plans.
//!
//! Pure functions over plain data; no I/O here. `host::facts` reads the facts, `sandbox` and `container` carry the
//! plans out. OCI runtime-spec 1.1 `config.md`, `config-linux.md`.

mod annotations;
mod container;
mod devices;
mod error;
mod facts;
mod hooks;
mod mapping;
mod mounts;
mod namespaces;
mod pci;
mod sandbox;
mod size;

pub use annotations::Annotations;
pub use annotations::Role;
pub use container::ContainerPlan;
pub use container::check_id;
pub use container::plan_container;
pub use devices::Disk;
pub use devices::plan_devices;
pub use error::PlanError;
pub use facts::BlockDevice;
pub use facts::HostFacts;
pub use facts::SourceKind;
pub use facts::wanted_groups;
pub use facts::wanted_sources;
pub use hooks::HostHooks;
pub use hooks::poststop;
pub use mapping::Attachment;
pub use mapping::DeviceMap;
pub use mapping::GuestSide;
pub use mapping::HostSide;
pub use mapping::MappedDevice;
pub use mounts::GUEST_SHM;
pub use mounts::Volume;
pub use mounts::VolumeKind;
pub use mounts::container_directory;
pub use mounts::plan_volume;
pub use namespaces::NetworkNamespace;
pub use namespaces::network_namespace;
pub use pci::ParsePciAddressError;
pub use pci::PassthroughFunction;
pub use pci::PassthroughMode;
pub use pci::PciAddress;
pub use pci::PciFunctionFacts;
pub use pci::VFIO_DRIVER;
pub use pci::VfioGroupFacts;
pub use pci::VfioInterface;
pub use sandbox::SandboxPlan;
pub use sandbox::plan_sandbox;
pub use size::Bounds;
pub use size::Limits;
pub use size::MachineSize;
