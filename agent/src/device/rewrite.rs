//! The device lists of an OCI spec, from the host's numbers to the guest's. Pure.
//!
//! OCI runtime-spec config-linux.md#devices and #allowed-device-list. The loop runs over the entries of the
//! spec and each entry looks up the one device meant for it by its **original** identity. So every entry is
//! changed at most once, whatever the devices and their order: with the loops the other way round a row
//! changed from `1:3` to `1:5` for one device is taken for another's host number `1:5` and changed again.
//!
//! What a container may do with a device here is what the spec's rules let it do on the host, no less and no
//! more. Rules that name the device exactly follow it. Where the others decide (a wildcard that fits only the
//! host's number, a rule for a number that is another device's on the host) a rule is appended that says it in
//! the guest's numbers; appended, so that it cannot be taken for another device's host number.
//!
//! Enforcing the rules is [`super::filter`]'s business.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};

use super::rule::{Access, Identity, Rule, RuleError, granted};
use super::{DeviceKind, Node};

/// An entry of the container's `linux.devices` and the guest device that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedDevice {
    /// The entry's path.
    pub container_path: PathBuf,
    /// The entry's type.
    pub kind: DeviceKind,
    /// The entry's number, on the host.
    pub host_major: i64,
    /// The entry's number, on the host.
    pub host_minor: i64,
    /// What serves it.
    pub node: Node,
    /// The path it gets in the container, where that differs from `container_path` (`/dev/vfio/12` on the
    /// host is another group in the guest).
    pub guest_path: Option<PathBuf>,
}

/// Why a spec and its devices do not fit together. The spec is untouched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RewriteError {
    /// A device needs an entry to serve.
    #[error("device {0:?} is not in linux.devices")]
    NoEntry(PathBuf),
    /// Two devices for one entry.
    #[error("two devices for {0:?}")]
    TwoDevices(PathBuf),
    /// The entry at this path is another device than the host meant.
    #[error("{path:?} is {} in linux.devices, but {expected} was located for it", shown(*found))]
    OtherIdentity {
        /// The entry.
        path: PathBuf,
        /// What the spec says; none for what is no device.
        found: Option<Identity>,
        /// What the host said.
        expected: Identity,
    },
    /// The host's device and the guest's are not of one type.
    #[error("{0:?} was located as a device of another type")]
    OtherKind(PathBuf),
    /// The path a device gets here is another entry's already.
    #[error("{0:?} would be two devices")]
    TwoAtPath(PathBuf),
    /// A rule nobody can follow.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// One host device would become two of the guest.
    #[error("{first:?} and {second:?} are the same device on the host, but not in the guest")]
    Split {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

impl LocatedDevice {
    fn on_host(&self) -> Identity {
        Identity { kind: self.kind, major: self.host_major, minor: self.host_minor }
    }

    fn in_guest(&self) -> Identity {
        Identity { kind: self.node.kind, major: self.node.major, minor: self.node.minor }
    }
}

/// Returns `spec` with every entry and every rule of `devices` in the guest's numbers, or an error.
///
/// Entries and rules keep their number and order, but for rules appended at the end; what names none of
/// `devices` is as it was. A spec without any rule lets its entries be used.
pub fn rewrite(spec: &Spec, devices: &[LocatedDevice]) -> Result<Spec, RewriteError> {
    let (by_path, by_host) = index(devices)?;
    let mut rewritten = spec.clone();
    let Some(first) = devices.first() else { return Ok(rewritten) };
    let Some(linux) = rewritten.linux_mut().as_mut() else {
        return Err(RewriteError::NoEntry(first.container_path.clone()));
    };
    let entries = linux.devices_mut().as_deref_mut().unwrap_or_default();
    if let Some(device) =
        devices.iter().find(|device| entries.iter().all(|entry| *entry.path() != device.container_path))
    {
        return Err(RewriteError::NoEntry(device.container_path.clone()));
    }
    rewrite_entries(entries, &by_path)?;

    let rules = linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default();
    let before = Rule::parse_all(rules)?;
    rewrite_rules(rules, &by_host);
    let after = Rule::parse_all(rules)?;
    for (guest, wanted) in wanted(devices, &before) {
        let has = granted(&after, guest);
        rules.extend(rule(true, guest, wanted.without(has)));
        rules.extend(rule(false, guest, has.without(wanted)));
    }
    Ok(rewritten)
}

/// What may be done with each device of the guest, by what its host devices may be used for.
fn wanted(devices: &[LocatedDevice], before: &[Rule]) -> BTreeMap<Identity, Access> {
    let mut wanted = BTreeMap::<Identity, Access>::new();
    for device in devices {
        let access = if before.is_empty() { Access::ALL } else { granted(before, device.on_host()) };
        let all = wanted.entry(device.in_guest()).or_default();
        *all = all.with(access);
    }
    wanted
}

type ByPath<'a> = HashMap<&'a PathBuf, &'a LocatedDevice>;
type ByHost<'a> = HashMap<Identity, &'a LocatedDevice>;

fn index(devices: &[LocatedDevice]) -> Result<(ByPath<'_>, ByHost<'_>), RewriteError> {
    let mut by_path = ByPath::new();
    let mut by_host = ByHost::new();
    for device in devices {
        if device.kind != device.node.kind {
            return Err(RewriteError::OtherKind(device.container_path.clone()));
        }
        if by_path.insert(&device.container_path, device).is_some() {
            return Err(RewriteError::TwoDevices(device.container_path.clone()));
        }
        let other = by_host.insert(device.on_host(), device);
        if let Some(other) = other.filter(|other| other.in_guest() != device.in_guest()) {
            // Named in one order whatever the order of `devices`.
            let mut paths = [other.container_path.clone(), device.container_path.clone()];
            paths.sort();
            let [first, second] = paths;
            return Err(RewriteError::Split { first, second });
        }
    }
    Ok((by_path, by_host))
}

fn rewrite_entries(entries: &mut [LinuxDevice], by_path: &ByPath<'_>) -> Result<(), RewriteError> {
    let mut moved = Vec::new();
    for entry in &mut *entries {
        let Some(device) = by_path.get(entry.path()) else { continue };
        let found = identity(Some(entry.typ()), Some(entry.major()), Some(entry.minor()));
        if found != Some(device.on_host()) {
            let path = entry.path().clone();
            return Err(RewriteError::OtherIdentity { path, found, expected: device.on_host() });
        }
        entry.set_major(device.node.major).set_minor(device.node.minor);
        if let Some(path) = &device.guest_path {
            entry.set_path(path.clone());
            moved.push(path);
        }
    }
    match moved.into_iter().find(|path| entries.iter().filter(|entry| entry.path() == *path).count() > 1) {
        Some(path) => Err(RewriteError::TwoAtPath(path.clone())),
        None => Ok(()),
    }
}

fn rewrite_rules(rules: &mut [LinuxDeviceCgroup], by_host: &ByHost<'_>) {
    for rule in rules {
        let original = identity(rule.typ(), rule.major(), rule.minor());
        if let Some(device) = original.and_then(|original| by_host.get(&original)) {
            rule.set_major(Some(device.node.major)).set_minor(Some(device.node.minor));
        }
    }
}

/// `None` for what names no single device: a wildcard, a fifo.
fn identity(typ: Option<LinuxDeviceType>, major: Option<i64>, minor: Option<i64>) -> Option<Identity> {
    let kind = match typ? {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::A | LinuxDeviceType::P => return None,
    };
    Some(Identity { kind, major: major.filter(|n| *n >= 0)?, minor: minor.filter(|n| *n >= 0)? })
}

fn shown(found: Option<Identity>) -> String {
    found.map_or_else(|| "no device".to_owned(), |found| found.to_string())
}

fn rule(allow: bool, device: Identity, access: Access) -> Option<LinuxDeviceCgroup> {
    let typ = match device.kind {
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Character => LinuxDeviceType::C,
    };
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(typ)
        .major(device.major)
        .minor(device.minor)
        .access(access.to_string())
        .build()
        .expect("every field of a device rule has a default");
    (!access.is_none()).then_some(rule)
}

#[cfg(test)]
mod tests;
