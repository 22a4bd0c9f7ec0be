//! Hotplug: volumes (each a virtio-fs device of its own), devices of the host and interfaces of the pod that are added
//! to an existing container, and removed again.
//!
//! ```text
//!   plug:   mount volumes and take interfaces over on the host -> assign devices -> interfaces in the guest ->
//!           volumes and devices in the container
//!   unplug: volumes and devices out of the container -> unassign devices -> unmount volumes on the host
//! ```
//! A request is one transaction. The container's part is the last step of plugging and the first of unplugging, because
//! only that step can fail by what the container does: a failure before it is undone, and nothing fails after it. A
//! guest that does not answer is asked to undo the request before the container is changed again. The interfaces are
//! made and removed elsewhere, by CNI.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kiai_protocol::agent::PlugRequest;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::UnplugRequest;
use oci_spec::runtime::LinuxDevice;
use serde::Deserialize;
use serde::Serialize;

use super::Container;
use super::PlugOptions;
use super::TaskError;
use super::devices;
use super::mounts::VolumeMount;
use super::plug_plan::AlreadyPlugged;
use super::plug_plan::ClaimedItem;
use super::plug_plan::PlannedVolume;
use super::plug_plan::PlugPlan;
use super::plug_plan::plugged_device;
use crate::agent::AgentError;
use crate::agent::message;
use crate::cdi::DeviceName;
use crate::cdi::NeededMount;
use crate::host::Network;
use crate::plan::PciAddress;
use crate::sandbox::Assignment;
use crate::sandbox::HostDevices;
use crate::sandbox::Sandbox;
use crate::sandbox::VolumeDevice;
use crate::spec::device::PluggedOption;
use crate::store::file::FileError;

/// A request to unplug what was plugged in before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UnplugOptions {
    /// Volumes, by their paths in the container.
    pub volumes: Vec<PathBuf>,
    /// Devices, by the names they were plugged in with.
    pub devices: Vec<PluggedOption>,
    /// Interfaces, by their names in the pod.
    pub interfaces: Vec<String>,
}

/// Everything that is plugged into a container.
#[derive(Default)]
pub(super) struct Plugged {
    /// In the order in which they were plugged in.
    volumes: Vec<PluggedVolume>,
    devices: Vec<PluggedDevice>,
    interfaces: Vec<(String, Assignment)>,
    /// The CDI devices that need an entry or a volume.
    claims: Vec<(DeviceName, ClaimedItem)>,
    /// Undo requests for plug requests that the agent did not answer: it may have carried them out.
    unanswered: Vec<UnplugRequest>,
}

struct PluggedVolume {
    /// The mount that was asked for.
    needed: NeededMount,
    /// The volume as the agent knows it.
    message: message::PluggedVolume,
    assignment: Assignment,
    /// Dropped once the guest has released the virtio-fs device.
    mount: VolumeMount,
}

struct PluggedDevice {
    entry: LinuxDevice,
    /// The address of a PCI function on the host.
    address: Option<PciAddress>,
    /// Empty for a device of the guest's own.
    assignment: Assignment,
}

impl PluggedDevice {
    fn matches(&self, option: &PluggedOption) -> bool {
        match option {
            PluggedOption::Path(path) => self.entry.path() == path,
            PluggedOption::Pci(address) => self.address == Some(*address),
            PluggedOption::Cdi(_) => false,
        }
    }
}

/// The part of [`Plugged`] that a request unplugs.
#[derive(Default)]
struct Selection {
    volumes: Vec<PathBuf>,
    devices: Vec<PluggedOption>,
    interfaces: Vec<String>,
    cdi_devices: Vec<DeviceName>,
}

impl Selection {
    fn has_volume(&self, volume: &PluggedVolume) -> bool {
        self.volumes.contains(&volume.needed.destination)
    }

    fn has_device(&self, device: &PluggedDevice) -> bool {
        self.devices.iter().any(|option| device.matches(option))
    }
}

impl Plugged {
    fn already(&self) -> AlreadyPlugged<'_> {
        AlreadyPlugged {
            entries: self.devices.iter().map(|device| &device.entry).collect(),
            volumes: self.volumes.iter().map(|volume| &volume.needed).collect(),
            claims: &self.claims,
        }
    }

    /// Selects what a request unplugs; the error names the first item that is not plugged in.
    fn select(&self, options: UnplugOptions) -> Result<Selection, String> {
        let UnplugOptions { volumes, devices, interfaces } = options;
        let is_absent =
            |path: &&PathBuf| self.volumes.iter().all(|volume| volume.needed.destination != **path);
        if let Some(path) = volumes.iter().find(is_absent) {
            return Err(format!("volume at {}", path.display()));
        }
        let is_absent = |name: &&String| self.interfaces.iter().all(|(plugged, _)| plugged != *name);
        if let Some(name) = interfaces.iter().find(is_absent) {
            return Err(format!("interface {name}"));
        }
        let mut selected = Selection { volumes, interfaces, ..Selection::default() };
        for option in devices {
            match option {
                PluggedOption::Cdi(name) if self.claims.iter().any(|(claimant, _)| *claimant == name) => {
                    selected.cdi_devices.push(name);
                }
                option if self.devices.iter().any(|device| device.matches(&option)) => {
                    selected.devices.push(option)
                }
                option => return Err(format!("device {option}")),
            }
        }
        let (selected_claims, others): (Vec<_>, Vec<_>) =
            self.claims.iter().partition(|(claimant, _)| selected.cdi_devices.contains(claimant));
        for (_, item) in selected_claims {
            match item {
                _ if others.iter().any(|(_, other)| other == item) => {}
                ClaimedItem::Entry(path) => selected.devices.push(PluggedOption::Path(path.clone())),
                ClaimedItem::Volume(path) => selected.volumes.push(path.clone()),
            }
        }
        Ok(selected)
    }

    /// Removes the selected items from the list, with all claims to them, and returns them.
    fn split_off(&mut self, selected: &Selection) -> Self {
        let removed = Self {
            volumes: self.volumes.extract_if(.., |volume| selected.has_volume(volume)).collect(),
            devices: self.devices.extract_if(.., |device| selected.has_device(device)).collect(),
            interfaces: self
                .interfaces
                .extract_if(.., |(name, _)| selected.interfaces.contains(name))
                .collect(),
            ..Self::default()
        };
        let (devices, volumes) = (&self.devices, &self.volumes);
        self.claims.retain(|(name, item)| {
            let is_plugged = match item {
                ClaimedItem::Entry(path) => devices.iter().any(|device| device.entry.path() == path),
                ClaimedItem::Volume(path) => volumes.iter().any(|volume| volume.needed.destination == *path),
            };
            is_plugged && !selected.cdi_devices.contains(name)
        });
        removed
    }

    /// Has the agent undo the requests it did not answer. To be called before any other request.
    async fn undo_unanswered(&mut self, sandbox: &Sandbox) -> Result<(), AgentError> {
        while let Some(request) = self.unanswered.last() {
            sandbox.agent.unplug(request.clone()).await?;
            self.unanswered.pop();
        }
        Ok(())
    }

    /// Unassigns all devices, which the container no longer uses, and unmounts the volumes on the host.
    pub(super) async fn unassign(self, sandbox: &Sandbox) {
        let (assignments, volume_mounts): (Vec<_>, Vec<_>) =
            self.volumes.into_iter().map(|volume| (volume.assignment, volume.mount)).unzip();
        let interfaces = self.interfaces.into_iter().map(|(_, assignment)| assignment);
        let devices = self.devices.into_iter().map(|device| device.assignment);
        sandbox.unassign(Assignment::join(devices.chain(interfaces).chain(assignments))).await;
        drop_mounts(volume_mounts).await;
    }
}

/// Unmounts volumes, on a thread that may block.
async fn drop_mounts(volume_mounts: Vec<VolumeMount>) {
    if tokio::task::spawn_blocking(move || drop(volume_mounts)).await.is_err() {
        tracing::error!("unmounting volumes panicked");
    }
}

impl Container {
    /// Plugs volumes, devices and interfaces in. On an error none of them is left in the guest or on the host.
    pub async fn plug(&self, options: PlugOptions) -> Result<(), TaskError> {
        self.init.alive("plug")?;
        let begun = Instant::now();
        let sandbox = self.guest()?;
        let _rules = self.applied.lock().await;
        let mut plugged = self.plugged.lock().await;
        let plugged = plugged.as_mut().ok_or_else(|| TaskError::Finished(self.init.name()))?;
        plugged.undo_unanswered(sandbox).await?;
        let mut plan = PlugPlan::new(&options, &self.process, &plugged.already())?;
        let volumes = std::mem::take(&mut plan.volumes);
        let (needed, volumes): (Vec<_>, Vec<_>) = self
            .mount_volumes(volumes)
            .await?
            .into_iter()
            .map(|(needed, message, mount)| (needed, (message, mount)))
            .unzip();
        let (messages, volume_mounts): (Vec<_>, Vec<_>) = volumes.into_iter().unzip();
        let mut network = match sandbox.take_over(options.interfaces).await {
            Ok(network) => network,
            Err(error) => {
                drop_mounts(volume_mounts).await;
                return Err(error.into());
            }
        };
        // The pod's default route stays as it was.
        network.routes.retain(|route| !matches!(route.destination.as_str(), "0.0.0.0/0" | "::/0"));

        let volume_devices: Vec<_> = messages.iter().zip(&volume_mounts).map(volume_device).collect();
        let assigned = sandbox.assign(HostDevices {
            disks: &plan.disks,
            functions: &plan.functions,
            nics: &mut network.nics,
            volumes: &volume_devices,
        });
        let (assignment, sent) = match assigned.await {
            Ok(assigned) => assigned,
            Err(error) => {
                drop_mounts(volume_mounts).await;
                return Err(error.into());
            }
        };
        let devices = plan.devices();
        let mut request = PlugRequest::new();
        request.container_id.clone_from(&self.id);
        request.volumes.clone_from(&messages);
        request.devices.clone_from(&sent);
        let mut undo = UnplugRequest::new();
        undo.container_id.clone_from(&self.id);
        undo.volumes.clone_from(&messages);
        undo.devices = devices.iter().map(|(entry, address)| plugged_device(entry, *address)).collect();
        match configure_guest(sandbox, &network, request, &plan).await {
            Ok(_) if devices.is_empty() => {}
            Ok(answer) => {
                self.log_unrecorded(devices::record_plugged(&self.bundle, plan.map(), &sent, answer));
            }
            Err(error) => {
                if error.answer().is_none() {
                    plugged.unanswered.push(undo);
                    if let Err(error) = plugged.undo_unanswered(sandbox).await {
                        tracing::warn!(error = %crate::failure::chain(&error), "the plug request cannot be undone now");
                    }
                }
                sandbox.unassign(assignment).await;
                drop_mounts(volume_mounts).await;
                return Err(error.into());
            }
        }
        let host_devices = plan.disks.len() + plan.functions.len();
        let mut assignments = assignment.split();
        plugged.devices.extend(devices.into_iter().enumerate().map(|(nth, (entry, address))| {
            let assignment = if nth < host_devices {
                assignments.next().unwrap_or_default()
            } else {
                Assignment::default()
            };
            PluggedDevice { entry, address, assignment }
        }));
        let names = network.nics.into_iter().map(|nic| nic.name);
        plugged.interfaces.extend(names.zip(&mut assignments));
        let volumes = needed.into_iter().zip(messages).zip(volume_mounts).zip(assignments);
        plugged.volumes.extend(volumes.map(|(((needed, message), mount), assignment)| PluggedVolume {
            needed,
            message,
            assignment,
            mount,
        }));
        plugged.claims.append(&mut plan.claims);
        tracing::info!(container = self.id, took = ?begun.elapsed(), "plugged in");
        Ok(())
    }

    /// Unplugs volumes, devices and interfaces. On an error, for instance because a volume is in use, all of them stay
    /// plugged in.
    pub async fn unplug(&self, options: UnplugOptions) -> Result<(), TaskError> {
        self.init.alive("unplug")?;
        let begun = Instant::now();
        let sandbox = self.guest()?;
        let _rules = self.applied.lock().await;
        let mut plugged = self.plugged.lock().await;
        let plugged = plugged.as_mut().ok_or_else(|| TaskError::Finished(self.init.name()))?;
        plugged.undo_unanswered(sandbox).await?;
        let selected = plugged
            .select(options)
            .map_err(|item| TaskError::NotPlugged { container_id: self.id.clone(), item })?;

        let mut request = UnplugRequest::new();
        request.container_id.clone_from(&self.id);
        // The last first, because a volume may be mounted below another.
        let volumes = plugged.volumes.iter().rev().filter(|volume| selected.has_volume(volume));
        request.volumes = volumes.map(|volume| volume.message.clone()).collect();
        let devices: Vec<_> = plugged.devices.iter().filter(|device| selected.has_device(device)).collect();
        request.devices =
            devices.iter().map(|device| plugged_device(&device.entry, device.address)).collect();
        if !request.volumes.is_empty() || !request.devices.is_empty() {
            let answer = sandbox.agent.unplug(request).await?;
            let gone = devices.iter().map(|device| {
                (device.entry.path().as_path(), device.address.map(|address| address.to_string()))
            });
            let gone: Vec<_> = gone.collect();
            if !gone.is_empty() {
                self.log_unrecorded(devices::record_unplugged(&self.bundle, &gone, answer));
            }
        }
        plugged.split_off(&selected).unassign(sandbox).await;
        tracing::info!(container = self.id, took = ?begun.elapsed(), "unplugged");
        Ok(())
    }

    /// Logs that the devices could not be recorded in the bundle; only `kiai inspect --devices` reads the record.
    fn log_unrecorded(&self, written: Result<(), FileError>) {
        if let Err(error) = written {
            let container = &self.id;
            tracing::warn!(container, error = %crate::failure::chain(&error), "the container's devices cannot be recorded");
        }
    }

    /// Mounts volumes on the host, each in a directory of its own; returns each with the message for the agent.
    async fn mount_volumes(
        &self,
        volumes: Vec<PlannedVolume>,
    ) -> Result<Vec<(NeededMount, message::PluggedVolume, VolumeMount)>, TaskError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let bundle = self.bundle.clone();
        let work = move || {
            let one = |PlannedVolume { needed, volume }| {
                // Unique for the life of this process, and so of the sandbox.
                let tag = format!("volume-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                let mount = VolumeMount::mount(bundle.join(&tag), &volume)?;
                let mut message = message::PluggedVolume::new();
                message.tag = tag;
                message.entry = volume.target.display().to_string();
                message.target = needed.destination.display().to_string();
                message.read_only = volume.read_only;
                message.options.clone_from(&needed.options);
                Ok((needed, message, mount))
            };
            volumes.into_iter().map(one).collect()
        };
        let mounting = tokio::task::spawn_blocking(work).await;
        mounting.unwrap_or_else(|panic| Err(TaskError::Panicked(format!("mounting: {panic}"))))
    }
}

/// The guest's part of plugging, once every device is attached.
async fn configure_guest(
    sandbox: &Sandbox,
    network: &Network,
    mut request: PlugRequest,
    plan: &PlugPlan,
) -> Result<PlugResponse, AgentError> {
    sandbox.agent.configure_network(network).await?;
    if request.volumes.is_empty() && plan.entries.is_empty() {
        return Ok(PlugResponse::new());
    }
    request.linux = serde_json::to_vec(&plan.linux()).unwrap_or_default();
    sandbox.agent.plug(request).await
}

fn volume_device((message, mount): (&message::PluggedVolume, &VolumeMount)) -> VolumeDevice {
    VolumeDevice { tag: message.tag.clone(), directory: mount.view().into() }
}

#[cfg(test)]
mod tests;
