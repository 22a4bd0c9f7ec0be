//! The agent's side of a helper: starts it, sends the request and receives the answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::io::Interest;

use super::{Answer, Request, channel};
use crate::reaper::{ExitWatch, Expectation, Reaper, ended};
use crate::sys;

/// Why a helper did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The helper could not be started, or the channel to it failed.
    #[error("run the OCI helper")]
    RoleProcess(#[source] std::io::Error),
    /// The helper ended without an answer.
    #[error("the OCI helper ended with status {0} and without an answer")]
    Ended(u32),
    /// The container's state does not allow the request.
    #[error("{0}")]
    FailedPrecondition(String),
    /// libcontainer or the kernel refused; the message is theirs.
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
    /// Reaps the helpers and the processes they leave behind.
    pub reaper: Arc<Reaper>,
}

/// A process that a helper has built.
#[derive(Debug)]
pub struct Built {
    /// The process's pid in the guest's root namespace.
    pub pid: i32,
    /// Tells when and how the process ends.
    pub exit: ExitWatch,
    /// The master side of its terminal, if it has one.
    pub master: Option<OwnedFd>,
    /// A container's start pipe: it is closed when the program runs, and carries the reason if it cannot run.
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

    /// Starts a process in a container; `streams` as for [`Self::create`].
    pub async fn exec(&self, request: Request, streams: &[OwnedFd]) -> Result<Built, OciError> {
        let descriptors: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
        self.build(request, &descriptors).await
    }

    /// Starts the init of a pid namespace.
    pub async fn pod_init(&self) -> Result<Built, OciError> {
        self.build(Request::PodInit, &[]).await
    }

    /// Plugs or unplugs volumes and nodes in the container whose init's pidfd is `container`.
    pub async fn change(&self, request: Request, container: &OwnedFd) -> Result<(), OciError> {
        self.ask(request, &[container.as_fd()]).await.map(drop)
    }

    async fn build(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Built, OciError> {
        match self.ask(request, descriptors).await? {
            (Answer::Pid(pid), mut descriptors, expectation) => {
                Ok(Built { pid, exit: expectation.claim(pid), master: descriptors.pop(), started: None })
            }
            (answer, ..) => Err(OciError::Refused(format!("{answer:?} does not answer the request"))),
        }
    }

    /// Runs a helper with a request; returns its answer with the descriptors that came with it.
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
            Some((Answer::FailedPrecondition(reason), _)) => Err(OciError::FailedPrecondition(reason)),
            Some((answer, descriptors)) => Ok((answer, descriptors, expectation)),
            None => Err(OciError::Ended(ended(&mut helper).await.status)),
        }
    }
}

fn helper_error(errno: rustix::io::Errno) -> OciError {
    OciError::RoleProcess(errno.into())
}
