//! The device lists of an OCI spec, from the host's numbers to the guest's. Pure.
//!
//! OCI runtime-spec config-linux.md#devices and #allowed-device-list. The loop runs over the entries of the
//! spec and each entry looks up the one device meant for it by its **original** identity. So every entry is
//! changed at most once, whatever the devices and their order: with the loops the other way round a row
//! changed from `1:3` to `1:5` for one device is taken for another's host number `1:5` and changed again.
//!
//! Enforcing the rules is somebody else's business.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};

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
    #[error("{path:?} is {found} in linux.devices, but {expected} was located for it")]
    OtherIdentity {
        /// The entry.
        path: PathBuf,
        /// What the spec says.
        found: Identity,
        /// What the host said.
        expected: Identity,
    },
    /// The host's device and the guest's are not of one type.
    #[error("{0:?} was located as a device of another type")]
    OtherKind(PathBuf),
    /// One host device would become two of the guest.
    #[error("{first:?} and {second:?} are the same device on the host, but not in the guest")]
    Split {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// What a device is, apart from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    kind: DeviceKind,
    major: i64,
    minor: i64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = match self.kind {
            DeviceKind::Block => 'b',
            DeviceKind::Character => 'c',
        };
        write!(f, "{letter} {}:{}", self.major, self.minor)
    }
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
/// Rules that name a number exactly follow their device; rules with a wildcard stay. Afterwards a rule that
/// allows each guest device is appended, so it cannot be taken for another device's host number.
pub fn rewrite(spec: &Spec, devices: &[LocatedDevice]) -> Result<Spec, RewriteError> {
    let (by_path, by_host) = index(devices)?;
    let mut rewritten = spec.clone();
    let linux = rewritten.linux_mut().get_or_insert_default();
    if spec.linux().is_none()
        && let Some(device) = devices.first()
    {
        return Err(RewriteError::NoEntry(device.container_path.clone()));
    }
    rewrite_entries(linux.devices_mut().iter_mut().flatten(), &by_path)?;
    for device in devices {
        let entries = spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten());
        if !entries.into_iter().any(|entry| *entry.path() == device.container_path) {
            return Err(RewriteError::NoEntry(device.container_path.clone()));
        }
    }
    if devices.is_empty() {
        return Ok(spec.clone());
    }
    let rules = linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default();
    rewrite_rules(rules, &by_host);
    for device in devices {
        let allowed = rule_for(device.in_guest());
        if !rules.contains(&allowed) {
            rules.push(allowed);
        }
    }
    Ok(rewritten)
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

fn rewrite_entries<'a>(
    entries: impl Iterator<Item = &'a mut LinuxDevice>,
    by_path: &ByPath<'_>,
) -> Result<(), RewriteError> {
    for entry in entries {
        let Some(device) = by_path.get(entry.path()) else { continue };
        let found = identity(Some(entry.typ()), Some(entry.major()), Some(entry.minor()));
        if found != Some(device.on_host()) {
            let found = found.unwrap_or(Identity { kind: device.kind, major: -1, minor: -1 });
            let path = entry.path().clone();
            return Err(RewriteError::OtherIdentity { path, found, expected: device.on_host() });
        }
        entry.set_major(device.node.major).set_minor(device.node.minor);
        if let Some(path) = &device.guest_path {
            entry.set_path(path.clone());
        }
    }
    Ok(())
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
    Some(Identity { kind, major: major?, minor: minor? })
}

fn rule_for(identity: Identity) -> LinuxDeviceCgroup {
    let typ = match identity.kind {
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Character => LinuxDeviceType::C,
    };
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(typ)
        .major(identity.major)
        .minor(identity.minor)
        .access("rwm")
        .build()
        .expect("every field of a device rule has a default")
}

#[cfg(test)]
mod tests;
