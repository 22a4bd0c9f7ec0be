//! The state directory, whose content does not outlive a boot.

use std::path::PathBuf;

/// Folder of templates in the state directory.
pub const TEMPLATES: &str = "templates";

/// Path of the state directory: `KIAI_STATE`, else `/run/kiai`.
pub fn state_root() -> PathBuf {
    std::env::var_os("KIAI_STATE")
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from("/run/kiai"), PathBuf::from)
}
