//! `--cap-add`, `--cap-drop` and the capabilities a container has without them. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

use oci_spec::runtime::Capabilities;
use oci_spec::runtime::Capability;
use oci_spec::runtime::LinuxCapabilities;
use oci_spec::runtime::LinuxCapabilitiesBuilder;

/// The value of `--cap-add` or `--cap-drop`: a capability with or without `CAP_`, in any case, or `ALL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityWord {
    /// All capabilities.
    All,
    /// One of them.
    One(Capability),
}

/// No such capability.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a capability; see capabilities(7) for the names, or write ALL")]
pub struct UnknownCapability(String);

impl FromStr for CapabilityWord {
    type Err = UnknownCapability;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            return Ok(Self::All);
        }
        ALL.iter()
            .find(|(name, _)| *name == bare)
            .map(|(_, capability)| Self::One(*capability))
            .ok_or_else(|| UnknownCapability(text.to_owned()))
    }
}

/// The user's changes of the default set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapabilityChanges {
    /// `--cap-add`.
    pub add: Vec<CapabilityWord>,
    /// `--cap-drop`.
    pub drop: Vec<CapabilityWord>,
}

/// Every capability of Linux 6.12 under its name in capabilities(7).
const ALL: &[(&str, Capability)] = &[
    ("AUDIT_CONTROL", Capability::AuditControl),
    ("AUDIT_READ", Capability::AuditRead),
    ("AUDIT_WRITE", Capability::AuditWrite),
    ("BLOCK_SUSPEND", Capability::BlockSuspend),
    ("BPF", Capability::Bpf),
    ("CHECKPOINT_RESTORE", Capability::CheckpointRestore),
    ("CHOWN", Capability::Chown),
    ("DAC_OVERRIDE", Capability::DacOverride),
    ("DAC_READ_SEARCH", Capability::DacReadSearch),
    ("FOWNER", Capability::Fowner),
    ("FSETID", Capability::Fsetid),
    ("IPC_LOCK", Capability::IpcLock),
    ("IPC_OWNER", Capability::IpcOwner),
    ("KILL", Capability::Kill),
    ("LEASE", Capability::Lease),
    ("LINUX_IMMUTABLE", Capability::LinuxImmutable),
    ("MAC_ADMIN", Capability::MacAdmin),
    ("MAC_OVERRIDE", Capability::MacOverride),
    ("MKNOD", Capability::Mknod),
    ("NET_ADMIN", Capability::NetAdmin),
    ("NET_BIND_SERVICE", Capability::NetBindService),
    ("NET_BROADCAST", Capability::NetBroadcast),
    ("NET_RAW", Capability::NetRaw),
    ("PERFMON", Capability::Perfmon),
    ("SETFCAP", Capability::Setfcap),
    ("SETGID", Capability::Setgid),
    ("SETPCAP", Capability::Setpcap),
    ("SETUID", Capability::Setuid),
    ("SYS_ADMIN", Capability::SysAdmin),
    ("SYS_BOOT", Capability::SysBoot),
    ("SYS_CHROOT", Capability::SysChroot),
    ("SYS_MODULE", Capability::SysModule),
    ("SYS_NICE", Capability::SysNice),
    ("SYS_PACCT", Capability::SysPacct),
    ("SYS_PTRACE", Capability::SysPtrace),
    ("SYS_RAWIO", Capability::SysRawio),
    ("SYS_RESOURCE", Capability::SysResource),
    ("SYS_TIME", Capability::SysTime),
    ("SYS_TTY_CONFIG", Capability::SysTtyConfig),
    ("SYSLOG", Capability::Syslog),
    ("WAKE_ALARM", Capability::WakeAlarm),
];

/// docker's default set.
const DEFAULT: &[Capability] = &[
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The capabilities a container keeps, by docker's rules: `--cap-add ALL` starts from all and
/// `--cap-drop ALL` from none; then single ones are dropped, then single ones added.
pub fn plan_capabilities(changes: &CapabilityChanges) -> Vec<Capability> {
    let drops_all = changes.drop.contains(&CapabilityWord::All);
    let adds_all = changes.add.contains(&CapabilityWord::All);
    // By place in ALL: Capability itself has no order.
    let place = |capability: &Capability| ALL.iter().position(|(_, known)| known == capability);
    let mut kept: BTreeSet<usize> = match (adds_all, drops_all) {
        (true, _) => (0..ALL.len()).collect(),
        (false, true) => BTreeSet::new(),
        (false, false) => DEFAULT.iter().filter_map(place).collect(),
    };
    for word in &changes.drop {
        if let CapabilityWord::One(capability) = word {
            place(capability).map(|place| kept.remove(&place));
        }
    }
    for word in &changes.add {
        if let CapabilityWord::One(capability) = word {
            place(capability).map(|place| kept.insert(place));
        }
    }
    kept.into_iter().map(|place| ALL[place].1).collect()
}

/// The five sets of a process: root has the capabilities at once, another user may only gain them from a
/// file, so its permitted and effective sets start empty. Nothing is inheritable or ambient.
pub fn process_sets(kept: &[Capability], is_root: bool) -> LinuxCapabilities {
    let all: Capabilities = kept.iter().copied().collect();
    let held = if is_root { all.clone() } else { Capabilities::default() };
    LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .permitted(held.clone())
        .effective(held)
        .inheritable(Capabilities::default())
        .ambient(Capabilities::default())
        .build()
        .expect("every capability set is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<CapabilityWord> {
        text.iter().map(|word| word.parse().unwrap()).collect()
    }

    fn plan(add: &[&str], drop: &[&str]) -> Vec<Capability> {
        plan_capabilities(&CapabilityChanges { add: words(add), drop: words(drop) })
    }

    #[test]
    fn names_are_read_in_any_spelling() {
        for text in ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN", "cap_net_admin"] {
            assert_eq!(text.parse(), Ok(CapabilityWord::One(Capability::NetAdmin)), "{text}");
        }
        assert_eq!("all".parse(), Ok(CapabilityWord::All));
        assert_eq!("FLY".parse::<CapabilityWord>(), Err(UnknownCapability("FLY".into())));
    }

    #[test]
    fn changes_follow_docker() {
        assert_eq!(plan(&[], &[]), DEFAULT);
        assert_eq!(plan(&[], &["ALL"]), []);
        assert_eq!(plan(&["CHOWN"], &["ALL"]), [Capability::Chown]);
        assert_eq!(plan(&["ALL"], &[]).len(), ALL.len());
        assert_eq!(plan(&["ALL"], &["SYS_ADMIN"]).len(), ALL.len() - 1);
        assert_eq!(plan(&["SYS_ADMIN"], &[]).len(), DEFAULT.len() + 1);
        assert_eq!(plan(&[], &["NET_RAW"]).len(), DEFAULT.len() - 1);
    }

    #[test]
    fn only_root_starts_with_capabilities_in_force() {
        let kept = plan(&[], &[]);
        let root = process_sets(&kept, true);
        let user = process_sets(&kept, false);
        assert_eq!(root.effective().as_ref().unwrap().len(), DEFAULT.len());
        assert_eq!(user.effective().as_ref().unwrap().len(), 0);
        assert_eq!(user.bounding(), root.bounding());
    }
}
