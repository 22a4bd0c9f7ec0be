//! From a bundle to a created container: plan, put files in place, ask the agent.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiai_protocol::agent::CreateContainerRequest;
use oci_spec::runtime::Spec;
use parking_lot::Mutex;

use super::Container;
use super::Process;
use super::StdioPaths;
use super::stdio;
use crate::agent::Agent;
use crate::failure::Failure;
use crate::failure::Outcome;
use crate::plan::Annotations;
use crate::plan::HostFacts;
use crate::plan::container_directory;
use crate::plan::plan_container;
use crate::sandbox::RootMount;
use crate::sandbox::Sandbox;

/// What a client asks for.
pub struct CreateContainer {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What to mount for its root; none: the bundle's `rootfs`.
    pub root: Vec<RootMount>,
    /// Its standard streams.
    pub stdio: StdioPaths,
}

/// Creates a container in a running sandbox. On an error nothing of it is left, in the guest or here.
pub async fn create(
    sandbox: &Arc<Sandbox>,
    request: CreateContainer,
    spec: &Spec,
    annotations: &Annotations,
    facts: &HostFacts,
) -> Outcome<Container> {
    let CreateContainer { id, bundle, root, stdio } = request;
    let plan = plan_container(&id, spec, annotations, facts)?;
    if let Some(disk) = plan.disks.first() {
        let path = disk.container_path.display();
        return Err(Failure::unimplemented(format!("device {path}: block devices cannot be attached yet")));
    }
    sandbox
        .shared()
        .add(&id, &root, &bundle, &plan.volumes)
        .map_err(|e| Failure::host(format!("container {id}"), &e))?;
    let created = async {
        let spec = serde_json::to_vec(&plan.spec).map_err(|e| Failure::host("encode the spec", &e))?;
        let streams = stdio::Streams::listen(sandbox, &stdio, plan.terminal)?;
        let (rows, columns) = plan.terminal_size;
        let request = CreateContainerRequest {
            container_id: id.clone(),
            spec,
            rootfs: container_directory(&id).join("rootfs").display().to_string(),
            stdio: Some(streams.ports()).into(),
            rows,
            columns,
            ..Default::default()
        };
        let call = sandbox.agent().service().create_container(Agent::call(), &request);
        sandbox.alive(call).await?;
        let connected = streams.connect(&stdio).await?;
        Ok(Process::created(sandbox, &id, "", plan.terminal, stdio, connected))
    }
    .await
    .inspect_err(|_: &Failure| sandbox.shared().remove(&id))?;
    Ok(Container { id, bundle, init: Arc::new(created), execs: Mutex::new(HashMap::new()) })
}
