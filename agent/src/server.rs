//! The agent's service: decodes requests, calls, encodes responses; no logic.
//!
//! ttrpc drops a call whose connection breaks wherever it waits. Work that must not be left half done therefore runs in
//! a task of its own, which goes on ([`whole`]). A call that panics fails; the others go on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kiai_protocol::agent::{
    AddEntropyRequest, AddNeighboursRequest, ContainerRequest, CreateContainerRequest,
    CreateContainerResponse, CreateSandboxRequest, Empty, ExecProcessRequest, GuestDetailsResponse,
    Interface, ListInterfacesResponse, ListProcessesResponse, MemoryFreed, NextEventResponse,
    OnlineCpusRequest, OnlineCpusResponse, PlugRequest, PlugResponse, ProcessRequest, ProcessResponse,
    RemoveContainerRequest, RemovePciRequest, RescanPciRequest, ResizeTerminalRequest, SetClockRequest,
    SignalProcessRequest, StatsContainerResponse, UnplugRequest, UpdateContainerRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest, WaitProcessResponse, next_event_response,
};
use kiai_protocol::service::Agent;
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use crate::container::{self, Process};
use crate::events::Event;
use crate::fault::{Fault, Result};
use crate::memory::Free;
use crate::sandbox::Sandbox;
use crate::{guest, net, panics};

/// The service for the host.
#[derive(Debug)]
pub struct Server {
    /// The sandbox that is served.
    pub sandbox: Arc<Sandbox>,
    /// Notified once the sandbox is destroyed and the guest is to power off.
    pub over: Arc<Notify>,
}

/// Runs `work` to its end even if the call is dropped.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::Internal(anyhow::Error::new(error))),
    }
}

/// Runs blocking work on another thread than the one that serves.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    whole(async { tokio::task::spawn_blocking(work).await.map_err(anyhow::Error::new)? }).await
}

fn pid_of(process: &Process) -> ProcessResponse {
    ProcessResponse { pid: process.pid.unsigned_abs(), ..Default::default() }
}

/// Does the work of a call. Logs its error once, and converts it for ttrpc.
async fn answer<T>(call: &str, work: impl Future<Output = Result<T>>) -> ttrpc::Result<T> {
    let result =
        panics::caught(work).await.unwrap_or_else(|panic| Err(Fault::Internal(anyhow::anyhow!(panic))));
    result.map_err(|fault| {
        match &fault {
            Fault::Internal(_) => tracing::error!("{call}: {fault}"),
            _ => tracing::debug!("{call}: {fault}"),
        }
        fault.into()
    })
}

/// Defines the service's methods: name, request, response and body of each.
macro_rules! methods {
    ($($name:ident($server:ident, $request:ident: $Request:ty) -> $Response:ty $body:block)*) => {
        #[async_trait]
        impl Agent for Server {
            $(async fn $name(&self, _: &TtrpcContext, $request: $Request) -> ttrpc::Result<$Response> {
                let $server = self;
                answer(stringify!($name), async move { $body }).await
            })*
        }
    };
}

methods! {
    create_sandbox(server, request: CreateSandboxRequest) -> Empty {
        let sandbox = server.sandbox.clone();
        whole(async move { sandbox.create(request).await }).await?;
        Ok(Empty::default())
    }

    destroy_sandbox(server, _request: Empty) -> Empty {
        let sandbox = server.sandbox.clone();
        let over = server.over.clone();
        whole(async move {
            sandbox.destroy().await?;
            over.notify_one();
            Ok(())
        }).await?;
        Ok(Empty::default())
    }

    guest_details(_server, _request: Empty) -> GuestDetailsResponse {
        Ok(guest::details())
    }

    set_clock(_server, request: SetClockRequest) -> Empty {
        guest::set_clock(request.seconds, request.nanoseconds)?;
        Ok(Empty::default())
    }

    add_entropy(_server, request: AddEntropyRequest) -> Empty {
        guest::add_entropy(&request.data)?;
        Ok(Empty::default())
    }

    update_interface(server, request: UpdateInterfaceRequest) -> Interface {
        let sandbox = server.sandbox.clone();
        whole(async move { net::update_interface(&sandbox.uevents, &request.interface).await }).await
    }

    update_routes(_server, request: UpdateRoutesRequest) -> Empty {
        whole(async move { net::update_routes(&request.routes).await }).await?;
        Ok(Empty::default())
    }

    list_interfaces(_server, _request: Empty) -> ListInterfacesResponse {
        let interfaces = net::list_interfaces().await?;
        Ok(ListInterfacesResponse { interfaces, ..Default::default() })
    }

    add_neighbours(_server, request: AddNeighboursRequest) -> Empty {
        whole(async move { net::add_neighbours(&request.neighbours).await }).await?;
        Ok(Empty::default())
    }

    create_container(server, request: CreateContainerRequest) -> CreateContainerResponse {
        let sandbox = server.sandbox.clone();
        let built = whole(async move { container::create(&sandbox, request).await }).await?;
        let (devices, device_rules) = built.devices().report()?;
        let pid = built.process("")?.pid.unsigned_abs();
        Ok(CreateContainerResponse { pid, devices, device_rules, ..Default::default() })
    }

    start_container(server, request: ContainerRequest) -> Empty {
        let container = server.sandbox.container(&request.container_id)?;
        let events = server.sandbox.events.clone();
        server.sandbox.freed_memory.start(move |free| events.memory_freed(free));
        whole(async move { container.start().await }).await?;
        Ok(Empty::default())
    }

    exec_process(server, request: ExecProcessRequest) -> ProcessResponse {
        let sandbox = server.sandbox.clone();
        let inside = sandbox.container(&request.container_id)?;
        let process = whole(async move { container::exec(&sandbox, &inside, request).await }).await?;
        Ok(pid_of(&process))
    }

    signal_process(server, request: SignalProcessRequest) -> Empty {
        let container = server.sandbox.container(&request.container_id)?;
        container.signal(&request.exec_id, request.signal, request.all)?;
        Ok(Empty::default())
    }

    wait_process(server, request: ProcessRequest) -> WaitProcessResponse {
        let container = server.sandbox.container(&request.container_id)?;
        let ended = container.process(&request.exec_id)?.wait().await?;
        Ok(WaitProcessResponse {
            exit_status: ended.exit.status,
            exited_at_seconds: ended.exit.at.tv_sec,
            exited_at_nanoseconds: ended.exit.at.tv_nsec,
            out_of_memory: ended.out_of_memory,
            stdout_bytes: ended.stdout_bytes,
            stderr_bytes: ended.stderr_bytes,
            ..Default::default()
        })
    }

    resize_terminal(server, request: ResizeTerminalRequest) -> Empty {
        let container = server.sandbox.container(&request.container_id)?;
        container.process(&request.exec_id)?.resize(request.rows, request.columns)?;
        Ok(Empty::default())
    }

    list_processes(server, request: ContainerRequest) -> ListProcessesResponse {
        let pids = server.sandbox.container(&request.container_id)?.pids()?;
        Ok(ListProcessesResponse { pids, ..Default::default() })
    }

    pause_container(server, request: ContainerRequest) -> Empty {
        let container = server.sandbox.container(&request.container_id)?;
        whole(async move { container.pause().await }).await?;
        Ok(Empty::default())
    }

    resume_container(server, request: ContainerRequest) -> Empty {
        let container = server.sandbox.container(&request.container_id)?;
        whole(async move { container.resume().await }).await?;
        Ok(Empty::default())
    }

    update_container(server, request: UpdateContainerRequest) -> Empty {
        let container = server.sandbox.container(&request.container_id)?;
        let resources = serde_json::from_slice(&request.resources)
            .map_err(|error| Fault::InvalidArgument(format!("OCI resources: {error}")))?;
        blocking(move || container.update(&resources)).await?;
        Ok(Empty::default())
    }

    stats_container(server, request: ContainerRequest) -> StatsContainerResponse {
        let mut stats = server.sandbox.container(&request.container_id)?.stats();
        stats.network = net::statistics();
        Ok(stats)
    }

    remove_container(server, request: RemoveContainerRequest) -> Empty {
        let sandbox = server.sandbox.clone();
        whole(async move { sandbox.remove(&request.container_id, request.force).await }).await?;
        Ok(Empty::default())
    }

    remove_process(server, request: ProcessRequest) -> Empty {
        server.sandbox.container(&request.container_id)?.remove_process(&request.exec_id)?;
        Ok(Empty::default())
    }

    plug(server, request: PlugRequest) -> PlugResponse {
        let sandbox = server.sandbox.clone();
        let container = sandbox.container(&request.container_id)?;
        whole(async move { container::plug(&sandbox, &container, &request).await }).await
    }

    unplug(server, request: UnplugRequest) -> PlugResponse {
        let sandbox = server.sandbox.clone();
        let container = sandbox.container(&request.container_id)?;
        whole(async move { container::unplug(&sandbox, &container, &request).await }).await
    }

    next_event(server, _request: Empty) -> NextEventResponse {
        let event = match server.sandbox.events.next().await {
            Some(Event::OutOfMemory(container_id)) => next_event_response::Event::OutOfMemory(container_id),
            Some(Event::MemoryFreed(Free { bytes, reserve })) => {
                next_event_response::Event::MemoryFreed(MemoryFreed { bytes, reserve, ..Default::default() })
            }
            None => return Err(Fault::NotFound("the sandbox has ended".into())),
        };
        Ok(NextEventResponse { event: Some(event), ..Default::default() })
    }

    rescan_pci(server, request: RescanPciRequest) -> Empty {
        let sandbox = server.sandbox.clone();
        whole(async move {
            let timeout = Duration::from_millis(request.timeout_ms.into());
            guest::rescan_pci(&sandbox.uevents, &request.expect, timeout).await
        }).await?;
        Ok(Empty::default())
    }

    remove_pci(_server, request: RemovePciRequest) -> Empty {
        blocking(move || guest::remove_pci(&request.pci_path)).await?;
        Ok(Empty::default())
    }

    online_cpus(server, request: OnlineCpusRequest) -> OnlineCpusResponse {
        let online = blocking(move || {
            let online = guest::online_cpus(request.count)?;
            net::use_queue_pairs(online);
            Ok(online)
        })
        .await;
        // Also on an error, because some CPUs may have changed.
        server.sandbox.freed_memory.look_again();
        let online = online?;
        Ok(OnlineCpusResponse { online, ..Default::default() })
    }
}

#[cfg(test)]
mod tests;
