//! What comes to a container while it is there, and goes before it does: volumes, each a virtio-fs device of its
//! own, disks, and further interfaces of the pod.
//!
//! ```text
//!   plug:   mount and take over on the host -> lend -> interfaces in the guest -> the rest in the container
//!   unplug: volumes and disks out of the container -> taken back -> unmounted on the host
//! ```
//! A batch is one transaction. What is in the container is last to come and first to go, since only that can be
//! refused by what the container does: whatever fails before is undone, and after it nothing fails. A guest that does not
//! answer is asked to undo what it may have done before anything else comes to the container. Whose interfaces the
//! pod's are, and what becomes of them, is not known here.

use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kiai_protocol::agent::Device;
use kiai_protocol::agent::PlugRequest;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::PluggedDevice;
use kiai_protocol::agent::PluggedMount;
use kiai_protocol::agent::UnplugRequest;
use serde::Deserialize;
use serde::Serialize;

use super::Container;
use super::TaskError;
use super::devices;
use super::lend::OwnShare;
use crate::agent::AgentError;
use crate::host::Network;
use crate::host::facts;
use crate::plan::Disk;
use crate::plan::Volume;
use crate::plan::plan_disk;
use crate::plan::plan_volume;
use crate::sandbox::Loan;
use crate::sandbox::Sandbox;
use crate::sandbox::Share;
use crate::sandbox::Wanted;

/// What is to be plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Plug {
    /// Volumes.
    pub volumes: Vec<PlugVolume>,
    /// Disks.
    pub devices: Vec<PlugDevice>,
    /// Interfaces of the pod's network namespace, by name. They become the guest's as those at boot did.
    pub interfaces: Vec<String>,
}

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlugDevice {
    /// Its node on the host.
    pub node: PathBuf,
    /// Absolute path of its node in the container.
    pub path: PathBuf,
    /// Letters of `rwm`: what the container may do with it.
    pub access: String,
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

/// What is to be unplugged, all of it plugged in before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Unplug {
    /// Destinations of volumes.
    pub volumes: Vec<PathBuf>,
    /// Paths of devices in the container.
    pub devices: Vec<PathBuf>,
    /// Names of interfaces.
    pub interfaces: Vec<String>,
}

/// What is plugged in at the moment.
#[derive(Default)]
pub(super) struct Plugged {
    /// In the order in which they came.
    volumes: Vec<PluggedVolume>,
    disks: Vec<(PathBuf, Loan)>,
    interfaces: Vec<(String, Loan)>,
    /// What the agent was asked to plug in and never said that it had: it may have come to it since.
    unanswered: Vec<UnplugRequest>,
}

struct PluggedVolume {
    mount: PluggedMount,
    loan: Loan,
    /// Until the guest has let go of it.
    share: OwnShare,
}

impl PluggedVolume {
    fn is_among(&self, destinations: &[PathBuf]) -> bool {
        destinations.iter().any(|destination| destination == Path::new(&self.mount.target))
    }
}

impl Plugged {
    fn has_volume(&self, destination: &Path) -> bool {
        self.volumes.iter().any(|volume| Path::new(&volume.mount.target) == destination)
    }

    /// The first thing of a batch that is not plugged in.
    fn check(&self, unplug: &Unplug) -> Result<(), String> {
        let volumes = unplug.volumes.iter().filter(|path| !self.has_volume(path));
        let volumes = volumes.map(|path| format!("volume at {}", path.display()));
        let devices =
            unplug.devices.iter().filter(|path| !self.disks.iter().any(|(there, _)| there == *path));
        let devices = devices.map(|path| format!("device {}", path.display()));
        let interfaces = unplug.interfaces.iter();
        let interfaces = interfaces.filter(|name| !self.interfaces.iter().any(|(there, _)| there == *name));
        let interfaces = interfaces.map(|name| format!("interface {name}"));
        volumes.chain(devices).chain(interfaces).next().map_or(Ok(()), Err)
    }

    /// Takes a batch out of the list.
    fn split_off(&mut self, unplug: &Unplug) -> Self {
        Self {
            volumes: self.volumes.extract_if(.., |volume| volume.is_among(&unplug.volumes)).collect(),
            disks: self.disks.extract_if(.., |(path, _)| unplug.devices.contains(path)).collect(),
            interfaces: self
                .interfaces
                .extract_if(.., |(name, _)| unplug.interfaces.contains(name))
                .collect(),
            unanswered: Vec::new(),
        }
    }

    /// Has the agent undo what it was asked for and did not answer. Nothing else is asked of it before.
    async fn settle(&mut self, sandbox: &Sandbox) -> Result<(), AgentError> {
        while let Some(request) = self.unanswered.last() {
            sandbox.agent.unplug(request.clone()).await?;
            self.unanswered.pop();
        }
        Ok(())
    }

    /// Takes all of it back from a guest that has no use for it any more.
    pub(super) async fn give_back(self, sandbox: &Sandbox) {
        let (loans, shares): (Vec<_>, Vec<_>) =
            self.volumes.into_iter().map(|volume| (volume.loan, volume.share)).unzip();
        let interfaces = self.interfaces.into_iter().map(|(_, loan)| loan);
        let disks = self.disks.into_iter().map(|(_, loan)| loan);
        sandbox.take_back(Loan::all(disks.chain(interfaces).chain(loans))).await;
        drop_shares(shares).await;
    }
}

/// Unmounting can block.
async fn drop_shares(shares: Vec<OwnShare>) {
    if tokio::task::spawn_blocking(move || drop(shares)).await.is_err() {
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
        let disk = |device: &PlugDevice| {
            plan_disk(&device.node, &device.path, &device.access, facts::device(&device.node))
        };
        let disks = plug.devices.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
        let volumes = plan(&plug.volumes, plugged)?;
        let (mounts, shares): (Vec<_>, Vec<_>) = self.share(volumes).await?.into_iter().unzip();
        let mut network = match sandbox.take_over(plug.interfaces).await {
            Ok(network) => network,
            Err(error) => {
                drop_shares(shares).await;
                return Err(error.into());
            }
        };
        // The way out stays where it was.
        network.routes.retain(|route| !matches!(route.destination.as_str(), "0.0.0.0/0" | "::/0"));

        let wanted: Vec<_> = mounts.iter().zip(&shares).map(device_of).collect();
        let wanted = Wanted { disks: &disks, nics: &mut network.nics, shares: &wanted, ..Wanted::default() };
        let (loan, devices) = match sandbox.lend(wanted).await {
            Ok(lent) => lent,
            Err(error) => {
                drop_shares(shares).await;
                return Err(error.into());
            }
        };
        let mut request = PlugRequest::new();
        request.container_id.clone_from(&self.id);
        request.mounts.clone_from(&mounts);
        let devices = devices.into_iter().zip(&plug.devices);
        request.devices = devices.map(|(device, wanted)| plugged_device(device, &wanted.access)).collect();
        let mut undo = UnplugRequest::new();
        undo.container_id.clone_from(&self.id);
        undo.mounts.clone_from(&mounts);
        undo.devices = plug.devices.iter().map(|device| device.path.display().to_string()).collect();
        match tell(sandbox, &network, request).await {
            Ok(answer) => self.write_down(&disks, &[], answer),
            Err(error) => {
                if error.answer().is_none() {
                    plugged.unanswered.push(undo);
                    if let Err(error) = plugged.settle(sandbox).await {
                        tracing::warn!(error = %crate::failure::chain(&error), "an undo is put off");
                    }
                }
                sandbox.take_back(loan).await;
                drop_shares(shares).await;
                return Err(error.into());
            }
        }
        let mut loans = loan.each();
        plugged.disks.extend(disks.into_iter().map(|disk| disk.container_path).zip(&mut loans));
        let names = network.nics.into_iter().map(|nic| nic.name);
        plugged.interfaces.extend(names.zip(&mut loans));
        let volumes = mounts.into_iter().zip(shares).zip(loans);
        plugged.volumes.extend(volumes.map(|((mount, share), loan)| PluggedVolume { mount, loan, share }));
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
        plugged
            .check(&unplug)
            .map_err(|what| TaskError::NotPlugged { container_id: self.id.clone(), what })?;

        let mut request = UnplugRequest::new();
        request.container_id.clone_from(&self.id);
        // The last first: one may be mounted below another.
        let volumes = plugged.volumes.iter().rev().filter(|volume| volume.is_among(&unplug.volumes));
        request.mounts = volumes.map(|volume| volume.mount.clone()).collect();
        request.devices = unplug.devices.iter().map(|path| path.display().to_string()).collect();
        if !request.mounts.is_empty() || !request.devices.is_empty() {
            let answer = sandbox.agent.unplug(request).await?;
            self.write_down(&[], &unplug.devices, answer);
        }
        plugged.split_off(&unplug).give_back(sandbox).await;
        tracing::info!(container = self.id, took = ?begun.elapsed(), "unplugged");
        Ok(())
    }

    /// For `kiai inspect --devices`, which is all that suffers if it cannot be done.
    fn write_down(&self, disks: &[Disk], gone: &[PathBuf], answer: PlugResponse) {
        if disks.is_empty() && gone.is_empty() {
            return;
        }
        if let Err(error) = devices::record_change(&self.bundle, disks, gone, answer) {
            tracing::warn!(error = %crate::failure::chain(&error), "the devices cannot be written down");
        }
    }

    /// Mounts volumes on the host, each in a directory of its own; what the guest is to do with each.
    async fn share(
        &self,
        volumes: Vec<(PathBuf, Volume)>,
    ) -> Result<Vec<(PluggedMount, OwnShare)>, TaskError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let bundle = self.bundle.clone();
        let work = move || {
            let one = |(destination, volume): (PathBuf, Volume)| {
                // Its own for the life of this process, which is the sandbox's.
                let tag = format!("volume-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                let share = OwnShare::mount(bundle.join(&tag), &volume)?;
                let mut mount = PluggedMount::new();
                mount.tag = tag;
                mount.entry = volume.target.display().to_string();
                mount.target = destination.display().to_string();
                mount.read_only = volume.read_only;
                Ok((mount, share))
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
    request: PlugRequest,
) -> Result<PlugResponse, AgentError> {
    sandbox.agent.configure_network(network).await?;
    if request.mounts.is_empty() && request.devices.is_empty() {
        return Ok(PlugResponse::new());
    }
    sandbox.agent.plug(request).await
}

fn plugged_device(device: Device, access: &str) -> PluggedDevice {
    let mut plugged = PluggedDevice::new();
    plugged.device = Some(device).into();
    plugged.access = access.to_owned();
    plugged
}

fn device_of((mount, share): (&PluggedMount, &OwnShare)) -> Share {
    Share { tag: mount.tag.clone(), directory: share.view().into() }
}

/// Each volume with its destination, in the one form in which that is compared.
fn plan(volumes: &[PlugVolume], plugged: &Plugged) -> Result<Vec<(PathBuf, Volume)>, TaskError> {
    let mut planned: Vec<(PathBuf, Volume)> = Vec::new();
    for PlugVolume { source, destination, read_only } in volumes {
        let destination: PathBuf = destination.components().collect();
        if plugged.has_volume(&destination) || planned.iter().any(|(there, _)| *there == destination) {
            return Err(TaskError::Exists(format!("volume at {}", destination.display())));
        }
        let volume = plan_volume(source, &destination, *read_only, facts::kind(source))?;
        planned.push((destination, volume));
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_for_one_volume() {
        let folder = tempfile::tempdir().unwrap();
        let volume = |destination: &str| PlugVolume {
            source: folder.path().into(),
            destination: destination.into(),
            read_only: false,
        };
        let planned = plan(&[volume("/a/"), volume("/b")], &Plugged::default()).unwrap();
        assert_eq!(planned[0].0.as_os_str(), "/a");
        let error = plan(&[volume("/a"), volume("//a/")], &Plugged::default()).unwrap_err();
        assert_eq!(error.to_string(), "volume at /a: already exists");
    }

    #[test]
    fn a_request_with_a_word_nobody_knows_is_refused() {
        let plug: Plug = serde_json::from_str(r#"{"interfaces": ["eth1"]}"#).unwrap();
        assert_eq!((plug.interfaces.len(), plug.volumes.len()), (1, 0));
        assert!(serde_json::from_str::<Plug>(r#"{"disks": []}"#).is_err());
        let volume = r#"{"volumes": [{"source": "/a", "destination": "/b", "size": 1}]}"#;
        assert!(serde_json::from_str::<Plug>(volume).is_err());
    }
}
