//! Passed functions in an OCI spec: the host's VFIO row goes, the guest's nodes come. Pure.
//!
//! A row for `/dev/vfio/12` stands for as many nodes as the guest has for the function, each with a path of the
//! guest's own. [`withdraw`] comes before `rewrite`, [`admit`] after it, so that no number of the guest's can be
//! taken for one of the host's.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec,
};

use super::{DeviceKind, Node};

/// A row of the container's `linux.devices` that names a VFIO group of the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostGroup {
    /// The row's path.
    pub container_path: PathBuf,
    /// Its number on the host.
    pub major: i64,
    /// Its number on the host.
    pub minor: i64,
}

/// Why nodes and a spec do not fit together. The spec is untouched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AdmitError {
    /// The group has no row.
    #[error("VFIO group {path:?} (c {major}:{minor}) is not in linux.devices")]
    NoRow {
        /// Its path.
        path: PathBuf,
        /// Its number on the host.
        major: i64,
        /// Its number on the host.
        minor: i64,
    },
    /// Another device has the path already.
    #[error("{0:?} of a passed PCI function is in linux.devices already, for another device")]
    Taken(PathBuf),
}

/// The spec without the rows of these groups, and without the rules that name exactly them.
pub fn withdraw(spec: &Spec, groups: &[HostGroup]) -> Result<Spec, AdmitError> {
    let mut spec = spec.clone();
    for group in groups {
        let rows = spec.linux_mut().get_or_insert_default().devices_mut().get_or_insert_default();
        let (path, major, minor) = (&group.container_path, group.major, group.minor);
        let is_row = |row: &LinuxDevice| {
            row.path() == path
                && matches!(row.typ(), LinuxDeviceType::C | LinuxDeviceType::U)
                && (row.major(), row.minor()) == (major, minor)
        };
        let before = rows.len();
        rows.retain(|row| !is_row(row));
        if rows.len() == before {
            return Err(AdmitError::NoRow { path: path.clone(), major, minor });
        }
    }
    if let Some(rules) = rules(&mut spec) {
        let names = |rule: &LinuxDeviceCgroup, group: &HostGroup| {
            matches!(rule.typ(), Some(LinuxDeviceType::C | LinuxDeviceType::U))
                && (rule.major(), rule.minor()) == (Some(group.major), Some(group.minor))
        };
        rules.retain(|rule| !groups.iter().any(|group| names(rule, group)));
    }
    Ok(spec)
}

/// The spec with a row and a rule for each of these nodes, at the path it has here.
pub fn admit(spec: &Spec, nodes: &[Node]) -> Result<Spec, AdmitError> {
    let mut spec = spec.clone();
    for node in nodes {
        let typ = match node.kind {
            DeviceKind::Block => LinuxDeviceType::B,
            DeviceKind::Character => LinuxDeviceType::C,
        };
        let linux = spec.linux_mut().get_or_insert_default();
        let rows = linux.devices_mut().get_or_insert_default();
        match rows.iter().find(|row| *row.path() == node.path) {
            Some(row) if (row.typ(), row.major(), row.minor()) == (typ, node.major, node.minor) => {}
            Some(_) => return Err(AdmitError::Taken(node.path.clone())),
            None => rows.push(row(node, typ)),
        }
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(typ)
            .major(node.major)
            .minor(node.minor)
            .access("rwm")
            .build()
            .expect("every field of a device rule has a default");
        let resources = linux.resources_mut().get_or_insert_default();
        let rules = resources.devices_mut().get_or_insert_default();
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    Ok(spec)
}

fn row(node: &Node, typ: LinuxDeviceType) -> LinuxDevice {
    LinuxDeviceBuilder::default()
        .path(&node.path)
        .typ(typ)
        .major(node.major)
        .minor(node.minor)
        .file_mode(0o660u32)
        .uid(0u32)
        .gid(0u32)
        .build()
        .expect("every field of a device has a default")
}

fn rules(spec: &mut Spec) -> Option<&mut Vec<LinuxDeviceCgroup>> {
    spec.linux_mut().as_mut()?.resources_mut().as_mut()?.devices_mut().as_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.1.0",
            "linux": {
                "devices": [
                    {"path": "/dev/vfio/12", "type": "c", "major": 243, "minor": 4},
                    {"path": "/dev/xvda", "type": "b", "major": 243, "minor": 4},
                ],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 243, "minor": 4, "access": "rwm"},
                    {"allow": true, "type": "b", "major": 243, "minor": 4, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 243, "access": "m"},
                ]},
            },
        }))
        .unwrap()
    }

    fn group() -> HostGroup {
        HostGroup { container_path: "/dev/vfio/12".into(), major: 243, minor: 4 }
    }

    fn disk() -> Node {
        Node { path: "/dev/nvme0n1".into(), kind: DeviceKind::Block, major: 259, minor: 0 }
    }

    fn rows(spec: &Spec) -> Vec<String> {
        let rows = spec.linux().clone().unwrap().devices().clone().unwrap();
        rows.iter().map(|row| format!("{} {}:{}", row.path().display(), row.major(), row.minor())).collect()
    }

    fn rules(spec: &Spec) -> Vec<String> {
        let resources = spec.linux().clone().unwrap().resources().clone().unwrap();
        resources.devices().clone().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_hosts_row_and_its_rule_go_and_no_other() {
        let without = withdraw(&spec(), &[group()]).unwrap();
        assert_eq!(rows(&without), ["/dev/xvda 243:4"]);
        let kept = rules(&without);
        assert_eq!(kept.len(), 3, "{kept:?}");
        assert!(!kept.contains(&"c 243:4 rwm".to_owned()), "{kept:?}");
        assert_eq!(withdraw(&spec(), &[]).unwrap(), spec());
    }

    #[test]
    fn every_node_gets_a_row_and_a_rule_once() {
        let partition = Node { path: "/dev/nvme0n1p1".into(), minor: 1, ..disk() };
        let with = admit(&spec(), &[disk(), partition.clone(), disk()]).unwrap();
        assert_eq!(rows(&with)[2..], ["/dev/nvme0n1 259:0", "/dev/nvme0n1p1 259:1"]);
        assert_eq!(rules(&with)[4..], ["b 259:0 rwm", "b 259:1 rwm"]);
        assert_eq!(admit(&with, &[partition]).unwrap(), with);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let other = HostGroup { minor: 5, ..group() };
        let error = withdraw(&spec(), &[group(), other]).unwrap_err();
        assert!(error.to_string().contains("243:5"), "{error}");
        let taken = Node { path: "/dev/xvda".into(), ..disk() };
        assert_eq!(admit(&spec(), &[taken]), Err(AdmitError::Taken("/dev/xvda".into())));
    }
}
