//! Where things that do not outlive a boot are kept.

use std::path::PathBuf;

/// The state directory: `KIAI_STATE`, else `/run/kiai`.
pub fn state_root() -> PathBuf {
    std::env::var_os("KIAI_STATE")
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from("/run/kiai"), PathBuf::from)
}
