//! Publishes reports of containers as containerd's task events.

use std::sync::Arc;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

use super::events::Events;
use crate::container::Exit;
use crate::container::Report;
use crate::container::Reporter;

/// The reporter of one container. `created` is the event for its creation, which repeats the request.
pub(super) fn reporter(to: Events, created: events::TaskCreate) -> Reporter {
    let container_id = created.container_id.clone();
    Arc::new(move |report| {
        let container_id = container_id.clone();
        match report {
            Report::Created => to.send("/tasks/create", &created),
            Report::Started => {
                to.send(
                    "/tasks/start",
                    &events::TaskStart { container_id, pid: pid(), ..Default::default() },
                );
            }
            Report::ExecAdded { exec_id } => {
                let event = events::TaskExecAdded { container_id, exec_id, ..Default::default() };
                to.send("/tasks/exec-added", &event);
            }
            Report::ExecStarted { exec_id } => {
                let event =
                    events::TaskExecStarted { container_id, exec_id, pid: pid(), ..Default::default() };
                to.send("/tasks/exec-started", &event);
            }
            Report::Exited { exec_id, exit } => {
                let event = events::TaskExit {
                    // containerd identifies a container's init by the container's id.
                    id: if exec_id.is_empty() { container_id.clone() } else { exec_id },
                    container_id,
                    pid: pid(),
                    exit_status: exit.status,
                    exited_at: Some(timestamp(exit)).into(),
                    ..Default::default()
                };
                to.send("/tasks/exit", &event);
            }
            Report::OutOfMemory => {
                to.send("/tasks/oom", &events::TaskOOM { container_id, ..Default::default() });
            }
            Report::Paused => {
                to.send("/tasks/paused", &events::TaskPaused { container_id, ..Default::default() });
            }
            Report::Resumed => {
                to.send("/tasks/resumed", &events::TaskResumed { container_id, ..Default::default() });
            }
            Report::Removed { exit } => {
                let event = events::TaskDelete {
                    id: container_id.clone(),
                    container_id,
                    pid: pid(),
                    exit_status: exit.status,
                    exited_at: Some(timestamp(exit)).into(),
                    ..Default::default()
                };
                to.send("/tasks/delete", &event);
            }
        }
    })
}

/// The pid of a task: containerd expects a process of the host, which is this one.
pub(super) fn pid() -> u32 {
    std::process::id()
}

/// The time at which a process ended, as a protobuf message.
pub(super) fn timestamp(exit: Exit) -> Timestamp {
    Timestamp { seconds: exit.seconds, nanos: exit.nanoseconds, ..Default::default() }
}
