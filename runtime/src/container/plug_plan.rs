//! The plan of a plug request, made before anything is done.
//!
//! Devices are entries of an OCI spec, and are planned as when a container is created. An entry or volume that a CDI
//! device needs is claimed by that device: what several CDI devices need is plugged in once, and unplugged with the
//! last of them.

use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::Linux;
use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::Process;
use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde::Serialize;

use super::TaskError;
use crate::agent::message;
use crate::cdi;
use crate::cdi::DeviceName;
use crate::cdi::NeededMount;
use crate::host::facts;
use crate::plan::DeviceMap;
use crate::plan::Disk;
use crate::plan::PassthroughFunction;
use crate::plan::PassthroughMode;
use crate::plan::PciAddress;
use crate::plan::PlanError;
use crate::plan::Volume;
use crate::plan::plan_devices;
use crate::plan::plan_volume;

/// A request to plug volumes, devices and interfaces into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PlugOptions {
    /// Directories and files of the host.
    pub volumes: Vec<PlugVolume>,
    /// Devices as entries of `linux.devices`, with the host's numbers.
    pub devices: Vec<LinuxDevice>,
    /// Device rules for these entries.
    pub rules: Vec<LinuxDeviceCgroup>,
    /// PCI functions of the IOMMU groups among the entries, and who drives each. Of a group of which none is named, all
    /// functions are passed through for a program in the container.
    pub functions: Vec<(PciAddress, PassthroughMode)>,
    /// CDI devices, by name.
    pub cdi_devices: Vec<DeviceName>,
    /// Interfaces of the pod's network namespace, by name.
    pub interfaces: Vec<String>,
}

/// A directory or file of the host that is to be mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlugVolume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container, which is made if it does not exist.
    pub destination: PathBuf,
    /// Not writable from the container.
    #[serde(default)]
    pub read_only: bool,
}

/// A volume of the request, and its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedVolume {
    /// The mount that was asked for, with a normalized destination.
    pub(super) needed: NeededMount,
    pub(super) volume: Volume,
}

/// An item that a CDI device claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClaimedItem {
    /// An entry of `linux.devices`, by its path.
    Entry(PathBuf),
    /// A volume, by its destination.
    Volume(PathBuf),
}

/// What is plugged into the container already.
#[derive(Debug, Default)]
pub(super) struct AlreadyPlugged<'a> {
    pub(super) entries: Vec<&'a LinuxDevice>,
    pub(super) volumes: Vec<&'a NeededMount>,
    pub(super) claims: &'a [(DeviceName, ClaimedItem)],
}

/// What a request plugs in.
#[derive(Debug, Default)]
pub(super) struct PlugPlan {
    pub(super) entries: Vec<LinuxDevice>,
    rules: Vec<LinuxDeviceCgroup>,
    pub(super) disks: Vec<Disk>,
    pub(super) functions: Vec<PassthroughFunction>,
    pub(super) volumes: Vec<PlannedVolume>,
    pub(super) claims: Vec<(DeviceName, ClaimedItem)>,
}

impl PlugPlan {
    /// Plans a request for a container whose init is `process`.
    pub(super) fn new(
        options: &PlugOptions,
        process: &Process,
        already: &AlreadyPlugged<'_>,
    ) -> Result<Self, TaskError> {
        let mut plan = Self { rules: options.rules.clone(), ..Self::default() };
        let mut volumes = Vec::new();
        for PlugVolume { source, destination, read_only } in &options.volumes {
            let (source, destination) = (source.clone(), destination.clone());
            let needed = NeededMount { source, destination, read_only: *read_only, options: Vec::new() };
            add_volume(&mut volumes, normalized(needed), already)?;
        }
        for entry in &options.devices {
            plan.add_entry(entry.clone(), already)?;
        }
        plan.claim(&options.cdi_devices, process, already, &mut volumes)?;

        let mut spec = Spec::default();
        spec.set_process(None).set_mounts(None).set_linux(Some(plan.linux()));
        let facts = facts::gather(&spec);
        (plan.disks, plan.functions) = plan_devices(&plan.entries, &plan.rules, &options.functions, &facts)?;
        let is_plugged = |(entry, address): &(LinuxDevice, Option<PciAddress>)| {
            address.is_none() && already.entries.iter().any(|other| other.path() == entry.path())
        };
        if let Some((entry, _)) = plan.devices().iter().find(|device| is_plugged(device)) {
            return Err(TaskError::Exists(format!("device {}", entry.path().display())));
        }
        for needed in volumes {
            let NeededMount { source, destination, read_only, .. } = &needed;
            let volume = plan_volume(source, destination, *read_only, facts::kind(source))?;
            plan.volumes.push(PlannedVolume { needed, volume });
        }
        Ok(plan)
    }

    /// Adds what CDI devices need, except for what another CDI device has brought already.
    fn claim(
        &mut self,
        names: &[DeviceName],
        process: &Process,
        already: &AlreadyPlugged<'_>,
        volumes: &mut Vec<NeededMount>,
    ) -> Result<(), TaskError> {
        if names.is_empty() {
            return Ok(());
        }
        if let Some((name, _)) = already.claims.iter().find(|(name, _)| names.contains(name)) {
            return Err(TaskError::Exists(format!("CDI device {name}")));
        }
        for needed in cdi::for_running(names, process, &cdi::Registry::read())? {
            let is_claimed = |plan: &Self, item: &ClaimedItem| {
                already.claims.iter().chain(&plan.claims).any(|(_, claimed)| claimed == item)
            };
            for mut entry in needed.devices {
                let path: PathBuf = entry.path().components().collect();
                entry.set_path(path.clone());
                let item = ClaimedItem::Entry(path);
                let same = already.entries.contains(&&entry) || self.entries.contains(&entry);
                if !(same && is_claimed(self, &item)) {
                    self.add_entry(entry, already)?;
                }
                self.claims.push((needed.name.clone(), item));
            }
            for mount in needed.mounts.into_iter().map(normalized) {
                let item = ClaimedItem::Volume(mount.destination.clone());
                let same = already.volumes.contains(&&mount) || volumes.contains(&mount);
                if !(same && is_claimed(self, &item)) {
                    add_volume(volumes, mount, already)?;
                }
                self.claims.push((needed.name.clone(), item));
            }
            for rule in needed.rules {
                if self.entries.iter().any(|entry| names_entry(&rule, entry)) && !self.rules.contains(&rule) {
                    self.rules.push(rule);
                }
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, mut entry: LinuxDevice, already: &AlreadyPlugged<'_>) -> Result<(), TaskError> {
        let path: PathBuf = entry.path().components().collect();
        if !path.is_absolute() || path.parent().is_none() {
            let reason = "the path in the container is not an absolute path below /".to_owned();
            return Err(PlanError::Device { path, reason }.into());
        }
        if matches!(entry.typ(), LinuxDeviceType::A | LinuxDeviceType::P) {
            let reason =
                format!("type {:?} cannot be plugged into a running container", entry.typ().as_str());
            return Err(PlanError::Device { path, reason }.into());
        }
        entry.set_path(path.clone());
        // The entry of an IOMMU group may come again, with another of its functions.
        let is_other = |other: &LinuxDevice| *other.path() == path && !is_same(other, &entry);
        if self.entries.iter().any(|other| *other.path() == path)
            || already.entries.iter().any(|other| is_other(other))
        {
            return Err(TaskError::Exists(format!("device {}", path.display())));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The `linux` object of an OCI spec with these entries and rules, for the agent.
    pub(super) fn linux(&self) -> Linux {
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(self.rules.clone()));
        let mut linux = Linux::default();
        linux.set_namespaces(None).set_masked_paths(None).set_readonly_paths(None);
        linux.set_devices(Some(self.entries.clone())).set_resources(Some(resources));
        linux
    }

    /// The host's side of the devices, for `kiai inspect --devices`.
    pub(super) fn map(&self) -> DeviceMap {
        DeviceMap::of(&self.entries, &self.disks, &self.functions)
    }

    /// Each device with its entry, and the address of a PCI function: first disks and functions in the order in which
    /// they are assigned, then devices of the guest's own.
    pub(super) fn devices(&self) -> Vec<(LinuxDevice, Option<PciAddress>)> {
        let entry = |path: &Path| self.entries.iter().find(|entry| entry.path() == path).cloned();
        let disks = self.disks.iter().map(|disk| (entry(&disk.container_path), None));
        let functions = self.functions.iter();
        let functions = functions.map(|function| (entry(&function.container_path), Some(function.address)));
        let mut all: Vec<_> =
            disks.chain(functions).filter_map(|(entry, address)| Some((entry?, address))).collect();
        let own = self
            .entries
            .iter()
            .filter(|entry| all.iter().all(|(assigned, _)| assigned.path() != entry.path()));
        let own: Vec<_> = own.map(|entry| (entry.clone(), None)).collect();
        all.extend(own);
        all
    }
}

/// The message that identifies a plugged device for the agent.
pub(super) fn plugged_device(entry: &LinuxDevice, address: Option<PciAddress>) -> message::PluggedDevice {
    let mut named = message::PluggedDevice::new();
    named.entry = entry.path().display().to_string();
    named.host_pci_address = address.map(|address| address.to_string()).unwrap_or_default();
    named
}

fn is_same(one: &LinuxDevice, other: &LinuxDevice) -> bool {
    (one.typ(), one.major(), one.minor()) == (other.typ(), other.major(), other.minor())
}

fn names_entry(rule: &LinuxDeviceCgroup, entry: &LinuxDevice) -> bool {
    (rule.typ(), rule.major(), rule.minor()) == (Some(entry.typ()), Some(entry.major()), Some(entry.minor()))
}

fn normalized(mut needed: NeededMount) -> NeededMount {
    needed.destination = needed.destination.components().collect();
    needed
}

fn add_volume(
    volumes: &mut Vec<NeededMount>,
    needed: NeededMount,
    already: &AlreadyPlugged<'_>,
) -> Result<(), TaskError> {
    let destination = &needed.destination;
    if already.volumes.iter().copied().chain(&*volumes).any(|other| other.destination == *destination) {
        return Err(TaskError::Exists(format!("volume at {}", destination.display())));
    }
    volumes.push(needed);
    Ok(())
}
