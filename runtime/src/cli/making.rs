//! Starts a container that is made: network, files in `/etc`, shim, create, start. Every step is undone if a later one
//! fails; [`crate::cli::release`] undoes those of a command that was killed.

use std::path::Path;

use anyhow::Context as _;
use anyhow::anyhow;
use containerd_shim_protos::types::mount::Mount;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::etc;
use crate::cli::events;
use crate::cli::release;
use crate::cli::streams;
use crate::cli::streams::ProcessFifos;
use crate::cli::task::StreamUris;
use crate::cli::task::Task;
use crate::cli::volumes;
use crate::network;
use crate::network::PortMapping;
use crate::network::held;
use crate::network::publish::PublishOption;
use crate::shim;
use crate::shim::LaunchOptions;
use crate::store;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::file::Lock;
use crate::store::record::ExitRecord;
use crate::store::record::ShimProcess;
use crate::store::record::Status;
use crate::store::rootfs;
use crate::store::timestamp::Timestamp;

/// Files of the bundle that tell how the container's last process ended.
const LEFT_BY_THE_LAST: [&str; 2] = ["sandbox-error.txt", "oom"];

/// A container that is being made or started, with its lock.
pub(super) struct Making<'a> {
    pub(super) context: &'a Context,
    pub(super) container: ContainerDirectory,
    pub(super) lock: Lock,
    pub(super) record: Record,
}

impl Making<'_> {
    /// Records that a container that was made by another command is being started, and clears the remains of its last
    /// process. Its output goes to the log.
    ///
    /// # Errors
    /// The record was written by an older version, or a file cannot be written or removed.
    pub(super) fn begin_again(&mut self) -> anyhow::Result<()> {
        let previous = previous(&self.record.status);
        let Some(startup) = &self.record.startup else {
            return Err(anyhow!(
                "container {} was made by an older kiai, which kept nothing to start it again; make a new one",
                self.record.name
            ));
        };
        if !startup.unlogged {
            self.record.log = Some(self.container.log_file());
        }
        self.record.status = Status::Starting { previous };
        let bundle = self.container.bundle();
        self.container.write_record(&self.record)?;
        for name in LEFT_BY_THE_LAST {
            store::file::remove_file(&bundle.join(name))?;
        }
        store::file::remove_tree(&streams::directory(&bundle, "init"))?;
        Ok(())
    }

    /// Makes the network and writes the files in `/etc` that depend on it.
    ///
    /// # Errors
    /// A port or the network is refused; the work done so far is not undone.
    pub(super) fn connect(&mut self) -> anyhow::Result<()> {
        let startup = self.record.startup.clone().unwrap_or_default();
        let mut joined = None;
        self.record.addresses = Vec::new();
        self.record.ports = assign(&startup.publish)?;
        if startup.network.is_some() {
            let settings = crate::cli::network_settings()?;
            let file = self.container.network_file();
            joined = Some(network::attach(self.container.id(), &file, &settings, &self.ports()?)?);
        }
        etc::write(&self.container.bundle(), &startup, joined.as_ref())?;
        self.record.addresses = joined.map(|network| network.addresses).unwrap_or_default();
        self.container.write_record(&self.record)?;
        Ok(())
    }

    fn ports(&self) -> anyhow::Result<Vec<PortMapping>> {
        self.record.ports.iter().map(|port| Ok(port.parse()?)).collect()
    }

    /// Starts it with its output in the log and nobody attached; the shim has it released at its end.
    ///
    /// # Errors
    /// As [`Making::start`].
    pub(super) async fn start_in_background(&mut self) -> Result<Task, CommandError> {
        let log = self.record.log.as_ref();
        let uri = log.map_or_else(String::new, |log| format!("kiai-log://{}", log.display()));
        let interactive = self.record.startup.as_ref().is_some_and(|startup| startup.interactive);
        let stdin = if interactive { self.held_stdin()? } else { String::new() };
        let uris = StreamUris {
            stdin,
            stdout: uri.clone(),
            stderr: if self.record.terminal { String::new() } else { uri },
            terminal: self.record.terminal,
        };
        let afterwards = release::words(self.context, self.container.id());
        let (task, ()) = self.start(&uris, afterwards, |_| Ok(())).await?;
        Ok(task)
    }

    /// Starts the shim, has it create the container and start its process, and records that.
    ///
    /// # Errors
    /// The step that failed; the steps before are not undone.
    pub(super) async fn start<T>(
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
            ports: self.ports()?,
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
        self.record.stopped = false;
        self.container.write_record(&self.record)?;
        events::tell(self.context, &self.record, "start", &[]);
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

    /// A fifo that no process writes to, for a container that may be attached to, so that standard input does not end.
    fn held_stdin(&self) -> Result<String, CommandError> {
        let directory = streams::directory(&self.container.bundle(), "init");
        let streams = ProcessFifos::create(directory, true, true)?;
        Ok(streams.uris.stdin)
    }

    /// Removes the container, whose shim was not started.
    pub(super) fn undo_unstarted(&self) {
        volumes::remove_anonymous(self.context, &self.record);
        if let Err(error) = network::detach(&self.container.network_file()) {
            eprintln!("kiai: cannot release the network: {error}");
        }
        if let Err(error) = self.context.store.remove(&self.container, &self.record.name) {
            eprintln!("kiai: cannot remove the container: {error}");
        }
    }

    /// Ends the shim, undoes every step and removes the container.
    pub(super) async fn undo(&mut self) {
        self.record.auto_remove = true;
        let undone =
            release::release(self.context, &self.container, &mut self.record, &self.lock, None).await;
        if let Err(error) = undone {
            eprintln!("kiai: cannot remove the container: {error:#}");
        }
    }

    /// As [`Making::undo`]; returns the error with the sandbox's report, if it has one.
    pub(super) async fn undo_after(mut self, failure: CommandError) -> CommandError {
        let detail = release::sandbox_error(&self.container.bundle());
        self.undo().await;
        failure.with_detail(detail)
    }

    /// Ends the shim, undoes every step of a start and leaves the container as it was before; returns the error with the
    /// sandbox's report, if it has one.
    pub(super) async fn put_back(
        mut self,
        previous: Option<ExitRecord>,
        failure: CommandError,
    ) -> CommandError {
        let detail = release::sandbox_error(&self.container.bundle());
        if let Err(error) = release::unwind(&self.container, &mut self.record, previous).await {
            eprintln!("kiai: cannot undo the start of {}: {error:#}", self.record.name);
        }
        failure.with_detail(detail)
    }
}

/// The end of the last process of a container that is not running.
pub(super) fn previous(status: &Status) -> Option<ExitRecord> {
    match status {
        Status::Exited(exit) => Some(exit.clone()),
        Status::Starting { previous } => previous.clone(),
        Status::Creating | Status::Created | Status::Started { .. } => None,
    }
}

/// The mappings of the ports to publish, with ports of the host that are free now for those without one.
fn assign(publish: &[String]) -> anyhow::Result<Vec<String>> {
    let mut ports = Vec::new();
    for text in publish {
        for port in text.parse::<PublishOption>()?.0 {
            let free = match port.host_port {
                Some(asked) => asked,
                None => held::free_port(port.host_ip, port.protocol)
                    .with_context(|| format!("no free port of the host for port {port} of the container"))?,
            };
            ports.push(port.mapping(free).to_string());
        }
    }
    Ok(ports)
}

fn shim_process(bundle: &Path) -> anyhow::Result<ShimProcess> {
    let path = bundle.join("shim.pid");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let pid = text.trim().parse().with_context(|| format!("{} does not contain a pid", path.display()))?;
    ShimProcess::of_pid(pid).ok_or_else(|| {
        anyhow!("the shim ended right after it started; see {}", bundle.join("shim.log").display())
    })
}
