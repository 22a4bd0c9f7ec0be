//! containerd's Task service, v2 and v3 alike: decode, call, encode.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::Service as TtrpcService;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;

use super::events::any;
use super::pod::Pod;
use super::report::pid;
use super::report::reporter;
use super::report::timestamp;
use super::sandbox_service;
use crate::agent::stats;
use crate::container::CreateOptions;
use crate::container::ProcessState;
use crate::container::TaskError;
use crate::container::io::Uris;
use crate::failure::RpcError;
use crate::host::rootfs::FsMount;

/// The methods by service name, for both versions of the Task service (v3 has the methods of v2) and for the Sandbox
/// service.
pub(super) fn services(pod: &Arc<Pod>) -> HashMap<String, TtrpcService> {
    let task = || create_task(Arc::new(TaskService(pod.clone())));
    let mut all = task();
    all.extend(task().into_iter().map(|(name, methods)| (name.replace(".v2.", ".v3."), methods)));
    all.extend(sandbox_service::services(pod));
    all
}

/// The types of an Update's resources, each as JSON: limits as in the OCI runtime-spec, and plug and unplug requests,
/// for which the OCI runtime-spec has no type.
pub(crate) const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
pub(crate) const PLUG: &str = "kiai/plug.v1";
pub(crate) const UNPLUG: &str = "kiai/unplug.v1";

struct TaskService(Arc<Pod>);

/// The processes of a container for Pids, whose numbers are of the host like those of every other answer: each process
/// of the guest is there, and the process of the host that runs it is this one. A number of the guest's would name
/// some other process of the host.
fn processes(count: usize) -> Vec<api::ProcessInfo> {
    std::iter::repeat_with(|| api::ProcessInfo { pid: pid(), ..Default::default() }).take(count).collect()
}

fn decode<T: serde::de::DeserializeOwned>(part: &'static str, json: &[u8]) -> ttrpc::Result<T> {
    serde_json::from_slice(json).map_err(|e| refused(TaskError::Malformed { part, reason: e.to_string() }))
}

/// Runs a request to its end even if the client disconnects: ttrpc drops the handler of a closed connection, and a
/// container must not be left half created.
pub(super) async fn finish<T: Send + 'static, E: Into<RpcError> + Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(|error| error.into().into()),
        Err(panic) => Err(RpcError::internal(panic.to_string()).into()),
    }
}

fn refused<E: Into<RpcError>>(error: E) -> ttrpc::Error {
    error.into().into()
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(RpcError::unimplemented("checkpoints are not supported").into());
        }
        let options = CreateOptions {
            id: request.id.clone(),
            bundle: request.bundle.clone().into(),
            rootfs: request
                .rootfs
                .iter()
                .map(|mount| FsMount {
                    typ: mount.type_.clone(),
                    source: mount.source.clone(),
                    target: mount.target.clone(),
                    options: mount.options.clone(),
                })
                .collect(),
            uris: Uris {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                namespace: self.0.namespace.clone(),
            },
            terminal: request.terminal,
            ..CreateOptions::default()
        };
        let io = events::TaskIO {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            ..Default::default()
        };
        let created = events::TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io).into(),
            pid: pid(),
            ..Default::default()
        };
        let (pod, reporter) = (self.0.clone(), reporter(self.0.events.clone(), created));
        finish(async move { pod.create(options, reporter).await }).await?;
        Ok(api::CreateTaskResponse { pid: pid(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let container = self.0.container(&request.id).map_err(refused)?;
        finish(async move { container.start(&request.exec_id).await }).await?;
        Ok(api::StartResponse { pid: pid(), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let container = self.0.container(&request.id).map_err(refused)?;
        let process = container.process(&request.exec_id).map_err(refused)?;
        let mut response = api::StateResponse {
            id: request.id,
            bundle: container.bundle.display().to_string(),
            pid: pid(),
            stdin: process.uris.stdin.clone(),
            stdout: process.uris.stdout.clone(),
            stderr: process.uris.stderr.clone(),
            terminal: process.terminal,
            exec_id: request.exec_id,
            ..Default::default()
        };
        response.status = EnumOrUnknown::new(match process.state() {
            ProcessState::Created => api::Status::CREATED,
            ProcessState::Running => api::Status::RUNNING,
            ProcessState::Paused => api::Status::PAUSED,
            ProcessState::Stopped(exit) => {
                response.exit_status = exit.status;
                response.exited_at = Some(timestamp(exit)).into();
                api::Status::STOPPED
            }
        });
        Ok(response)
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let exit = self.0.process(&request.id, &request.exec_id).map_err(refused)?.wait().await;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit)).into(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let pod = self.0.clone();
        let removed = finish(async move { pod.delete(&request.id, &request.exec_id).await }).await?;
        Ok(api::DeleteResponse {
            pid: pid(),
            exit_status: removed.exit.status,
            exited_at: Some(timestamp(removed.exit)).into(),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let container = self.0.container(&request.id).map_err(refused)?;
        container.kill(&request.exec_id, request.signal, request.all).await.map_err(refused)?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        let container = self.0.container(&request.id).map_err(refused)?;
        let uris = Uris {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            namespace: self.0.namespace.clone(),
        };
        let spec = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        container.exec(&request.exec_id, uris, request.terminal, &spec).map_err(refused)?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.0.container(&request.id).map_err(refused)?;
        container.resize(&request.exec_id, request.height, request.width).await.map_err(refused)?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let process = self.0.process(&request.id, &request.exec_id).map_err(refused)?;
        if request.stdin {
            process.close_input();
        }
        Ok(api::Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let pids = self.0.container(&request.id).map_err(refused)?.pids().await.map_err(refused)?;
        Ok(api::PidsResponse { processes: processes(pids.len()), ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        let container = self.0.container(&request.id).map_err(refused)?;
        finish(async move { container.pause().await }).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        let container = self.0.container(&request.id).map_err(refused)?;
        finish(async move { container.resume().await }).await?;
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        let container = self.0.container(&request.id).map_err(refused)?;
        let update = request.resources.unwrap_or_default();
        match update.type_url.as_str() {
            RESOURCES => finish(async move { container.update(update.value).await }).await?,
            PLUG => {
                let plug = decode("plug", &update.value)?;
                finish(async move { container.plug(plug).await }).await?;
            }
            UNPLUG => {
                let unplug = decode("unplug", &update.value)?;
                finish(async move { container.unplug(unplug).await }).await?;
            }
            other => {
                let message = format!(
                    "update of type {other:?} is not supported; supported are {RESOURCES}, {PLUG} and {UNPLUG}"
                );
                return Err(RpcError::unimplemented(message).into());
            }
        }
        Ok(api::Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let container = self.0.container(&request.id).map_err(refused)?;
        let figures = container.stats().await.map_err(refused)?;
        Ok(api::StatsResponse { stats: Some(any(&stats(&figures))).into(), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, _: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(api::ConnectResponse { shim_pid: pid(), task_pid: pid(), version, ..Default::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        Err(RpcError::unimplemented("checkpoints are not supported").into())
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        self.0.shut_down(request.now);
        Ok(api::Empty::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_of_a_container_has_the_pid_of_its_task() {
        let pids: Vec<u32> = processes(2).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [std::process::id(); 2]);
        assert!(processes(0).is_empty());
    }
}
