//! A process in the guest: its state, its streams, and how it ended.
//!
//! ```text
//!   created ──start──► running ──exit──► stopped
//!      └────────── exit or death of the sandbox ──┘
//! ```

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use kiai_protocol::agent::ContainerRequest;
use kiai_protocol::agent::ExecProcessRequest;
use kiai_protocol::agent::ProcessRequest;
use kiai_protocol::agent::SignalProcessRequest;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::StdioPaths;
use super::stdio;
use super::stdio::Connected;
use crate::agent::Agent;
use crate::failure::Failure;
use crate::failure::Outcome;
use crate::sandbox::Sandbox;

/// How long output may take to reach the client after the process has exited. A client that does not read must
/// not keep the exit from being known.
const DRAIN: Duration = Duration::from_secs(5);
/// Status of a process whose sandbox died.
const SANDBOX_DIED: u32 = 255;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255; 128 + n for signal n.
    pub status: u32,
    /// When, by the guest's clock.
    pub at: SystemTime,
    /// The kernel's OOM killer struck in its container.
    pub out_of_memory: bool,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Built (init) or known (exec), not started.
    Created,
    /// Running.
    Running,
    /// Over.
    Stopped(Exit),
}

/// A process.
pub struct Process {
    /// Empty for a container's init.
    pub exec_id: String,
    /// It has a terminal.
    pub terminal: bool,
    /// Its streams, as the client named them.
    pub stdio: StdioPaths,
    container_id: String,
    sandbox: Arc<Sandbox>,
    started: Mutex<bool>,
    exit: watch::Sender<Option<Exit>>,
    connected: tokio::sync::Mutex<Option<Connected>>,
    /// The OCI process of an exec, until it is started.
    exec: Mutex<Option<Vec<u8>>>,
    stdin: stdio::StdinCloser,
}

impl Process {
    /// A container's init that the agent has created.
    pub(super) fn created(
        sandbox: &Arc<Sandbox>,
        container_id: &str,
        exec_id: &str,
        terminal: bool,
        stdio: StdioPaths,
        connected: Connected,
    ) -> Self {
        let stdin = connected.stdin_closer();
        Self {
            exec_id: exec_id.to_owned(),
            terminal,
            stdio,
            container_id: container_id.to_owned(),
            sandbox: sandbox.clone(),
            started: Mutex::new(false),
            exit: watch::channel(None).0,
            connected: tokio::sync::Mutex::new(Some(connected)),
            exec: Mutex::new(None),
            stdin,
        }
    }

    /// A process to be started in a container later; `process` is the OCI object as JSON.
    pub fn exec(
        sandbox: &Arc<Sandbox>,
        container_id: &str,
        exec_id: &str,
        terminal: bool,
        stdio: StdioPaths,
        process: Vec<u8>,
    ) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            terminal,
            stdio,
            container_id: container_id.to_owned(),
            sandbox: sandbox.clone(),
            started: Mutex::new(false),
            exit: watch::channel(None).0,
            connected: tokio::sync::Mutex::new(None),
            exec: Mutex::new(Some(process)),
            stdin: stdio::StdinCloser::default(),
        }
    }

    fn name(&self) -> String {
        if self.exec_id.is_empty() {
            format!("container {}", self.container_id)
        } else {
            format!("process {} of container {}", self.exec_id, self.container_id)
        }
    }

    /// Where it is.
    pub fn status(&self) -> Status {
        match *self.exit.borrow() {
            Some(exit) => Status::Stopped(exit),
            None if *self.started.lock() => Status::Running,
            None => Status::Created,
        }
    }

    /// Starts it. `on_exit` is called once, when it is known to have ended, and before `wait` says so.
    pub async fn start(self: &Arc<Self>, on_exit: impl FnOnce(Exit) + Send + 'static) -> Outcome<()> {
        let mut connected = self.connected.lock().await;
        if self.status() != Status::Created {
            return Err(Failure::precondition(format!("{} was started already", self.name())));
        }
        let exec = self.exec.lock().take();
        match exec {
            None => {
                let request =
                    ContainerRequest { container_id: self.container_id.clone(), ..Default::default() };
                let call = self.sandbox.agent().service().start_container(Agent::call(), &request);
                self.sandbox.alive(call).await?;
            }
            Some(process) => *connected = Some(self.start_exec(process).await?),
        }
        *self.started.lock() = true;
        let copies = connected.take();
        drop(connected);
        let process = self.clone();
        tokio::spawn(async move {
            let exit = process.watch_exit().await;
            if let Some(copies) = copies
                && tokio::time::timeout(DRAIN, copies.drained()).await.is_err()
            {
                tracing::warn!("{}: its output was not read in time", process.name());
            }
            process.stdin.close();
            on_exit(exit);
            process.exit.send_replace(Some(exit));
        });
        Ok(())
    }

    async fn start_exec(&self, process: Vec<u8>) -> Outcome<Connected> {
        let streams = stdio::Streams::listen(&self.sandbox, &self.stdio, self.terminal)?;
        let request = ExecProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            process,
            stdio: Some(streams.ports()).into(),
            ..Default::default()
        };
        let call = self.sandbox.agent().service().exec_process(Agent::call(), &request);
        self.sandbox.alive(call).await?;
        let connected = streams.connect(&self.stdio).await?;
        self.stdin.replace(&connected.stdin_closer());
        Ok(connected)
    }

    /// The agent's word on the exit, or the sandbox's end.
    async fn watch_exit(&self) -> Exit {
        let request = self.request();
        let call = self.sandbox.agent().service().wait_process(Agent::wait(), &request);
        match self.sandbox.alive(call).await {
            Ok(answer) => {
                let seconds = u64::try_from(answer.exited_at_seconds).unwrap_or(0);
                let nanoseconds = u32::try_from(answer.exited_at_nanoseconds).unwrap_or(0).min(999_999_999);
                Exit {
                    status: answer.exit_status,
                    at: SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds),
                    out_of_memory: answer.out_of_memory,
                }
            }
            Err(e) => {
                tracing::error!("{}: {e}", self.name());
                Exit { status: SANDBOX_DIED, at: SystemTime::now(), out_of_memory: false }
            }
        }
    }

    fn request(&self) -> ProcessRequest {
        ProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            ..Default::default()
        }
    }

    /// Resolves when it has ended; also before it was started.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = async {
            match exit.wait_for(Option::is_some).await {
                Ok(exit) => *exit,
                Err(_) => None,
            }
        };
        let died = Exit { status: SANDBOX_DIED, at: SystemTime::UNIX_EPOCH, out_of_memory: false };
        tokio::select! {
            biased;
            exit = ended => exit.unwrap_or(died),
            // Nobody watches a process that was never started.
            _ = self.sandbox.ended(), if self.status() == Status::Created => {
                let exit = Exit { at: SystemTime::now(), ..died };
                self.exit.send_replace(Some(exit));
                exit
            }
        }
    }

    /// Sends a signal; to every process of the container if `all`.
    pub async fn kill(&self, signal: u32, all: bool) -> Outcome<()> {
        if let Status::Stopped(_) = self.status() {
            return Err(Failure::not_found(format!("{} has exited: process already finished", self.name())));
        }
        let request = SignalProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            signal,
            all,
            ..Default::default()
        };
        let call = self.sandbox.agent().service().signal_process(Agent::call(), &request);
        self.sandbox.alive(call).await.map(|_| ())
    }

    /// The client is done with standard input: what it wrote is delivered, then the process reads its end.
    pub fn close_stdin(&self) {
        self.stdin.close();
    }

    /// Marks a process that will never run as over, so that whoever waits hears of it.
    pub fn give_up(&self) {
        if self.status() == Status::Created {
            let at = SystemTime::now();
            self.exit.send_replace(Some(Exit { status: 137, at, out_of_memory: false }));
        }
        self.stdin.close();
    }
}
