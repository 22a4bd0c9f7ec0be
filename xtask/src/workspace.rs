//! Where things are: the workspace that `cargo xtask` was called in, its target folder, and cargo itself.
//!
//! The workspace is found from the current directory, so that one built `xtask` serves several checkouts.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// The workspace's top folder.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = env::current_dir().unwrap_or_default();
        let is_root = |folder: &&Path| folder.join("xtask/packages.txt").is_file();
        let compiled_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        here.ancestors().find(is_root).or(compiled_in).unwrap_or(&here).to_path_buf()
    })
}

/// A path below the workspace's top folder.
pub(crate) fn path(relative: &str) -> PathBuf {
    root().join(relative)
}

/// The target folder that plain `cargo build` uses here.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| path("target"), |folder| root().join(folder))
}

/// Cargo, started in the workspace: one of its own subcommands, with the versions of the lock file and no others.
pub(crate) fn cargo() -> Command {
    let mut command = tool();
    command.arg("--locked");
    command
}

/// Cargo without `--locked`: it does not hand it on to subcommands that are programs of their own (`fmt`, `clippy`).
pub(crate) fn tool() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The text of a file of this repository.
pub(crate) fn read(relative: &str) -> Result<String> {
    let path = path(relative);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The entries of a list file: one a line, `#` starts a comment.
pub(crate) fn read_list(relative: &str) -> Result<Vec<String>> {
    Ok(read(relative)?
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}
