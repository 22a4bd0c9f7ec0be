//! `kiai exec`: runs another process in a running container.

use std::io::IsTerminal;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use oci_spec::runtime::Process;
use oci_spec::runtime::Spec;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::options::ProcessOptions;
use crate::cli::prepare;
use crate::cli::session::Session;
use crate::cli::signals::Forwarded;
use crate::cli::state::State;
use crate::cli::streams;
use crate::cli::streams::ProcessFifos;
use crate::cli::task::StreamUris;
use crate::cli::task::Task;
use crate::cli::terminal::RawMode;
use crate::spec::capability::process_sets;
use crate::store;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::record::Status;
use crate::store::rootfs;

/// Run a command in a running container
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    #[command(flatten)]
    process: ProcessOptions,
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Name or id
    container: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// A process of `command` without input, with the container's environment.
    pub(super) fn plain(container: &str, command: Vec<String>) -> Self {
        Self { process: ProcessOptions::default(), detach: false, container: container.to_owned(), command }
    }

    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let options = &self.process;
        if options.tty && options.interactive && !self.detach && !std::io::stdin().is_terminal() {
            return Err(CommandError::own(anyhow!("-it: standard input is not a terminal; leave out -t")));
        }
        let (container, record) = context.store.find(&self.container)?;
        let (task, state) = serving_task(&record).await?;
        if let State::Paused { .. } = state {
            let name = record.name;
            return Err(CommandError::own(anyhow!(
                "container {name} is paused, and so would be the process: kiai unpause {name}"
            )));
        }
        let process = self.plan(&container, &record)?;
        let exec_id = format!("exec-{}", store::random_id()?);
        if self.detach {
            let uris = StreamUris { terminal: options.tty, ..StreamUris::default() };
            task.exec(&exec_id, &process, &uris).await.map_err(CommandError::of_start)?;
            task.start(&exec_id).await.map_err(CommandError::of_start)?;
            return Ok(0);
        }
        let mut signals = Forwarded::take_over().context("cannot take over signals")?;
        let directory = streams::directory(&container.bundle(), &exec_id);
        let streams = ProcessFifos::create(directory, options.interactive, options.tty)?;
        let result = self.attend(&task, &exec_id, &process, &streams, &mut signals).await;
        // For a process that was not attended to its end. The container may have been removed meanwhile, with the
        // fifos.
        let _ = task.delete(&exec_id).await;
        streams.remove()?;
        result
    }

    async fn attend(
        &self,
        task: &Task,
        exec_id: &str,
        process: &Process,
        streams: &ProcessFifos,
        signals: &mut Forwarded,
    ) -> Result<u8, CommandError> {
        task.exec(exec_id, process, &streams.uris).await.map_err(CommandError::of_start)?;
        let flow = streams.start().context("cannot copy the process's streams")?;
        task.start(exec_id).await.map_err(CommandError::of_start)?;
        let raw = if self.process.tty && self.process.interactive { RawMode::enter() } else { Ok(None) };
        let _raw = raw.context("cannot switch the terminal to raw mode")?;
        let session = Session { task, exec_id, terminal: self.process.tty, console: None };
        let ended = session.attend(flow, signals).await?;
        Ok(u8::try_from(ended.status).unwrap_or(255))
    }

    /// The OCI process: that of the container, changed by the options.
    fn plan(&self, container: &ContainerDirectory, record: &Record) -> anyhow::Result<Process> {
        let path = container.bundle().join("config.json");
        let spec = Spec::load(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut process =
            spec.process().clone().ok_or_else(|| anyhow!("{} has no process", path.display()))?;
        process.set_args(Some(self.command.clone()));
        process.set_terminal(Some(self.process.tty));
        process.set_console_size(self.process.tty.then(prepare::console_size).flatten());
        if let Some(directory) = &self.process.workdir {
            if !directory.starts_with('/') {
                bail!("working directory {directory:?} is not an absolute path");
            }
            process.set_cwd(directory.into());
        }
        let base = process.env().clone().unwrap_or_default();
        let mut environment = prepare::environment(&base, &self.process)?;
        if let Some(user) = &self.process.user {
            let layers: Vec<_> =
                std::iter::once(rootfs::upper(container)).chain(record.layers.iter().cloned()).collect();
            let user = prepare::find_user(user, &layers)?;
            environment.set("HOME", &user.home);
            if let Some(capabilities) = process.capabilities().clone() {
                let kept: Vec<_> = capabilities.bounding().iter().flatten().copied().collect();
                process.set_capabilities(Some(process_sets(&kept, user.uid == 0)));
            }
            process.set_user(user.into_oci());
        }
        if self.process.tty {
            environment.set_default("TERM", "xterm");
        }
        process.set_env(Some(environment.into_words()));
        Ok(process)
    }
}

/// Connects to the shim of a running container.
///
/// # Errors
/// The container is not running, or its shim does not answer.
pub(super) async fn running_task(record: &Record) -> anyhow::Result<Task> {
    Ok(serving_task(record).await?.0)
}

/// As [`running_task`], with the state: running or paused.
///
/// # Errors
/// As there.
pub(super) async fn serving_task(record: &Record) -> anyhow::Result<(Task, State)> {
    let state = State::of(record).await;
    match &record.status {
        Status::Started { socket, .. } if state.is_running() => {
            Ok((Task::connect(socket, &record.id).await?, state))
        }
        _ => bail!("container {} is not running: it is {}", record.name, state.word()),
    }
}
