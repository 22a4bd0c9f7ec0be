//! Calls to the agent.

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kiai_protocol::agent::AddEntropyRequest;
use kiai_protocol::agent::AddNeighboursRequest;
use kiai_protocol::agent::ContainerRequest;
use kiai_protocol::agent::CreateContainerRequest;
use kiai_protocol::agent::CreateContainerResponse;
use kiai_protocol::agent::CreateSandboxRequest;
use kiai_protocol::agent::DeviceLocator;
use kiai_protocol::agent::Empty;
use kiai_protocol::agent::ExecProcessRequest;
use kiai_protocol::agent::OnlineCpusRequest;
use kiai_protocol::agent::PlugRequest;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::ProcessRequest;
use kiai_protocol::agent::RemoveContainerRequest;
use kiai_protocol::agent::RemovePciRequest;
use kiai_protocol::agent::RescanPciRequest;
use kiai_protocol::agent::ResizeTerminalRequest;
use kiai_protocol::agent::SetClockRequest;
use kiai_protocol::agent::SignalProcessRequest;
use kiai_protocol::agent::StatsContainerResponse;
use kiai_protocol::agent::UnplugRequest;
use kiai_protocol::agent::UpdateContainerRequest;
use kiai_protocol::agent::UpdateInterfaceRequest;
use kiai_protocol::agent::UpdateRoutesRequest;
use kiai_protocol::agent::WaitProcessResponse;
use kiai_protocol::agent::next_event_response::Event;
use kiai_protocol::service::AgentClient;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use super::convert;
use crate::host::Network;

/// The time-out of calls whose work is bounded, for a guest that hangs. A guest that has ended is noticed at once,
/// because its connection closes.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long the guest may take to find a device that was attached.
const RESCAN_TIMEOUT_MS: u32 = 20_000;

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent refused the call.
    #[error("agent: {message}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// The status code.
        code: ttrpc::Code,
        /// The agent's message, which names the object.
        message: String,
    },
    /// The connection closed.
    #[error("agent: {call}: connection lost")]
    Lost {
        /// Which call.
        call: &'static str,
        /// ttrpc's error.
        #[source]
        source: ttrpc::Error,
    },
    /// The agent did not answer in time.
    #[error("agent: {call}: no answer within {} s", DEADLINE.as_secs())]
    Silent {
        /// Which call.
        call: &'static str,
    },
}

impl AgentError {
    /// The code of the agent's answer; none if it did not answer.
    pub fn answer(&self) -> Option<ttrpc::Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Lost { .. } | Self::Silent { .. } => None,
        }
    }

    fn of(call: &'static str, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::Refused { call, code: status.code(), message: status.message }
            }
            source => Self::Lost { call, source },
        }
    }
}

/// A connection to the agent. Clones share it.
#[derive(Clone)]
pub struct Agent(AgentClient);

impl Agent {
    /// Speaks ttrpc over a stream to the guest's agent port. Needs a tokio runtime.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        Ok(Self(AgentClient::new(ttrpc::r#async::Client::new(Socket::try_from(stream)?))))
    }

    /// Sets the guest up for containers. To be called once, before other calls.
    pub async fn create_sandbox(&self, request: CreateSandboxRequest) -> Result<(), AgentError> {
        bounded("CreateSandbox", self.0.create_sandbox(Context::default(), &request)).await.map(drop)
    }

    /// Removes every container, syncs and powers the guest off; the answer comes before the power-off.
    pub async fn destroy_sandbox(&self) -> Result<(), AgentError> {
        bounded("DestroySandbox", self.0.destroy_sandbox(Context::default(), &Empty::new())).await.map(drop)
    }

    /// Returns once the agent has answered a cheap call, even with an error; never if the connection is broken.
    pub async fn is_alive(&self) {
        match self.0.guest_details(Context::default(), &Empty::new()).await {
            Ok(_) | Err(ttrpc::Error::RpcStatus(_)) => {}
            Err(error) => {
                tracing::debug!(%error, "the agent gives no sign of life");
                std::future::pending().await
            }
        }
    }

    /// Gives the guest's kernel at most 4096 bytes to draw its random numbers from, from now on.
    pub async fn add_entropy(&self, data: Vec<u8>) -> Result<(), AgentError> {
        let mut request = AddEntropyRequest::new();
        request.data = data;
        bounded("AddEntropy", self.0.add_entropy(Context::default(), &request)).await.map(drop)
    }

    /// Sets the guest's wall clock to the host's.
    pub async fn set_clock(&self) -> Result<(), AgentError> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let mut request = SetClockRequest::new();
        request.seconds = now.tv_sec;
        request.nanoseconds = now.tv_nsec;
        bounded("SetClock", self.0.set_clock(Context::default(), &request)).await.map(drop)
    }

    /// Configures the guest's network as the pod's: interfaces, then routes, then neighbours.
    pub async fn configure_network(&self, network: &Network) -> Result<(), AgentError> {
        for nic in &network.nics {
            let mut request = UpdateInterfaceRequest::new();
            request.interface = Some(convert::interface(nic)).into();
            bounded("UpdateInterface", self.0.update_interface(Context::default(), &request)).await?;
        }
        if !network.routes.is_empty() {
            let mut request = UpdateRoutesRequest::new();
            request.routes = network.routes.iter().map(convert::route).collect();
            bounded("UpdateRoutes", self.0.update_routes(Context::default(), &request)).await?;
        }
        if !network.neighbours.is_empty() {
            let mut request = AddNeighboursRequest::new();
            request.neighbours = network.neighbours.iter().map(convert::neighbour).collect();
            bounded("AddNeighbours", self.0.add_neighbours(Context::default(), &request)).await?;
        }
        Ok(())
    }

    /// Has the guest rescan its bus; returns once every device of `expect` has its node. Network interfaces have none.
    pub async fn rescan_pci(&self, expect: Vec<DeviceLocator>) -> Result<(), AgentError> {
        let mut request = RescanPciRequest::new();
        request.expect = expect;
        request.timeout_ms = RESCAN_TIMEOUT_MS;
        bounded("RescanPci", self.0.rescan_pci(Context::default(), &request)).await.map(drop)
    }

    /// Has the guest release a PCI function: its driver is unbound, and it leaves the guest's bus.
    pub async fn remove_pci(&self, path: &str) -> Result<(), AgentError> {
        let mut request = RemovePciRequest::new();
        request.pci_path = path.into();
        bounded("RemovePci", self.0.remove_pci(Context::default(), &request)).await.map(drop)
    }

    /// Creates a container; its process is not started.
    pub async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, AgentError> {
        bounded("CreateContainer", self.0.create_container(Context::default(), &request)).await
    }

    /// Starts the container's process.
    pub async fn start_container(&self, container_id: &str) -> Result<(), AgentError> {
        bounded("StartContainer", self.0.start_container(Context::default(), &container(container_id)))
            .await
            .map(drop)
    }

    /// Runs another process in a container.
    pub async fn exec_process(&self, request: ExecProcessRequest) -> Result<(), AgentError> {
        bounded("ExecProcess", self.0.exec_process(Context::default(), &request)).await.map(drop)
    }

    /// Sends a signal to a process; with `all`, to every process of the container.
    pub async fn signal(&self, of: &ProcessRequest, signal: u32, all: bool) -> Result<(), AgentError> {
        let mut request = SignalProcessRequest::new();
        request.container_id.clone_from(&of.container_id);
        request.exec_id.clone_from(&of.exec_id);
        request.signal = signal;
        request.all = all;
        bounded("SignalProcess", self.0.signal_process(Context::default(), &request)).await.map(drop)
    }

    /// Waits, without a time-out, until the process has exited.
    pub async fn wait_process(&self, of: &ProcessRequest) -> Result<WaitProcessResponse, AgentError> {
        let answer = self.0.wait_process(Context::default(), of).await;
        answer.map_err(|error| AgentError::of("WaitProcess", error))
    }

    /// Sets the size of a process's terminal.
    pub async fn resize_terminal(
        &self,
        of: &ProcessRequest,
        (rows, columns): (u32, u32),
    ) -> Result<(), AgentError> {
        let mut request = ResizeTerminalRequest::new();
        request.container_id.clone_from(&of.container_id);
        request.exec_id.clone_from(&of.exec_id);
        request.rows = rows;
        request.columns = columns;
        bounded("ResizeTerminal", self.0.resize_terminal(Context::default(), &request)).await.map(drop)
    }

    /// The guest's pids of a container's processes.
    pub async fn list_processes(&self, container_id: &str) -> Result<Vec<u32>, AgentError> {
        let request = container(container_id);
        bounded("ListProcesses", self.0.list_processes(Context::default(), &request)).await.map(|a| a.pids)
    }

    /// Freezes a container.
    pub async fn pause_container(&self, container_id: &str) -> Result<(), AgentError> {
        bounded("PauseContainer", self.0.pause_container(Context::default(), &container(container_id)))
            .await
            .map(drop)
    }

    /// Thaws a container.
    pub async fn resume_container(&self, container_id: &str) -> Result<(), AgentError> {
        bounded("ResumeContainer", self.0.resume_container(Context::default(), &container(container_id)))
            .await
            .map(drop)
    }

    /// Changes a container's resources; `resources` is the OCI object as JSON.
    pub async fn update_container(&self, container_id: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let mut request = UpdateContainerRequest::new();
        request.container_id = container_id.into();
        request.resources = resources;
        bounded("UpdateContainer", self.0.update_container(Context::default(), &request)).await.map(drop)
    }

    /// Statistics of a container's cgroup.
    pub async fn stats(&self, container_id: &str) -> Result<StatsContainerResponse, AgentError> {
        bounded("StatsContainer", self.0.stats_container(Context::default(), &container(container_id))).await
    }

    /// Removes a container; `force` kills it first.
    pub async fn remove_container(&self, container_id: &str, force: bool) -> Result<(), AgentError> {
        let mut request = RemoveContainerRequest::new();
        request.container_id = container_id.into();
        request.force = force;
        bounded("RemoveContainer", self.0.remove_container(Context::default(), &request)).await.map(drop)
    }

    /// Forgets an exited process of a container.
    pub async fn remove_process(&self, of: &ProcessRequest) -> Result<(), AgentError> {
        bounded("RemoveProcess", self.0.remove_process(Context::default(), of)).await.map(drop)
    }

    /// Plugs volumes and devices into a container, all or none.
    pub async fn plug(&self, request: PlugRequest) -> Result<PlugResponse, AgentError> {
        bounded("Plug", self.0.plug(Context::default(), &request)).await
    }

    /// Unplugs volumes and devices from a container, all or none; an error if one of them is in use.
    pub async fn unplug(&self, request: UnplugRequest) -> Result<PlugResponse, AgentError> {
        bounded("Unplug", self.0.unplug(Context::default(), &request)).await
    }

    /// Brings CPUs online or offline until `count` are online.
    pub async fn online_cpus(&self, count: u8) -> Result<(), AgentError> {
        let mut request = OnlineCpusRequest::new();
        request.count = count.into();
        bounded("OnlineCpus", self.0.online_cpus(Context::default(), &request)).await.map(drop)
    }

    /// Waits for the guest's next event; `None` for one of a kind that this runtime does not know.
    pub async fn next_event(&self) -> Result<Option<Event>, AgentError> {
        let answer = self.0.next_event(Context::default(), &Empty::new()).await;
        answer.map(|answer| answer.event).map_err(|error| AgentError::of("NextEvent", error))
    }
}

fn container(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.into();
    request
}

async fn bounded<T>(
    call: &'static str,
    work: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(answer) => answer.map_err(|error| AgentError::of(call, error)),
        Err(_) => Err(AgentError::Silent { call }),
    }
}
