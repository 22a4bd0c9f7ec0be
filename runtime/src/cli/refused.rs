//! Options of docker's `run` and `create` that Kiai has not got: each is refused with the reason, and where there is
//! one with what to do instead.

use clap::Arg;
use clap::ArgAction;
use clap::ArgMatches;
use clap::Command;
use clap::error::ErrorKind;
use clap::parser::ValueSource;

/// An option that is refused.
struct RefusedOption {
    name: &'static str,
    short: Option<char>,
    /// It takes a value.
    value: bool,
    reason: &'static str,
}

const fn option(name: &'static str, reason: &'static str) -> RefusedOption {
    RefusedOption { name, short: None, value: true, reason }
}

const fn flag(name: &'static str, reason: &'static str) -> RefusedOption {
    RefusedOption { name, short: None, value: false, reason }
}

const DISK: &str = "kiai sets no limits to disk traffic";
const FAIR: &str =
    "a container has a microVM of its own, whose vCPUs it shares with no other; limit it with --cpus";
const HEALTH: &str = "no process of kiai lives beside a container to ask for its health; \
    call a probe with kiai exec, as Kubernetes does";
const NAMES: &str =
    "containers are not found by name in kiai's networks; use --add-host and a published port";
const NAMESPACE: &str = "a container has a microVM of its own, with a kernel of its own: there is no namespace of the \
    host or of another container to join or to choose";
const PINNED: &str = "vCPUs are threads of the host that move between its CPUs; kiai does not pin them";
const SWAP: &str = "a microVM has no swap: -m limits all of its container's memory";
const STREAMS: &str = "a container in the foreground has all streams of kiai run; with -d use kiai attach";

/// All of them, by name.
const REFUSED: &[RefusedOption] = &[
    RefusedOption { name: "attach", short: Some('a'), value: true, reason: STREAMS },
    option("blkio-weight", DISK),
    option("blkio-weight-device", DISK),
    option("cgroup-parent", "the container's cgroup is the guest's"),
    option("cgroupns", NAMESPACE),
    option("cpu-period", "limit CPU time with --cpus"),
    option("cpu-quota", "limit CPU time with --cpus"),
    option("cpu-rt-period", "the guest's kernel gives no real-time budget to groups"),
    option("cpu-rt-runtime", "the guest's kernel gives no real-time budget to groups"),
    RefusedOption { name: "cpu-shares", short: Some('c'), value: true, reason: FAIR },
    option("cpuset-cpus", PINNED),
    option("cpuset-mems", PINNED),
    option(
        "detach-keys",
        "a container in the foreground is not detached from; start it with -d and use kiai attach",
    ),
    option("device-cgroup-rule", "a container gets the devices that it is given by --device"),
    option("device-read-bps", DISK),
    option("device-read-iops", DISK),
    option("device-write-bps", DISK),
    option("device-write-iops", DISK),
    option("domainname", "set a full name with --hostname"),
    option("gpus", "name the device: --device pci:ADDRESS, or --device VENDOR/CLASS=NAME of a CDI file"),
    option("health-cmd", HEALTH),
    option("health-interval", HEALTH),
    option("health-retries", HEALTH),
    option("health-start-interval", HEALTH),
    option("health-start-period", HEALTH),
    option("health-timeout", HEALTH),
    option("ip", "addresses are given out by the network"),
    option("ip6", "kiai's networks have IPv4 addresses"),
    option("ipc", NAMESPACE),
    option("isolation", "a container has a microVM of its own"),
    option("kernel-memory", "the guest's kernel has its memory within the container's limit"),
    option("link", NAMES),
    option("link-local-ip", "addresses are given out by the network"),
    option("log-opt", "the log of a container is neither cut nor sent anywhere; see docs/limitations.md"),
    option("mac-address", "addresses are given out by the network"),
    option("memory-reservation", "a microVM gives back what it does not use; limit it with -m"),
    option("memory-swap", SWAP),
    option("memory-swappiness", SWAP),
    option("network-alias", NAMES),
    flag("oom-kill-disable", "a microVM without memory would stand still"),
    option("oom-score-adj", "the host sees the microVM's process, not those of the container"),
    option("pid", NAMESPACE),
    option("runtime", "kiai runs every container in a microVM"),
    option("sig-proxy", "signals to kiai run are always passed on to the container"),
    option("storage-opt", "the writable layer is as large as the disk that it is on"),
    option("userns", NAMESPACE),
    option("uts", NAMESPACE),
    option("volume-driver", "a volume is a directory of this host"),
    option("volumes-from", "name the volumes with -v"),
];

/// No value: that an option of [`REFUSED`] was given is an error of the command line.
#[derive(Debug)]
pub(super) struct Refused;

impl clap::FromArgMatches for Refused {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            |option: &&RefusedOption| matches.value_source(option.name) == Some(ValueSource::CommandLine);
        match REFUSED.iter().find(given) {
            None => Ok(Self),
            Some(RefusedOption { name, reason, .. }) => {
                let message = format!("--{name} is not to be had: {reason}\n");
                Err(clap::Error::raw(ErrorKind::ArgumentConflict, message))
            }
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        Self::from_arg_matches(matches).map(drop)
    }
}

impl clap::Args for Refused {
    fn augment_args(command: Command) -> Command {
        REFUSED.iter().fold(command, |command, option| {
            let action = if option.value { ArgAction::Append } else { ArgAction::SetTrue };
            let mut arg = Arg::new(option.name).long(option.name).action(action).hide(true);
            if let Some(short) = option.short {
                arg = arg.short(short);
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn parse(words: &[&str]) -> Result<Refused, clap::Error> {
        let command = <Refused as clap::Args>::augment_args(Command::new("x"));
        Refused::from_arg_matches(&command.try_get_matches_from(words).unwrap())
    }

    #[test]
    fn each_is_refused_with_its_reason() {
        assert!(parse(&["x"]).is_ok());
        for option in REFUSED {
            let long = format!("--{}", option.name);
            let words: Vec<&str> = if option.value { vec!["x", &long, "v"] } else { vec!["x", &long] };
            let error = parse(&words).unwrap_err().to_string();
            assert!(error.contains(&long) && error.contains(option.reason), "{error}");
        }
        assert!(parse(&["x", "-c", "512"]).unwrap_err().to_string().contains("--cpus"));
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(REFUSED.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
