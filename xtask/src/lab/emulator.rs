//! QEMU, newer than the release's own: the lab lives on its emulated SVM, which loses the way back from an interrupt
//! now and then before version 9.1. Three faults of the newer versions are corrected in the program itself (`faults`).

mod faults;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{apt, cache, step};

const RECIPE: u32 = 6;
/// The emulator, and the firmware it boots with. The libraries it links are those of the release's own QEMU, which
/// `packages.txt` has.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// Beside the program if a fault was not found in it: says which.
const UNCORRECTED: &str = "uncorrected";

/// The command of QEMU, unpacked in the cache; the release's own if the newer one cannot be had any more. `other`, if
/// there is one, is run in its place, with its firmware.
pub(crate) fn command(other: Option<&Path>) -> Result<Command> {
    let folder = match unpacked() {
        Ok(folder) => folder,
        Err(error) => {
            step::say(&format!("lab: the release's own QEMU, as there is no newer one: {error:#}"));
            return Ok(Command::new("qemu-system-x86_64"));
        }
    };
    if other.is_none()
        && let Ok(why) = fs::read_to_string(folder.join(UNCORRECTED))
    {
        step::say(&format!("lab: guests may hang or crash, the lab with them (tests/lab/README.md): {why}"));
    }
    let mut command = Command::new(other.map_or(folder.join(PROGRAM), Path::to_owned));
    for firmware in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(folder.join(firmware));
    }
    Ok(command)
}

fn unpacked() -> Result<PathBuf> {
    let source = apt::Source::backports()?;
    source.of_newest(PACKAGES[0], |version| {
        let inputs =
            cache::Inputs::new(RECIPE).text("packages", &PACKAGES.join(" ")).text("version", version);
        cache::artifact("lab-qemu", &inputs, |folder: &Path| {
            // The others are as new as the lists: seabios has versions of its own.
            source.fetch(&format!("{}={version}", PACKAGES[0]), folder)?;
            PACKAGES[1..].iter().try_for_each(|package| source.fetch(package, folder).map(drop))?;
            let program = folder.join(PROGRAM);
            let mut code = fs::read(&program)?;
            let not_found = faults::correct(&mut code);
            fs::write(&program, code)?;
            if !not_found.is_empty() {
                fs::write(folder.join(UNCORRECTED), not_found.join("; "))?;
            }
            Ok(())
        })
    })
}
