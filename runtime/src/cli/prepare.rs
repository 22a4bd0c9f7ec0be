//! From the options of `run` to a bundle on disk: reads the facts that [`crate::spec`] needs, plans, and writes
//! `config.json` and the files for `/etc`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use oci_spec::image::Config;
use oci_spec::runtime::Box as ConsoleSize;
use oci_spec::runtime::BoxBuilder;
use oci_spec::runtime::Spec;

use crate::cli::container_options::ContainerOptions;
use crate::cli::etc;
use crate::cli::options::ProcessOptions;
use crate::cli::terminal;
use crate::host::pci;
use crate::plan::PassthroughMode;
use crate::plan::PciAddress;
use crate::spec;
use crate::spec::SpecInput;
use crate::spec::capability::CapabilityChanges;
use crate::spec::device::DeviceOption;
use crate::spec::device::HostDevice;
use crate::spec::device::NodeOption;
use crate::spec::env::Environment;
use crate::spec::security::SecurityOptions;
use crate::spec::user::ResolvedUser;
use crate::spec::user::UserOption;
use crate::spec::user::resolve_group;
use crate::spec::user::resolve_user;
use crate::spec::volume::BindMount;
use crate::spec::volume::TmpfsMount;
use crate::store::layers::read_file;
use crate::store::record::StartupRecord;

/// The greatest size of an image's `/etc/passwd` or `/etc/group`.
const LONGEST_DATABASE: usize = 4 << 20;

/// The greatest size of an `--env-file`.
const LONGEST_ENV_FILE: u64 = 1 << 20;

/// The source of a container: an image or a root directory.
#[derive(Debug)]
pub(super) struct Source {
    /// As the user wrote it.
    pub(super) name: String,
    /// Of the image's manifest.
    pub(super) digest: Option<String>,
    /// Layer directories, topmost first.
    pub(super) layers: Vec<PathBuf>,
    /// The image's `config` object.
    pub(super) config: Config,
}

impl Source {
    /// A bare root directory.
    ///
    /// # Errors
    /// It is no directory.
    pub(super) fn of_directory(directory: &Path) -> anyhow::Result<Self> {
        let canonical =
            fs::canonicalize(directory).with_context(|| format!("--rootfs {}", directory.display()))?;
        if !canonical.is_dir() {
            bail!("--rootfs {}: not a directory", directory.display());
        }
        Ok(Self {
            name: canonical.display().to_string(),
            digest: None,
            layers: vec![canonical],
            config: Config::default(),
        })
    }
}

/// The container and bundle that are being made.
pub(super) struct BundleTarget<'a> {
    pub(super) bundle: &'a Path,
    /// Network namespace of the sandbox, which the start makes; none for loopback only.
    pub(super) network: Option<PathBuf>,
    pub(super) startup: &'a StartupRecord,
    pub(super) volumes: Vec<BindMount>,
    pub(super) tmpfs: &'a [TmpfsMount],
}

/// Makes the specification and writes the bundle, whose directory exists.
///
/// # Errors
/// An option names something that is not in the image or not on the host, or the bundle cannot be written.
pub(super) fn prepare(
    target: BundleTarget<'_>,
    source: &Source,
    process: &ProcessOptions,
    container: &ContainerOptions,
    command: &[String],
) -> anyhow::Result<Spec> {
    let hostname = target.startup.hostname.as_str();
    let user = match (&process.user, source.config.user()) {
        (Some(user), _) => user.clone(),
        (None, Some(user)) => user.parse().context("the image's user")?,
        (None, None) => UserOption::default(),
    };
    let options = spec::Options {
        entrypoint: container.entrypoint.clone(),
        command: command.to_vec(),
        terminal: process.tty,
        workdir: process.workdir.clone(),
        capabilities: CapabilityChanges { add: container.cap_add.clone(), drop: container.cap_drop.clone() },
        ulimits: container.ulimit.clone(),
        tmpfs: target.tmpfs.to_vec(),
        read_only: container.read_only,
        cpus: container.cpus,
        memory: container.memory,
        kernel: container.kernel.as_deref().map(existing_file).transpose().context("--kernel")?,
        console: container.console.then(|| console_file(target.bundle)),
        cdi_devices: container
            .device
            .iter()
            .filter_map(|device| if let DeviceOption::Cdi(name) = device { Some(name.clone()) } else { None })
            .collect(),
        privileged: container.privileged,
        shm_size: container.shm_size,
        sysctls: container.sysctl.iter().cloned().collect(),
        security: SecurityOptions::of(&container.security_opt),
        pids_limit: container.pids_limit.filter(|limit| *limit > 0),
        init: container.init,
        annotations: annotations(&container.annotation)?,
    };
    let mut spec = spec::plan_spec(SpecInput {
        image: &source.config,
        options: &options,
        environment: environment(source.config.env().as_deref().unwrap_or_default(), process)?,
        user: with_groups(find_user(&user, &source.layers)?, &container.group_add, &source.layers)?,
        hostname,
        volumes: target.volumes,
        devices: container
            .device
            .iter()
            .filter_map(|device| find_device(device).transpose())
            .collect::<Result<_, _>>()?,
        etc: etc::write(target.bundle, target.startup, None)?,
        network_namespace: target.network.clone(),
    })?;
    if let (true, Some(process)) = (process.tty, spec.process_mut()) {
        process.set_console_size(console_size());
    }
    let path = target.bundle.join("config.json");
    spec.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if container.console {
        let path = console_file(target.bundle);
        fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    Ok(spec)
}

/// The file to which the shim writes the guest's console.
pub(super) fn console_file(bundle: &Path) -> PathBuf {
    bundle.join("console.log")
}

/// The size of this terminal, for the specification.
pub(super) fn console_size() -> Option<ConsoleSize> {
    let (columns, rows) = terminal::size()?;
    BoxBuilder::default().height(rows).width(columns).build().ok()
}

/// The environment `base`, changed by the variables of files and options.
pub(super) fn environment(base: &[String], process: &ProcessOptions) -> anyhow::Result<Environment> {
    let host = |name: &str| std::env::var(name).ok();
    let mut environment = Environment::from_image(base);
    for path in &process.env_file {
        let name = path.display().to_string();
        let text = read_env_file(path).with_context(|| format!("cannot read --env-file {name}"))?;
        environment.apply_file(&name, &text, &host)?;
    }
    for word in &process.env {
        environment.apply(word, &host)?;
    }
    Ok(environment)
}

fn read_env_file(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST_ENV_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_ENV_FILE {
        return Err(io::Error::other("the file is longer than 1 MiB"));
    }
    Ok(text)
}

/// Finds a user in the user database of a container.
///
/// # Errors
/// The database cannot be read, or a name is not in it.
pub(super) fn find_user(user: &UserOption, layers: &[PathBuf]) -> anyhow::Result<ResolvedUser> {
    let database = |path: &str| -> anyhow::Result<String> {
        let content = read_file(layers, path, LONGEST_DATABASE)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&content).into_owned())
    };
    Ok(resolve_user(user, &database("etc/passwd")?, &database("etc/group")?)?)
}

/// The user with the groups of `--group-add`.
fn with_groups(mut user: ResolvedUser, names: &[String], layers: &[PathBuf]) -> anyhow::Result<ResolvedUser> {
    if names.is_empty() {
        return Ok(user);
    }
    let database = read_file(layers, "etc/group", LONGEST_DATABASE)?.unwrap_or_default();
    let database = String::from_utf8_lossy(&database);
    for name in names {
        let group = resolve_group(name, &database).context("--group-add")?;
        if !user.groups.contains(&group) {
            user.groups.push(group);
        }
    }
    Ok(user)
}

fn annotations(words: &[String]) -> anyhow::Result<HashMap<String, String>> {
    let pair = |word: &String| {
        let pair = word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| anyhow!("--annotation {word:?}: write KEY=VALUE"))
    };
    words.iter().map(pair).collect()
}

/// The facts about a device of the host; none for a CDI device, which is looked up when the container is created.
pub(super) fn find_device(device: &DeviceOption) -> anyhow::Result<Option<HostDevice>> {
    match device {
        DeviceOption::Cdi(_) => Ok(None),
        DeviceOption::Node(node) => find_node(node, None).map(Some),
        DeviceOption::Pci(address, mode) => {
            let node = PathBuf::from("/dev/vfio").join(find_group(*address)?.to_string());
            let node = NodeOption { host: node.clone(), container: node, permissions: "rwm".to_owned() };
            find_node(&node, Some((*address, *mode))).map(Some)
        }
    }
}

/// The IOMMU group of a function that can be assigned.
fn find_group(address: PciAddress) -> anyhow::Result<u32> {
    let Some(function) = pci::function(Path::new(pci::SYS), address) else {
        bail!("no PCI function {address} on this host");
    };
    let Some(group) = function.group else {
        bail!("PCI function {address} has no IOMMU group; see kiai devices");
    };
    if !function.is_vfio() {
        let driver = function.driver.unwrap_or_else(|| "no driver".to_owned());
        bail!("PCI function {address} is on {driver}, not vfio-pci: kiai devices bind {address}");
    }
    Ok(group)
}

fn find_node(
    device: &NodeOption,
    function: Option<(PciAddress, PassthroughMode)>,
) -> anyhow::Result<HostDevice> {
    let named = || format!("device {}", device.host.display());
    let metadata = fs::metadata(&device.host).with_context(named)?;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        bail!("{}: not a device node", named());
    }
    let number = metadata.rdev();
    Ok(HostDevice {
        container: device.container.clone(),
        block: kind.is_block_device(),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: metadata.mode(),
        permissions: device.permissions.clone(),
        function,
    })
}

fn existing_file(path: &Path) -> anyhow::Result<PathBuf> {
    let canonical = fs::canonicalize(path).with_context(|| path.display().to_string())?;
    if !canonical.is_file() {
        bail!("{}: not a file", path.display());
    }
    Ok(canonical)
}
