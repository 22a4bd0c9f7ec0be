//! PCI functions of the host that are passed through (VFIO): which a spec asks for, and whether they can be assigned.
//!
//! An entry of `linux.devices` names an IOMMU group by its character device. Without an annotation a program in the
//! container drives the group's functions itself, as it would on the host; the annotation `io.kiai.vfio.<n>` =
//! "ADDRESS=guest-driver|user-space" picks a function of the group and says who drives it.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use super::PlanError;

/// A function's address on the host: domain, bus, slot, function ("0000:00:03.0").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    slot: u8,
    function: u8,
}

/// A text that is not a PCI address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a PCI address; write DOMAIN:BUS:SLOT.FUNCTION, like 0000:00:03.0")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let parts: Vec<&str> = rest.split(':').collect();
            // The domain may be left out, as lspci does.
            let (domain, bus, slot) = match parts[..] {
                [bus, slot] => ("0", bus, slot),
                [domain, bus, slot] => (domain, bus, slot),
                _ => return None,
            };
            let hex = |word: &str, most: u32| {
                let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
                u32::from_str_radix(word, 16).ok().filter(|&number| digits && number <= most)
            };
            let byte = |word: &str, most| hex(word, most).and_then(|number| u8::try_from(number).ok());
            Some(Self {
                domain: hex(domain, u32::MAX)?,
                bus: byte(bus, 0xff)?,
                slot: byte(slot, 0x1f)?,
                function: byte(function, 7)?,
            })
        };
        parse().ok_or_else(|| ParsePciAddressError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

impl TryFrom<String> for PciAddress {
    type Error = ParsePciAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

/// Facts about one PCI function of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunctionFacts {
    /// The function's address.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface: 0xCCSSPP.
    pub class: u32,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// The number of its IOMMU group; none without an IOMMU.
    pub group: Option<u32>,
    /// It can be reset without resetting other functions.
    pub resets: bool,
    /// Its own device file, if it is bound to VFIO and the kernel has iommufd.
    pub cdev: Option<PathBuf>,
}

/// The kernel's interfaces to a function that is bound to VFIO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VfioInterface {
    /// The function's own device file and iommufd.
    Cdev(PathBuf),
    /// The function's IOMMU group and a VFIO container.
    Group(u32),
}

impl fmt::Display for VfioInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cdev(_) => f.write_str("cdev"),
            Self::Group(number) => write!(f, "group {number}"),
        }
    }
}

/// Base class of bridges.
const BRIDGE: u32 = 0x06;
const BRIDGE_SUBCLASS_PCI: u32 = 0x0604;
/// The driver a function must be bound to before it can be assigned.
pub const VFIO_DRIVER: &str = "vfio-pci";

impl PciFunctionFacts {
    /// Whether it is a bridge of any kind; bridges are never assigned.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == BRIDGE
    }

    /// Whether it is bound to VFIO.
    pub fn is_vfio(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_DRIVER)
    }

    /// The interface by which it is to be opened, if it is bound to VFIO: its own file if it has one.
    pub fn interface(&self) -> Option<VfioInterface> {
        let group = self.group.filter(|_| self.is_vfio())?;
        Some(self.cdev.clone().map_or(VfioInterface::Group(group), VfioInterface::Cdev))
    }

    /// Whether the other functions of its group can be assigned although this one is not (vfio.rst: it has no driver,
    /// `vfio-pci` or `pci-stub`, or is a PCI bridge).
    pub fn leaves_group_alone(&self) -> bool {
        let harmless = |driver: &str| driver == VFIO_DRIVER || driver == "pci-stub";
        self.driver.as_deref().is_none_or(harmless) || self.class >> 8 == BRIDGE_SUBCLASS_PCI
    }
}

/// An IOMMU group of the host, found by its node's device number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioGroupFacts {
    /// The group's number.
    pub number: u32,
    /// Every function of the group, sorted by address.
    pub functions: Vec<PciFunctionFacts>,
}

/// Who drives a function that is passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassthroughMode {
    /// The guest's kernel: the container gets the nodes that the driver makes.
    GuestDriver,
    /// A program in the container, which gets the node of the function's VFIO group in the guest.
    UserSpace,
}

impl FromStr for PassthroughMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "guest-driver" => Ok(Self::GuestDriver),
            "user-space" => Ok(Self::UserSpace),
            _ => Err(()),
        }
    }
}

impl fmt::Display for PassthroughMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestDriver => "guest-driver",
            Self::UserSpace => "user-space",
        })
    }
}

/// A function of the host that is passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassthroughFunction {
    /// The function's address on the host.
    pub address: PciAddress,
    /// The number of its IOMMU group.
    pub group: u32,
    /// The interface by which it is opened.
    pub interface: VfioInterface,
    /// Who drives it.
    pub mode: PassthroughMode,
    /// Path of the spec's entry that it serves.
    pub container_path: PathBuf,
    /// The entry's major number: that of the group's node on the host.
    pub major: i64,
    /// The entry's minor number.
    pub minor: i64,
}

/// The functions to assign for an entry, which names a group; `chosen` are the functions that annotations name.
pub(super) fn plan_group(
    path: &Path,
    (major, minor): (i64, i64),
    group: &VfioGroupFacts,
    chosen: &[(PciAddress, PassthroughMode)],
) -> Result<Vec<PassthroughFunction>, PlanError> {
    let refuse = |reason: String| PlanError::Device { path: path.into(), reason };
    let in_the_way: Vec<String> = group
        .functions
        .iter()
        .filter(|function| !function.leaves_group_alone())
        .map(|function| {
            format!("{} ({})", function.address, function.driver.as_deref().unwrap_or("no driver"))
        })
        .collect();
    if !in_the_way.is_empty() {
        return Err(refuse(format!(
            "IOMMU group {} is assigned whole or not at all, but drivers of the host have {}; \
            see kiai devices",
            group.number,
            in_the_way.join(", ")
        )));
    }
    let ready = || group.functions.iter().filter(|function| function.is_vfio() && !function.is_bridge());
    let mut wishes: Vec<(PciAddress, PassthroughMode)> = chosen
        .iter()
        .copied()
        .filter(|(address, _)| group.functions.iter().any(|function| function.address == *address))
        .collect();
    if let Some((address, _)) = wishes.iter().find(|(wish, _)| !ready().any(|ready| ready.address == *wish)) {
        return Err(refuse(format!("PCI function {address} is not on vfio-pci; see kiai devices")));
    }
    if wishes.is_empty() {
        wishes = ready().map(|function| (function.address, PassthroughMode::UserSpace)).collect();
    }
    if wishes.is_empty() {
        return Err(refuse(format!("no function of IOMMU group {} is on vfio-pci", group.number)));
    }
    let interface = |address| {
        let own = group.functions.iter().find(|function| function.address == address);
        own.and_then(PciFunctionFacts::interface).unwrap_or(VfioInterface::Group(group.number))
    };
    let function = |(address, mode)| PassthroughFunction {
        address,
        group: group.number,
        interface: interface(address),
        mode,
        container_path: path.into(),
        major,
        minor,
    };
    Ok(wishes.into_iter().map(function).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    fn function(at: &str, class: u32, driver: Option<&str>) -> PciFunctionFacts {
        PciFunctionFacts {
            address: address(at),
            vendor: 0x1b36,
            device: 0x10,
            class,
            driver: driver.map(str::to_owned),
            group: Some(12),
            resets: true,
            cdev: None,
        }
    }

    fn group(functions: Vec<PciFunctionFacts>) -> VfioGroupFacts {
        VfioGroupFacts { number: 12, functions }
    }

    fn plan(group: &VfioGroupFacts, chosen: &[(PciAddress, PassthroughMode)]) -> Result<Vec<String>, String> {
        let planned = plan_group(Path::new("/dev/vfio/12"), (243, 0), group, chosen);
        let planned = planned.map_err(|error| error.to_string())?;
        Ok(planned.iter().map(|passed| format!("{}={}", passed.address, passed.mode)).collect())
    }

    #[test]
    fn addresses_are_read_and_written_alike() {
        for (text, canonical) in [
            ("0000:00:03.0", "0000:00:03.0"),
            ("00:1f.7", "0000:00:1f.7"),
            ("10000:E1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(address(text).to_string(), canonical);
        }
        for wrong in ["", "3.0", "0000:00:20.0", "0000:00:03.8", "0:0:0:0.0", "+1:00.0", "00:03", "g0:00.0"] {
            assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_entry_alone_means_every_function_for_user_space() {
        let group = group(vec![
            function("00:03.0", 0x01_08_02, Some(VFIO_DRIVER)),
            function("00:03.1", 0x02_00_00, Some(VFIO_DRIVER)),
            function("00:03.2", 0x02_00_00, None),
            function("00:01.0", 0x06_04_00, Some("pcieport")),
        ]);
        assert_eq!(plan(&group, &[]).unwrap(), ["0000:00:03.0=user-space", "0000:00:03.1=user-space"]);
        let wish = [
            (address("00:03.1"), PassthroughMode::GuestDriver),
            (address("81:00.0"), PassthroughMode::UserSpace),
        ];
        assert_eq!(plan(&group, &wish).unwrap(), ["0000:00:03.1=guest-driver"]);
    }

    #[test]
    fn a_function_with_a_file_of_its_own_is_opened_by_it() {
        let node = PathBuf::from("/dev/vfio/devices/vfio0");
        let own = PciFunctionFacts {
            cdev: Some(node.clone()),
            ..function("00:03.0", 0x01_08_02, Some(VFIO_DRIVER))
        };
        let group = group(vec![own, function("00:03.1", 0x02_00_00, Some(VFIO_DRIVER))]);
        let planned = plan_group(Path::new("/dev/vfio/12"), (243, 0), &group, &[]).unwrap();
        let interfaces: Vec<_> = planned.into_iter().map(|passed| passed.interface).collect();
        assert_eq!(interfaces, [VfioInterface::Cdev(node), VfioInterface::Group(12)]);
        assert_eq!(function("00:03.0", 0x01_08_02, Some("nvme")).interface(), None);
    }

    #[test]
    fn a_group_the_host_uses_is_refused_with_all_who_are_in_the_way() {
        let group = group(vec![
            function("00:1f.0", 0x06_01_00, Some("lpc_ich")),
            function("00:1f.2", 0x01_06_01, Some("ahci")),
            function("00:1f.3", 0x0c_05_00, Some(VFIO_DRIVER)),
        ]);
        let error = plan(&group, &[]).unwrap_err();
        assert!(error.contains("0000:00:1f.0 (lpc_ich), 0000:00:1f.2 (ahci)"), "{error}");
        assert!(!error.contains("1f.3"), "{error}");
    }

    #[test]
    fn what_is_not_on_vfio_is_named() {
        let group = group(vec![function("00:05.0", 0x01_08_02, None)]);
        assert!(plan(&group, &[]).unwrap_err().contains("no function of IOMMU group 12"));
        let wish = [(address("00:05.0"), PassthroughMode::GuestDriver)];
        assert!(plan(&group, &wish).unwrap_err().contains("0000:00:05.0 is not on vfio-pci"));
    }
}
