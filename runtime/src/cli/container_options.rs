//! The options of a container: its limits, mounts, network and the like.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::cli::options::NetworkOption;
use crate::cli::refused::Refused;
use crate::network::publish::PublishOption;
use crate::spec::capability::CapabilityWord;
use crate::spec::device::DeviceOption;
use crate::spec::mount_option::MountOption;
use crate::spec::quantity::Cpus;
use crate::spec::quantity::MemorySize;
use crate::spec::quantity::parse_bytes;
use crate::spec::security::SecurityOption;
use crate::spec::ulimit::Ulimit;
use crate::spec::volume::TmpfsMount;
use crate::spec::volume::VolumeOption;
use crate::store::restart::RestartPolicy;

/// Options of the container and its limits.
#[derive(Debug, clap::Args)]
pub(super) struct ContainerOptions {
    /// Name of the container [default: an adjective and a noun]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Remove the container and its anonymous volumes when it ends
    #[arg(long)]
    pub(super) rm: bool,
    /// Start it again when it ends: no, always, unless-stopped, on-failure or on-failure:TIMES
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(super) restart: RestartPolicy,
    /// Write the container's id to a file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(super) cidfile: Option<PathBuf>,
    /// Attach a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(super) label: Vec<String>,
    /// Attach the labels of a file, one on each line
    #[arg(long, value_name = "FILE")]
    pub(super) label_file: Vec<PathBuf>,
    /// Add an annotation to the OCI specification
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) annotation: Vec<String>,
    /// Program to run instead of the image's entrypoint; "" for none
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Have a small init as the first process, which reaps orphans
    #[arg(long)]
    pub(super) init: bool,
    /// Signal with which the container is stopped [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub(super) stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(super) stop_timeout: Option<u32>,
    /// Host name [default: the container's id]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Mount a file, a directory, a named volume, or an anonymous one
    #[arg(short, long, value_name = "[SOURCE:]PATH[:ro]")]
    pub(super) volume: Vec<VolumeOption>,
    /// Mount with words: type=bind|volume|tmpfs,source=...,target=... and, if wanted, readonly
    #[arg(long, value_name = "MOUNT")]
    pub(super) mount: Vec<MountOption>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub(super) tmpfs: Vec<TmpfsMount>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = parse_shm)]
    pub(super) shm_size: Option<u64>,
    /// Make the root file system read-only
    #[arg(long)]
    pub(super) read_only: bool,
    /// CPU time, in CPUs; also how many CPUs the sandbox has
    #[arg(long, value_name = "NUMBER")]
    pub(super) cpus: Option<Cpus>,
    /// Memory limit, with a unit: 256m, 2g
    #[arg(short, long, value_name = "SIZE")]
    pub(super) memory: Option<MemorySize>,
    /// Most processes; -1 for any number
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(super) pids_limit: Option<i64>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "NAME")]
    pub(super) cap_add: Vec<CapabilityWord>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME")]
    pub(super) cap_drop: Vec<CapabilityWord>,
    /// no-new-privileges, seccomp=unconfined or systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    pub(super) security_opt: Vec<SecurityOption>,
    /// Add the process to a group, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(super) group_add: Vec<String>,
    /// Set a resource limit: nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(super) ulimit: Vec<Ulimit>,
    /// Set a kernel parameter of the container
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub(super) sysctl: Vec<(String, String)>,
    /// Assign a device of the host: a node, a PCI function (pci:ADDRESS, see kiai devices; with
    /// ,user-space a program in the container drives it), or a device of a CDI file by its name
    #[arg(long, value_name = "HOST[:PATH[:rwm]]|pci:ADDRESS[,MODE]|VENDOR/CLASS=NAME")]
    pub(super) device: Vec<DeviceOption>,
    /// Give the container every capability and every device of its guest, and no seccomp profile
    #[arg(long)]
    pub(super) privileged: bool,
    /// Network of the container: default or none
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "default")]
    pub(super) network: NetworkOption,
    /// Publish a port of the container on the host, on a port that is free if none is named
    #[arg(short, long, value_name = "[[IP:]HOST:]CONTAINER[/udp]")]
    pub(super) publish: Vec<PublishOption>,
    /// Publish every port that the image or --expose names, on ports that are free
    #[arg(short = 'P', long)]
    pub(super) publish_all: bool,
    /// Name a port for --publish-all
    #[arg(long, value_name = "PORT[/udp]", value_parser = crate::network::publish::exposed)]
    pub(super) expose: Vec<PublishOption>,
    /// Add a name to /etc/hosts; host-gateway is the host's address
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = parse_host)]
    pub(super) add_host: Vec<String>,
    /// Use this name server instead of the host's
    #[arg(long, value_name = "ADDRESS")]
    pub(super) dns: Vec<IpAddr>,
    /// Search this domain instead of the host's; . for none
    #[arg(long, value_name = "DOMAIN")]
    pub(super) dns_search: Vec<String>,
    /// Use this option of resolv.conf instead of the host's
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub(super) dns_option: Vec<String>,
    /// Where the output goes: json-file, or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file", value_parser = parse_log_driver)]
    pub(super) log_driver: LogDriver,
    /// Guest kernel for this container's sandbox
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    /// Show the guest's console on standard error
    #[arg(long)]
    pub(super) console: bool,
    #[command(flatten)]
    pub(super) refused: Refused,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// `--log-driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogDriver {
    /// A file of JSON lines, which `kiai logs` reads.
    File,
    /// Nowhere.
    None,
}

fn parse_log_driver(text: &str) -> Result<LogDriver, String> {
    match text {
        "json-file" | "local" => Ok(LogDriver::File),
        "none" => Ok(LogDriver::None),
        _ => {
            Err("kiai keeps the output of a container in a file (json-file) or not at all (none)".to_owned())
        }
    }
}

fn parse_signal(text: &str) -> Result<String, crate::cli::signals::UnknownSignal> {
    crate::cli::signals::parse(text).map(|_| text.to_owned())
}

fn parse_shm(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Ok(0) => Err("a /dev/shm without room".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// `NAME=VALUE`.
pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// The address that stands for the host's in the container's network.
pub(super) const HOST_GATEWAY: &str = "host-gateway";

/// `NAME:ADDRESS` or `NAME=ADDRESS`; in the record with a colon and without brackets.
fn parse_host(text: &str) -> Result<String, String> {
    let bad = || "write NAME:ADDRESS, with an IP address or host-gateway".to_owned();
    let (name, address) = text.split_once(['=', ':']).ok_or_else(bad)?;
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    let valid = bare == HOST_GATEWAY || bare.parse::<IpAddr>().is_ok();
    if name.is_empty() || name.contains(char::is_whitespace) || !valid {
        return Err(bad());
    }
    Ok(format!("{name}:{bare}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_with_addresses() {
        let table = [
            ("db:10.0.0.1", "db:10.0.0.1"),
            ("db=10.0.0.1", "db:10.0.0.1"),
            ("six:[::1]", "six:::1"),
            ("six=2001:db8::1", "six:2001:db8::1"),
            ("up:host-gateway", "up:host-gateway"),
        ];
        for (text, expected) in table {
            assert_eq!(parse_host(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["db", "db:", ":10.0.0.1", "db:other", "a b:10.0.0.1", "db:10.0.0.1:80"] {
            assert!(parse_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn drivers_that_send_output_elsewhere_are_refused() {
        assert_eq!(parse_log_driver("json-file"), Ok(LogDriver::File));
        assert_eq!(parse_log_driver("none"), Ok(LogDriver::None));
        assert!(parse_log_driver("journald").unwrap_err().contains("json-file"));
    }
}
