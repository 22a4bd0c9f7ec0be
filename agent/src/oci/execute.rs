//! The agent's side of a helper: start one, ask it, take its answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::io::Interest;

use super::{Answer, Request, channel};
use crate::reaper::{ExitWatch, Expectation, Reaper, ended};
use crate::sys;

/// Why a helper did nothing.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The helper could not be run or talked to.
    #[error("OCI helper")]
    RoleProcess(#[source] std::io::Error),
    /// The helper ended without an answer.
    #[error("OCI helper ended with status {0} and no answer")]
    Ended(u32),
    /// The container is not in a state for what was asked.
    #[error("{0}")]
    Unfit(String),
    /// What libcontainer or the kernel said.
    #[error("{0}")]
    Refused(String),
}

/// Starts helpers.
#[derive(Debug)]
pub struct RoleProcess {
    /// The agent's own program.
    pub program: PathBuf,
    /// Log level of the helpers.
    pub level: tracing::Level,
    /// Reaps the helpers and what they leave behind.
    pub reaper: Arc<Reaper>,
}

/// What a helper has built.
#[derive(Debug)]
pub struct Built {
    /// Pid in the guest's root namespace.
    pub pid: i32,
    /// The end of that process.
    pub exit: ExitWatch,
    /// Master side of its terminal, if it has one.
    pub master: Option<OwnedFd>,
    /// For a container: ends when the program runs; until then carries the reason why it cannot.
    pub started: Option<OwnedFd>,
}

impl RoleProcess {
    /// Builds a container; `streams` are its standard streams, empty when it has a terminal.
    pub async fn create(&self, request: Request, streams: &[OwnedFd]) -> Result<Built, OciError> {
        let (started, theirs) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(helper_error)?;
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(streams.iter().map(AsFd::as_fd));
        let built = self.build(request, &descriptors).await?;
        Ok(Built { started: Some(started), ..built })
    }

    /// Starts a process in a container; `streams` as above.
    pub async fn exec(&self, request: Request, streams: &[OwnedFd]) -> Result<Built, OciError> {
        let descriptors: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
        self.build(request, &descriptors).await
    }

    /// Starts the init of a pid namespace.
    pub async fn pod_init(&self) -> Result<Built, OciError> {
        self.build(Request::PodInit, &[]).await
    }

    /// Changes what is in the container whose init is `container`, a pidfd.
    pub async fn change(&self, request: Request, container: &OwnedFd) -> Result<(), OciError> {
        self.ask(request, &[container.as_fd()]).await.map(drop)
    }

    async fn build(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Built, OciError> {
        match self.ask(request, descriptors).await? {
            (Answer::Pid(pid), mut descriptors, expectation) => {
                Ok(Built { pid, exit: expectation.claim(pid), master: descriptors.pop(), started: None })
            }
            (answer, ..) => Err(OciError::Refused(format!("{answer:?} is no answer to that"))),
        }
    }

    /// What the helper has done, and what came with its answer.
    async fn ask(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>, Expectation), OciError> {
        let (ours, theirs) = channel::pair().map_err(OciError::RoleProcess)?;
        channel::send(&ours, &request, descriptors).map_err(OciError::RoleProcess)?;
        let expectation = self.reaper.expect();
        // No hook between fork and exec: the standard library uses posix_spawn, which copies no memory.
        let child = Command::new(&self.program)
            .args(["oci", self.level.as_str()])
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(OciError::RoleProcess)?;
        let helper = i32::try_from(child.id()).expect("a pid is a positive i32");
        let mut helper = expectation.claim(helper);

        let ours = sys::watch(ours, Interest::READABLE).map_err(OciError::RoleProcess)?;
        ours.readable().await.map_err(OciError::RoleProcess)?.retain_ready();
        match channel::receive::<Answer>(ours.get_ref()).map_err(OciError::RoleProcess)? {
            Some((Answer::Failed(reason), _)) => Err(OciError::Refused(reason)),
            Some((Answer::Unfit(reason), _)) => Err(OciError::Unfit(reason)),
            Some((answer, descriptors)) => Ok((answer, descriptors, expectation)),
            None => Err(OciError::Ended(ended(&mut helper).await.status)),
        }
    }
}

fn helper_error(errno: rustix::io::Errno) -> OciError {
    OciError::RoleProcess(errno.into())
}
