//! `-u USER[:GROUP]` and its numbers in the image: passwd(5) and group(5) as text. Pure; the caller reads the files
//! from the image without following a link out of it.

use std::str::FromStr;

use oci_spec::runtime::User;

/// The parsed value of `-u` or of the image's `User` field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserOption {
    /// Name or number; empty means root.
    pub user: String,
    /// Name or number.
    pub group: Option<String>,
}

/// The user cannot be determined.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// Not `USER[:GROUP]`.
    #[error("{0:?} is not a user; write USER or USER:GROUP, each a name or a number")]
    Form(String),
    /// Not in `/etc/passwd`.
    #[error("no user {0:?} in /etc/passwd of the image")]
    NoUser(String),
    /// Not in `/etc/group`.
    #[error("no group {0:?} in /etc/group of the image")]
    NoGroup(String),
}

impl FromStr for UserOption {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || UserError::Form(text.to_owned());
        let (user, group) = match text.split_once(':') {
            Some((_, "")) => return Err(form()),
            Some((user, group)) => (user, Some(group.to_owned())),
            None => (text, None),
        };
        if text.contains(char::is_whitespace) || group.as_ref().is_some_and(|group| group.contains(':')) {
            return Err(form());
        }
        Ok(Self { user: user.to_owned(), group })
    }
}

/// User and groups of a process, as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Additional groups, in order and without `gid`.
    pub groups: Vec<u32>,
    /// Home directory, for `HOME`.
    pub home: String,
}

impl ResolvedUser {
    /// The `process.user` object.
    pub fn into_oci(self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid);
        user.set_gid(self.gid);
        if !self.groups.is_empty() {
            user.set_additional_gids(Some(self.groups));
        }
        user
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Entries with the wrong number of fields or without numbers are passed over, as libc does.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, _] = fields[..] else { return None };
        Some(PasswdEntry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else { return None };
        Some(GroupEntry { name, gid: gid.parse().ok()?, members })
    })
}

/// Finds a user by docker's rules. A number that is in no file is accepted, with group 0 and no home directory; a name
/// must be in the file. The additional groups of the user are used only if no group was given.
///
/// # Errors
/// A name is in no file.
pub fn resolve_user(option: &UserOption, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
    let wanted = if option.user.is_empty() { "0" } else { &option.user };
    // A user whose name is a number is found by name first, as docker does it.
    let number = wanted.parse::<u32>().ok();
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == wanted)
        .or_else(|| passwd_entries(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, primary, home, name) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (None, Some(0)) => (0, 0, "/root", Some("root")),
        (None, Some(uid)) => (uid, 0, "/", None),
        (None, None) => return Err(UserError::NoUser(option.user.clone())),
    };
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    if let Some(wanted) = &option.group {
        let number = wanted.parse::<u32>().ok();
        let gid = group_entries(group)
            .find(|entry| entry.name == wanted)
            .map(|entry| entry.gid)
            .or(number)
            .ok_or_else(|| UserError::NoGroup(wanted.clone()))?;
        return Ok(ResolvedUser { uid, gid, groups: Vec::new(), home });
    }
    let mut groups: Vec<u32> = Vec::new();
    if let Some(name) = name {
        for entry in group_entries(group) {
            let is_member = entry.members.split(',').any(|member| member == name);
            if is_member && entry.gid != primary && !groups.contains(&entry.gid) {
                groups.push(entry.gid);
            }
        }
    }
    Ok(ResolvedUser { uid, gid: primary, groups, home })
}

/// The number of a group that `--group-add` names.
///
/// # Errors
/// No group has the name.
pub fn resolve_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    group_entries(group)
        .find(|entry| entry.name == wanted)
        .map(|entry| entry.gid)
        .or(wanted.parse().ok())
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken:x:1\n\
        www:x:33:33:www:/var/www:/bin/false\n1234:x:7:8::/num:/bin/sh\nnohome:x:9:9:::\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:www,root\nssl:x:5:www\nagain:x:5:www\nbad:x\n";

    fn resolve(text: &str) -> Result<ResolvedUser, UserError> {
        resolve_user(&text.parse().unwrap(), PASSWD, GROUP)
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<ResolvedUser, UserError> {
        Ok(ResolvedUser { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(resolve(""), user(0, 0, &[4], "/root"));
        assert_eq!(resolve("www"), user(33, 33, &[4, 5], "/var/www"));
        assert_eq!(resolve("33"), user(33, 33, &[4, 5], "/var/www"));
        assert_eq!(resolve("www:adm"), user(33, 4, &[], "/var/www"));
        assert_eq!(resolve("www:99"), user(33, 99, &[], "/var/www"));
        assert_eq!(resolve("5000"), user(5000, 0, &[], "/"));
        assert_eq!(resolve("5000:6000"), user(5000, 6000, &[], "/"));
        assert_eq!(resolve("1234"), user(7, 8, &[], "/num"));
        assert_eq!(resolve("nohome"), user(9, 9, &[], "/"));
        assert_eq!(resolve(":adm"), user(0, 4, &[], "/root"));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert_eq!(resolve("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve("www:none"), Err(UserError::NoGroup("none".into())));
        assert_eq!("a:".parse::<UserOption>(), Err(UserError::Form("a:".into())));
        assert_eq!("a b".parse::<UserOption>(), Err(UserError::Form("a b".into())));
    }

    #[test]
    fn groups_are_names_or_numbers() {
        assert_eq!(resolve_group("adm", GROUP), Ok(4));
        assert_eq!(resolve_group("77", GROUP), Ok(77));
        assert_eq!(resolve_group("none", GROUP), Err(UserError::NoGroup("none".into())));
    }

    #[test]
    fn an_image_without_files_still_has_root() {
        assert_eq!(resolve_user(&UserOption::default(), "", ""), user(0, 0, &[], "/root"));
    }
}
