//! Containers and their processes.
//!
//! In reading order: [`mod@create`] creates a container, [`mod@exec`] runs another process in it; [`state`] is the
//! container between calls, [`process`] follows one process to its end, [`io`] copies its standard streams,
//! [`localize`] translates the host's spec. [`assign`] finds the devices assigned to a container, [`inventory`] is all
//! of its devices and rules as a value, and [`devices`] enforces them; [`mod@plug`] changes the volumes and devices of
//! an existing container, [`update`] its limits and rules.

mod assign;
mod create;
mod devices;
mod exec;
mod inventory;
mod io;
mod localize;
mod plug;
mod process;
mod state;
mod update;

use crate::fault::{Fault, Result};

pub use create::create;
pub use devices::Devices;
pub use exec::exec;
pub use plug::{plug, unplug};
pub use process::{Process, ProcessEnd};
pub use state::{Container, Phase};

/// The directory of the containers' bundles and states.
const RUN: &str = "/run/kiai/containers";

/// Refuses an id that is not safe as a file name: it has 1 to 128 letters, digits, `_`, `.`, `-`, and no dot first.
pub fn check_id(what: &str, id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(plain) {
        let shown: String = id.chars().take(128).collect();
        return Err(Fault::InvalidArgument(format!("{shown:?} is not a {what} id")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_safe_as_file_names() {
        for id in ["a", "web-1.2_x", &"x".repeat(128), "0123456789abcdef"] {
            assert!(super::check_id("container", id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", ".x", "a/b", "a b", "ä", &"x".repeat(129), "a\0"] {
            assert!(super::check_id("container", id).is_err(), "{id:?}");
        }
    }
}
