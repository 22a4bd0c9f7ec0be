//! The options of `kiai run` and `kiai create` that are not the container's ([`crate::cli::container_options`]). The parsers in `spec` and `network` read their values.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;

use crate::cli::Context;
use crate::cli::image;
use crate::cli::prepare::Source;
use crate::spec::user::UserOption;

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NetworkOption {
    /// A bridge with NAT, made by the CNI plugins.
    Bridge(String),
    /// Loopback only.
    None,
}

/// The network cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadNetwork {
    #[error(
        "a container has a microVM of its own, and its network is the guest's: it cannot use the host's; publish ports with -p"
    )]
    Host,
    #[error(
        "a container has a microVM of its own, and two microVMs cannot share one network stack; put both in one pod, or reach the other by its address"
    )]
    Container,
    #[error("{0:?} is not a network; write default or none")]
    Name(String),
}

impl FromStr for NetworkOption {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" | "bridge" => Ok(Self::Bridge(crate::network::conflist::NAME.to_owned())),
            "none" => Ok(Self::None),
            "host" => Err(BadNetwork::Host),
            _ if text.starts_with("container:") => Err(BadNetwork::Container),
            _ => Err(BadNetwork::Name(text.to_owned())),
        }
    }
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
    /// Platform of the image; there is linux/amd64 only
    #[arg(long, value_name = "OS/ARCH", value_parser = parse_platform)]
    platform: Option<()>,
    /// Show no progress of a pull
    #[arg(short, long)]
    quiet: bool,
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
        Ok((image::source(context, image, self.pull, self.quiet).await?, command.to_vec()))
    }
}

/// `--platform`: only that of the guest's kernel.
///
/// # Errors
/// The text names another.
pub(super) fn parse_platform(text: &str) -> Result<(), String> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next()) {
        (Some("linux"), None | Some("amd64" | "x86_64")) => Ok(()),
        _ => Err("the guest's kernel runs programs of linux/amd64 only".to_owned()),
    }
}
