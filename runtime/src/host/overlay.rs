//! Overlay mounts with more layers than fit in one page of options.
//!
//! mount(2) takes one page of options. Layers are in one directory, so the mount is made from there with relative
//! names; on a thread of its own, because the working directory belongs to the process.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::MountFlags;

use super::mount::MountError;
use super::mount::failed;

const MOST_OPTION_BYTES: usize = 4095;

/// Mounts an overlay with these options (`lowerdir=`, `upperdir=`, ...) on `at`.
pub(super) fn mount(options: &[&str], flags: MountFlags, at: &Path) -> Result<(), MountError> {
    let whole = options.join(",");
    let (directory, options) = if whole.len() <= MOST_OPTION_BYTES {
        (None, whole)
    } else {
        shorten(options).unwrap_or((None, whole))
    };
    let result = std::thread::scope(|scope| {
        let mount = || -> std::io::Result<()> {
            if let Some(directory) = &directory {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
                rustix::process::chdir(directory)?;
            }
            let options = CString::new(options.as_str())?;
            Ok(rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str())?)
        };
        match directory {
            None => mount(),
            Some(_) => {
                scope.spawn(mount).join().unwrap_or_else(|_| Err(std::io::Error::other("thread panicked")))
            }
        }
    });
    result.map_err(failed("mount overlay on", at))
}

/// The directory that has all lower layers, and the options with names relative to it.
fn shorten(options: &[&str]) -> Option<(Option<String>, String)> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&str> = lower.split(':').collect();
    let first = layers.first()?;
    let common =
        (1..first.len()).rev().filter(|&at| first.as_bytes()[at] == b'/').map(|at| &first[..=at]).find(
            |prefix| layers.iter().all(|layer| layer.starts_with(prefix) && layer.len() > prefix.len()),
        )?;
    let relative: Vec<&str> = layers.iter().map(|layer| &layer[common.len()..]).collect();
    let options: Vec<String> = options
        .iter()
        .map(|option| match option.starts_with("lowerdir=") {
            true => format!("lowerdir={}", relative.join(":")),
            false => (*option).to_owned(),
        })
        .collect();
    Some((Some(common.to_owned()), options.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_relative_to_what_the_layers_share() {
        let (directory, options) =
            shorten(&["index=off", "lowerdir=/var/l/12/fs:/var/l/1/fs:/var/l/123/fs", "upperdir=/up"])
                .unwrap();
        assert_eq!(directory.as_deref(), Some("/var/l/"));
        assert_eq!(options, "index=off,lowerdir=12/fs:1/fs:123/fs,upperdir=/up");
    }

    #[test]
    fn nothing_in_common_stays_as_it_is() {
        assert_eq!(shorten(&["upperdir=/up"]), None);
        assert_eq!(shorten(&["lowerdir=a:b"]), None);
    }
}
