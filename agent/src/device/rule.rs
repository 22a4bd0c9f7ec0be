//! Device rules of an OCI spec, and the access that a list of them grants. Pure.
//!
//! OCI runtime-spec config-linux.md#allowed-device-list. Of several rules that match a device the last one decides, for
//! each of reading, writing and making a node by itself; a device that no rule matches is denied.

use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceCgroupBuilder;
use oci_spec::runtime::LinuxDeviceType;

use super::DeviceKind;

/// Access to a device, in the kernel's bits (`BPF_DEVCG_ACC_*` of linux/bpf.h).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Access(u8);

impl Access {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Making a node of the device.
    pub const MKNOD: Self = Self(1);
    /// Opening the device for reading.
    pub const READ: Self = Self(2);
    /// Opening the device for writing.
    pub const WRITE: Self = Self(4);
    /// Every access.
    pub const ALL: Self = Self(7);

    /// Parses letters of `r`, `w` and `m`. No letters mean every access, as in other runtimes.
    pub fn parse(letters: Option<&str>) -> Option<Self> {
        let letters = letters.unwrap_or_default();
        if letters.is_empty() {
            return Some(Self::ALL);
        }
        letters.chars().try_fold(Self::NONE, |access, letter| {
            Some(access.with(match letter {
                'r' => Self::READ,
                'w' => Self::WRITE,
                'm' => Self::MKNOD,
                _ => return None,
            }))
        })
    }

    /// The kernel's bits.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether it is no access.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The access that is in either.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The access that is not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The access that is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (access, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if !self.and(access).is_none() {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// The identity of a device: its type and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Block or character.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}:{}", self.kind.letter(), self.major, self.minor)
    }
}

/// One rule. A part that is none matches every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// It allows; otherwise it denies.
    pub allow: bool,
    /// Block or character.
    pub kind: Option<DeviceKind>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// The access it allows or denies.
    pub access: Access,
}

/// Why a rule is malformed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    /// The access has a letter other than r, w, m.
    #[error("device rule \"{0}\": access is made of the letters r, w and m")]
    Access(String),
    /// The number is one that no device can have.
    #[error("device rule \"{0}\": a device number has 32 bits")]
    Number(String),
    /// The type is one that no rule can have.
    #[error("device rule \"{0}\": the type is none of a, b and c")]
    Type(String),
}

impl Rule {
    /// Parses a rule of a spec. A negative number stands for every number, as some clients write it.
    pub fn parse(rule: &LinuxDeviceCgroup) -> Result<Self, RuleError> {
        let shown = || rule.to_string().chars().take(128).collect::<String>();
        let number = |number: Option<i64>| match number {
            None | Some(..0) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| RuleError::Number(shown())),
        };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(DeviceKind::Block),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(DeviceKind::Character),
            LinuxDeviceType::P => return Err(RuleError::Type(shown())),
        };
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access: Access::parse(rule.access().as_deref()).ok_or_else(|| RuleError::Access(shown()))?,
        })
    }

    /// Parses a list of rules.
    pub fn parse_all(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Self>, RuleError> {
        rules.iter().map(Self::parse).collect()
    }

    /// The rule that denies every access to every device.
    pub const DENY_ALL: Self =
        Self { allow: false, kind: None, major: None, minor: None, access: Access::ALL };

    /// A rule for one device; none if the access is none.
    pub(super) fn exact(allow: bool, device: Identity, access: Access) -> Option<Self> {
        let Identity { kind, major, minor } = device;
        let rule = Self { allow, kind: Some(kind), major: Some(major), minor: Some(minor), access };
        (!access.is_none()).then_some(rule)
    }

    /// This rule restricted to one device.
    pub(super) fn narrowed(&self, device: Identity) -> Self {
        let Identity { kind, major, minor } = device;
        Self { kind: Some(kind), major: Some(major), minor: Some(minor), ..*self }
    }

    /// Whether the rule matches a device.
    pub(super) fn matches(&self, device: Identity) -> bool {
        self.kind.is_none_or(|kind| kind == device.kind)
            && self.major.is_none_or(|major| major == device.major)
            && self.minor.is_none_or(|minor| minor == device.minor)
    }

    /// Whether the rule matches this device and no other.
    pub fn names(&self, device: Identity) -> bool {
        *self == self.narrowed(device)
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.map_or('a', DeviceKind::letter);
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let verb = if self.allow { "allow" } else { "deny" };
        write!(f, "{verb} {kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

impl From<Rule> for LinuxDeviceCgroup {
    fn from(rule: Rule) -> Self {
        let typ = match rule.kind {
            None => LinuxDeviceType::A,
            Some(DeviceKind::Block) => LinuxDeviceType::B,
            Some(DeviceKind::Character) => LinuxDeviceType::C,
        };
        let made = LinuxDeviceCgroupBuilder::default().allow(rule.allow).typ(typ);
        let mut made =
            made.access(rule.access.to_string()).build().expect("every field of a rule has a default");
        made.set_major(rule.major.map(Into::into)).set_minor(rule.minor.map(Into::into));
        made
    }
}

/// The access to `device` that `rules` grant.
pub fn granted(rules: &[Rule], device: Identity) -> Access {
    rules.iter().filter(|rule| rule.matches(device)).fold(Access::NONE, |granted, rule| {
        if rule.allow { granted.with(rule.access) } else { granted.without(rule.access) }
    })
}

/// The rules of every container, which follow those of its spec. They allow to make any node, which does not allow to
/// use it, and to use the devices that the runtime has to supply (config-linux.md#default-devices): null, zero, full,
/// random, urandom, tty, ptmx and pseudo-terminals.
pub fn default_rules() -> impl Iterator<Item = Rule> {
    const ANY: Option<u32> = None;
    const USED: [(u32, Option<u32>); 8] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(2)),
        (136, ANY),
    ];
    let rule = |kind, major, minor, access| Rule { allow: true, kind: Some(kind), major, minor, access };
    let made = [DeviceKind::Character, DeviceKind::Block];
    let made = made.into_iter().map(move |kind| rule(kind, ANY, ANY, Access::MKNOD));
    made.chain(
        USED.into_iter()
            .map(move |(major, minor)| rule(DeviceKind::Character, Some(major), minor, Access::ALL)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oci(json: serde_json::Value) -> LinuxDeviceCgroup {
        serde_json::from_value(json).unwrap()
    }

    fn device(kind: DeviceKind, major: u32, minor: u32) -> Identity {
        Identity { kind, major, minor }
    }

    #[test]
    fn a_rule_is_read_with_what_it_leaves_open() {
        let table = [
            (serde_json::json!({"allow": false}), "deny a *:* rwm"),
            (serde_json::json!({"allow": false, "access": "rwm"}), "deny a *:* rwm"),
            (serde_json::json!({"allow": true, "type": "a", "access": ""}), "allow a *:* rwm"),
            (serde_json::json!({"allow": true, "type": "b", "major": 8, "access": "wr"}), "allow b 8:* rw"),
            (serde_json::json!({"allow": true, "type": "u", "major": 4, "minor": 9}), "allow c 4:9 rwm"),
            (
                serde_json::json!({"allow": true, "type": "c", "major": -1, "minor": -1, "access": "m"}),
                "allow c *:* m",
            ),
        ];
        for (json, expected) in table {
            assert_eq!(Rule::parse(&oci(json)).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name() {
        let access = oci(serde_json::json!({"allow": true, "type": "b", "major": 8, "access": "rx"}));
        assert_eq!(Rule::parse(&access), Err(RuleError::Access("b 8:* rx".into())));
        let number = oci(serde_json::json!({"allow": true, "type": "b", "major": 1u64 << 32, "access": "r"}));
        assert_eq!(Rule::parse(&number), Err(RuleError::Number("b 4294967296:* r".into())));
        let fifo = oci(serde_json::json!({"allow": true, "type": "p", "access": "r"}));
        assert!(matches!(Rule::parse(&fifo), Err(RuleError::Type(_))));
    }

    #[test]
    fn the_last_rule_decides_for_each_letter_by_itself() {
        let rules = Rule::parse_all(&[
            oci(serde_json::json!({"allow": true, "access": "rwm"})),
            oci(serde_json::json!({"allow": false, "type": "b", "access": "rwm"})),
            oci(serde_json::json!({"allow": true, "type": "b", "major": 8, "access": "rw"})),
            oci(serde_json::json!({"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"})),
        ])
        .unwrap();
        let granted = |kind, major, minor| granted(&rules, device(kind, major, minor)).to_string();
        assert_eq!(granted(DeviceKind::Character, 8, 1), "rwm");
        assert_eq!(granted(DeviceKind::Block, 9, 1), "");
        assert_eq!(granted(DeviceKind::Block, 8, 0), "rw");
        assert_eq!(granted(DeviceKind::Block, 8, 1), "r");
    }

    #[test]
    fn the_default_devices_can_be_used_and_others_only_be_made() {
        let rules: Vec<_> = default_rules().collect();
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 99)] {
            assert_eq!(granted(&rules, device(DeviceKind::Character, major, minor)), Access::ALL);
            assert_eq!(granted(&rules, device(DeviceKind::Block, major, minor)), Access::MKNOD);
        }
        // The guest's memory, its serial console, its kernel log.
        for (major, minor) in [(1, 1), (5, 1), (4, 64), (1, 11)] {
            assert_eq!(granted(&rules, device(DeviceKind::Character, major, minor)), Access::MKNOD);
        }
    }
}
