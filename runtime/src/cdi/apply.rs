//! Writes the edits of CDI devices into an OCI spec (SPEC.md "OCI Edits"). Pure except for [`look_at_node`].

use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::Mount;
use oci_spec::runtime::Process;
use oci_spec::runtime::Spec;

use super::Needed;
use super::NeededMount;
use super::file::ContainerEdits;
use super::file::DeviceNode;
use super::file::MountEdit;
use super::name::DeviceName;

/// Options that every mount supports (mount(8)), including those that select the kernel's defaults.
const MOUNT_ATTRIBUTES: &[&str] =
    &["nosuid", "nodev", "noexec", "noatime", "nodiratime", "strictatime", "suid", "dev", "exec", "relatime"];

/// An edit of a device is not supported; the spec is unchanged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ApplyError {
    /// The device has a hook. A hook is a program of the host, which cannot act on a microVM.
    #[error("CDI device {name}: its {hook} hook {} is a program of the host: not supported", path.display())]
    Hook {
        /// The device.
        name: DeviceName,
        /// Name of the hook: the moment at which it runs.
        hook: String,
        /// The hook's program.
        path: PathBuf,
    },
    /// Another edit that a microVM does not support.
    #[error("CDI device {name}: {what}: not supported")]
    Unsupported {
        /// The device.
        name: DeviceName,
        /// What it wants.
        what: String,
    },
    /// The edit sets a property that a process gets at its start only.
    #[error("CDI device {name}: {what}: a running container cannot be given it; see kiai run --device")]
    Running {
        /// The device.
        name: DeviceName,
        /// What it wants.
        what: String,
    },
    /// The device node does not exist on the host.
    #[error("CDI device {name}: {} is no device node of this host", path.display())]
    NoNode {
        /// The device.
        name: DeviceName,
        /// Path on the host.
        path: PathBuf,
    },
}

/// Type and numbers of a device node of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeFacts {
    pub(super) typ: LinuxDeviceType,
    pub(super) major: i64,
    pub(super) minor: i64,
    pub(super) mode: u32,
}

/// Reads type and numbers of a device node of this host.
pub(super) fn look_at_node(path: &Path) -> Option<NodeFacts> {
    let metadata = std::fs::metadata(path).ok()?;
    let typ = match metadata.file_type() {
        typ if typ.is_block_device() => LinuxDeviceType::B,
        typ if typ.is_char_device() => LinuxDeviceType::C,
        typ if typ.is_fifo() => LinuxDeviceType::P,
        _ => return None,
    };
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number).into(), rustix::fs::minor(number).into());
    Some(NodeFacts { typ, major, minor, mode: metadata.mode() & 0o777 })
}

/// Applies the edits of the devices to the spec. `look` returns type and numbers of a device node of the host.
pub(super) fn apply(
    spec: &Spec,
    edits: &[(DeviceName, &ContainerEdits)],
    look: &dyn Fn(&Path) -> Option<NodeFacts>,
) -> Result<Spec, ApplyError> {
    let mut spec = spec.clone();
    for (name, edits) in edits {
        refuse(name, edits)?;
        if let Some(process) = spec.process_mut() {
            set_environment(process, &edits.env);
            add_groups(process, &edits.additional_gids);
        }
        for node in &edits.device_nodes {
            add_node(&mut spec, name, node, look)?;
        }
        for mount in &edits.mounts {
            add_mount(&mut spec, mount);
        }
    }
    if edits.iter().any(|(_, edits)| !edits.mounts.is_empty())
        && let Some(mounts) = spec.mounts_mut()
    {
        // Deeper destinations are mounted later.
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    Ok(spec)
}

/// The edits that a device needs in a running container. The process must have its variables and groups already.
pub(super) fn needed(
    name: &DeviceName,
    process: &Process,
    edits: &[(DeviceName, &ContainerEdits)],
    look: &dyn Fn(&Path) -> Option<NodeFacts>,
) -> Result<Needed, ApplyError> {
    let mut spec = Spec::default();
    spec.set_mounts(None).set_linux(None).set_process(Some(process.clone()));
    let mut edited = apply(&spec, edits, look)?;
    let running = |what: String| ApplyError::Running { name: name.clone(), what };
    for (_, edits) in edits {
        let has = |word: &String| process.env().iter().flatten().any(|own| own == word);
        if let Some(word) = edits.env.iter().find(|word| !has(word)) {
            return Err(running(format!("variable {}", word.split('=').next().unwrap_or_default())));
        }
        let user = process.user();
        let in_group = |group: &u32| {
            *group == 0
                || user.gid() == *group
                || user.additional_gids().iter().flatten().any(|own| own == group)
        };
        if let Some(group) = edits.additional_gids.iter().find(|group| !in_group(group)) {
            return Err(running(format!("group {group}")));
        }
    }
    let linux = edited.linux_mut().take().unwrap_or_default();
    let devices = linux.devices().clone().unwrap_or_default();
    let rules = linux.resources().as_ref().and_then(|all| all.devices().clone()).unwrap_or_default();
    let mounts = edited.mounts().iter().flatten().map(|mount| needed_mount(mount).map_err(running));
    Ok(Needed { name: name.clone(), devices, rules, mounts: mounts.collect::<Result<_, _>>()? })
}

/// The error names the unsupported part of the mount.
fn needed_mount(mount: &Mount) -> Result<NeededMount, String> {
    let destination = mount.destination().clone();
    let at = destination.display();
    let is = |option: &str, among: &[&str]| among.contains(&option);
    if mount.typ().as_deref() != Some("bind") {
        return Err(format!("mount {at} of type {}", mount.typ().as_deref().unwrap_or_default()));
    }
    let options = mount.options().as_deref().unwrap_or_default();
    let (known, others): (Vec<_>, Vec<_>) = options.iter().partition(|option| is(option, MOUNT_ATTRIBUTES));
    // Propagation has no meaning for a mount that exists in one mount namespace only.
    let none = ["bind", "rbind", "rw", "ro", "rro", "private", "rprivate", "slave", "rslave"];
    if let Some(unknown) = others.iter().find(|option| !is(option, &none)) {
        return Err(format!("mount {at} with option {unknown}"));
    }
    let read_only = options.iter().any(|option| is(option, &["ro", "rro"]));
    let options = known.into_iter().cloned().collect();
    Ok(NeededMount { source: mount.source().clone().unwrap_or_default(), destination, read_only, options })
}

fn refuse(name: &DeviceName, edits: &ContainerEdits) -> Result<(), ApplyError> {
    let unsupported = |what: String| Err(ApplyError::Unsupported { name: name.clone(), what });
    if let Some(hook) = edits.hooks.first() {
        let (hook, path) = (hook.hook_name.clone(), hook.path.clone());
        return Err(ApplyError::Hook { name: name.clone(), hook, path });
    }
    if let Some(device) = edits.net_devices.first() {
        return unsupported(format!("network interface {}", device.host_interface_name));
    }
    if edits.intel_rdt.is_some() {
        return unsupported("intelRdt".to_owned());
    }
    Ok(())
}

fn set_environment(process: &mut Process, words: &[String]) {
    if words.is_empty() {
        return;
    }
    let mut environment = process.env().clone().unwrap_or_default();
    for word in words {
        let name = word.split('=').next().unwrap_or_default();
        environment.retain(|old| old.split('=').next() != Some(name));
        environment.push(word.clone());
    }
    process.set_env(Some(environment));
}

fn add_groups(process: &mut Process, groups: &[u32]) {
    let mut user = process.user().clone();
    let mut all = user.additional_gids().clone().unwrap_or_default();
    // The specification excludes group 0.
    for group in groups.iter().filter(|&&group| group != 0) {
        if !all.contains(group) {
            all.push(*group);
        }
    }
    if !all.is_empty() {
        user.set_additional_gids(Some(all));
        process.set_user(user);
    }
}

fn add_node(
    spec: &mut Spec,
    name: &DeviceName,
    node: &DeviceNode,
    look: &dyn Fn(&Path) -> Option<NodeFacts>,
) -> Result<(), ApplyError> {
    let on_host = node.host_path.as_ref().unwrap_or(&node.path);
    let written = match node.typ.as_deref() {
        Some("b") => Some(LinuxDeviceType::B),
        Some("c" | "u") => Some(LinuxDeviceType::C),
        Some("p") => Some(LinuxDeviceType::P),
        _ => None,
    };
    let facts = match (written, node.major, node.minor) {
        (Some(LinuxDeviceType::P), ..) => {
            NodeFacts { typ: LinuxDeviceType::P, major: 0, minor: 0, mode: 0o666 }
        }
        (Some(typ), Some(major), Some(minor)) => NodeFacts { typ, major, minor, mode: 0o666 },
        _ => {
            let found = look(on_host).filter(|found| written.is_none_or(|typ| typ == found.typ));
            found.ok_or_else(|| ApplyError::NoNode { name: name.clone(), path: on_host.clone() })?
        }
    };
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = user.unwrap_or((0, 0));

    let mut device = LinuxDevice::default();
    device.set_path(node.path.clone()).set_typ(facts.typ).set_major(facts.major).set_minor(facts.minor);
    device.set_file_mode(Some(node.file_mode.map_or(facts.mode, |mode| mode & 0o777)));
    device.set_uid(Some(node.uid.unwrap_or(uid))).set_gid(Some(node.gid.unwrap_or(gid)));
    let linux = spec.linux_mut().get_or_insert_default();
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|other| *other.path() != node.path);
    devices.push(device);
    if facts.typ == LinuxDeviceType::P {
        return Ok(());
    }

    let access = node.permissions.as_ref().filter(|letters| !letters.is_empty());
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true).set_typ(Some(facts.typ)).set_major(Some(facts.major)).set_minor(Some(facts.minor));
    rule.set_access(Some(access.map_or("rwm", String::as_str).to_owned()));
    let rules = linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default();
    if !rules.contains(&rule) {
        rules.push(rule);
    }
    Ok(())
}

fn add_mount(spec: &mut Spec, edit: &MountEdit) {
    let is_bind = edit.options.iter().any(|option| option == "bind" || option == "rbind");
    let mut mount = Mount::default();
    mount.set_destination(edit.container_path.clone());
    mount.set_source(Some(edit.host_path.clone()));
    let mut options = edit.options.clone();
    if !is_bind && edit.typ.as_deref().is_none_or(|typ| typ.is_empty() || typ == "bind") {
        options.push("rbind".to_owned());
    }
    mount.set_typ(Some(edit.typ.clone().filter(|typ| !typ.is_empty()).unwrap_or_else(|| "bind".to_owned())));
    mount.set_options(Some(options));
    let mounts = spec.mounts_mut().get_or_insert_default();
    mounts.retain(|other| *other.destination() != edit.container_path);
    mounts.push(mount);
}
