//! Building the project's own programs with cargo.

use std::path::PathBuf;

use anyhow::Result;

use crate::{step, workspace};

/// The target of static programs. Naming it keeps build scripts and procedural macros out of the static flags.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
/// The name by which containerd starts `kiai` as its shim.
pub(crate) const SHIM: &str = "containerd-shim-kiai-v2";
const STATIC_PROFILE: &str = "guest";

/// The lab's first process, static.
pub(crate) fn lab_init() -> Result<PathBuf> {
    static_program("kiai-lab", "lab-init")
}

/// The guest's first process, static.
pub(crate) fn agent() -> Result<PathBuf> {
    static_program("kiai-agent", "kiai-agent")
}

/// The profile of everything that end-to-end tests and measurements run: what a user installs.
pub(crate) const TESTED_PROFILE: [&str; 1] = ["--release"];
const TESTED_FOLDER: &str = "release";

/// The `kiai` binary as a user installs it. It serves as the containerd shim as well, under another name.
pub(crate) fn kiai() -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["build", "--locked", "--package", "kiai-runtime", "--bin", "kiai"]).args(TESTED_PROFILE);
    step::run("building kiai", &mut command)?;
    Ok(workspace::target().join(TESTED_FOLDER).join("kiai"))
}

/// Builds a static program with the profile of the guest, in a target folder of its own: other flags must not make
/// everyday builds start over.
fn static_program(package: &str, program: &str) -> Result<PathBuf> {
    let target = workspace::target().join("guest");
    let mut command = workspace::cargo();
    command.args(["build", "--package", package, "--bin", program]);
    command.args(["--profile", STATIC_PROFILE, "--target", STATIC_TARGET]);
    command.arg("--target-dir").arg(&target);
    // A static executable at a fixed address: the position-independent form has been seen to crash at start.
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    command.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    step::run(&format!("building {program}"), &mut command)?;
    Ok(target.join(STATIC_TARGET).join(STATIC_PROFILE).join(program))
}
