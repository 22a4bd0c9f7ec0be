//! The devices the host has lent a container: found, and written into its spec.
//!
//! The same for those its spec had and for those that came later, which are a spec of their own until they are
//! among the others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiai_protocol::agent::device_locator::By;
use kiai_protocol::agent::{Device, FoundDevice};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};

use super::passed::{self, Passed};
use crate::device::{self, DeviceKind, LocatedDevice, Node, PciAddresses};
use crate::fault::{Fault, Result};
use crate::uevent::Uevents;

/// What entries of `linux.devices` are here.
#[derive(Debug, Clone, Default)]
pub(super) struct Lent {
    /// As the host wrote them.
    entries: Vec<LinuxDevice>,
    located: Vec<Located>,
    passed: Passed,
}

/// A device with a node of its own, and where it is on the bus.
#[derive(Debug, Clone)]
struct Located {
    device: LocatedDevice,
    pci_path: String,
}

impl Located {
    /// Its path in the container.
    fn path(&self) -> &Path {
        self.device.guest_path.as_ref().unwrap_or(&self.device.container_path)
    }
}

/// What a node of a container is to the devices that were lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    /// Path of the entry.
    pub(super) entry: PathBuf,
    /// Of a passed function.
    pub(super) host_address: String,
    /// The guest has it whoever comes and goes.
    pub(super) lasts: bool,
}

impl Lent {
    /// Waits until each of `wanted` has its node.
    pub(super) async fn find(
        uevents: &Uevents,
        spec: &Spec,
        wanted: &[Device],
        timeout: Duration,
    ) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let entries = linux.and_then(|linux| linux.devices().clone()).unwrap_or_default();
        let passed = Passed::wait_for(uevents, wanted, timeout).await?;
        let mut located = Vec::new();
        for device in wanted.iter().filter(|device| !passed::is_passed(device)) {
            let pci_path = match &device.locator.by {
                Some(By::PciPath(path)) => path.clone(),
                _ => String::new(),
            };
            located.push(Located { device: locate(uevents, device, timeout).await?, pci_path });
        }
        Ok(Self { entries, located, passed })
    }

    /// Entries that the host lends nothing for.
    #[cfg(test)]
    pub(super) fn of(linux: &serde_json::Value) -> Self {
        let entries = serde_json::from_value(linux["devices"].clone()).unwrap();
        Self { entries, ..Self::default() }
    }

    /// Where its passed PCI functions are, on the host and here.
    pub(super) fn pci_addresses(&self) -> PciAddresses {
        self.passed.addresses()
    }

    /// The host's spec with the guest's devices and rules.
    pub(super) fn write_into(&self, spec: &Spec) -> Result<Spec> {
        let located: Vec<_> = self.located.iter().map(|located| located.device.clone()).collect();
        self.passed.admit(&device::rewrite(&self.passed.withdraw(spec)?, &located)?)
    }

    /// A spec of its entries with other rules of the host, as they are here.
    pub(super) fn with_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<Spec> {
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(rules.to_vec()));
        let mut linux = Linux::default();
        linux.set_devices(Some(self.entries.clone())).set_resources(Some(resources));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        self.write_into(&spec)
    }

    /// Whose a node of the guest's spec is.
    pub(super) fn owners(&self, node: &Path) -> Vec<Owner> {
        let owner = |entry: &Path, host_address: &str, lasts| Owner {
            entry: entry.to_owned(),
            host_address: host_address.to_owned(),
            lasts,
        };
        if let Some(located) = self.located.iter().find(|located| located.path() == node) {
            return vec![owner(&located.device.container_path, "", false)];
        }
        let functions = self.passed.functions();
        let functions = functions.filter(|function| function.nodes.iter().any(|own| own.path == node));
        let mut owners: Vec<_> = functions
            .map(|function| owner(function.entry(), function.host_address(), function.outlives(node)))
            .collect();
        let is_group = self.passed.functions().any(|function| function.entry() == node);
        if !is_group && self.entries.iter().any(|entry| entry.path() == node) {
            owners.push(owner(node, "", true));
        }
        owners
    }

    /// The entries of others, and what they are here, come to these.
    pub(super) fn extend(&mut self, others: Self) {
        for entry in others.entries {
            // A row of a group may serve several functions.
            if self.entries.iter().all(|there| there.path() != entry.path()) {
                self.entries.push(entry);
            }
        }
        self.located.extend(others.located);
        self.passed.extend(others.passed);
    }

    /// What serves an entry goes, and the entry if nothing serves it any more.
    pub(super) fn forget(&mut self, entry: &Path, host_address: &str) {
        self.located.retain(|located| located.device.container_path != entry);
        self.passed.forget(entry, host_address);
        if self.passed.functions().all(|function| function.entry() != entry) {
            self.entries.retain(|there| there.path() != entry);
        }
    }

    /// What the host is told of each.
    pub(super) fn report(&self) -> Vec<FoundDevice> {
        let mut found: Vec<_> = self.entries.iter().filter_map(|entry| self.served(entry)).collect();
        found.extend(self.passed.nodes().map(|(function, node)| FoundDevice {
            entry: function.entry().display().to_string(),
            pci_path: function.pci_path.clone(),
            ..described(&node.path, node)
        }));
        found
    }

    /// An entry as it is here; none for what is no device or is passed as a PCI function.
    fn served(&self, entry: &LinuxDevice) -> Option<FoundDevice> {
        let path = entry.path();
        if let Some(located) = self.located.iter().find(|located| located.device.container_path == *path) {
            return Some(FoundDevice {
                entry: path.display().to_string(),
                pci_path: located.pci_path.clone(),
                ..described(located.path(), &located.device.node)
            });
        }
        if self.passed.functions().any(|function| function.entry() == path) {
            return None;
        }
        let kind = match entry.typ() {
            LinuxDeviceType::B => "b",
            LinuxDeviceType::C | LinuxDeviceType::U => "c",
            LinuxDeviceType::A | LinuxDeviceType::P => return None,
        };
        Some(FoundDevice {
            entry: path.display().to_string(),
            container_path: path.display().to_string(),
            kind: kind.to_owned(),
            major: entry.major(),
            minor: entry.minor(),
            ..Default::default()
        })
    }
}

fn described(container_path: &Path, node: &Node) -> FoundDevice {
    FoundDevice {
        container_path: container_path.display().to_string(),
        kind: node.kind.letter().to_string(),
        major: node.major,
        minor: node.minor,
        node: node.path.display().to_string(),
        ..Default::default()
    }
}

async fn locate(uevents: &Uevents, device: &Device, timeout: Duration) -> Result<LocatedDevice> {
    let kind = match device.kind.as_str() {
        "b" => DeviceKind::Block,
        "c" | "u" => DeviceKind::Character,
        other => {
            let other: String = other.chars().take(64).collect();
            return Err(Fault::InvalidArgument(format!("device type {other:?} is neither b nor c")));
        }
    };
    Ok(LocatedDevice {
        container_path: PathBuf::from(&device.container_path),
        kind,
        host_major: device.host_major,
        host_minor: device.host_minor,
        node: device::wait_for(uevents, &device.locator, timeout).await?,
        guest_path: None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Disks by their path, with their numbers on the host and here; all of major number 254.
    pub(in super::super) fn disks(all: &[(&str, i64, i64)]) -> Lent {
        let entry = |path: &str, minor| {
            let entry = serde_json::json!({"path": path, "type": "b", "major": 254, "minor": minor});
            serde_json::from_value(entry).unwrap()
        };
        let located = |path: &str, host_minor, minor| LocatedDevice {
            container_path: path.into(),
            kind: DeviceKind::Block,
            host_major: 254,
            host_minor,
            node: Node { path: "/dev/vda".into(), kind: DeviceKind::Block, major: 254, minor },
            guest_path: None,
        };
        let located = |(nth, (path, host, guest)): (usize, &(&str, i64, i64))| Located {
            device: located(path, *host, *guest),
            pci_path: format!("{:02x}.0", 5 + nth),
        };
        Lent {
            entries: all.iter().map(|(path, host, _)| entry(path, *host)).collect(),
            located: all.iter().enumerate().map(located).collect(),
            passed: Passed::default(),
        }
    }

    /// A function that a program in the container drives, of the one group there is.
    pub(in super::super) fn function(host_address: &str, pci_path: &str, minor: i64) -> Lent {
        let group = serde_json::json!({"path": "/dev/vfio/12", "type": "c", "major": 243, "minor": 4});
        let passed = passed::tests::user_space(host_address, pci_path, minor);
        Lent { entries: vec![serde_json::from_value(group).unwrap()], located: Vec::new(), passed }
    }

    #[test]
    fn the_host_is_told_where_each_entry_is() {
        let mut lent = disks(&[("/dev/a", 0, 16), ("/dev/b", 16, 0)]);
        lent.extend(function("0000:00:03.0", "07.0", 0));
        let told: Vec<_> = lent
            .report()
            .iter()
            .map(|found| format!("{} {}:{} {}", found.entry, found.major, found.minor, found.pci_path))
            .collect();
        let expected = [
            "/dev/a 254:16 05.0",
            "/dev/b 254:0 06.0",
            "/dev/vfio/12 243:0 07.0",
            "/dev/vfio/12 10:196 07.0",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_row_stays_as_long_as_a_function_needs_it() {
        let mut lent = function("0000:00:03.0", "07.0", 0);
        lent.extend(function("0000:00:03.1", "07.1", 1));
        let entries = |lent: &Lent| lent.entries.len();
        assert_eq!(entries(&lent), 1);
        lent.forget(Path::new("/dev/vfio/12"), "0000:00:03.0");
        assert_eq!((entries(&lent), lent.report().len()), (1, 2));
        lent.forget(Path::new("/dev/vfio/12"), "0000:00:03.1");
        assert_eq!((entries(&lent), lent.report().len()), (0, 0));
    }

    #[test]
    fn a_node_is_some_devices_or_lasts() {
        let mut lent = disks(&[("/dev/a", 0, 16)]);
        lent.extend(function("0000:00:03.0", "07.0", 0));
        lent.extend(function("0000:00:03.1", "07.1", 1));
        let owners = |node: &str| lent.owners(Path::new(node));
        assert_eq!(owners("/dev/a").len(), 1);
        assert_eq!(owners("/dev/vfio/noiommu-1")[0].host_address, "0000:00:03.1");
        assert!(!owners("/dev/vfio/noiommu-1")[0].lasts);
        assert!(owners("/dev/vfio/vfio").iter().all(|owner| owner.lasts));
        assert_eq!(owners("/dev/vfio/vfio").len(), 2);
        assert_eq!(owners("/dev/null"), []);
    }
}
