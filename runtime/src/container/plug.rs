//! What comes to a container while it is there, and goes before it does: volumes, each a virtio-fs device of its
//! own, and further interfaces of the pod.
//!
//! ```text
//!   plug:   mount and take over on the host -> lend -> interfaces in the guest -> volumes in the container
//!   unplug: volumes out of the container -> taken back -> unmounted on the host
//! ```
//! A batch is one transaction. The volumes are last to come and first to go, since only they can be refused by
//! what the container does: whatever fails before is undone, and after it nothing fails. Whose interfaces the
//! pod's are, and what becomes of them, is not known here.

use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kiai_protocol::agent::PluggedMount;
use serde::Deserialize;
use serde::Serialize;

use super::Container;
use super::TaskError;
use super::lend::OwnShare;
use crate::agent::AgentError;
use crate::host::Network;
use crate::host::facts;
use crate::plan::Volume;
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

/// What is to be unplugged, all of it plugged in before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Unplug {
    /// Destinations of volumes.
    pub volumes: Vec<PathBuf>,
    /// Names of interfaces.
    pub interfaces: Vec<String>,
}

/// What is plugged in at the moment.
#[derive(Default)]
pub(super) struct Plugged {
    /// In the order in which they came.
    volumes: Vec<PluggedVolume>,
    interfaces: Vec<(String, Loan)>,
}

struct PluggedVolume {
    mount: PluggedMount,
    loan: Loan,
    /// Until the guest has let go of it.
    share: OwnShare,
}

impl Plugged {
    fn has_volume(&self, destination: &Path) -> bool {
        self.volumes.iter().any(|volume| Path::new(&volume.mount.target) == destination)
    }

    /// Takes all of it back from a guest that has no use for it any more.
    pub(super) async fn give_back(self, sandbox: &Sandbox) {
        let (loans, shares): (Vec<_>, Vec<_>) =
            self.volumes.into_iter().map(|volume| (volume.loan, volume.share)).unzip();
        let interfaces = self.interfaces.into_iter().map(|(_, loan)| loan);
        sandbox.take_back(Loan::all(loans.into_iter().chain(interfaces))).await;
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
        let mut plugged = self.plugged.lock().await;
        let plugged = plugged.as_mut().ok_or_else(|| TaskError::Finished(self.init.name()))?;
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
        let wanted = Wanted { nics: &mut network.nics, shares: &wanted, ..Wanted::default() };
        let loan = match sandbox.lend(wanted).await {
            Ok((loan, _)) => loan,
            Err(error) => {
                drop_shares(shares).await;
                return Err(error.into());
            }
        };
        if let Err(error) = self.tell(sandbox, &network, mounts.clone()).await {
            sandbox.take_back(loan).await;
            drop_shares(shares).await;
            return Err(error.into());
        }
        let mut loans = loan.each();
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
        let mut plugged = self.plugged.lock().await;
        let plugged = plugged.as_mut().ok_or_else(|| TaskError::Finished(self.init.name()))?;
        let missing = |what: String| Err(TaskError::NotPlugged { container_id: self.id.clone(), what });
        if let Some(path) = unplug.volumes.iter().find(|path| !plugged.has_volume(path)) {
            return missing(format!("volume at {}", path.display()));
        }
        let has = |name: &&String| !plugged.interfaces.iter().any(|(there, _)| there == *name);
        if let Some(name) = unplug.interfaces.iter().find(has) {
            return missing(format!("interface {name}"));
        }

        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut plugged.volumes)
            .into_iter()
            .partition(|volume| unplug.volumes.iter().any(|path| path == Path::new(&volume.mount.target)));
        // The last first: one may be mounted below another.
        let mounts: Vec<_> = gone.iter().rev().map(|volume| volume.mount.clone()).collect();
        if !mounts.is_empty()
            && let Err(error) = sandbox.agent.unplug_mounts(&self.id, mounts).await
        {
            plugged.volumes = kept.into_iter().chain(gone).collect();
            return Err(error.into());
        }
        plugged.volumes = kept;
        let (interfaces, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut plugged.interfaces)
            .into_iter()
            .partition(|(name, _)| unplug.interfaces.contains(name));
        plugged.interfaces = kept;
        Plugged { volumes: gone, interfaces }.give_back(sandbox).await;
        tracing::info!(container = self.id, took = ?begun.elapsed(), "unplugged");
        Ok(())
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

    /// The guest's part, on a bus that has everything.
    async fn tell(
        &self,
        sandbox: &Sandbox,
        network: &Network,
        mounts: Vec<PluggedMount>,
    ) -> Result<(), AgentError> {
        sandbox.agent.configure_network(network).await?;
        if mounts.is_empty() { Ok(()) } else { sandbox.agent.plug_mounts(&self.id, mounts).await }
    }
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
