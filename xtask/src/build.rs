//! Building the project's own programs with cargo.

use std::path::PathBuf;

use anyhow::Result;

use crate::{step, workspace};

/// The target of static programs. Naming it keeps build scripts and procedural macros out of the static flags.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC_PROFILE: &str = "guest";

/// The lab's first process, static.
pub(crate) fn lab_init() -> Result<PathBuf> {
    static_program("kiai-lab", "lab-init")
}

/// Builds a static program with the profile of the guest, in a target folder of its own: other flags must not make
/// everyday builds start over.
fn static_program(package: &str, program: &str) -> Result<PathBuf> {
    let target = workspace::target().join("static");
    let mut command = workspace::cargo();
    command.args(["build", "--package", package, "--bin", program]);
    command.args(["--profile", STATIC_PROFILE, "--target", STATIC_TARGET]);
    command.arg("--target-dir").arg(&target);
    // A static executable at a fixed address: the position-independent form has been seen to crash at start.
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    step::run(&format!("building {program}"), &mut command)?;
    Ok(target.join(STATIC_TARGET).join(STATIC_PROFILE).join(program))
}
