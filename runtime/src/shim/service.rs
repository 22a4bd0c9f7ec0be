//! What the shim holds: one sandbox, its containers; and what is done to them as a whole.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::events::task::TaskOOM;
use oci_spec::runtime::Spec;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::events::Events;
use super::events::timestamp;
use crate::config::Config;
use crate::container::Container;
use crate::container::CreateContainer;
use crate::container::Exit;
use crate::container::Process;
use crate::container::Status;
use crate::failure::Failure;
use crate::failure::Outcome;
use crate::host::facts;
use crate::plan::Annotations;
use crate::plan::Role;
use crate::plan::plan_sandbox;
use crate::sandbox;
use crate::sandbox::Sandbox;

/// File in the bundle that says that the kernel's OOM killer struck.
const OOM_FILE: &str = "oom";

/// The pod.
pub(super) struct Service {
    pub(super) events: Events,
    /// Held across a boot, so that a second container of the pod waits for the first.
    sandbox: tokio::sync::Mutex<Option<Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    stop: watch::Sender<bool>,
}

impl Service {
    pub(super) fn new(namespace: &str) -> Arc<Self> {
        Arc::new(Self {
            events: Events::new(namespace),
            sandbox: tokio::sync::Mutex::new(None),
            containers: Mutex::default(),
            stop: watch::channel(false).0,
        })
    }

    /// Resolves when the process is to end.
    pub(super) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // An error means the service is gone, and then it has stopped too.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    pub(super) fn container(&self, id: &str) -> Outcome<Arc<Container>> {
        let found = self.containers.lock().get(id).cloned();
        found.ok_or_else(|| Failure::not_found(format!("container {id} does not exist")))
    }

    pub(super) fn process(&self, id: &str, exec_id: &str) -> Outcome<Arc<Process>> {
        self.container(id)?.process(exec_id)
    }

    pub(super) async fn sandbox(&self) -> Outcome<Arc<Sandbox>> {
        self.sandbox.lock().await.clone().ok_or_else(|| Failure::precondition("the sandbox is not running"))
    }

    /// Creates a container, and before the first one the sandbox.
    pub(super) async fn create(&self, request: CreateContainer) -> Outcome<()> {
        let id = request.id.clone();
        if self.containers.lock().contains_key(&id) {
            return Err(Failure::already_exists(format!("container {id} exists already")));
        }
        let spec = read_spec(&request.bundle)?;
        let config = Config::load().map_err(|e| Failure::invalid(crate::failure::chain(&e)))?;
        let all = spec.annotations().clone().unwrap_or_default();
        let annotations = Annotations::parse(&all, &config.pod_annotations)?;
        let facts = facts::read(&spec);
        let mut sandbox = self.sandbox.lock().await;
        let running = match &*sandbox {
            Some(running) => running.clone(),
            None => {
                if let Role::Container { sandbox_id } = &annotations.role {
                    return Err(Failure::precondition(format!("sandbox {sandbox_id} is not running")));
                }
                let plan = plan_sandbox(&id, &spec, &annotations, &config, &facts)?;
                let booted = Arc::new(sandbox::boot(plan, &request.bundle).await?);
                sandbox.insert(booted).clone()
            }
        };
        drop(sandbox);
        match crate::container::create(&running, request, &spec, &annotations, &facts).await {
            Ok(container) => {
                self.containers.lock().insert(id, Arc::new(container));
                Ok(())
            }
            Err(e) => {
                // A sandbox without a container serves nobody.
                if self.containers.lock().is_empty() {
                    self.end_sandbox().await;
                }
                Err(e)
            }
        }
    }

    /// Starts a process and sees to its exit being told.
    pub(super) async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Outcome<()> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let service = self.clone();
        let exec_id = exec_id.to_owned();
        process.start(move |exit| service.exited(&container, &exec_id, exit)).await
    }

    fn exited(&self, container: &Container, exec_id: &str, exit: Exit) {
        let process_id = if exec_id.is_empty() { &container.id } else { exec_id };
        if exit.out_of_memory {
            if let Err(e) = fs::write(container.bundle.join(OOM_FILE), "") {
                tracing::warn!("{OOM_FILE}: {e}");
            }
            let event = TaskOOM { container_id: container.id.clone(), ..Default::default() };
            self.events.send("/tasks/oom", &event);
        }
        let event = TaskExit {
            container_id: container.id.clone(),
            id: process_id.to_owned(),
            pid: std::process::id(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.events.send("/tasks/exit", &event);
    }

    /// Forgets an exited container or process; returns how it ended.
    pub(super) async fn delete(&self, id: &str, exec_id: &str) -> Outcome<Option<Exit>> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let exit = match process.status() {
            Status::Running => {
                return Err(Failure::precondition(format!("container {id}: its process is running")));
            }
            Status::Created => {
                process.give_up();
                None
            }
            Status::Stopped(exit) => Some(exit),
        };
        let sandbox = self.sandbox().await?;
        if !exec_id.is_empty() {
            container.remove_exec(exec_id);
            let request = kiai_protocol::agent::ProcessRequest {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                ..Default::default()
            };
            let call = sandbox.agent().service().remove_process(crate::agent::Agent::call(), &request);
            forget(sandbox.alive(call).await);
            return Ok(exit);
        }
        let request = kiai_protocol::agent::RemoveContainerRequest {
            container_id: id.to_owned(),
            force: true,
            ..Default::default()
        };
        let call = sandbox.agent().service().remove_container(crate::agent::Agent::call(), &request);
        forget(sandbox.alive(call).await);
        sandbox.shared().remove(id);
        self.containers.lock().remove(id);
        Ok(exit)
    }

    /// Ends the process if nothing is left to serve, or anyway.
    pub(super) async fn shutdown(&self, now: bool) {
        if !now && !self.containers.lock().is_empty() {
            return;
        }
        self.end_sandbox().await;
        self.stop.send_replace(true);
    }

    async fn end_sandbox(&self) {
        let sandbox = self.sandbox.lock().await.take();
        if let Some(sandbox) = sandbox {
            sandbox.destroy().await;
        }
    }
}

/// The guest may be gone, and with it what was to be removed.
fn forget<T>(result: Outcome<T>) {
    if let Err(e) = result {
        tracing::warn!("remove: {e}");
    }
}

pub(super) fn read_spec(bundle: &Path) -> Outcome<Spec> {
    let path: PathBuf = bundle.join("config.json");
    Spec::load(&path)
        .map_err(|e| Failure::invalid(format!("{}: {}", path.display(), crate::failure::chain(&e))))
}
