//! The options of `kiai run` and `kiai create`. The parsers in `spec` and `network` read their values.

use std::path::PathBuf;

use anyhow::bail;

use crate::cli::Context;
use crate::cli::image;
use crate::cli::prepare::Source;
use crate::network::PortMapping;
use crate::spec::capability::CapabilityWord;
use crate::spec::device::DeviceOption;
use crate::spec::quantity::Cpus;
use crate::spec::quantity::MemorySize;
use crate::spec::ulimit::Ulimit;
use crate::spec::user::UserOption;
use crate::spec::volume::TmpfsMount;
use crate::spec::volume::VolumeOption;

/// `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum NetworkOption {
    /// A bridge with NAT, made by the CNI plugins.
    #[value(alias = "bridge")]
    Default,
    /// Loopback only.
    None,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PullOption {
    /// If it is not there.
    Missing,
    /// Look for a newer one each time.
    Always,
    /// Fail if it is not there.
    Never,
}

/// Options of the process and its streams.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ProcessOptions {
    /// Keep standard input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Set an environment variable; NAME alone takes its value in this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Set the environment variables of a file, one on each line
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<UserOption>,
}

/// The image or root directory of a new container, and its command.
#[derive(Debug, clap::Args)]
pub(super) struct SourceOptions {
    /// Use this directory as the root file system instead of an image, without changing it
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing")]
    pull: PullOption,
    /// Image (a registry reference, oci:DIR:TAG or docker-archive:FILE; none with --rootfs), then the
    /// command and its arguments
    #[arg(trailing_var_arg = true, value_name = "IMAGE [COMMAND]...")]
    words: Vec<String>,
}

impl SourceOptions {
    /// The source of the container, pulled if needed, and the user's command.
    ///
    /// # Errors
    /// No image is named, or it cannot be had.
    pub(super) async fn find(&self, context: &Context) -> anyhow::Result<(Source, Vec<String>)> {
        if let Some(directory) = &self.rootfs {
            return Ok((Source::of_directory(directory)?, self.words.clone()));
        }
        let Some((image, command)) = self.words.split_first() else {
            bail!("no image: name one, or a root directory with --rootfs");
        };
        Ok((image::source(context, image, self.pull).await?, command.to_vec()))
    }
}

/// Options of the container and its limits.
#[derive(Debug, clap::Args)]
pub(super) struct ContainerOptions {
    /// Name of the container [default: an adjective and a noun]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub(super) rm: bool,
    /// Program to run instead of the image's entrypoint; "" for none
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Host name [default: the container's id]
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Mount a file, a directory or a named volume
    #[arg(short, long, value_name = "SOURCE:PATH[:ro]")]
    pub(super) volume: Vec<VolumeOption>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub(super) tmpfs: Vec<TmpfsMount>,
    /// Make the root file system read-only
    #[arg(long)]
    pub(super) read_only: bool,
    /// CPU time, in CPUs; also how many CPUs the sandbox has
    #[arg(long, value_name = "NUMBER")]
    pub(super) cpus: Option<Cpus>,
    /// Memory limit, with a unit: 256m, 2g
    #[arg(short, long, value_name = "SIZE")]
    pub(super) memory: Option<MemorySize>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "NAME")]
    pub(super) cap_add: Vec<CapabilityWord>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME")]
    pub(super) cap_drop: Vec<CapabilityWord>,
    /// Set a resource limit: nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(super) ulimit: Vec<Ulimit>,
    /// Assign a device of the host: a node, a PCI function (pci:ADDRESS, see kiai devices; with
    /// ,user-space a program in the container drives it), or a device of a CDI file by its name
    #[arg(long, value_name = "HOST[:PATH[:rwm]]|pci:ADDRESS[,MODE]|VENDOR/CLASS=NAME")]
    pub(super) device: Vec<DeviceOption>,
    /// Give the container every capability and every device of its guest, and no seccomp profile
    #[arg(long)]
    pub(super) privileged: bool,
    /// Network of the container
    #[arg(long, value_enum, default_value = "default")]
    pub(super) network: NetworkOption,
    /// Publish a port of the container on the host
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/udp]")]
    pub(super) publish: Vec<PortMapping>,
    /// Guest kernel for this container's sandbox
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    /// Show the guest's console on standard error
    #[arg(long)]
    pub(super) console: bool,
}
