//! Makes a container: its name, directory, record, writable layer and bundle. `create` ends there, `run` goes on with
//! a start ([`crate::cli::making`]).

use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::making::Making;
use crate::cli::names;
use crate::cli::options::ContainerOptions;
use crate::cli::options::NetworkOption;
use crate::cli::options::ProcessOptions;
use crate::cli::prepare;
use crate::cli::prepare::BundleTarget;
use crate::cli::prepare::Source;
use crate::network::namespace;
use crate::spec::volume::is_name;
use crate::store;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::record::ImageRecord;
use crate::store::record::StartupRecord;
use crate::store::record::Status;
use crate::store::rootfs;
use crate::store::timestamp::Timestamp;

/// The input of a container to be made.
pub(super) struct Creation<'a> {
    pub(super) context: &'a Context,
    pub(super) process: &'a ProcessOptions,
    pub(super) container: &'a ContainerOptions,
    pub(super) source: &'a Source,
    /// The arguments after the image's name.
    pub(super) command: &'a [String],
    /// The output goes to a log, not to a command in the foreground.
    pub(super) logged: bool,
}

/// Refuses options that contradict each other.
///
/// # Errors
/// The error names both.
pub(super) fn check(container: &ContainerOptions) -> anyhow::Result<()> {
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

/// The options of a container called `id` that take effect at each start.
pub(super) fn startup(id: &str, process: &ProcessOptions, container: &ContainerOptions) -> StartupRecord {
    StartupRecord {
        interactive: process.interactive,
        hostname: container.hostname.clone().unwrap_or_else(|| id.to_owned()),
        network: match container.network {
            NetworkOption::Default => Some(crate::network::conflist::NAME.to_owned()),
            NetworkOption::None => None,
        },
        publish: container.publish.iter().map(ToString::to_string).collect(),
    }
}

impl<'a> Creation<'a> {
    /// Makes the container, which other commands see from now on. Its state in the record is `Creating`: a command that
    /// finds it with nobody holding the lock removes it.
    ///
    /// # Errors
    /// The first step that failed; the steps before are undone.
    pub(super) fn make(&self) -> Result<Making<'a>, CommandError> {
        let (container, lock, name) = self.name()?;
        let log = self.logged.then(|| container.bundle().join("container.log"));
        let (options, source) = (self.container, self.source);
        let startup = startup(container.id(), self.process, options);
        let record = Record {
            version: store::record::VERSION,
            id: container.id().to_owned(),
            name,
            image: ImageRecord { name: source.name.clone(), digest: source.digest.clone() },
            command: Vec::new(),
            created: Timestamp::now(),
            layers: source.layers.clone(),
            terminal: self.process.tty,
            auto_remove: options.rm,
            log,
            stop_signal: source.config.stop_signal().clone().unwrap_or_else(|| "SIGTERM".to_owned()),
            ports: Vec::new(),
            volumes: options.volume.iter().map(ToString::to_string).collect(),
            addresses: Vec::new(),
            status: Status::Creating,
            startup: Some(startup),
            labels: source.config.labels().clone().unwrap_or_default().into_iter().collect(),
            stop_timeout: None,
        };
        let mut making = Making { context: self.context, container, lock, record };
        match self.fill(&mut making) {
            Ok(()) => Ok(making),
            Err(error) => {
                making.undo_unstarted();
                Err(CommandError::own(error))
            }
        }
    }

    fn name(&self) -> Result<(ContainerDirectory, Lock, String), StoreError> {
        if let Some(name) = &self.container.name {
            let (container, lock) = self.context.store.create(name)?;
            return Ok((container, lock, name.clone()));
        }
        let mut attempt = 0;
        loop {
            let name = names::generate(attempt)?;
            match self.context.store.create(&name) {
                // There are thousands of names, so a free one is found soon.
                Err(StoreError::NameTaken { .. }) if attempt < 100 => attempt += 1,
                Err(error) => return Err(error),
                Ok((container, lock)) => return Ok((container, lock, name)),
            }
        }
    }

    fn fill(&self, making: &mut Making<'_>) -> anyhow::Result<()> {
        let paths = making.context.store.paths();
        let bundle = making.container.bundle();
        store::file::create_directories(&bundle.join("rootfs"))?;
        making.container.write_record(&making.record)?;
        rootfs::create_upper(paths, &making.container, &self.source.layers)?;
        let startup = making.record.startup.clone().unwrap_or_default();
        let network = startup.network.as_ref().map(|_| namespace::path(making.container.id()));
        let target = BundleTarget { paths, bundle: &bundle, network, startup: &startup, rehearsal: false };
        let spec = prepare::prepare(&target, self.source, self.process, self.container, self.command)?;
        making.record.command =
            spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        making.container.write_record(&making.record)?;
        Ok(())
    }
}
