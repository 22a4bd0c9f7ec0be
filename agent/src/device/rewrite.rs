//! Entries and rules of a container's devices, from the host's numbers to the guest's. Pure.
//!
//! OCI runtime-spec config-linux.md#devices and #allowed-device-list. One loop runs over the entries and one over the
//! rules, and each looks up what it becomes by its **original** identity ([`HostRows`]). So every entry and every rule
//! is changed at most once, whatever the devices and their order: with the loops the other way round a row changed
//! from `1:3` to `1:5` for one device is taken for another's host number `1:5` and changed again.
//!
//! What a container may do with a device here is what the rules let it do with the row's device on the host, no less
//! and no more:
//!
//! - A rule that names a device becomes a rule for each of the row's nodes. One that allows a device which no row
//!   names is an error, because its number may be a neighbour's here; one that denies such a device is dropped.
//! - A rule with a wildcard (`b 254:*`) names a driver of the host. It becomes a rule for each node of a row that it
//!   fits on the host, and for each standard device ([`super::standard`]) that it fits.
//! - A rule for all numbers stays where it gives no use of a block or a character device of somebody else's: it denies,
//!   it is for every type (`a *:*`, which engines write for privileged containers), or it lets nodes be made.
//! - Last, where several devices of the host share a node (two IOMMU groups and `/dev/vfio/vfio`) so that the order of
//!   rules would decide for one in another's place, a rule is appended that says what any of them may.
//!
//! Enforcing the rules is [`super::filter`]'s business.

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
use super::HostRows;
use super::rule::Access;
use super::rule::Identity;
use super::rule::Rule;
use super::rule::RuleError;
use super::rule::granted;
use super::standard;

/// Why entries, rules and devices do not fit together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RewriteError {
    /// A device needs an entry to serve.
    #[error("device {0:?} is not in linux.devices")]
    NoEntry(PathBuf),
    /// An entry needs a device, unless every guest has one.
    #[error("{path:?} in linux.devices is {}, which is not assigned to the guest", shown(*found))]
    NotAssigned {
        /// The entry.
        path: PathBuf,
        /// What the spec says; none for what is no device.
        found: Option<Identity>,
    },
    /// A rule needs a device, unless every guest has one.
    #[error("device rule \"{0}\": linux.devices has no such device")]
    RuleNotAssigned(Rule),
    /// Two devices at one path of the container.
    #[error("{0:?} would be two devices")]
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

/// Returns `spec` with its entries and rules as the guest's, or an error. A spec without any rule lets its entries be
/// used.
pub fn rewrite(spec: &Spec, devices: &[AssignedDevice]) -> Result<Spec, RewriteError> {
    let rows = HostRows::of(entries(spec), devices)?;
    let rules = derive(&Rule::parse_all(rules(spec))?, &rows)?;
    let mut rewritten = spec.clone();
    let Some(linux) = rewritten.linux_mut() else { return Ok(rewritten) };
    let mut bound = Vec::new();
    if linux.devices().is_some() {
        let mut made = Vec::new();
        for (entry, node) in rows.rewrite(entries(spec))? {
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

/// Whoever makes the container cannot make nodes in a user namespace, and binds the guest's.
fn has_user_namespace(linux: &Linux) -> bool {
    let mut namespaces = linux.namespaces().iter().flatten();
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// libcontainer binds what has the entry's own path in the guest, which may be a neighbour's node; so an entry whose
/// node has another path is a mount.
fn bind(node: &Path, entry: &Path) -> Mount {
    let mount = MountBuilder::default().source(node).destination(entry).typ("bind");
    mount.options(vec!["bind".to_owned()]).build().expect("every field of a mount has a default")
}

/// The entries of a spec.
pub fn entries(spec: &Spec) -> &[LinuxDevice] {
    spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default()
}

/// The rules of a spec.
pub fn rules(spec: &Spec) -> &[LinuxDeviceCgroup] {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}

/// A container's rules in the guest's numbers: what they let it do with the nodes of `rows`, with standard devices and,
/// by a rule for every device, with what else the guest has.
pub fn derive(rules: &[Rule], rows: &HostRows) -> Result<Vec<Rule>, RewriteError> {
    let mut derived = Vec::new();
    for rule in rules {
        derived.extend(translate(rule, rows)?);
    }
    let mut appended = Vec::new();
    for (node, wanted) in wanted(rules, rows) {
        let has = granted(&derived, node);
        appended.extend(Rule::exact(true, node, wanted.without(has)));
        appended.extend(Rule::exact(false, node, has.without(wanted)));
    }
    derived.extend(appended);
    Ok(derived)
}

/// The rules of rows that come to a container with rules of their own, to follow the container's. They are about
/// nothing but the nodes of `rows`.
pub fn derive_attached(rules: &[Rule], rows: &HostRows) -> Result<Vec<Rule>, RewriteError> {
    for rule in rules {
        translate(rule, rows)?;
    }
    let wanted = wanted(rules, rows).into_iter();
    Ok(wanted.filter_map(|(node, access)| Rule::exact(true, node, access)).collect())
}

/// What a rule of the host is here.
fn translate(rule: &Rule, rows: &HostRows) -> Result<Vec<Rule>, RewriteError> {
    let no_use = !rule.allow || rule.kind.is_none() || rule.access == Access::MKNOD;
    if rule.major.is_none() && rule.minor.is_none() && no_use {
        return Ok(vec![*rule]);
    }
    let mut is_known = false;
    let mut derived = Vec::new();
    for (_, nodes) in rows.iter().filter(|(host, _)| rule.fits(*host)) {
        is_known = true;
        derived.extend(nodes.iter().map(|node| rule.narrowed(node.node.identity())));
    }
    // A row decides about its number, also where the number is a standard device's.
    let standard = standard::expand(rule).filter(|(own, _)| own.is_none_or(|own| rows.get(own).is_none()));
    derived.extend(standard.map(|(_, rule)| rule));
    let names_one = rule.major.is_some() && rule.minor.is_some();
    let is_orphan = rule.allow && names_one && !is_known && derived.is_empty();
    if is_orphan { Err(RewriteError::RuleNotAssigned(*rule)) } else { Ok(derived) }
}

/// What may be done with each node of the rows: what may be done with any device of the host that becomes it.
fn wanted(rules: &[Rule], rows: &HostRows) -> BTreeMap<Identity, Access> {
    let may = |host| if rules.is_empty() { Access::ALL } else { granted(rules, host) };
    let mut wanted = BTreeMap::<Identity, Access>::new();
    for (host, nodes) in rows.iter() {
        for node in nodes.iter().map(|node| node.node.identity()) {
            // A standard device without a row is itself on the host.
            let own = standard::contains(node) && rows.get(node).is_none();
            let own = if own { granted(rules, node) } else { Access::NONE };
            let all = wanted.entry(node).or_default();
            *all = all.with(may(host)).with(own);
        }
    }
    wanted
}

fn shown(found: Option<Identity>) -> String {
    found.map_or_else(|| "no device".to_owned(), |found| found.to_string())
}

#[cfg(test)]
mod tests;
