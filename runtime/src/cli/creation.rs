//! Makes a container: its name, directory, record, writable layer and bundle. `create` ends there, `run` goes on with
//! a start ([`crate::cli::making`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use anyhow::bail;
use oci_spec::image::Config;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::container_options::ContainerOptions;
use crate::cli::container_options::LogDriver;
use crate::cli::events;
use crate::cli::making::Making;
use crate::cli::mounts::Mounts;
use crate::cli::names;
use crate::cli::options::NetworkOption;
use crate::cli::options::ProcessOptions;
use crate::cli::prepare;
use crate::cli::prepare::BundleTarget;
use crate::cli::prepare::Source;
use crate::network::Publish;
use crate::network::namespace;
use crate::network::publish::exposed;
use crate::resolver::DnsOptions;
use crate::spec::volume::is_name;
use crate::store;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::record::ImageRecord;
use crate::store::record::StartupRecord;
use crate::store::record::Status;
use crate::store::restart::RestartPolicy;
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
    if container.network == NetworkOption::None && (!container.publish.is_empty() || container.publish_all) {
        bail!("-p needs a network; leave out --network none");
    }
    if container.rm && container.restart != RestartPolicy::No {
        bail!(
            "--rm and --restart {}: a container that is removed cannot be started again",
            container.restart
        );
    }
    if let Some(name) = &container.name
        && !is_name(name)
    {
        bail!("{name:?} is not a name; use letters, digits, '.', '_' and '-', a letter or digit first");
    }
    Ok(())
}

/// The options of a container called `id` that take effect at each start.
pub(super) fn startup(
    id: &str,
    process: &ProcessOptions,
    container: &ContainerOptions,
    image: &Config,
) -> anyhow::Result<StartupRecord> {
    Ok(StartupRecord {
        interactive: process.interactive,
        unlogged: container.log_driver == LogDriver::None,
        hostname: container.hostname.clone().unwrap_or_else(|| id.to_owned()),
        network: match &container.network {
            NetworkOption::Bridge(name) => Some(name.clone()),
            NetworkOption::None => None,
        },
        publish: publish(container, image)?.iter().map(ToString::to_string).collect(),
        hosts: container.add_host.clone(),
        dns: DnsOptions {
            servers: container.dns.clone(),
            search: container.dns_search.clone(),
            options: container.dns_option.clone(),
        },
    })
}

/// The ports to publish: those of `-p`, and with `-P` the exposed ones of which `-p` names no port.
fn publish(container: &ContainerOptions, image: &Config) -> anyhow::Result<Vec<Publish>> {
    let mut all: Vec<Publish> = container.publish.iter().flat_map(|option| option.0.clone()).collect();
    if !container.publish_all {
        return Ok(all);
    }
    let of_image = image.exposed_ports().iter().flatten();
    let of_image = of_image.map(|port| exposed(port).context("a port that the image exposes"));
    let exposed = of_image.collect::<anyhow::Result<Vec<_>>>()?;
    for port in exposed.iter().chain(&container.expose).flat_map(|option| &option.0) {
        let same =
            |other: &Publish| (other.container_port, other.protocol) == (port.container_port, port.protocol);
        if !all.iter().any(same) {
            all.push(port.clone());
        }
    }
    Ok(all)
}

/// The image's labels, changed by those of files and options.
fn labels(container: &ContainerOptions, image: &Config) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels: BTreeMap<String, String> =
        image.labels().clone().unwrap_or_default().into_iter().collect();
    let mut add = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if key.is_empty() {
            bail!("label {word:?} has no name; write KEY or KEY=VALUE");
        }
        labels.insert(key.to_owned(), value.to_owned());
        Ok(())
    };
    for path in &container.label_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read --label-file {}", path.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.into_iter().try_for_each(&mut add)?;
    }
    container.label.iter().try_for_each(|word| add(word))?;
    Ok(labels)
}

impl<'a> Creation<'a> {
    /// Makes the container, which other commands see from now on. Its state in the record is `Creating`: a command that
    /// finds it with nobody holding the lock removes it.
    ///
    /// # Errors
    /// The first step that failed; the steps before are undone.
    pub(super) fn make(&self) -> Result<Making<'a>, CommandError> {
        let (options, source) = (self.container, self.source);
        let labels = labels(options, &source.config)?;
        let mounts = Mounts::plan(&source.config, options, || Ok(store::random_name()?))?;
        let cidfile = options.cidfile.as_deref().map(create_cidfile).transpose()?;
        let (container, lock, name) = self.name()?;
        if let Some(mut file) = cidfile {
            writeln!(file, "{}", container.id()).context("cannot write --cidfile")?;
        }
        let log = self.logged.then(|| container.log_file());
        let startup = startup(container.id(), self.process, options, &source.config)?;
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
            stop_signal: options
                .stop_signal
                .clone()
                .or_else(|| source.config.stop_signal().clone())
                .unwrap_or_else(|| "SIGTERM".to_owned()),
            ports: Vec::new(),
            volumes: mounts.volumes.iter().map(ToString::to_string).collect(),
            addresses: Vec::new(),
            status: Status::Creating,
            startup: Some(startup),
            labels,
            stop_timeout: options.stop_timeout,
            restart: options.restart,
            restarts: 0,
            stopped: false,
            anonymous_volumes: mounts.anonymous.clone(),
        };
        let mut making = Making { context: self.context, container, lock, record };
        match self.fill(&mut making, &mounts) {
            Ok(()) => {
                events::tell(self.context, &making.record, "create", &[]);
                Ok(making)
            }
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

    fn fill(&self, making: &mut Making<'_>, mounts: &Mounts) -> anyhow::Result<()> {
        let paths = making.context.store.paths();
        let bundle = making.container.bundle();
        store::file::create_directories(&bundle.join("rootfs"))?;
        making.container.write_record(&making.record)?;
        rootfs::create_upper(paths, &making.container, &self.source.layers)?;
        let startup = making.record.startup.clone().unwrap_or_default();
        let network = startup.network.as_ref().map(|_| namespace::path(making.container.id()));
        let volumes = mounts.provide(paths, &self.source.layers, false)?;
        let target =
            BundleTarget { bundle: &bundle, network, startup: &startup, volumes, tmpfs: &mounts.tmpfs };
        let spec = prepare::prepare(target, self.source, self.process, self.container, self.command)?;
        making.record.command =
            spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        making.container.write_record(&making.record)?;
        Ok(())
    }
}

fn create_cidfile(path: &Path) -> anyhow::Result<File> {
    File::create_new(path).with_context(|| format!("cannot create --cidfile {}", path.display()))
}
