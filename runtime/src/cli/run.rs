//! `kiai run`: runs a container, in this order:
//!
//! ```text
//!   image -> name and directory -> network -> bundle -> shim -> create -> start
//!     foreground: attend until it ends -> release          background: print the id
//! ```
//! If a step fails, the steps before are undone.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use containerd_shim_protos::types::mount::Mount;
use std::io::IsTerminal;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::dry_run::Rehearsal;
use crate::cli::follow::Growing;
use crate::cli::format::Format;
use crate::cli::names;
use crate::cli::options::ContainerOptions;
use crate::cli::options::NetworkOption;
use crate::cli::options::ProcessOptions;
use crate::cli::options::PullOption;
use crate::cli::prepare;
use crate::cli::prepare::BundleTarget;
use crate::cli::prepare::Source;
use crate::cli::release;
use crate::cli::session::Session;
use crate::cli::session::SessionError;
use crate::cli::signals;
use crate::cli::signals::Forwarded;
use crate::cli::streams;
use crate::cli::streams::ProcessFifos;
use crate::cli::task::StreamUris;
use crate::cli::task::Task;
use crate::cli::terminal::RawMode;
use crate::network;
use crate::network::CniNetwork;
use crate::network::PortMapping;
use crate::shim;
use crate::shim::LaunchOptions;
use crate::spec::volume::is_name;
use crate::store;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::record::ExitRecord;
use crate::store::record::ImageRecord;
use crate::store::record::ShimProcess;
use crate::store::record::Status;
use crate::store::rootfs;
use crate::store::timestamp::Timestamp;

/// Run a container from an image in a microVM of its own
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    container: ContainerOptions,
    /// Use this directory as the root file system instead of an image, without changing it
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing")]
    pull: PullOption,
    /// Print the plan of the container and make nothing; only the image is pulled
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    dry_run: Option<Format>,
    /// Image (a registry reference, oci:DIR:TAG or docker-archive:FILE; none with --rootfs), then the
    /// command and its arguments
    #[arg(trailing_var_arg = true, value_name = "IMAGE [COMMAND]...")]
    words: Vec<String>,
}

/// A container that is being made; its steps so far can be undone.
struct Making<'a> {
    context: &'a Context,
    container: ContainerDirectory,
    lock: Lock,
    record: Record,
    /// Ports to hold on the host.
    ports: Vec<PortMapping>,
}

impl Run {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        self.check()?;
        let mut signals = Forwarded::take_over().context("cannot take over signals")?;
        let (source, command) = tokio::select! {
            found = self.source(context) => found?,
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
        let making = self.make(context, &source, &command)?;
        if self.process.detach {
            self.in_background(making).await
        } else {
            self.in_foreground(making, signals).await
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        let (process, container) = (&self.process, &self.container);
        if process.tty && process.interactive && !process.detach && !std::io::stdin().is_terminal() {
            bail!("-it: standard input is not a terminal; leave out -t");
        }
        if container.console && process.detach {
            bail!("--console shows the console of a container in the foreground; leave out -d");
        }
        if container.network == NetworkOption::None && !container.publish.is_empty() {
            bail!("-p needs a network; leave out --network none");
        }
        if let Some(name) = &container.name
            && !is_name(name)
        {
            bail!("{name:?} is not a name; use letters, digits, '.', '_' and '-', a letter or digit first");
        }
        Ok(())
    }

    /// The source of the container, and the user's command.
    async fn source(&self, context: &Context) -> anyhow::Result<(Source, Vec<String>)> {
        if let Some(directory) = &self.rootfs {
            return Ok((Source::of_directory(directory)?, self.words.clone()));
        }
        let Some((image, command)) = self.words.split_first() else {
            bail!("no image: name one, or a root directory with --rootfs");
        };
        Ok((crate::cli::image::source(context, image, self.pull).await?, command.to_vec()))
    }

    /// Makes the container's name, directory and record; from here on other commands see it.
    fn make<'a>(
        &self,
        context: &'a Context,
        source: &Source,
        command: &[String],
    ) -> Result<Making<'a>, CommandError> {
        let (container, lock, name) = self.create(context)?;
        let log = self.process.detach.then(|| container.bundle().join("container.log"));
        let record = Record {
            version: store::record::VERSION,
            id: container.id().to_owned(),
            name,
            image: ImageRecord { name: source.name.clone(), digest: source.digest.clone() },
            command: Vec::new(),
            created: Timestamp::now(),
            layers: source.layers.clone(),
            terminal: self.process.tty,
            auto_remove: self.container.rm,
            log,
            stop_signal: source.config.stop_signal().clone().unwrap_or_else(|| "SIGTERM".to_owned()),
            ports: self.container.publish.iter().map(ToString::to_string).collect(),
            volumes: self.container.volume.iter().map(ToString::to_string).collect(),
            addresses: Vec::new(),
            status: Status::Creating,
        };
        let ports = self.container.publish.clone();
        let mut making = Making { context, container, lock, record, ports };
        match self.fill(&mut making, source, command) {
            Ok(()) => Ok(making),
            Err(error) => {
                making.undo_unstarted();
                Err(CommandError::own(error))
            }
        }
    }

    fn create(&self, context: &Context) -> Result<(ContainerDirectory, Lock, String), StoreError> {
        if let Some(name) = &self.container.name {
            let (container, lock) = context.store.create(name)?;
            return Ok((container, lock, name.clone()));
        }
        let mut attempt = 0;
        loop {
            let name = names::generate(attempt)?;
            match context.store.create(&name) {
                // There are thousands of names, so a free one is found soon.
                Err(StoreError::NameTaken { .. }) if attempt < 100 => attempt += 1,
                Err(error) => return Err(error),
                Ok((container, lock)) => return Ok((container, lock, name)),
            }
        }
    }

    fn fill(&self, making: &mut Making<'_>, source: &Source, command: &[String]) -> anyhow::Result<()> {
        let paths = making.context.store.paths();
        let bundle = making.container.bundle();
        store::file::create_directories(&bundle.join("rootfs"))?;
        making.container.write_record(&making.record)?;
        rootfs::create_upper(paths, &making.container, &source.layers)?;
        let network = self.attach(&making.container)?;
        let id = making.container.id();
        let target = BundleTarget { paths, bundle: &bundle, id, network: network.as_ref(), rehearsal: false };
        let spec = prepare::prepare(&target, source, &self.process, &self.container, command)?;
        making.record.addresses = network.map(|network| network.addresses).unwrap_or_default();
        making.record.command =
            spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        making.container.write_record(&making.record)?;
        Ok(())
    }

    fn attach(&self, container: &ContainerDirectory) -> anyhow::Result<Option<CniNetwork>> {
        if self.container.network == NetworkOption::None {
            return Ok(None);
        }
        let settings = crate::cli::network_settings()?;
        let ports = &self.container.publish;
        Ok(Some(network::attach(container.id(), &container.network_file(), &settings, ports)?))
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

    async fn in_background(&self, mut making: Making<'_>) -> Result<u8, CommandError> {
        let log = making.record.log.clone().unwrap_or_default();
        let uri = format!("kiai-log://{}", log.display());
        let stdin = if self.process.interactive { making.held_stdin()? } else { String::new() };
        let uris = StreamUris {
            stdin,
            stdout: uri.clone(),
            stderr: if self.process.tty { String::new() } else { uri },
            terminal: self.process.tty,
        };
        let afterwards = release::words(making.context, making.container.id());
        match making.start(&uris, afterwards, |_| Ok(())).await {
            Ok(_) => {
                crate::cli::format::print(&format!("{}\n", making.record.id))?;
                Ok(0)
            }
            Err(failure) => Err(making.undo_after(failure).await),
        }
    }
}

impl Making<'_> {
    /// Starts the shim, has it create the container and start its process, and records that.
    async fn start<T>(
        &mut self,
        uris: &StreamUris,
        afterwards: Vec<String>,
        flow: impl FnOnce(&Task) -> std::io::Result<T>,
    ) -> Result<(Task, T), CommandError> {
        let bundle = self.container.bundle();
        let socket = shim::launch(&LaunchOptions {
            id: self.container.id().to_owned(),
            namespace: self.context.store.paths().namespace.clone(),
            bundle: bundle.clone(),
            address: None,
            debug: self.context.debug,
            ports: self.ports.clone(),
            afterwards,
            ..LaunchOptions::default()
        })
        .context("cannot start the shim")?;
        let shim = shim_process(&bundle)?;
        self.record.status = Status::Started { shim, socket: socket.clone(), at: Timestamp::now() };
        let task = Task::connect(&socket, self.container.id()).await?;
        let rootfs = self.rootfs_mount()?;
        let flow = flow(&task).context("cannot copy the container's streams")?;
        task.create(&bundle, rootfs, uris).await.map_err(CommandError::of_start)?;
        task.start("").await.map_err(CommandError::of_start)?;
        self.record.status = Status::Started { shim, socket, at: Timestamp::now() };
        self.container.write_record(&self.record)?;
        Ok((task, flow))
    }

    fn rootfs_mount(&self) -> anyhow::Result<Mount> {
        Ok(Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: rootfs::overlay_options(&self.container, &self.record.layers)?,
            ..Default::default()
        })
    }

    /// A fifo that no process writes to, for `-d -i`, so that standard input does not end.
    fn held_stdin(&self) -> Result<String, CommandError> {
        let directory = streams::directory(&self.container.bundle(), "init");
        let streams = ProcessFifos::create(directory, true, true)?;
        Ok(streams.uris.stdin)
    }

    /// Undoes what was done before the shim was started.
    fn undo_unstarted(&self) {
        if let Err(error) = network::detach(&self.container.network_file()) {
            eprintln!("kiai: cannot release the network: {error}");
        }
        if let Err(error) = self.context.store.remove(&self.container, &self.record.name) {
            eprintln!("kiai: cannot remove the container: {error}");
        }
    }

    /// Undoes every step, and ends the shim.
    async fn undo(&mut self) {
        self.record.auto_remove = true;
        let undone =
            release::release(self.context, &self.container, &mut self.record, &self.lock, None).await;
        if let Err(error) = undone {
            eprintln!("kiai: cannot remove the container: {error:#}");
        }
    }

    /// Undoes every step; returns the error with the sandbox's report, if it has one.
    async fn undo_after(mut self, failure: CommandError) -> CommandError {
        let detail = release::sandbox_error(&self.container.bundle());
        self.undo().await;
        failure.with_detail(detail)
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

fn shim_process(bundle: &Path) -> anyhow::Result<ShimProcess> {
    let path = bundle.join("shim.pid");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let pid = text.trim().parse().with_context(|| format!("{} does not contain a pid", path.display()))?;
    ShimProcess::of_pid(pid).ok_or_else(|| {
        anyhow!("the shim ended right after it started; see {}", bundle.join("shim.log").display())
    })
}
