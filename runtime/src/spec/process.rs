//! The process of a container: arguments, working directory, environment. Pure.

use std::path::PathBuf;

use oci_spec::image::Config;

use crate::spec::SpecError;
use crate::spec::env::Environment;
use crate::spec::user::ResolvedUser;

/// The search path of programs, if neither image nor user defines `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Entrypoint and command by docker's rules: the user's command replaces the image's; the user's entrypoint
/// replaces the image's and discards the image's command with it; an empty entrypoint is none.
pub(crate) fn arguments(image: &Config, entrypoint: Option<&str>, command: &[String]) -> Vec<String> {
    let image_entrypoint = image.entrypoint().clone().unwrap_or_default();
    let image_command = image.cmd().clone().unwrap_or_default();
    let (head, tail) = match (entrypoint, command) {
        (Some(""), command) => (Vec::new(), command.to_vec()),
        (Some(entrypoint), command) => (vec![entrypoint.to_owned()], command.to_vec()),
        (None, []) => (image_entrypoint, image_command),
        (None, command) => (image_entrypoint, command.to_vec()),
    };
    head.into_iter().chain(tail).collect()
}

/// The user's working directory, else the image's, else the root.
///
/// # Errors
/// It is not absolute.
pub(crate) fn working_directory(image: &Config, asked: Option<&str>) -> Result<PathBuf, SpecError> {
    let path = asked.or(image.working_dir().as_deref()).filter(|path| !path.is_empty()).unwrap_or("/");
    if !path.starts_with('/') {
        return Err(SpecError::RelativeWorkdir(path.to_owned()));
    }
    Ok(PathBuf::from(path))
}

/// Adds the variables of every process: search path, host name, home and, with a terminal, its type.
pub(crate) fn environment(
    mut environment: Environment,
    user: &ResolvedUser,
    terminal: bool,
    hostname: &str,
) -> Vec<String> {
    environment.set_default("PATH", DEFAULT_PATH);
    environment.set_default("HOSTNAME", hostname);
    if terminal {
        environment.set_default("TERM", "xterm");
    }
    environment.set_default("HOME", &user.home);
    environment.into_words()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entrypoint: &[&str], command: &[&str]) -> Config {
        let words = |words: &[&str]| {
            (!words.is_empty()).then(|| words.iter().map(|word| (*word).to_owned()).collect())
        };
        let mut config = Config::default();
        config.set_entrypoint(words(entrypoint));
        config.set_cmd(words(command));
        config
    }

    #[test]
    fn arguments_follow_docker() {
        type Row<'a> = (&'a [&'a str], &'a [&'a str], Option<&'a str>, &'a [&'a str], &'a [&'a str]);
        let table: &[Row<'_>] = &[
            (&["e", "1"], &["c", "2"], None, &[], &["e", "1", "c", "2"]),
            (&["e", "1"], &["c", "2"], None, &["u"], &["e", "1", "u"]),
            (&["e", "1"], &["c", "2"], Some("x"), &[], &["x"]),
            (&["e", "1"], &["c", "2"], Some("x"), &["u", "3"], &["x", "u", "3"]),
            (&["e", "1"], &["c", "2"], Some(""), &["u"], &["u"]),
            (&["e", "1"], &["c", "2"], Some(""), &[], &[]),
            (&[], &["c"], None, &[], &["c"]),
            (&[], &[], None, &[], &[]),
        ];
        for (entrypoint, command, asked, user, expected) in table {
            let user: Vec<String> = user.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(arguments(&image(entrypoint, command), *asked, &user), *expected);
        }
    }

    #[test]
    fn the_working_directory_is_the_users_then_the_images_then_the_root() {
        let mut config = Config::default();
        assert_eq!(working_directory(&config, None), Ok("/".into()));
        config.set_working_dir(Some("/srv".to_owned()));
        assert_eq!(working_directory(&config, None), Ok("/srv".into()));
        assert_eq!(working_directory(&config, Some("/x")), Ok("/x".into()));
        assert_eq!(working_directory(&config, Some("x")), Err(SpecError::RelativeWorkdir("x".into())));
    }
}
