//! The Task service of one container's shim (containerd runtime v2, `containerd.task.v2.Task`), as a client.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::Process;
use ttrpc::Code;
use ttrpc::context::Context;

use crate::container::PlugOptions;
use crate::container::UnplugOptions;
use crate::shim::PLUG;
use crate::shim::RESOURCES;
use crate::shim::UNPLUG;
use crate::store::timestamp::Timestamp;

/// Why a call to a shim failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShimError {
    /// The shim refused the call.
    #[error("{call}: {message}")]
    Refused {
        /// The call, as a phrase.
        call: &'static str,
        /// The gRPC status.
        code: Code,
        /// The shim's reason.
        message: String,
    },
    /// The shim does not run, or the connection closed.
    #[error("{call}: the connection to the shim is lost")]
    Lost {
        /// The call, as a phrase.
        call: &'static str,
        /// The transport's error.
        #[source]
        source: ttrpc::Error,
    },
}

impl ShimError {
    fn of(call: &'static str) -> impl FnOnce(ttrpc::Error) -> Self {
        move |error| match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::Refused { call, code: status.code(), message: status.message().to_owned() }
            }
            source => Self::Lost { call, source },
        }
    }

    /// Whether the process does not exist, or no longer does.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: Code::NOT_FOUND, .. })
    }

    /// Whether the connection to the shim is lost.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// The URIs of a process's streams, as in `CreateTaskRequest`; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StreamUris {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TaskExit {
    pub(super) status: u32,
    pub(super) at: Timestamp,
}

fn ended(
    status: u32,
    at: &MessageField<containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp>,
) -> TaskExit {
    let at = at.as_ref().map_or_else(Timestamp::now, |at| Timestamp::from_parts(at.seconds, at.nanos));
    TaskExit { status, at }
}

/// The state of a process, as the shim reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    Created,
    Running,
    Paused,
    Stopped(TaskExit),
}

/// A client of one container's shim. Cheap to clone; calls may be concurrent.
#[derive(Clone)]
pub(super) struct Task {
    client: TaskClient,
    id: String,
}

impl Task {
    /// Connects to the socket of the shim of container `id`.
    pub(super) async fn connect(socket: &Path, id: &str) -> Result<Self, ShimError> {
        let client = Client::connect(&format!("unix://{}", socket.display()))
            .await
            .map_err(ShimError::of("connect to the shim"))?;
        Ok(Self { client: TaskClient::new(client), id: id.to_owned() })
    }

    /// Creates the container: boots the sandbox, mounts the root file system and builds the process, without starting
    /// it.
    pub(super) async fn create(
        &self,
        bundle: &Path,
        rootfs: Mount,
        streams: &StreamUris,
    ) -> Result<(), ShimError> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.display().to_string(),
            rootfs: vec![rootfs],
            terminal: streams.terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            ..Default::default()
        };
        let call = ShimError::of("cannot create the container");
        self.client.create(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Registers a process to be run in the container, without starting it.
    pub(super) async fn exec(
        &self,
        exec_id: &str,
        process: &Process,
        streams: &StreamUris,
    ) -> Result<(), ShimError> {
        let mut spec = Any::new();
        spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
        spec.value = serde_json::to_vec(process).expect("an OCI process is always JSON");
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal: streams.terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            spec: MessageField::some(spec),
            ..Default::default()
        };
        let call = ShimError::of("cannot add a process");
        self.client.exec(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Starts the container's process, or the one that was registered as `exec_id`.
    pub(super) async fn start(&self, exec_id: &str) -> Result<(), ShimError> {
        let request =
            api::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let call = ShimError::of("cannot start the process");
        self.client.start(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Waits until the process has ended.
    pub(super) async fn wait(&self, exec_id: &str) -> Result<TaskExit, ShimError> {
        let request =
            api::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let call = ShimError::of("cannot wait for the process");
        let answer = self.client.wait(Context::default(), &request).await.map_err(call)?;
        Ok(ended(answer.exit_status, &answer.exited_at))
    }

    /// Sends a signal to the process; with `all`, to every process of the container.
    pub(super) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), ShimError> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        let call = ShimError::of("cannot send the signal");
        self.client.kill(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Freezes every process of the container.
    pub(super) async fn pause(&self) -> Result<(), ShimError> {
        let request = api::PauseRequest { id: self.id.clone(), ..Default::default() };
        let call = ShimError::of("cannot pause the container");
        self.client.pause(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Thaws every process of the container.
    pub(super) async fn resume(&self) -> Result<(), ShimError> {
        let request = api::ResumeRequest { id: self.id.clone(), ..Default::default() };
        let call = ShimError::of("cannot unpause the container");
        self.client.resume(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Sets the size of the process's terminal.
    pub(super) async fn resize(&self, exec_id: &str, columns: u16, rows: u16) -> Result<(), ShimError> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        let call = ShimError::of("cannot resize the terminal");
        self.client.resize_pty(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Closes the process's standard input.
    pub(super) async fn close_stdin(&self, exec_id: &str) -> Result<(), ShimError> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        let call = ShimError::of("cannot close standard input");
        self.client.close_io(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Asks for the state of the container.
    pub(super) async fn activity(&self) -> Result<Activity, ShimError> {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        let call = ShimError::of("cannot ask for the state");
        let answer = self.client.state(Context::default(), &request).await.map_err(call)?;
        Ok(match answer.status.enum_value_or_default() {
            api::Status::RUNNING => Activity::Running,
            api::Status::PAUSED | api::Status::PAUSING => Activity::Paused,
            api::Status::STOPPED => Activity::Stopped(ended(answer.exit_status, &answer.exited_at)),
            api::Status::CREATED | api::Status::UNKNOWN => Activity::Created,
        })
    }

    /// Statistics of the container's cgroup.
    pub(super) async fn stats(
        &self,
    ) -> Result<containerd_shim_protos::cgroups_v2::metrics::Metrics, ShimError> {
        let request = api::StatsRequest { id: self.id.clone(), ..Default::default() };
        let call = "cannot ask for the figures";
        let answer = self.client.stats(Context::default(), &request).await.map_err(ShimError::of(call))?;
        let bytes = answer.stats.as_ref().map_or(&[][..], |any| &any.value);
        Message::parse_from_bytes(bytes).map_err(|error| ShimError::Refused {
            call,
            code: Code::INTERNAL,
            message: format!("the answer is damaged: {error}"),
        })
    }

    /// Changes the container's limits.
    pub(super) async fn update(&self, resources: &LinuxResources) -> Result<(), ShimError> {
        self.change("cannot update the container", RESOURCES, resources).await
    }

    /// Plugs volumes, devices and interfaces in, all or none.
    pub(super) async fn plug(&self, options: &PlugOptions) -> Result<(), ShimError> {
        self.change("cannot plug", PLUG, options).await
    }

    /// Unplugs volumes, devices and interfaces, all or none.
    pub(super) async fn unplug(&self, options: &UnplugOptions) -> Result<(), ShimError> {
        self.change("cannot unplug", UNPLUG, options).await
    }

    async fn change(
        &self,
        call: &'static str,
        type_url: &str,
        change: &impl serde::Serialize,
    ) -> Result<(), ShimError> {
        let mut any = Any::new();
        any.type_url = type_url.to_owned();
        any.value = serde_json::to_vec(change).expect("every change can be written as JSON");
        let request =
            api::UpdateTaskRequest { id: self.id.clone(), resources: Some(any).into(), ..Default::default() };
        self.client.update(Context::default(), &request).await.map_err(ShimError::of(call)).map(drop)
    }

    /// Forgets an ended process; removes the container for its own process.
    pub(super) async fn delete(&self, exec_id: &str) -> Result<TaskExit, ShimError> {
        let request =
            api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let call = ShimError::of("cannot delete the process");
        let answer = self.client.delete(Context::default(), &request).await.map_err(call)?;
        Ok(ended(answer.exit_status, &answer.exited_at))
    }

    /// Ends the shim. The answer may be lost with the connection, which is no error.
    pub(super) async fn shutdown(&self) -> Result<(), ShimError> {
        let request = api::ShutdownRequest { id: self.id.clone(), now: true, ..Default::default() };
        let call = ShimError::of("cannot end the shim");
        match self.client.shutdown(Context::default(), &request).await.map_err(call) {
            Err(error) if !error.is_lost() => Err(error),
            _ => Ok(()),
        }
    }
}
