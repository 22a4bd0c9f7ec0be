//! Standard devices: they have the same numbers in every Linux kernel and serve any process (Linux `devices.txt`). The
//! guest's own serve a container as the host's would, so their numbers mean the same on both sides.

use std::path::Path;

use super::DeviceKind;
use super::rule::Identity;
use super::rule::Rule;

/// Path, major and minor number of each standard device; all are character devices.
const NODES: [(&str, u32, u32); 11] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/console", 5, 1),
    ("/dev/ptmx", 5, 2),
    ("/dev/vfio/vfio", 10, 196),
    ("/dev/net/tun", 10, 200),
    ("/dev/fuse", 10, 229),
];

/// The major number of the terminals in `/dev/pts`. A process only sees those of its own devpts mount.
const PSEUDO_TERMINALS: u32 = 136;

/// The guest's own path of a standard device that has a node in `/dev`.
pub(super) fn path(device: Identity) -> Option<&'static Path> {
    NODES
        .iter()
        .find(|(_, major, minor)| identity(*major, *minor) == device)
        .map(|(path, ..)| Path::new(*path))
}

/// Whether a device is a standard device.
pub(super) fn contains(device: Identity) -> bool {
    path(device).is_some() || (device.kind == DeviceKind::Character && device.major == PSEUDO_TERMINALS)
}

/// A rule for each standard device that `rule` matches; pseudo-terminals are one rule without a device.
pub(super) fn expand(rule: &Rule) -> impl Iterator<Item = (Option<Identity>, Rule)> {
    let rule = *rule;
    let kind = Some(DeviceKind::Character);
    let nodes =
        NODES.iter().map(|(_, major, minor)| identity(*major, *minor)).filter(move |own| rule.matches(*own));
    let terminals = rule.kind.is_none_or(|kind| kind == DeviceKind::Character)
        && rule.major.is_none_or(|major| major == PSEUDO_TERMINALS);
    let terminals = terminals.then_some((None, Rule { kind, major: Some(PSEUDO_TERMINALS), ..rule }));
    nodes.map(move |own| (Some(own), rule.narrowed(own))).chain(terminals)
}

fn identity(major: u32, minor: u32) -> Identity {
    Identity { kind: DeviceKind::Character, major, minor }
}
