//! Rewrites the entries and rules of a container's devices from the host's numbers to the guest's. Pure.
//!
//! OCI runtime-spec config-linux.md#devices and #allowed-device-list. One loop runs over the entries and one over the
//! rules, and each is looked up by its **original** identity ([`HostEntries`]). So every entry and every rule is
//! changed at most once, whatever the devices and their order: with the loops the other way round, an entry that was
//! changed from `1:3` to `1:5` for one device would be taken for another device's host number `1:5` and changed
//! again.
//!
//! The guest's rules allow a container the access to a device of the guest that the host's rules allow to the entry's
//! device, no less and no more:
//!
//! - A rule for one device becomes a rule for each of the nodes of its entry. A rule that allows a device without an
//!   entry is an error, because in the guest another container's device may have the number; a rule that denies such a
//!   device is dropped.
//! - A rule with a wildcard (`b 254:*`) is for a driver of the host. It becomes a rule for each node of each entry that
//!   it matches on the host, and for each standard device ([`super::standard`]) that it matches.
//! - A rule for all numbers stays if it does not allow to use block or character devices of other containers: it
//!   denies, it is for every type (`a *:*`, which engines write for privileged containers), or it only allows to make
//!   nodes.
//! - If several devices of the host share a node (two IOMMU groups and `/dev/vfio/vfio`), the order of their rules
//!   would decide about the node, so a rule with the access of all of them is appended.
//!
//! [`super::filter`] compiles the rules.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::Linux;
use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxNamespaceType;
use oci_spec::runtime::Mount;
use oci_spec::runtime::MountBuilder;
use oci_spec::runtime::Spec;

use super::AssignedDevice;
use super::HostEntries;
use super::rule::Access;
use super::rule::Identity;
use super::rule::Rule;
use super::rule::RuleError;
use super::rule::granted;
use super::standard;

/// Why entries, rules and assigned devices contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RewriteError {
    /// A device is assigned for an entry that the spec does not have.
    #[error("linux.devices has no entry {0:?}, for which a device is assigned")]
    NoEntry(PathBuf),
    /// No device is assigned for an entry, and it is not for a standard device.
    #[error("{path:?} in linux.devices is {}, which is not assigned to the guest", shown(*found))]
    NotAssigned {
        /// The entry's path.
        path: PathBuf,
        /// The entry's identity; none if its type or number is not a device's.
        found: Option<Identity>,
    },
    /// A rule allows a device that has no entry and is not a standard device.
    #[error("device rule \"{0}\": linux.devices has no entry for this device")]
    RuleNotAssigned(Rule),
    /// Two devices have one path in the container.
    #[error("two devices have the path {0:?} in the container")]
    TwoDevices(PathBuf),
    /// The entry is for another device than the assignment.
    #[error("{path:?} is {} in linux.devices, but {expected} is assigned for it", shown(*found))]
    OtherIdentity {
        /// The entry's path.
        path: PathBuf,
        /// The entry's identity; none if its type or number is not a device's.
        found: Option<Identity>,
        /// The identity in the assignment.
        expected: Identity,
    },
    /// The host's device and the guest's have different types.
    #[error("the guest's device for {0:?} has another type than the host's")]
    OtherKind(PathBuf),
    /// A rule is malformed.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// One device of the host has two devices in the guest.
    #[error("{first:?} and {second:?} are one device on the host, but two in the guest")]
    Split {
        /// The path of one entry.
        first: PathBuf,
        /// The path of the other.
        second: PathBuf,
    },
}

/// Returns `spec` with its entries and rules rewritten for the guest. A spec without any rule allows to use its
/// entries.
pub fn rewrite(spec: &Spec, devices: &[AssignedDevice]) -> Result<Spec, RewriteError> {
    let host_entries = HostEntries::of(entries(spec), devices)?;
    let rules = derive(&Rule::parse_all(rules(spec))?, &host_entries)?;
    let mut rewritten = spec.clone();
    let Some(linux) = rewritten.linux_mut() else { return Ok(rewritten) };
    let mut bound = Vec::new();
    if linux.devices().is_some() {
        let mut made = Vec::new();
        for (entry, node) in host_entries.rewrite(entries(spec))? {
            match node.filter(|node| has_user_namespace(linux) && node.node.path != *entry.path()) {
                Some(node) => bound.push(bind(&node.node.path, entry.path())),
                None => made.push(entry),
            }
        }
        linux.set_devices(Some(made));
    }
    if !rules.is_empty() || linux.resources().as_ref().is_some_and(|resources| resources.devices().is_some())
    {
        let rules = rules.into_iter().map(LinuxDeviceCgroup::from).collect();
        linux.resources_mut().get_or_insert_default().set_devices(Some(rules));
    }
    if !bound.is_empty() {
        rewritten.mounts_mut().get_or_insert_default().extend(bound);
    }
    Ok(rewritten)
}

/// Whether the container has a user namespace, in which libcontainer cannot make nodes and binds the guest's.
fn has_user_namespace(linux: &Linux) -> bool {
    let mut namespaces = linux.namespaces().iter().flatten();
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// A bind mount of a node at an entry's path. libcontainer would bind the node that has the entry's path in the guest,
/// which may be another container's.
fn bind(node: &Path, entry: &Path) -> Mount {
    let mount = MountBuilder::default().source(node).destination(entry).typ("bind");
    mount.options(vec!["bind".to_owned()]).build().expect("every field of a mount has a default")
}

/// The entries of a spec's `linux.devices`.
pub fn entries(spec: &Spec) -> &[LinuxDevice] {
    spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default()
}

/// The rules of a spec's `linux.resources.devices`.
pub fn rules(spec: &Spec) -> &[LinuxDeviceCgroup] {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}

/// Derives the guest's rules from the host's: for the nodes of `entries`, for standard devices and, from a rule for
/// every device, for every other device of the guest.
pub fn derive(rules: &[Rule], host_entries: &HostEntries) -> Result<Vec<Rule>, RewriteError> {
    let mut derived = Vec::new();
    for rule in rules {
        derived.extend(translate(rule, host_entries)?);
    }
    let mut appended = Vec::new();
    for (node, wanted) in wanted(rules, host_entries) {
        let has = granted(&derived, node);
        appended.extend(Rule::exact(true, node, wanted.without(has)));
        appended.extend(Rule::exact(false, node, has.without(wanted)));
    }
    derived.extend(appended);
    Ok(derived)
}

/// Derives the guest's rules for entries that are plugged in with rules of their own, to follow the container's. They
/// only concern the nodes of `entries`.
pub fn derive_plugged(rules: &[Rule], host_entries: &HostEntries) -> Result<Vec<Rule>, RewriteError> {
    for rule in rules {
        translate(rule, host_entries)?;
    }
    let wanted = wanted(rules, host_entries).into_iter();
    Ok(wanted.filter_map(|(node, access)| Rule::exact(true, node, access)).collect())
}

/// The guest's rules for one rule of the host.
fn translate(rule: &Rule, host_entries: &HostEntries) -> Result<Vec<Rule>, RewriteError> {
    let no_use = !rule.allow || rule.kind.is_none() || rule.access == Access::MKNOD;
    if rule.major.is_none() && rule.minor.is_none() && no_use {
        return Ok(vec![*rule]);
    }
    let mut is_known = false;
    let mut derived = Vec::new();
    for (_, nodes) in host_entries.iter().filter(|(host, _)| rule.matches(*host)) {
        is_known = true;
        derived.extend(nodes.iter().map(|node| rule.narrowed(node.node.identity())));
    }
    // If an entry has the number of a standard device, the entry decides.
    let standard =
        standard::expand(rule).filter(|(own, _)| own.is_none_or(|own| host_entries.get(own).is_none()));
    derived.extend(standard.map(|(_, rule)| rule));
    let names_one = rule.major.is_some() && rule.minor.is_some();
    let is_orphan = rule.allow && names_one && !is_known && derived.is_empty();
    if is_orphan { Err(RewriteError::RuleNotAssigned(*rule)) } else { Ok(derived) }
}

/// The access to each node of the entries: that of every device of the host that the node serves.
fn wanted(rules: &[Rule], host_entries: &HostEntries) -> BTreeMap<Identity, Access> {
    let may = |host| if rules.is_empty() { Access::ALL } else { granted(rules, host) };
    let mut wanted = BTreeMap::<Identity, Access>::new();
    for (host, nodes) in host_entries.iter() {
        for node in nodes.iter().map(|node| node.node.identity()) {
            // A standard device without an entry is the same device on the host.
            let own = standard::contains(node) && host_entries.get(node).is_none();
            let own = if own { granted(rules, node) } else { Access::NONE };
            let all = wanted.entry(node).or_default();
            *all = all.with(may(host)).with(own);
        }
    }
    wanted
}

fn shown(found: Option<Identity>) -> String {
    found.map_or_else(|| "not a device".to_owned(), |found| found.to_string())
}

#[cfg(test)]
mod tests;
