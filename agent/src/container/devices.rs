//! The devices of one container: found, written into its spec, and everything else kept from it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kiai_protocol::agent::device_locator::By;
use kiai_protocol::agent::{Device, FoundDevice, PluggedDevice};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::passed::{self, Passed};
use super::plug::is_place;
use crate::cgroup::Cgroup;
use crate::device::filter::{self, MAX_RULES};
use crate::device::rule::{Access, Identity, Rule, RuleError, default_rules, granted};
use crate::device::{self, DeviceKind, LocatedDevice, PciAddresses};
use crate::fault::{Fault, Result};
use crate::oci::DeviceNode;
use crate::sys;
use crate::uevent::Uevents;

/// What a container has of devices, and what it may do with them.
#[derive(Debug)]
pub struct Devices {
    lent: Mutex<Lent>,
    passed: Passed,
    in_force: Mutex<Option<Enforced>>,
}

/// The devices of a container but for passed functions.
#[derive(Debug, Clone, Default)]
struct Lent {
    /// The spec's, as the host wrote them, and those of disks that were plugged in since.
    entries: Vec<LinuxDevice>,
    located: Vec<LocatedDevice>,
    /// Where those are on the bus, in the same order.
    pci_paths: Vec<String>,
    plugged: Vec<Disk>,
}

/// A disk that comes to a container which is there.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    located: LocatedDevice,
    pci_path: String,
    access: Access,
}

impl Disk {
    /// In the container, which is also its entry's.
    pub(super) fn path(&self) -> &Path {
        &self.located.container_path
    }

    /// What the container gets.
    pub(super) fn node(&self) -> DeviceNode {
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let node = &self.located.node;
        let (major, minor) = (number(node.major), number(node.minor));
        DeviceNode { path: self.path().to_owned(), major, minor }
    }

    /// Refuses what is mounted or has another exclusive user. Who merely has it open will read errors.
    pub(super) fn check_unused(&self) -> Result<()> {
        let exclusive = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::open(&self.located.node.path, exclusive, Mode::empty()) {
            Err(Errno::BUSY) => {
                Err(Fault::FailedPrecondition(format!("device {:?}: it is in use", self.path())))
            }
            // Thrown off its bus, for instance: nobody has any use of it.
            _ => Ok(()),
        }
    }

    fn entry(&self) -> LinuxDevice {
        let mut entry = LinuxDevice::default();
        entry.set_path(self.path().to_owned()).set_typ(LinuxDeviceType::B);
        entry.set_major(self.located.host_major).set_minor(self.located.host_minor);
        entry
    }

    fn rule(&self) -> Rule {
        let node = self.node();
        let (major, minor) = (Some(node.major), Some(node.minor));
        Rule { allow: true, kind: Some(DeviceKind::Block), major, minor, access: self.access }
    }
}

/// The rules in force and the program that has them.
#[derive(Debug)]
struct Enforced {
    rules: Vec<Rule>,
    program: OwnedFd,
}

/// Rules the kernel has accepted, but does not follow yet.
#[must_use]
pub(super) struct Loaded<'a> {
    devices: &'a Devices,
    enforced: Enforced,
}

impl Loaded<'_> {
    /// Puts them in force, in the place of those that were.
    pub(super) fn enforce(self, cgroup: &Cgroup) -> Result<()> {
        let mut in_force = self.devices.in_force.lock();
        let replaced = in_force.as_ref().map(|enforced| &enforced.program);
        cgroup.filter_devices(&self.enforced.program, replaced).context("attach the device program")?;
        *in_force = Some(self.enforced);
        Ok(())
    }
}

impl Devices {
    /// Waits until each of `wanted` has its node.
    pub(super) async fn find(
        uevents: &Uevents,
        spec: &Spec,
        wanted: &[Device],
        timeout: Duration,
    ) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let entries = linux.and_then(|linux| linux.devices().clone()).unwrap_or_default();
        let passed = passed::wait_for(uevents, wanted, timeout).await?;
        let (mut located, mut pci_paths) = (Vec::new(), Vec::new());
        for device in wanted.iter().filter(|device| !passed::is_passed(device)) {
            located.push(locate(uevents, device, timeout).await?);
            pci_paths.push(match &device.locator.by {
                Some(By::PciPath(path)) => path.clone(),
                _ => String::new(),
            });
        }
        let lent = Mutex::new(Lent { entries, located, pci_paths, plugged: Vec::new() });
        Ok(Self { lent, passed, in_force: Mutex::default() })
    }

    /// Where its passed PCI functions are, on the host and here.
    pub(super) fn pci_addresses(&self) -> &PciAddresses {
        &self.passed.addresses
    }

    /// The host's spec with the guest's devices and rules.
    pub(super) fn write_into(&self, spec: &Spec) -> Result<Spec> {
        self.passed.admit(&device::rewrite(&self.passed.withdraw(spec)?, &self.lent.lock().located)?)
    }

    /// Loads the rules of a spec that [`Self::write_into`] has returned.
    pub(super) fn load(&self, spec: &Spec) -> Result<Loaded<'_>> {
        self.load_all(rules_of(spec)?)
    }

    fn load_all(&self, rules: Vec<Rule>) -> Result<Loaded<'_>> {
        if rules.len() > MAX_RULES {
            return Err(Fault::InvalidArgument(format!("more than {MAX_RULES} device rules")));
        }
        let program =
            sys::load_device_program(&filter::program(&rules)).context("load the device program")?;
        Ok(Loaded { devices: self, enforced: Enforced { rules, program } })
    }

    /// Loads rules of the host that are to replace the spec's.
    pub(super) fn load_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<Loaded<'_>> {
        self.load(&self.with_rules(rules)?)
    }

    /// Waits until each of `wanted` has its node.
    pub(super) async fn find_disks(
        &self,
        uevents: &Uevents,
        wanted: &[PluggedDevice],
        timeout: Duration,
    ) -> Result<Vec<Disk>> {
        let mut disks: Vec<Disk> = Vec::new();
        for PluggedDevice { device, access, .. } in wanted {
            let wrong = |reason: &str| {
                Fault::InvalidArgument(format!("device {:?}: {reason}", device.container_path))
            };
            let path = Path::new(&device.container_path);
            if !is_place(path) {
                return Err(wrong("its path is not an absolute one without `..`"));
            }
            let Some(By::PciPath(pci_path)) = &device.locator.by else {
                return Err(wrong("it is not located by its PCI path"));
            };
            let located = locate(uevents, device, timeout).await?;
            if located.kind != DeviceKind::Block {
                return Err(wrong("it is not a block device"));
            }
            let access = Access::parse(Some(access)).ok_or_else(|| wrong("access is made of r, w and m"))?;
            // One rule is for one disk, and goes with it.
            let node = &located.node;
            let same = |there: &LocatedDevice| {
                there.container_path == path
                    || (there.node.major, there.node.minor) == (node.major, node.minor)
            };
            let lent = self.lent.lock();
            let others = disks.iter().map(|disk| &disk.located);
            if let Some(other) = lent.located.iter().chain(others).find(|there| same(there)) {
                let other = &other.container_path;
                return Err(Fault::AlreadyExists(format!(
                    "device {path:?}: the container has it, or another, as {other:?}"
                )));
            }
            drop(lent);
            disks.push(Disk { located, pci_path: pci_path.clone(), access });
        }
        Ok(disks)
    }

    /// Those of `paths` that were plugged in.
    pub(super) fn plugged(&self, paths: &[String]) -> Vec<Disk> {
        let lent = self.lent.lock();
        let named = |disk: &&Disk| paths.iter().any(|path| Path::new(path) == disk.path());
        lent.plugged.iter().filter(named).cloned().collect()
    }

    /// Lets the container use disks it has no nodes of yet.
    pub(super) fn allow(&self, disks: &[Disk], cgroup: &Cgroup) -> Result<()> {
        self.change_rules(disks, cgroup, |rules| rules.extend(disks.iter().map(Disk::rule)))
    }

    /// No rule names these disks any more: their numbers will be those of others.
    pub(super) fn deny(&self, disks: &[Disk], cgroup: &Cgroup) -> Result<()> {
        let names = |rule: &Rule, disk: &Disk| Rule { access: rule.access, ..disk.rule() } == *rule;
        self.change_rules(disks, cgroup, |rules| {
            rules.retain(|rule| !disks.iter().any(|disk| names(rule, disk)));
        })
    }

    fn change_rules(
        &self,
        disks: &[Disk],
        cgroup: &Cgroup,
        change: impl FnOnce(&mut Vec<Rule>),
    ) -> Result<()> {
        if disks.is_empty() {
            return Ok(());
        }
        let mut rules =
            self.in_force.lock().as_ref().map(|enforced| enforced.rules.clone()).unwrap_or_default();
        change(&mut rules);
        self.load_all(rules)?.enforce(cgroup)
    }

    /// The container has them from here on.
    pub(super) fn add(&self, disks: Vec<Disk>) {
        let mut lent = self.lent.lock();
        for disk in disks {
            lent.entries.push(disk.entry());
            lent.located.push(disk.located.clone());
            lent.pci_paths.push(disk.pci_path.clone());
            lent.plugged.push(disk);
        }
    }

    /// It has them no more.
    pub(super) fn forget(&self, disks: &[Disk]) {
        let mut lent = self.lent.lock();
        for disk in disks {
            lent.entries.retain(|entry| entry.path() != disk.path());
            lent.plugged.retain(|other| other.path() != disk.path());
            if let Some(index) = lent.located.iter().position(|there| there.container_path == disk.path()) {
                lent.located.remove(index);
                lent.pci_paths.remove(index);
            }
        }
    }

    /// The spec's entries with other rules of the host, as they are here.
    fn with_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<Spec> {
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(rules.to_vec()));
        let mut linux = Linux::default();
        linux.set_devices(Some(self.lent.lock().entries.clone())).set_resources(Some(resources));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        self.write_into(&spec)
    }

    /// What the host is told: each device, and the rules in force.
    pub fn report(&self) -> (Vec<FoundDevice>, Vec<String>) {
        let in_force = self.in_force.lock();
        let rules = in_force.as_ref().map_or(&[][..], |enforced| &enforced.rules);
        let lent = self.lent.lock();
        let mut found: Vec<_> = lent.entries.iter().filter_map(|entry| self.served(&lent, entry)).collect();
        found.extend(self.passed.nodes.iter().map(|passed| FoundDevice {
            entry: passed.entry.display().to_string(),
            pci_path: passed.pci_path.clone(),
            ..described(&passed.node.path, &passed.node)
        }));
        for device in &mut found {
            let kind = if device.kind == "b" { DeviceKind::Block } else { DeviceKind::Character };
            let identity = Identity { kind, major: device.major, minor: device.minor };
            device.access = granted(rules, identity).to_string();
        }
        (found, rules.iter().map(ToString::to_string).collect())
    }

    /// An entry of the spec as it is here; none for what is no device or is passed as a PCI function.
    fn served(&self, lent: &Lent, entry: &LinuxDevice) -> Option<FoundDevice> {
        let path = entry.path();
        if let Some(index) = lent.located.iter().position(|device| device.container_path == *path) {
            let device = &lent.located[index];
            return Some(FoundDevice {
                entry: path.display().to_string(),
                pci_path: lent.pci_paths[index].clone(),
                ..described(device.guest_path.as_ref().unwrap_or(path), &device.node)
            });
        }
        if self.passed.nodes.iter().any(|passed| passed.entry == *path) {
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

/// The rules of a spec that is the guest's, and those every container has.
fn rules_of(spec: &Spec) -> Result<Vec<Rule>> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    Ok(Rule::parse_all(rules)?.into_iter().chain(default_rules()).collect())
}

fn described(container_path: &Path, node: &device::Node) -> FoundDevice {
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

impl From<RuleError> for Fault {
    fn from(error: RuleError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Node;
    use crate::device::rule::Access;

    /// Two disks whose numbers are exchanged here.
    fn devices() -> Devices {
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
        Devices {
            lent: Mutex::new(Lent {
                entries: vec![entry("/dev/a", 0), entry("/dev/b", 16)],
                located: vec![located("/dev/a", 0, 16), located("/dev/b", 16, 0)],
                pci_paths: vec!["05.0".into(), "06.0".into()],
                plugged: Vec::new(),
            }),
            passed: Passed::default(),
            in_force: Mutex::default(),
        }
    }

    #[test]
    fn rules_of_an_update_are_the_hosts_and_become_the_guests() {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"},
        ]))
        .unwrap();
        let rules = rules_of(&devices().with_rules(&rules).unwrap()).unwrap();
        let may = |minor| granted(&rules, Identity { kind: DeviceKind::Block, major: 254, minor });
        assert_eq!(may(16), Access::READ.with(Access::MKNOD), "A, which is 254:0 on the host");
        assert_eq!(may(0), Access::MKNOD, "B");
    }

    #[test]
    fn too_many_rules_are_refused() {
        let rule: LinuxDeviceCgroup = serde_json::from_value(serde_json::json!({"allow": true})).unwrap();
        let spec = devices().with_rules(&vec![rule; MAX_RULES]).unwrap();
        assert!(matches!(devices().load(&spec), Err(Fault::InvalidArgument(_))));
    }

    #[test]
    fn a_disk_that_was_plugged_in_follows_rules_of_an_update_and_is_forgotten() {
        let devices = devices();
        let node = Node { path: "/dev/vdc".into(), kind: DeviceKind::Block, major: 254, minor: 32 };
        let located = LocatedDevice {
            container_path: "/dev/c".into(),
            kind: DeviceKind::Block,
            host_major: 7,
            host_minor: 3,
            node,
            guest_path: None,
        };
        let disk = Disk { located, pci_path: "07.0".into(), access: Access::READ };
        assert_eq!(disk.rule().to_string(), "allow b 254:32 r");
        devices.add(vec![disk]);
        let rule = serde_json::json!([{"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rw"}]);
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rule).unwrap();
        let rules = rules_of(&devices.with_rules(&rules).unwrap()).unwrap();
        let guest = Identity { kind: DeviceKind::Block, major: 254, minor: 32 };
        assert_eq!(granted(&rules, guest), Access::ALL);
        assert!(devices.report().0.iter().any(|found| found.entry == "/dev/c" && found.pci_path == "07.0"));
        devices.forget(&devices.plugged(&["/dev/a".into(), "/dev/c".into()]));
        assert_eq!(devices.report().0.len(), 2, "what the spec has stays");
    }

    #[test]
    fn the_host_is_told_where_each_entry_is() {
        let (found, rules) = devices().report();
        let told: Vec<_> = found
            .iter()
            .map(|found| format!("{} {}:{} {}", found.entry, found.major, found.minor, found.pci_path))
            .collect();
        assert_eq!(told, ["/dev/a 254:16 05.0", "/dev/b 254:0 06.0"]);
        assert!(rules.is_empty(), "none is in force yet");
    }
}
