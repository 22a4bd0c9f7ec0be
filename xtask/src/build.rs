//! Building the project's own programs with cargo.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::Result;

use crate::{step, workspace};

/// The target of static programs. Naming it keeps build scripts and procedural macros out of the static flags.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
/// The name by which containerd starts `kiai` as its shim.
pub(crate) const SHIM: &str = "containerd-shim-kiai-v2";
const STATIC_PROFILE: &str = "guest";

/// The lab's first process, static.
pub(crate) fn lab_init() -> Result<PathBuf> {
    static BUILT: Once = Once::new();
    BUILT.get(|| static_program("kiai-lab", "lab-init"))
}

/// The guest's first process, static.
pub(crate) fn agent() -> Result<PathBuf> {
    static BUILT: Once = Once::new();
    BUILT.get(|| static_program("kiai-agent", "kiai-agent"))
}

/// The profile of everything that end-to-end tests and measurements run: what a user installs.
pub(crate) const TESTED_PROFILE: [&str; 1] = ["--release"];
const TESTED_FOLDER: &str = "release";

/// The `kiai` binary as a user installs it. It serves as the containerd shim as well, under another name.
pub(crate) fn kiai() -> Result<PathBuf> {
    static BUILT: Once = Once::new();
    BUILT.get(|| {
        let mut command = workspace::cargo();
        command.args(["build", "--package", "kiai-runtime", "--bin", "kiai"]).args(TESTED_PROFILE);
        step::run("building kiai", &mut command)?;
        Ok(workspace::target().join(TESTED_FOLDER).join("kiai"))
    })
}

/// A program that is built at most once by this process, although labs that start in parallel request it.
struct Once(Mutex<Option<PathBuf>>);

impl Once {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self, build: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
        let mut built = self.0.lock().expect("building does not panic");
        match &*built {
            Some(program) => Ok(program.clone()),
            None => Ok(built.insert(build()?).clone()),
        }
    }
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
