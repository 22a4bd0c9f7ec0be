//! The sandbox: everything the agent holds for its one pod, and the table of containers.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use kiai_protocol::agent::CreateSandboxRequest;
use parking_lot::Mutex;

use crate::cgroup;
use crate::container::Container;
use crate::events::Events;
use crate::fault::{Fault, Result};
use crate::memory::FreedMemory;
use crate::oci::{Built, RoleProcess};
use crate::storage::Storages;
use crate::stream::StreamTable;
use crate::uevent::Uevents;
use crate::{guest, net};

/// One for the life of the agent.
#[derive(Debug)]
pub struct Sandbox {
    /// Builds containers and processes.
    pub helper: RoleProcess,
    /// Tells of devices.
    pub uevents: Arc<Uevents>,
    /// Mounts made for the host.
    pub storages: Storages,
    /// The standard streams whose connections are awaited.
    pub streams: StreamTable,
    /// What the host is told unasked.
    pub events: Events,
    /// Tells of memory that was freed.
    pub freed_memory: FreedMemory,
    /// The init of the pod's pid namespace, once a container has joined it.
    pod_init: tokio::sync::Mutex<Option<Built>>,
    life: Mutex<Life>,
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
}

#[derive(Debug)]
enum Life {
    /// Booted; nothing is known of the pod.
    Fresh,
    /// Being set up or torn down.
    Changing,
    /// Set up, with these storages.
    Created(Vec<PathBuf>),
    /// Torn down. The guest is about to power off.
    Ended,
}

impl Sandbox {
    /// Before the host has said anything of the pod.
    pub fn new(helper: RoleProcess) -> Arc<Self> {
        let uevents = Arc::new(Uevents::default());
        Arc::new(Self {
            helper,
            storages: Storages::new(uevents.clone()),
            uevents,
            streams: StreamTable::default(),
            events: Events::default(),
            freed_memory: FreedMemory::default(),
            pod_init: tokio::sync::Mutex::default(),
            life: Mutex::new(Life::Fresh),
            containers: Mutex::default(),
        })
    }

    /// Sets the pod up. On an error the sandbox is as fresh as before, apart from kernel parameters.
    pub async fn create(&self, request: CreateSandboxRequest) -> Result<()> {
        self.begin(|life| matches!(life, Life::Fresh), "created")?;
        match self.set_up(request).await {
            Ok(storages) => {
                *self.life.lock() = Life::Created(storages);
                Ok(())
            }
            Err(fault) => {
                *self.life.lock() = Life::Fresh;
                Err(fault)
            }
        }
    }

    async fn set_up(&self, request: CreateSandboxRequest) -> Result<Vec<PathBuf>> {
        cgroup::delegate_controllers().map_err(anyhow::Error::new)?;
        guest::lift_limits();
        net::raise_loopback().await?;
        let sysctls: BTreeMap<_, _> = request.sysctls.into_iter().collect();
        guest::set_sysctls(sysctls.iter())?;
        guest::set_hostname(&request.hostname)?;
        guest::set_dns(&request.dns)?;
        Ok(self.storages.mount(&request.storages).await?)
    }

    /// Ends the pod: every container, every mount. Errors are logged; there is nothing left to save.
    pub async fn destroy(&self) -> Result<()> {
        let before = self.begin(|life| matches!(life, Life::Fresh | Life::Created(_)), "destroyed")?;
        let containers: Vec<_> = self.containers.lock().drain().filter_map(|(_, built)| built).collect();
        let removals = containers.iter().map(|container| container.remove(&self.storages, true));
        for (container, removed) in containers.iter().zip(futures::future::join_all(removals).await) {
            if let Err(fault) = removed {
                tracing::error!("remove container {}: {fault}", container.id());
            }
        }
        if let Life::Created(storages) = before {
            self.storages.release(&storages).await;
        }
        self.events.close();
        // What is left mounted is made safe as well.
        let _ = tokio::task::spawn_blocking(rustix::fs::sync).await;
        *self.life.lock() = Life::Ended;
        Ok(())
    }

    fn begin(&self, allowed: impl FnOnce(&Life) -> bool, verb: &str) -> Result<Life> {
        let mut life = self.life.lock();
        if !allowed(&life) {
            let is = match *life {
                Life::Fresh => "not there yet",
                Life::Changing => "being set up or torn down",
                Life::Created(_) => "there already",
                Life::Ended => "over",
            };
            let message = format!("the sandbox cannot be {verb}: it is {is}");
            return Err(match *life {
                Life::Created(_) => Fault::AlreadyExists(message),
                _ => Fault::FailedPrecondition(message),
            });
        }
        Ok(std::mem::replace(&mut life, Life::Changing))
    }

    /// The pod's pid namespace, which containers without one of their own join.
    pub async fn shared_pids(&self) -> Result<PathBuf> {
        let mut init = self.pod_init.lock().await;
        let pid = match &*init {
            Some(running) if running.exit.borrow().is_none() => running.pid,
            _ => init.insert(self.helper.pod_init().await?).pid,
        };
        Ok(format!("/proc/{pid}/ns/pid").into())
    }

    /// Reserves a container id.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        if !matches!(*self.life.lock(), Life::Created(_)) {
            return Err(Fault::FailedPrecondition(format!("container {id}: there is no sandbox")));
        }
        let mut containers = self.containers.lock();
        if containers.contains_key(id) {
            return Err(Fault::AlreadyExists(format!("container {id} exists")));
        }
        containers.insert(id.to_owned(), None);
        Ok(Reservation { sandbox: self.clone(), id: id.to_owned() })
    }

    /// The container of that id, once it is built.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.containers.lock().get(id).cloned().flatten();
        found.ok_or_else(|| {
            Fault::NotFound(format!("container {:?}", id.chars().take(128).collect::<String>()))
        })
    }

    /// Removes a container and forgets it.
    pub async fn remove(&self, id: &str, force: bool) -> Result<()> {
        self.container(id)?.remove(&self.storages, force).await?;
        self.containers.lock().remove(id);
        self.freed_memory.look_again();
        Ok(())
    }
}

/// A reserved container id. Dropping it frees the id unless a container was filled in.
#[derive(Debug)]
pub struct Reservation {
    sandbox: Arc<Sandbox>,
    id: String,
}

impl Reservation {
    /// Makes the container known.
    pub fn fill(self, container: Arc<Container>) {
        self.sandbox.containers.lock().insert(self.id.clone(), Some(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut containers = self.sandbox.containers.lock();
        if containers.get(&self.id).is_some_and(Option::is_none) {
            containers.remove(&self.id);
        }
    }
}
