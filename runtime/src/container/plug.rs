//! What comes to a container while it is there, and goes before it does: volumes, each a virtio-fs device of its
//! own, devices of the host, and further interfaces of the pod.
//!
//! ```text
//!   plug:   mount volumes and take interfaces over on the host -> assign devices -> interfaces in the guest ->
//!           volumes and devices in the container
//!   unplug: volumes and devices out of the container -> unassign devices -> unmount volumes on the host
//! ```
//! A batch is one transaction. What is in the container is last to come and first to go, since only that can be
//! refused by what the container does: whatever fails before is undone, and after it nothing fails. A guest that does not
//! answer is asked to undo what it may have done before anything else comes to the container. Whose interfaces the
//! pod's are, and what becomes of them, is not known here.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kiai_protocol::agent::PlugRequest;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::PluggedMount;
use kiai_protocol::agent::UnplugRequest;
use oci_spec::runtime::LinuxDevice;
use serde::Deserialize;
use serde::Serialize;

use super::Container;
use super::Plug;
use super::TaskError;
use super::batch::Batch;
use super::batch::PlannedVolume;
use super::batch::There;
use super::batch::Thing;
use super::batch::named;
use super::devices;
use super::mounts::VolumeMount;
use crate::agent::AgentError;
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

/// What is to be unplugged, all of it plugged in before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Unplug {
    /// Destinations of volumes.
    pub volumes: Vec<PathBuf>,
    /// Devices, as they were plugged in.
    pub devices: Vec<PluggedOption>,
    /// Names of interfaces.
    pub interfaces: Vec<String>,
}

/// What is plugged in at the moment.
#[derive(Default)]
pub(super) struct Plugged {
    /// In the order in which they came.
    volumes: Vec<PluggedVolume>,
    devices: Vec<PluggedDevice>,
    interfaces: Vec<(String, Assignment)>,
    /// Which of it came for a device of a vendor.
    claims: Vec<(DeviceName, Thing)>,
    /// What the agent was asked to plug in and never said that it had: it may have come to it since.
    unanswered: Vec<UnplugRequest>,
}

struct PluggedVolume {
    wanted: NeededMount,
    mount: PluggedMount,
    assignment: Assignment,
    /// Dropped once the guest has released the device.
    share: VolumeMount,
}

struct PluggedDevice {
    entry: LinuxDevice,
    /// Of a PCI function.
    address: Option<PciAddress>,
    /// Nothing for what is the guest's own.
    assignment: Assignment,
}

impl PluggedDevice {
    fn is(&self, option: &PluggedOption) -> bool {
        match option {
            PluggedOption::Path(path) => self.entry.path() == path,
            PluggedOption::Pci(address) => self.address == Some(*address),
            PluggedOption::Cdi(_) => false,
        }
    }
}

/// What goes of what is plugged in.
#[derive(Default)]
struct Leaving {
    volumes: Vec<PathBuf>,
    devices: Vec<PluggedOption>,
    interfaces: Vec<String>,
    vendor_devices: Vec<DeviceName>,
}

impl Leaving {
    fn has_volume(&self, volume: &PluggedVolume) -> bool {
        self.volumes.contains(&volume.wanted.destination)
    }

    fn has_device(&self, device: &PluggedDevice) -> bool {
        self.devices.iter().any(|option| device.is(option))
    }
}

impl Plugged {
    fn there(&self) -> There<'_> {
        There {
            entries: self.devices.iter().map(|device| &device.entry).collect(),
            volumes: self.volumes.iter().map(|volume| &volume.wanted).collect(),
            claims: &self.claims,
        }
    }

    /// What a batch takes out, or the first thing of it that is not plugged in.
    fn leaving(&self, unplug: Unplug) -> Result<Leaving, String> {
        let Unplug { volumes, devices, interfaces } = unplug;
        let is_there = |path: &&PathBuf| self.volumes.iter().all(|there| there.wanted.destination != **path);
        if let Some(path) = volumes.iter().find(is_there) {
            return Err(format!("volume at {}", path.display()));
        }
        let is_there = |name: &&String| self.interfaces.iter().all(|(there, _)| there != *name);
        if let Some(name) = interfaces.iter().find(is_there) {
            return Err(format!("interface {name}"));
        }
        let mut leaving = Leaving { volumes, interfaces, ..Leaving::default() };
        for option in devices {
            match option {
                PluggedOption::Cdi(name) if self.claims.iter().any(|(claimant, _)| *claimant == name) => {
                    leaving.vendor_devices.push(name);
                }
                option if self.devices.iter().any(|device| device.is(&option)) => {
                    leaving.devices.push(option)
                }
                option => return Err(format!("device {option}")),
            }
        }
        let (theirs, others): (Vec<_>, Vec<_>) =
            self.claims.iter().partition(|(claimant, _)| leaving.vendor_devices.contains(claimant));
        for (_, thing) in theirs {
            match thing {
                _ if others.iter().any(|(_, other)| other == thing) => {}
                Thing::Entry(path) => leaving.devices.push(PluggedOption::Path(path.clone())),
                Thing::Volume(path) => leaving.volumes.push(path.clone()),
            }
        }
        Ok(leaving)
    }

    /// Takes it out of the list, and with it all claims to it.
    fn split_off(&mut self, leaving: &Leaving) -> Self {
        let gone = Self {
            volumes: self.volumes.extract_if(.., |volume| leaving.has_volume(volume)).collect(),
            devices: self.devices.extract_if(.., |device| leaving.has_device(device)).collect(),
            interfaces: self
                .interfaces
                .extract_if(.., |(name, _)| leaving.interfaces.contains(name))
                .collect(),
            ..Self::default()
        };
        let (devices, volumes) = (&self.devices, &self.volumes);
        self.claims.retain(|(name, thing)| {
            let is_there = match thing {
                Thing::Entry(path) => devices.iter().any(|device| device.entry.path() == path),
                Thing::Volume(path) => volumes.iter().any(|volume| volume.wanted.destination == *path),
            };
            is_there && !leaving.vendor_devices.contains(name)
        });
        gone
    }

    /// Has the agent undo what it was asked for and did not answer. Nothing else is asked of it before.
    async fn settle(&mut self, sandbox: &Sandbox) -> Result<(), AgentError> {
        while let Some(request) = self.unanswered.last() {
            sandbox.agent.unplug(request.clone()).await?;
            self.unanswered.pop();
        }
        Ok(())
    }

    /// Unassigns all of it, which the container no longer uses.
    pub(super) async fn unassign(self, sandbox: &Sandbox) {
        let (assignments, volume_mounts): (Vec<_>, Vec<_>) =
            self.volumes.into_iter().map(|volume| (volume.assignment, volume.share)).unzip();
        let interfaces = self.interfaces.into_iter().map(|(_, assignment)| assignment);
        let devices = self.devices.into_iter().map(|device| device.assignment);
        sandbox.unassign(Assignment::join(devices.chain(interfaces).chain(assignments))).await;
        drop_mounts(volume_mounts).await;
    }
}

/// Unmounting can block.
async fn drop_mounts(volume_mounts: Vec<VolumeMount>) {
    if tokio::task::spawn_blocking(move || drop(volume_mounts)).await.is_err() {
        tracing::error!("unmounting volumes panicked");
    }
}

impl Container {
    /// Plugs a batch in. On an error nothing of it is left, in the guest or on the host.
    pub async fn plug(&self, plug: Plug) -> Result<(), TaskError> {
        self.init.alive("plug")?;
        let begun = Instant::now();
        let sandbox = self.guest()?;
        let _rules = self.applied.lock().await;
        let mut plugged = self.plugged.lock().await;
        let plugged = plugged.as_mut().ok_or_else(|| TaskError::Finished(self.init.name()))?;
        plugged.settle(sandbox).await?;
        let mut batch = Batch::plan(&plug, &self.process, &plugged.there())?;
        let volumes = std::mem::take(&mut batch.volumes);
        let (wanted, volumes): (Vec<_>, Vec<_>) = self
            .share(volumes)
            .await?
            .into_iter()
            .map(|(wanted, mount, share)| (wanted, (mount, share)))
            .unzip();
        let (mounts, volume_mounts): (Vec<_>, Vec<_>) = volumes.into_iter().unzip();
        let mut network = match sandbox.take_over(plug.interfaces).await {
            Ok(network) => network,
            Err(error) => {
                drop_mounts(volume_mounts).await;
                return Err(error.into());
            }
        };
        // The way out stays where it was.
        network.routes.retain(|route| !matches!(route.destination.as_str(), "0.0.0.0/0" | "::/0"));

        let directories: Vec<_> = mounts.iter().zip(&volume_mounts).map(device_of).collect();
        let assigned = sandbox.assign(HostDevices {
            disks: &batch.disks,
            functions: &batch.functions,
            nics: &mut network.nics,
            volumes: &directories,
        });
        let (assignment, sent) = match assigned.await {
            Ok(assigned) => assigned,
            Err(error) => {
                drop_mounts(volume_mounts).await;
                return Err(error.into());
            }
        };
        let devices = batch.devices();
        let mut request = PlugRequest::new();
        request.container_id.clone_from(&self.id);
        request.mounts.clone_from(&mounts);
        request.devices.clone_from(&sent);
        let mut undo = UnplugRequest::new();
        undo.container_id.clone_from(&self.id);
        undo.mounts.clone_from(&mounts);
        undo.devices = devices.iter().map(|(entry, address)| named(entry, *address)).collect();
        match tell(sandbox, &network, request, &batch).await {
            Ok(_) if devices.is_empty() => {}
            Ok(answer) => {
                self.note(devices::record_plugged(&self.bundle, batch.map(), &sent, answer));
            }
            Err(error) => {
                if error.answer().is_none() {
                    plugged.unanswered.push(undo);
                    if let Err(error) = plugged.settle(sandbox).await {
                        tracing::warn!(error = %crate::failure::chain(&error), "an undo is put off");
                    }
                }
                sandbox.unassign(assignment).await;
                drop_mounts(volume_mounts).await;
                return Err(error.into());
            }
        }
        let host_devices = batch.disks.len() + batch.functions.len();
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
        let volumes = wanted.into_iter().zip(mounts).zip(volume_mounts).zip(assignments);
        plugged.volumes.extend(volumes.map(|(((wanted, mount), share), assignment)| PluggedVolume {
            wanted,
            mount,
            assignment,
            share,
        }));
        plugged.claims.append(&mut batch.claims);
        tracing::info!(container = self.id, took = ?begun.elapsed(), "plugged in");
        Ok(())
    }

    /// Takes a batch out. On an error, for instance that a volume is in use, all of it is where it was.
    pub async fn unplug(&self, unplug: Unplug) -> Result<(), TaskError> {
        self.init.alive("unplug")?;
        let begun = Instant::now();
        let sandbox = self.guest()?;
        let _rules = self.applied.lock().await;
        let mut plugged = self.plugged.lock().await;
        let plugged = plugged.as_mut().ok_or_else(|| TaskError::Finished(self.init.name()))?;
        plugged.settle(sandbox).await?;
        let leaving = plugged
            .leaving(unplug)
            .map_err(|what| TaskError::NotPlugged { container_id: self.id.clone(), what })?;

        let mut request = UnplugRequest::new();
        request.container_id.clone_from(&self.id);
        // The last first: one may be mounted below another.
        let volumes = plugged.volumes.iter().rev().filter(|volume| leaving.has_volume(volume));
        request.mounts = volumes.map(|volume| volume.mount.clone()).collect();
        let devices: Vec<_> = plugged.devices.iter().filter(|device| leaving.has_device(device)).collect();
        request.devices = devices.iter().map(|device| named(&device.entry, device.address)).collect();
        if !request.mounts.is_empty() || !request.devices.is_empty() {
            let answer = sandbox.agent.unplug(request).await?;
            let gone = devices.iter().map(|device| {
                (device.entry.path().as_path(), device.address.map(|address| address.to_string()))
            });
            let gone: Vec<_> = gone.collect();
            if !gone.is_empty() {
                self.note(devices::record_unplugged(&self.bundle, &gone, answer));
            }
        }
        plugged.split_off(&leaving).unassign(sandbox).await;
        tracing::info!(container = self.id, took = ?begun.elapsed(), "unplugged");
        Ok(())
    }

    /// `kiai inspect --devices` is all that suffers if it is not written down.
    fn note(&self, written: Result<(), FileError>) {
        if let Err(error) = written {
            let container = &self.id;
            tracing::warn!(container, error = %crate::failure::chain(&error), "the devices cannot be written down");
        }
    }

    /// Mounts volumes on the host, each in a directory of its own; what the guest is to do with each.
    async fn share(
        &self,
        volumes: Vec<PlannedVolume>,
    ) -> Result<Vec<(NeededMount, PluggedMount, VolumeMount)>, TaskError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let bundle = self.bundle.clone();
        let work = move || {
            let one = |PlannedVolume { wanted, volume }| {
                // Its own for the life of this process, which is the sandbox's.
                let tag = format!("volume-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                let share = VolumeMount::mount(bundle.join(&tag), &volume)?;
                let mut mount = PluggedMount::new();
                mount.tag = tag;
                mount.entry = volume.target.display().to_string();
                mount.target = wanted.destination.display().to_string();
                mount.read_only = volume.read_only;
                mount.options.clone_from(&wanted.options);
                Ok((wanted, mount, share))
            };
            volumes.into_iter().map(one).collect()
        };
        let mounting = tokio::task::spawn_blocking(work).await;
        mounting.unwrap_or_else(|panic| Err(TaskError::Panicked(format!("mounting: {panic}"))))
    }
}

/// The guest's part, on a bus that has everything.
async fn tell(
    sandbox: &Sandbox,
    network: &Network,
    mut request: PlugRequest,
    batch: &Batch,
) -> Result<PlugResponse, AgentError> {
    sandbox.agent.configure_network(network).await?;
    if request.mounts.is_empty() && batch.entries.is_empty() {
        return Ok(PlugResponse::new());
    }
    request.linux = serde_json::to_vec(&batch.linux()).unwrap_or_default();
    sandbox.agent.plug(request).await
}

fn device_of((mount, share): (&PluggedMount, &VolumeMount)) -> VolumeDevice {
    VolumeDevice { tag: mount.tag.clone(), directory: share.view().into() }
}

#[cfg(test)]
mod tests;
