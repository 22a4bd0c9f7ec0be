//! containerd's Task service, v2 and v3 alike: decode, call, encode.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::Service as TtrpcService;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use kiai_protocol::agent;

use super::events::any;
use super::events::timestamp;
use super::metrics;
use super::service::Service;
use crate::agent::Agent;
use crate::container::CreateContainer;
use crate::container::Process;
use crate::container::Status;
use crate::container::StdioPaths;
use crate::failure::Failure;
use crate::plan::check_id;
use crate::sandbox::RootMount;

/// The methods by service name, for both versions: v3 is v2 under another name.
pub(super) fn services(service: &Arc<Service>) -> HashMap<String, TtrpcService> {
    let task = || create_task(Arc::new(TaskService(service.clone())));
    let mut all = task();
    all.extend(task().into_iter().map(|(name, methods)| (name.replace(".v2.", ".v3."), methods)));
    all
}

struct TaskService(Arc<Service>);

/// containerd wants a host process for a task, and that is ours.
fn pid() -> u32 {
    std::process::id()
}

fn container_request(id: String) -> agent::ContainerRequest {
    agent::ContainerRequest { container_id: id, ..Default::default() }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        check_id(&request.id).map_err(Failure::from)?;
        if !request.checkpoint.is_empty() {
            return Err(Failure::unimplemented("checkpoints are not supported").into());
        }
        let root = request
            .rootfs
            .iter()
            .map(|m| RootMount {
                kind: m.type_.clone(),
                source: m.source.clone(),
                options: m.options.clone(),
            })
            .collect();
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let bundle = request.bundle.clone().into();
        self.0.create(CreateContainer { id: request.id.clone(), bundle, root, stdio }).await?;
        let io = events::TaskIO {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            ..Default::default()
        };
        let event = events::TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io).into(),
            pid: pid(),
            ..Default::default()
        };
        self.0.events.send("/tasks/create", &event);
        Ok(api::CreateTaskResponse { pid: pid(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        self.0.start(&request.id, &request.exec_id).await?;
        if request.exec_id.is_empty() {
            let event = events::TaskStart { container_id: request.id, pid: pid(), ..Default::default() };
            self.0.events.send("/tasks/start", &event);
        } else {
            let event = events::TaskExecStarted {
                container_id: request.id,
                exec_id: request.exec_id,
                pid: pid(),
                ..Default::default()
            };
            self.0.events.send("/tasks/exec-started", &event);
        }
        Ok(api::StartResponse { pid: pid(), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let mut response = api::StateResponse {
            id: request.id,
            bundle: container.bundle.display().to_string(),
            pid: pid(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.terminal,
            exec_id: request.exec_id,
            ..Default::default()
        };
        response.status = EnumOrUnknown::new(match process.status() {
            Status::Created => api::Status::CREATED,
            Status::Running => api::Status::RUNNING,
            Status::Stopped(exit) => {
                response.exit_status = exit.status;
                response.exited_at = Some(timestamp(exit.at)).into();
                api::Status::STOPPED
            }
        });
        Ok(response)
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let exit = self.0.process(&request.id, &request.exec_id)?.wait().await;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let exit = self.0.delete(&request.id, &request.exec_id).await?;
        let status = exit.map_or(0, |exit| exit.status);
        let exited_at: MessageField<_> = exit.map(|exit| timestamp(exit.at)).into();
        if request.exec_id.is_empty() {
            let event = events::TaskDelete {
                container_id: request.id.clone(),
                id: request.id,
                pid: pid(),
                exit_status: status,
                exited_at: exited_at.clone(),
                ..Default::default()
            };
            self.0.events.send("/tasks/delete", &event);
        }
        Ok(api::DeleteResponse { pid: pid(), exit_status: status, exited_at, ..Default::default() })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        self.0.process(&request.id, &request.exec_id)?.kill(request.signal, request.all).await?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        check_id(&request.exec_id).map_err(Failure::from)?;
        let container = self.0.container(&request.id)?;
        let sandbox = self.0.sandbox().await?;
        let stdio = StdioPaths { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
        let process = request.spec.into_option().map(|spec| spec.value).unwrap_or_default();
        let process =
            Process::exec(&sandbox, &request.id, &request.exec_id, request.terminal, stdio, process);
        container.add_exec(process)?;
        let event = events::TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        self.0.events.send("/tasks/exec-added", &event);
        Ok(api::Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.0.process(&request.id, &request.exec_id)?;
        let sandbox = self.0.sandbox().await?;
        let resize = agent::ResizeTerminalRequest {
            container_id: request.id,
            exec_id: request.exec_id,
            rows: request.height,
            columns: request.width,
            ..Default::default()
        };
        sandbox.alive(sandbox.agent().service().resize_terminal(Agent::call(), &resize)).await?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        if request.stdin {
            self.0.process(&request.id, &request.exec_id)?.close_stdin();
        }
        Ok(api::Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        self.0.container(&request.id)?;
        let info = api::ProcessInfo { pid: pid(), ..Default::default() };
        Ok(api::PidsResponse { processes: vec![info], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        self.0.container(&request.id)?;
        let sandbox = self.0.sandbox().await?;
        let container = container_request(request.id.clone());
        sandbox.alive(sandbox.agent().service().pause_container(Agent::call(), &container)).await?;
        let event = events::TaskPaused { container_id: request.id, ..Default::default() };
        self.0.events.send("/tasks/paused", &event);
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        self.0.container(&request.id)?;
        let sandbox = self.0.sandbox().await?;
        let container = container_request(request.id.clone());
        sandbox.alive(sandbox.agent().service().resume_container(Agent::call(), &container)).await?;
        let event = events::TaskResumed { container_id: request.id, ..Default::default() };
        self.0.events.send("/tasks/resumed", &event);
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        self.0.container(&request.id)?;
        let sandbox = self.0.sandbox().await?;
        let update = agent::UpdateContainerRequest {
            container_id: request.id,
            resources: request.resources.into_option().map(|any| any.value).unwrap_or_default(),
            ..Default::default()
        };
        sandbox.alive(sandbox.agent().service().update_container(Agent::call(), &update)).await?;
        Ok(api::Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        self.0.container(&request.id)?;
        let sandbox = self.0.sandbox().await?;
        let container = container_request(request.id);
        let stats =
            sandbox.alive(sandbox.agent().service().stats_container(Agent::call(), &container)).await?;
        let stats = any(&metrics::convert(&stats));
        Ok(api::StatsResponse { stats: Some(stats).into(), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, _: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(api::ConnectResponse { shim_pid: pid(), task_pid: pid(), version, ..Default::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        Err(Failure::unimplemented("checkpoints are not supported").into())
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        self.0.shutdown(request.now).await;
        Ok(api::Empty::new())
    }
}
