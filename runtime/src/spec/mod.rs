//! Makes an OCI runtime specification from an image's configuration and the user's options.
//!
//! Every function depends on its arguments only: no file, no environment, no clock. The caller reads the user
//! database of the image, the numbers of a device node and the absolute path of a volume and passes them as plain
//! data, so that table tests compare whole specifications.
//!
//! It must not know: where bundles live, how a sandbox runs one, what a guest calls a device.
//!
//! Implements: OCI runtime-spec 1.1 (`config.md`, `config-linux.md`), OCI image-spec 1.1 (`config.md`), with
//! docker's defaults where the specifications leave the choice.

pub mod capability;
pub mod device;
pub mod env;
pub mod mount_option;
pub mod mounts;
pub mod process;
pub mod quantity;
pub mod resources;
pub mod seccomp;
pub mod security;
pub mod ulimit;
pub mod user;
pub mod volume;

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::image::Config;
use oci_spec::runtime::Linux;
use oci_spec::runtime::LinuxNamespace;
use oci_spec::runtime::LinuxNamespaceType;
use oci_spec::runtime::Process;
use oci_spec::runtime::Root;
use oci_spec::runtime::Spec;

use crate::cdi::DeviceName;
use crate::spec::capability::CapabilityChanges;
use crate::spec::capability::CapabilityWord;
use crate::spec::device::HostDevice;
use crate::spec::env::Environment;
use crate::spec::mounts::EtcFiles;
use crate::spec::quantity::Cpus;
use crate::spec::quantity::MemorySize;
use crate::spec::security::SecurityOptions;
use crate::spec::ulimit::Ulimit;
use crate::spec::user::ResolvedUser;
use crate::spec::volume::BindMount;
use crate::spec::volume::TmpfsMount;

/// A specification cannot be made from the image and the options.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Neither the image nor the user names a program.
    #[error("no command: the image has neither entrypoint nor command; append a command to the image's name")]
    NoCommand,
    /// Two volumes have the same destination.
    #[error("two volumes are mounted at {0}")]
    DuplicateMount(PathBuf),
    /// The working directory is not an absolute path.
    #[error("working directory {0:?} is not an absolute path")]
    RelativeWorkdir(String),
    /// `--cpus` exceeds the maximum of a sandbox.
    #[error("--cpus {0}: a sandbox has at most 64 CPUs")]
    TooManyCpus(Cpus),
}

/// The user's options, parsed but not yet resolved on the host.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--entrypoint`; an empty string clears the image's.
    pub entrypoint: Option<String>,
    /// The arguments after the image's name.
    pub command: Vec<String>,
    /// `-t`.
    pub terminal: bool,
    /// `-w`.
    pub workdir: Option<String>,
    /// `--cap-add`, `--cap-drop`.
    pub capabilities: CapabilityChanges,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--tmpfs`.
    pub tmpfs: Vec<TmpfsMount>,
    /// `--read-only`.
    pub read_only: bool,
    /// `--cpus`.
    pub cpus: Option<Cpus>,
    /// `-m`.
    pub memory: Option<MemorySize>,
    /// `--kernel`, absolute.
    pub kernel: Option<PathBuf>,
    /// File to which the guest's console is appended.
    pub console: Option<PathBuf>,
    /// `--device` with names of CDI devices.
    pub cdi_devices: Vec<DeviceName>,
    /// `--privileged`: no restriction inside the guest. Only the microVM confines the container.
    pub privileged: bool,
    /// `--shm-size`, in bytes.
    pub shm_size: Option<u64>,
    /// `--sysctl`.
    pub sysctls: HashMap<String, String>,
    /// `--security-opt`.
    pub security: SecurityOptions,
    /// `--pids-limit`; `None` for no limit.
    pub pids_limit: Option<i64>,
    /// `--init`: the process is not the first of its pid namespace.
    pub init: bool,
    /// `--annotation`.
    pub annotations: HashMap<String, String>,
}

/// The input of a specification.
#[derive(Debug)]
pub struct SpecInput<'a> {
    /// The image's `config` object; the default one for a bare root directory.
    pub image: &'a Config,
    /// The user's options.
    pub options: &'a Options,
    /// The environment, merged from the image, `--env-file` and `-e`.
    pub environment: Environment,
    /// User and groups of the process.
    pub user: ResolvedUser,
    /// Host name of the sandbox.
    pub hostname: &'a str,
    /// Volumes with their host paths made absolute.
    pub volumes: Vec<BindMount>,
    /// Device nodes with the numbers they have on the host.
    pub devices: Vec<HostDevice>,
    /// Files that the CLI wrote and that replace those of the image in `/etc`.
    pub etc: EtcFiles,
    /// Network namespace of the sandbox; `None` means no network interface.
    pub network_namespace: Option<PathBuf>,
}

/// Makes the OCI specification.
///
/// # Errors
/// [`SpecError`] names the options that contradict each other.
pub fn plan_spec(input: SpecInput<'_>) -> Result<Spec, SpecError> {
    let options = input.options;
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(options.read_only));

    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned());
    spec.set_root(Some(root));
    spec.set_hostname(Some(input.hostname.to_owned()));
    let mut mounts = mounts::plan_mounts(&options.tmpfs, &input.volumes, &input.etc, options.shm_size)?;
    if options.privileged {
        mounts::open_kernel(&mut mounts);
    }
    spec.set_mounts(Some(mounts));
    let mut annotations = annotations(options)?;
    annotations.extend(device::annotations(&input.devices));
    spec.set_annotations(Some(annotations));

    let mut process = Process::default();
    let args = process::arguments(input.image, options.entrypoint.as_deref(), &options.command);
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    process.set_args(Some(args));
    process.set_terminal(Some(options.terminal));
    process.set_cwd(process::working_directory(input.image, options.workdir.as_deref())?);
    let environment = process::environment(input.environment, &input.user, options.terminal, input.hostname);
    process.set_env(Some(environment));
    process.set_rlimits(Some(ulimit::plan_rlimits(&options.ulimits)));
    process.set_no_new_privileges(Some(options.security.no_new_privileges));
    let capabilities = if options.privileged {
        capability::plan_capabilities(&CapabilityChanges { add: vec![CapabilityWord::All], drop: Vec::new() })
    } else {
        capability::plan_capabilities(&options.capabilities)
    };
    process.set_capabilities(Some(capability::process_sets(&capabilities, input.user.uid == 0)));
    process.set_user(input.user.into_oci());
    spec.set_process(Some(process));

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(input.network_namespace, options.init)));
    linux.set_sysctl((!options.sysctls.is_empty()).then(|| options.sysctls.clone()));
    let confined = !options.privileged;
    let masked = confined && !options.security.paths_unconfined;
    linux.set_masked_paths(masked.then(|| owned(MASKED_PATHS)));
    linux.set_readonly_paths(masked.then(|| owned(READONLY_PATHS)));
    let filtered = confined && !options.security.seccomp_unconfined;
    linux.set_seccomp(filtered.then(|| seccomp::default_profile(&capabilities)));
    linux.set_devices(Some(device::nodes(&input.devices)));
    let rules = if options.privileged { device::every_device() } else { device::plan_rules(&input.devices) };
    let mut resources = resources::plan_resources(options.cpus, options.memory, rules);
    resources.set_pids(options.pids_limit.map(resources::plan_pids));
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Paths with details of the kernel that a container should not read.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths through which a container could change the kernel for the other containers of the pod.
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Namespaces of the container. With `init` it has no pid namespace of its own: it is in the pod's, whose first process
/// is a small init that reaps orphans.
fn namespaces(network: Option<PathBuf>, init: bool) -> Vec<LinuxNamespace> {
    let namespace = |typ, path| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace.set_path(path);
        namespace
    };
    let mut all = vec![
        namespace(LinuxNamespaceType::Network, network),
        namespace(LinuxNamespaceType::Ipc, None),
        namespace(LinuxNamespaceType::Uts, None),
        namespace(LinuxNamespaceType::Mount, None),
        namespace(LinuxNamespaceType::Cgroup, None),
    ];
    if !init {
        all.push(namespace(LinuxNamespaceType::Pid, None));
    }
    all
}

/// The annotations with the size of the sandbox. Callers of containerd also use annotations for it.
fn annotations(options: &Options) -> Result<HashMap<String, String>, SpecError> {
    let mut annotations = options.annotations.clone();
    // The limit itself sizes the sandbox, and can change later: the annotation would not.
    if let Some(cpus) = options.cpus
        && cpus.vcpus().is_none()
    {
        return Err(SpecError::TooManyCpus(cpus));
    }
    if let Some(kernel) = &options.kernel {
        annotations.insert("io.kiai.kernel".to_owned(), kernel.display().to_string());
    }
    if !options.cdi_devices.is_empty() {
        let names: Vec<_> = options.cdi_devices.iter().map(ToString::to_string).collect();
        annotations.insert(format!("{}kiai", crate::cdi::ANNOTATIONS), names.join(","));
    }
    if options.privileged {
        annotations.insert("io.kiai.all-devices".to_owned(), true.to_string());
    }
    if let Some(console) = &options.console {
        annotations.insert("io.kiai.console".to_owned(), console.display().to_string());
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests;
