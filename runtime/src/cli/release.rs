//! Releases a container that has ended: its sandbox, its network and, with `--rm`, its files.
//!
//! Every step can be repeated, and works for a container whose shim or whose `run` was killed, so `run`, `stop`, `rm`
//! and `ps` all use it. For a container in the background the shim runs it, as `kiai release`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use tokio::net::unix::pipe::Receiver;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::events;
use crate::cli::making;
use crate::cli::revive;
use crate::cli::state::State;
use crate::cli::task::ShimError;
use crate::cli::task::Task;
use crate::cli::task::TaskExit;
use crate::cli::volumes;
use crate::network;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::record::ExitRecord;
use crate::store::record::ShimProcess;
use crate::store::record::Status;
use crate::store::timestamp::Timestamp;

/// Exit status of a container whose end was not observed.
pub(super) const UNKNOWN_STATUS: u32 = 255;

/// How long a shim may take to end.
const SHIM_DEADLINE: Duration = Duration::from_secs(10);

/// The greatest length of a sandbox's report that is read: it contains the guest's console, which is hostile.
const LONGEST_REASON: u64 = 64 << 10;

/// Release a container that has ended; its shim runs this
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Release {
    /// The container's id
    id: String,
}

impl Release {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        crate::shim::enter_mounts().context("standard input is not a mount namespace")?;
        match context.store.find(&self.id) {
            Ok((container, _)) => {
                // Another command that has the lock records its start, or releases it already.
                if let Some(lock) = container.lock()? {
                    tidy_locked(context, &container, &lock).await?;
                }
                revive::by_policy(context, &container).await.map(|()| 0)
            }
            Err(StoreError::NoContainer(_)) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

/// The arguments with which this program releases a container of `context`.
pub(super) fn words(context: &Context, id: &str) -> Vec<String> {
    let paths = context.store.paths();
    let folder = |path: &Path| path.to_string_lossy().into_owned();
    let options = [("--root", folder(&paths.root)), ("--state", folder(&paths.state))];
    let options = options.into_iter().chain([("--namespace", paths.namespace.clone())]);
    let mut words: Vec<String> = options.flat_map(|(name, value)| [name.to_owned(), value]).collect();
    words.extend(["release".to_owned(), id.to_owned()]);
    words
}

/// Releases a container whose process has ended, or whose shim is dead, and records its end; with `--rm` removes it
/// instead. The caller has its lock.
///
/// # Errors
/// The first step that failed; the record still has the steps that are left.
pub(super) async fn release(
    context: &Context,
    container: &ContainerDirectory,
    record: &mut Record,
    lock: &Lock,
    seen: Option<TaskExit>,
) -> anyhow::Result<ExitRecord> {
    if let Status::Exited(exit) = &record.status {
        return Ok(exit.clone());
    }
    let told = end_sandbox(container, record).await?;
    network::detach(&container.network_file()).context("cannot release the network")?;
    let exit = exit_of(container, seen.or(told));
    if let Status::Started { .. } = &record.status {
        if exit.out_of_memory {
            events::tell(context, record, "oom", &[]);
        }
        events::tell(context, record, "die", &[("exitCode", exit.code.to_string())]);
    }
    record.status = Status::Exited(exit.clone());
    if record.auto_remove {
        volumes::remove_anonymous(context, record);
        context.store.remove(container, &record.name)?;
        events::tell(context, record, "destroy", &[]);
    } else {
        container.write_record(record)?;
    }
    let _held_to_here = lock;
    Ok(exit)
}

/// Undoes a start: ends the sandbox, releases the network and records that the container is as it was before. The
/// caller has its lock.
///
/// # Errors
/// The first step that failed; the record still has the steps that are left.
pub(super) async fn unwind(
    container: &ContainerDirectory,
    record: &mut Record,
    previous: Option<ExitRecord>,
) -> anyhow::Result<()> {
    end_sandbox(container, record).await?;
    network::detach(&container.network_file()).context("cannot release the network")?;
    record.addresses = Vec::new();
    record.status = previous.map_or(Status::Created, Status::Exited);
    Ok(container.write_record(record)?)
}

/// Ends the sandbox and its process, and cleans up after a killed shim. Returns the end that the shim reported.
async fn end_sandbox(container: &ContainerDirectory, record: &Record) -> anyhow::Result<Option<TaskExit>> {
    let bundle = container.bundle();
    let mut told = None;
    let shim = match &record.status {
        Status::Started { shim, socket, .. } => {
            if shim.is_alive() {
                match say_goodbye(socket, &record.id).await {
                    Ok(ended) => told = ended,
                    // The shim died meanwhile, or hangs: the next steps end it in either case.
                    Err(error) => tracing::debug!(%error, "the shim did not shut down"),
                }
            }
            Some(*shim)
        }
        // `run` was killed before it recorded the shim, whose pid is in the bundle.
        _ => shim_of_bundle(&bundle, &record.id),
    };
    if let Some(shim) = shim {
        end_process(shim).await?;
    }
    crate::shim::delete(&bundle, &record.id).context("cannot clean up after the shim")?;
    if let Status::Started { socket, .. } = &record.status {
        // `delete` removes the socket by a file that the shim may not have written.
        let _ = fs::remove_file(socket);
    }
    Ok(told)
}

async fn say_goodbye(socket: &Path, id: &str) -> Result<Option<TaskExit>, ShimError> {
    let task = Task::connect(socket, id).await?;
    let ended = match task.delete("").await {
        Ok(ended) => Some(ended),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    task.shutdown().await?;
    Ok(ended)
}

/// The shim whose pid is in the bundle, if it still runs: another process may have the pid by now.
fn shim_of_bundle(bundle: &Path, id: &str) -> Option<ShimProcess> {
    let pid: u32 = fs::read_to_string(bundle.join("shim.pid")).ok()?.trim().parse().ok()?;
    let shim = ShimProcess::of_pid(pid)?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    words.split(|byte| *byte == 0).any(|word| word == id.as_bytes()).then_some(shim)
}

/// Waits for the process's end; kills it after the deadline.
async fn end_process(shim: ShimProcess) -> anyhow::Result<()> {
    let Some(pid) = i32::try_from(shim.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) else { return Ok(()) };
    // The pidfd is that of the process with the pid now, so its identity is checked after it is opened.
    if !shim.is_alive() {
        return Ok(());
    }
    // A pidfd becomes readable when the process ends.
    let ended = Receiver::from_owned_fd_unchecked(pidfd.try_clone()?)?;
    if tokio::time::timeout(SHIM_DEADLINE, ended.readable()).await.is_err() {
        match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno).context("cannot kill the shim"),
        }
        ended.readable().await?;
    }
    Ok(())
}

fn exit_of(container: &ContainerDirectory, ended: Option<TaskExit>) -> ExitRecord {
    let bundle = container.bundle();
    let reason = sandbox_error(&bundle);
    let unseen = || "its shim was killed".to_owned();
    ExitRecord {
        code: ended.map_or(UNKNOWN_STATUS, |ended| ended.status),
        at: ended.map_or_else(Timestamp::now, |ended| ended.at),
        out_of_memory: bundle.join("oom").exists(),
        reason: reason.or_else(|| ended.is_none().then(unseen)),
    }
}

/// The report of a sandbox that ended unexpectedly, with the last lines of its console.
pub(super) fn sandbox_error(bundle: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(bundle.join("sandbox-error.txt"))
        .ok()?
        .take(LONGEST_REASON)
        .read_to_end(&mut text)
        .ok()?;
    // The guest wrote part of it: control characters for the terminal are removed.
    let text: String = String::from_utf8_lossy(&text)
        .chars()
        .filter(|c| !c.is_control() || *c == '\n' || *c == '\t')
        .collect();
    Some(text).filter(|text| !text.trim().is_empty())
}

/// Releases containers whose shim or whose `run` has died. A container that another command has locked is skipped.
///
/// # Errors
/// The first error; the other containers were tried.
pub(super) async fn tidy(context: &Context) -> anyhow::Result<()> {
    let mut first_error = Ok(());
    let mut note = |result: anyhow::Result<()>| {
        if let Err(error) = result
            && first_error.is_ok()
        {
            first_error = Err(error);
        }
    };
    for (container, record) in context.store.list()? {
        let result = tidy_one(context, &container, &record).await;
        note(result.with_context(|| format!("container {}", record.name)));
    }
    for (container, _lock) in context.store.abandoned()? {
        note(network::detach(&container.network_file()).map_err(anyhow::Error::from));
        note(context.store.remove(&container, "").map_err(anyhow::Error::from));
    }
    note(context.store.remove_orphans().map_err(anyhow::Error::from));
    first_error
}

async fn tidy_one(context: &Context, container: &ContainerDirectory, record: &Record) -> anyhow::Result<()> {
    let state = State::of(record).await;
    if !matches!(state, State::Creating | State::Starting | State::Lost | State::Ended { .. }) {
        return Ok(());
    }
    match container.try_lock()? {
        Some(lock) => tidy_locked(context, container, &lock).await,
        None => Ok(()),
    }
}

/// Releases the container if it has ended. Its record is read again, because it may have changed before the lock was
/// taken.
///
/// # Errors
/// The container cannot be released.
pub(super) async fn tidy_locked(
    context: &Context,
    container: &ContainerDirectory,
    lock: &Lock,
) -> anyhow::Result<()> {
    let Some(mut record) = container.record()? else { return Ok(()) };
    let seen = match State::of(&record).await {
        State::Ended { code, at } => Some(TaskExit { status: code, at }),
        State::Lost => None,
        State::Starting => {
            let previous = making::previous(&record.status);
            return unwind(container, &mut record, previous).await;
        }
        State::Creating => {
            // It was never started, so there is no end to record.
            record.auto_remove = true;
            None
        }
        _ => return Ok(()),
    };
    release(context, container, &mut record, lock, seen).await.map(drop)
}
