//! What a container is doing now: its record, its shim's life, and what the shim says.

use std::fmt;

use serde::Serialize;

use crate::cli::format;
use crate::cli::task::Activity;
use crate::cli::task::Task;
use crate::store::Record;
use crate::store::record::Exit;
use crate::store::record::Status;
use crate::store::timestamp::Timestamp;

/// What a container is doing now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(super) enum State {
    /// Its maker is at work, or died: the lock says which.
    Creating,
    /// Its process runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// Its processes are frozen.
    Paused,
    /// Its process ended; the sandbox is still there.
    Ended {
        /// 0 to 255.
        code: u32,
        /// When.
        at: Timestamp,
    },
    /// Its shim died without saying so.
    Lost,
    /// It ended and all is given back.
    Exited(Exit),
}

impl State {
    /// Finds out. A shim that runs but does not answer counts as running: who asks again may get an answer.
    pub(super) async fn of(record: &Record) -> Self {
        match &record.status {
            Status::Creating => Self::Creating,
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
                    Ok(Activity::Paused) => Self::Paused,
                    Ok(Activity::Created | Activity::Running) => Self::Running { since },
                    Err(error) if error.is_not_found() => Self::Lost,
                    // It may have died while we asked.
                    Err(_) if !shim.is_alive() => Self::Lost,
                    Err(_) => Self::Running { since },
                }
            }
        }
    }

    /// One word, as docker has it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Creating => "created",
            Self::Running { .. } => "running",
            Self::Paused => "paused",
            Self::Ended { .. } | Self::Exited(_) => "exited",
            Self::Lost => "dead",
        }
    }

    /// Whether it can be spoken to.
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Paused)
    }
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Creating => write!(out, "Created"),
            Self::Running { since } => write!(out, "Up {}", format::span(since.elapsed())),
            Self::Paused => write!(out, "Paused"),
            Self::Ended { code, at } => write!(out, "Exited ({code}) {} ago", format::span(at.elapsed())),
            Self::Lost => write!(out, "Dead"),
            Self::Exited(exit) => {
                let memory = if exit.out_of_memory { ", out of memory" } else { "" };
                write!(out, "Exited ({}{memory}) {} ago", exit.code, format::span(exit.at.elapsed()))
            }
        }
    }
}
