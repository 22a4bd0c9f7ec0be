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

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    /// It said no.
    #[error("{call}: {message}")]
    Refused {
        /// The call, as a few words.
        call: &'static str,
        /// gRPC status.
        code: Code,
        /// Its reason.
        message: String,
    },
    /// It is not there, or went away.
    #[error("{call}: the connection to the shim is lost")]
    Lost {
        /// The call, as a few words.
        call: &'static str,
        /// What the transport said.
        #[source]
        source: ttrpc::Error,
    },
}

impl TaskError {
    fn of(call: &'static str) -> impl FnOnce(ttrpc::Error) -> Self {
        move |error| match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::Refused { call, code: status.code(), message: status.message().to_owned() }
            }
            source => Self::Lost { call, source },
        }
    }

    /// The process asked about is not there, or not any more.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: Code::NOT_FOUND, .. })
    }

    /// The shim is gone.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Where the streams of a process are: URIs as in `CreateTaskRequest`, empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StreamUris {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: u32,
    pub(super) at: Timestamp,
}

fn ended(
    status: u32,
    at: &MessageField<containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp>,
) -> Ended {
    let at = at.as_ref().map_or_else(Timestamp::now, |at| Timestamp::from_parts(at.seconds, at.nanos));
    Ended { status, at }
}

/// What a container or one more process in it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    Created,
    Running,
    Paused,
    Stopped(Ended),
}

/// One container's shim. Cheap to clone; the calls may be made at the same time.
#[derive(Clone)]
pub(super) struct Task {
    client: TaskClient,
    id: String,
}

impl Task {
    /// Connects to the socket of the shim of container `id`.
    pub(super) async fn connect(socket: &Path, id: &str) -> Result<Self, TaskError> {
        let client = Client::connect(&format!("unix://{}", socket.display()))
            .await
            .map_err(TaskError::of("connect to the shim"))?;
        Ok(Self { client: TaskClient::new(client), id: id.to_owned() })
    }

    /// Creates the container: boots the sandbox, makes the root file system and the process, starts nothing.
    pub(super) async fn create(
        &self,
        bundle: &Path,
        rootfs: Mount,
        streams: &StreamUris,
    ) -> Result<(), TaskError> {
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
        let call = TaskError::of("cannot create the container");
        self.client.create(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Adds a process to the running container, not yet started.
    pub(super) async fn exec(
        &self,
        exec_id: &str,
        process: &Process,
        streams: &StreamUris,
    ) -> Result<(), TaskError> {
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
        let call = TaskError::of("cannot add a process");
        self.client.exec(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Starts the container's process, or the one that was added as `exec_id`.
    pub(super) async fn start(&self, exec_id: &str) -> Result<(), TaskError> {
        let request =
            api::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let call = TaskError::of("cannot start the process");
        self.client.start(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Answers when the process has ended.
    pub(super) async fn wait(&self, exec_id: &str) -> Result<Ended, TaskError> {
        let request =
            api::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let call = TaskError::of("cannot wait for the process");
        let answer = self.client.wait(Context::default(), &request).await.map_err(call)?;
        Ok(ended(answer.exit_status, &answer.exited_at))
    }

    /// Sends a signal to the process, or to all of the container.
    pub(super) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        let call = TaskError::of("cannot send the signal");
        self.client.kill(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Tells the terminal of the process its size.
    pub(super) async fn resize(&self, exec_id: &str, columns: u16, rows: u16) -> Result<(), TaskError> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        let call = TaskError::of("cannot resize the terminal");
        self.client.resize_pty(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Says that no more input will come.
    pub(super) async fn close_stdin(&self, exec_id: &str) -> Result<(), TaskError> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        let call = TaskError::of("cannot close standard input");
        self.client.close_io(Context::default(), &request).await.map_err(call).map(drop)
    }

    /// Asks what the container is doing.
    pub(super) async fn activity(&self) -> Result<Activity, TaskError> {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        let call = TaskError::of("cannot ask for the state");
        let answer = self.client.state(Context::default(), &request).await.map_err(call)?;
        Ok(match answer.status.enum_value_or_default() {
            api::Status::RUNNING => Activity::Running,
            api::Status::PAUSED | api::Status::PAUSING => Activity::Paused,
            api::Status::STOPPED => Activity::Stopped(ended(answer.exit_status, &answer.exited_at)),
            api::Status::CREATED | api::Status::UNKNOWN => Activity::Created,
        })
    }

    /// Figures of the container's cgroup.
    pub(super) async fn stats(
        &self,
    ) -> Result<containerd_shim_protos::cgroups_v2::metrics::Metrics, TaskError> {
        let request = api::StatsRequest { id: self.id.clone(), ..Default::default() };
        let call = "cannot ask for the figures";
        let answer = self.client.stats(Context::default(), &request).await.map_err(TaskError::of(call))?;
        let bytes = answer.stats.as_ref().map_or(&[][..], |any| &any.value);
        Message::parse_from_bytes(bytes).map_err(|error| TaskError::Refused {
            call,
            code: Code::INTERNAL,
            message: format!("the answer is damaged: {error}"),
        })
    }

    /// Changes what the container may use.
    pub(super) async fn update(&self, resources: &LinuxResources) -> Result<(), TaskError> {
        self.change("cannot update the container", RESOURCES, resources).await
    }

    /// Plugs devices in, all or none.
    pub(super) async fn plug(&self, options: &PlugOptions) -> Result<(), TaskError> {
        self.change("cannot plug it in", PLUG, options).await
    }

    /// Takes devices out, all or none.
    pub(super) async fn unplug(&self, options: &UnplugOptions) -> Result<(), TaskError> {
        self.change("cannot unplug it", UNPLUG, options).await
    }

    async fn change(
        &self,
        call: &'static str,
        type_url: &str,
        change: &impl serde::Serialize,
    ) -> Result<(), TaskError> {
        let mut any = Any::new();
        any.type_url = type_url.to_owned();
        any.value = serde_json::to_vec(change).expect("nothing of a change is not JSON");
        let request =
            api::UpdateTaskRequest { id: self.id.clone(), resources: Some(any).into(), ..Default::default() };
        self.client.update(Context::default(), &request).await.map_err(TaskError::of(call)).map(drop)
    }

    /// Forgets an ended process; for the container itself, takes it apart.
    pub(super) async fn delete(&self, exec_id: &str) -> Result<Ended, TaskError> {
        let request =
            api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let call = TaskError::of("cannot delete the process");
        let answer = self.client.delete(Context::default(), &request).await.map_err(call)?;
        Ok(ended(answer.exit_status, &answer.exited_at))
    }

    /// Ends the shim. The answer may be lost with the connection: that is what was asked for.
    pub(super) async fn shutdown(&self) -> Result<(), TaskError> {
        let request = api::ShutdownRequest { id: self.id.clone(), now: true, ..Default::default() };
        let call = TaskError::of("cannot end the shim");
        match self.client.shutdown(Context::default(), &request).await.map_err(call) {
            Err(error) if !error.is_lost() => Err(error),
            _ => Ok(()),
        }
    }
}
