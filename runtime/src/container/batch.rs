//! What is to be plugged into a container that is there, and what it comes to: decided before anything is done.
//!
//! Devices are entries of an OCI spec, and are planned as when a container is made. What a vendor's device needs is
//! claimed by its name: of what several of them need there is one, and it goes with the last.

use std::path::Path;
use std::path::PathBuf;

use kiai_protocol::agent::PluggedDevice as Named;
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

/// What is to be plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Plug {
    /// Volumes.
    pub volumes: Vec<PlugVolume>,
    /// Entries as of `linux.devices`, in the host's numbers.
    pub devices: Vec<LinuxDevice>,
    /// Rules for those.
    pub rules: Vec<LinuxDeviceCgroup>,
    /// PCI functions of the IOMMU groups among the entries, and who drives each. Of a group without one of them all
    /// are passed, for a program in the container.
    pub functions: Vec<(PciAddress, PassthroughMode)>,
    /// Devices of CDI files.
    pub vendor_devices: Vec<DeviceName>,
    /// Interfaces of the pod's network namespace, by name. They become the guest's as those at boot did.
    pub interfaces: Vec<String>,
}

/// A directory or file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlugVolume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container; made if it is not there.
    pub destination: PathBuf,
    /// Not writable from the container.
    #[serde(default)]
    pub read_only: bool,
}

/// A volume, and what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedVolume {
    /// Its destination is in the one form in which paths are compared.
    pub(super) wanted: NeededMount,
    pub(super) volume: Volume,
}

/// What a device of a vendor has a claim to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Thing {
    /// By its path.
    Entry(PathBuf),
    /// By its destination.
    Volume(PathBuf),
}

/// What is plugged in already.
#[derive(Debug, Default)]
pub(super) struct There<'a> {
    pub(super) entries: Vec<&'a LinuxDevice>,
    pub(super) volumes: Vec<&'a NeededMount>,
    pub(super) claims: &'a [(DeviceName, Thing)],
}

/// What all of it comes to.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<LinuxDevice>,
    rules: Vec<LinuxDeviceCgroup>,
    pub(super) disks: Vec<Disk>,
    pub(super) functions: Vec<PassthroughFunction>,
    pub(super) volumes: Vec<PlannedVolume>,
    pub(super) claims: Vec<(DeviceName, Thing)>,
}

impl Batch {
    /// Plans for a container whose init is `process`.
    pub(super) fn plan(plug: &Plug, process: &Process, there: &There<'_>) -> Result<Self, TaskError> {
        let mut batch = Self { rules: plug.rules.clone(), ..Self::default() };
        let mut volumes = Vec::new();
        for PlugVolume { source, destination, read_only } in &plug.volumes {
            let (source, destination) = (source.clone(), destination.clone());
            let wanted = NeededMount { source, destination, read_only: *read_only, options: Vec::new() };
            put_volume(&mut volumes, plain(wanted), there)?;
        }
        for entry in &plug.devices {
            batch.put_entry(entry.clone(), there)?;
        }
        batch.claim(&plug.vendor_devices, process, there, &mut volumes)?;

        let mut spec = Spec::default();
        spec.set_process(None).set_mounts(None).set_linux(Some(batch.linux()));
        let facts = facts::gather(&spec);
        (batch.disks, batch.functions) = plan_devices(&batch.entries, &batch.rules, &plug.functions, &facts)?;
        let is_there = |(entry, address): &(LinuxDevice, Option<PciAddress>)| {
            address.is_none() && there.entries.iter().any(|other| other.path() == entry.path())
        };
        if let Some((entry, _)) = batch.devices().iter().find(|device| is_there(device)) {
            return Err(TaskError::Exists(format!("device {}", entry.path().display())));
        }
        for wanted in volumes {
            let NeededMount { source, destination, read_only, .. } = &wanted;
            let volume = plan_volume(source, destination, *read_only, facts::kind(source))?;
            batch.volumes.push(PlannedVolume { wanted, volume });
        }
        Ok(batch)
    }

    /// What devices of vendors need, but for what another of them has brought already.
    fn claim(
        &mut self,
        names: &[DeviceName],
        process: &Process,
        there: &There<'_>,
        volumes: &mut Vec<NeededMount>,
    ) -> Result<(), TaskError> {
        if names.is_empty() {
            return Ok(());
        }
        if let Some((name, _)) = there.claims.iter().find(|(name, _)| names.contains(name)) {
            return Err(TaskError::Exists(format!("CDI device {name}")));
        }
        for needed in cdi::for_running(names, process, &cdi::Registry::read())? {
            let is_claimed = |batch: &Self, thing: &Thing| {
                there.claims.iter().chain(&batch.claims).any(|(_, claimed)| claimed == thing)
            };
            for mut entry in needed.devices {
                let path: PathBuf = entry.path().components().collect();
                entry.set_path(path.clone());
                let thing = Thing::Entry(path);
                let same = there.entries.contains(&&entry) || self.entries.contains(&entry);
                if !(same && is_claimed(self, &thing)) {
                    self.put_entry(entry, there)?;
                }
                self.claims.push((needed.name.clone(), thing));
            }
            for wanted in needed.mounts.into_iter().map(plain) {
                let thing = Thing::Volume(wanted.destination.clone());
                let same = there.volumes.contains(&&wanted) || volumes.contains(&wanted);
                if !(same && is_claimed(self, &thing)) {
                    put_volume(volumes, wanted, there)?;
                }
                self.claims.push((needed.name.clone(), thing));
            }
            for rule in needed.rules {
                if self.entries.iter().any(|entry| names_entry(&rule, entry)) && !self.rules.contains(&rule) {
                    self.rules.push(rule);
                }
            }
        }
        Ok(())
    }

    fn put_entry(&mut self, mut entry: LinuxDevice, there: &There<'_>) -> Result<(), TaskError> {
        let path: PathBuf = entry.path().components().collect();
        if !path.is_absolute() || path.parent().is_none() {
            let reason = "its path in the container is not an absolute one below /".to_owned();
            return Err(PlanError::Device { path, reason }.into());
        }
        if matches!(entry.typ(), LinuxDeviceType::A | LinuxDeviceType::P) {
            let reason = format!("type {:?} is none a running container can be given", entry.typ().as_str());
            return Err(PlanError::Device { path, reason }.into());
        }
        entry.set_path(path.clone());
        // The row of an IOMMU group stands for each function of it, whichever come.
        let is_other = |other: &LinuxDevice| *other.path() == path && !is_same(other, &entry);
        if self.entries.iter().any(|other| *other.path() == path)
            || there.entries.iter().any(|other| is_other(other))
        {
            return Err(TaskError::Exists(format!("device {}", path.display())));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Of an OCI spec, what the agent is to make of the host's entries.
    pub(super) fn linux(&self) -> Linux {
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(self.rules.clone()));
        let mut linux = Linux::default();
        linux.set_namespaces(None).set_masked_paths(None).set_readonly_paths(None);
        linux.set_devices(Some(self.entries.clone())).set_resources(Some(resources));
        linux
    }

    /// The host's side, for who asks.
    pub(super) fn map(&self) -> DeviceMap {
        DeviceMap::of(&self.entries, &self.disks, &self.functions)
    }

    /// Each device that is plugged in by itself: its entry, and of a PCI function its address. In the order in which
    /// disks and functions are lent; then those that are the guest's own.
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

/// What the agent calls it.
pub(super) fn named(entry: &LinuxDevice, address: Option<PciAddress>) -> Named {
    let mut named = Named::new();
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

fn plain(mut wanted: NeededMount) -> NeededMount {
    wanted.destination = wanted.destination.components().collect();
    wanted
}

fn put_volume(
    volumes: &mut Vec<NeededMount>,
    wanted: NeededMount,
    there: &There<'_>,
) -> Result<(), TaskError> {
    let destination = &wanted.destination;
    if there.volumes.iter().copied().chain(&*volumes).any(|other| other.destination == *destination) {
        return Err(TaskError::Exists(format!("volume at {}", destination.display())));
    }
    volumes.push(wanted);
    Ok(())
}
