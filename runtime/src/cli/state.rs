//! The state of a container now, from its record, its shim's process and the shim's answer.

use std::fmt;

use serde::Serialize;

use crate::cli::format;
use crate::cli::task::Activity;
use crate::cli::task::Task;
use crate::store::Record;
use crate::store::record::ExitRecord;
use crate::store::record::Status;
use crate::store::timestamp::Timestamp;

/// The state of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(super) enum State {
    /// It is being made, or its `run` has died; the lock tells which.
    Creating,
    /// It is complete and was never started.
    Created,
    /// It is being started again, or the command that did so has died; the lock tells which.
    Starting,
    /// Its process runs.
    Running {
        /// When it was started.
        since: Timestamp,
    },
    /// Its processes are frozen.
    Paused {
        /// When it was started.
        since: Timestamp,
    },
    /// Its process has ended; the sandbox still runs.
    Ended {
        /// Exit status, 0 to 255.
        code: u32,
        /// When it ended.
        at: Timestamp,
    },
    /// Its shim died without a report.
    Lost,
    /// It has ended and is released.
    Exited(ExitRecord),
}

impl State {
    /// Determines the state. If the shim runs but does not answer, the container counts as running.
    pub(super) async fn of(record: &Record) -> Self {
        match &record.status {
            Status::Creating => Self::Creating,
            Status::Created => Self::Created,
            Status::Starting { .. } => Self::Starting,
            Status::Exited(exit) => Self::Exited(exit.clone()),
            Status::Started { shim, .. } if !shim.is_alive() => Self::Lost,
            Status::Started { socket, at, shim } => {
                let since = *at;
                let activity = match Task::connect(socket, &record.id).await {
                    Ok(task) => task.activity().await,
                    Err(error) => Err(error),
                };
                match activity {
                    Ok(Activity::Stopped(ended)) => Self::Ended { code: ended.status, at: ended.at },
                    Ok(Activity::Paused) => Self::Paused { since },
                    Ok(Activity::Created | Activity::Running) => Self::Running { since },
                    Err(error) if error.is_not_found() => Self::Lost,
                    // The shim may have died meanwhile.
                    Err(_) if !shim.is_alive() => Self::Lost,
                    Err(_) => Self::Running { since },
                }
            }
        }
    }

    /// One word, as docker has it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Creating | Self::Created | Self::Starting => "created",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Ended { .. } | Self::Exited(_) => "exited",
            Self::Lost => "dead",
        }
    }

    /// Whether its shim serves requests.
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Paused { .. })
    }
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Creating | Self::Created | Self::Starting => write!(out, "Created"),
            Self::Running { since } => write!(out, "Up {}", format::span(since.elapsed())),
            Self::Paused { since } => write!(out, "Up {} (Paused)", format::span(since.elapsed())),
            Self::Ended { code, at } => write!(out, "Exited ({code}) {} ago", format::span(at.elapsed())),
            Self::Lost => write!(out, "Dead"),
            Self::Exited(exit) => {
                let memory = if exit.out_of_memory { ", out of memory" } else { "" };
                write!(out, "Exited ({}{memory}) {} ago", exit.code, format::span(exit.at.elapsed()))
            }
        }
    }
}
