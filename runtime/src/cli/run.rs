//! `kiai run`: runs a container, in this order:
//!
//! ```text
//!   image -> name, directory and bundle -> network -> shim -> create -> start
//!     foreground: attend until it ends -> release          background: print the id
//! ```
//! If a step fails, the steps before are undone.

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use std::io::IsTerminal;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::container_options::ContainerOptions;
use crate::cli::container_options::LogDriver;
use crate::cli::creation;
use crate::cli::creation::Creation;
use crate::cli::dry_run::Rehearsal;
use crate::cli::follow::Growing;
use crate::cli::format::Format;
use crate::cli::making::Making;
use crate::cli::options::ProcessOptions;
use crate::cli::options::SourceOptions;
use crate::cli::prepare;
use crate::cli::release;
use crate::cli::session::Session;
use crate::cli::session::SessionError;
use crate::cli::signals;
use crate::cli::signals::Forwarded;
use crate::cli::streams;
use crate::cli::streams::ProcessFifos;
use crate::cli::terminal::RawMode;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::record::ExitRecord;
use crate::store::restart::RestartPolicy;

/// Run a container from an image in a microVM of its own
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Run {
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    container: ContainerOptions,
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Print the plan of the container and make nothing; only the image is pulled
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    dry_run: Option<Format>,
    #[command(flatten)]
    source: SourceOptions,
}

impl Run {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        self.check()?;
        let mut signals = Forwarded::take_over().context("cannot take over signals")?;
        let (source, command) = tokio::select! {
            found = self.source.find(context) => found?,
            number = interrupted(&mut signals) => return Ok(status_of_signal(number)),
        };
        if let Some(format) = self.dry_run {
            let rehearsal = Rehearsal {
                paths: context.store.paths(),
                source: &source,
                process: &self.process,
                container: &self.container,
                command: &command,
            };
            rehearsal.print(format)?;
            return Ok(0);
        }
        let creation = Creation {
            context,
            process: &self.process,
            container: &self.container,
            source: &source,
            command: &command,
            logged: self.detach && self.container.log_driver == LogDriver::File,
        };
        let mut making = creation.make()?;
        if let Err(error) = making.connect() {
            making.undo_unstarted();
            return Err(CommandError::own(error));
        }
        if self.detach { in_background(making).await } else { self.in_foreground(making, signals).await }
    }

    fn check(&self) -> anyhow::Result<()> {
        let process = &self.process;
        if process.tty && process.interactive && !self.detach && !std::io::stdin().is_terminal() {
            bail!("-it: standard input is not a terminal; leave out -t");
        }
        if self.container.console && self.detach {
            bail!("--console shows the console of a container in the foreground; leave out -d");
        }
        if self.container.restart != RestartPolicy::No && !self.detach {
            bail!(
                "--restart {}: a container in the foreground ends with kiai run; add -d",
                self.container.restart
            );
        }
        creation::check(&self.container)
    }

    async fn in_foreground(
        &self,
        mut making: Making<'_>,
        mut signals: Forwarded,
    ) -> Result<u8, CommandError> {
        let directory = streams::directory(&making.container.bundle(), "init");
        let streams = match ProcessFifos::create(directory, self.process.interactive, self.process.tty) {
            Ok(streams) => streams,
            Err(error) => {
                making.undo_unstarted();
                return Err(CommandError::own(error));
            }
        };
        let started = tokio::select! {
            started = making.start(&streams.uris, Vec::new(), |_| streams.start()) => started,
            number = interrupted(&mut signals) => {
                making.undo().await;
                return Ok(status_of_signal(number));
            }
        };
        let (task, flow) = match started {
            Ok(started) => started,
            Err(failure) => return Err(making.undo_after(failure).await),
        };
        // Other commands may use the container now; `release` locks it again.
        let Making { context, container, lock, mut record, .. } = making;
        drop(lock);
        let console = self.container.console.then(|| prepare::console_file(&container.bundle()));
        let console = console.as_deref().map(Growing::open).transpose().context("cannot show the console")?;
        let attended = {
            let raw = if self.process.tty && self.process.interactive { RawMode::enter() } else { Ok(None) };
            let _raw = raw.context("cannot switch the terminal to raw mode")?;
            let session = Session { task: &task, exec_id: "", terminal: self.process.tty, console };
            session.attend(flow, &mut signals).await
        };
        finish(context, &container, &mut record, attended).await
    }
}

async fn in_background(mut making: Making<'_>) -> Result<u8, CommandError> {
    match making.start_in_background().await {
        Ok(_) => {
            crate::cli::format::print(&format!("{}\n", making.record.id))?;
            Ok(0)
        }
        Err(failure) => Err(making.undo_after(failure).await),
    }
}

/// Releases a container in the foreground, and determines the exit status.
async fn finish(
    context: &Context,
    container: &ContainerDirectory,
    record: &mut Record,
    attended: Result<crate::cli::task::TaskExit, SessionError>,
) -> Result<u8, CommandError> {
    let bundle = container.bundle();
    let detail = release::sandbox_error(&bundle);
    let (ended, broken) = match attended {
        Ok(ended) => (Some(ended), None),
        Err(error) => (None, Some(error)),
    };
    let out_of_memory = bundle.join("oom").exists();
    let exit = match container.lock()? {
        // Another command has released the container meanwhile; the observed exit still holds.
        None => None,
        Some(lock) => {
            if let Some(current) = container.record()? {
                *record = current;
            }
            Some(release::release(context, container, record, &lock, ended).await?)
        }
    };
    if let Some(detail) = detail {
        return Err(CommandError::own(anyhow!("the sandbox of {} ended unexpectedly", record.name))
            .with_status(255)
            .with_detail(Some(detail)));
    }
    if let Some(error) = broken {
        let killed = exit.as_ref().and_then(|exit| exit.reason.clone());
        return Err(match killed {
            Some(reason) => {
                CommandError::own(anyhow!("container {}: {reason}", record.name)).with_status(255)
            }
            None => CommandError::own(error),
        });
    }
    if out_of_memory {
        eprintln!("kiai: container {} ran out of memory", record.name);
    }
    let code = ended.map(|ended| ended.status).or(exit.map(|exit: ExitRecord| exit.code));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

/// Waits for a signal that asks to end, while the container does not exist yet.
async fn interrupted(signals: &mut Forwarded) -> u32 {
    loop {
        let number = signals.next().await;
        if signals::asks_to_end(number) {
            return number;
        }
    }
}

fn status_of_signal(number: u32) -> u8 {
    u8::try_from(128 + number).unwrap_or(255)
}
