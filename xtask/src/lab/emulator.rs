//! QEMU, newer than the release's own: the lab lives on its emulated SVM, which loses the way back from an interrupt
//! now and then before version 9.1. One fault of the newer versions is corrected in the program itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{apt, cache, step};

const RECIPE: u32 = 2;
/// The emulator, and the firmware it boots with. The libraries it links are those of the release's own QEMU, which
/// `packages.txt` has.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// Beside the program if the fault below was not found in it: says why.
const UNCORRECTED: &str = "uncorrected";

/// The part of `helper_vmrun` that injects an interrupt into the guest (`target/i386/tcg/system/svm_helper.c`, the case
/// `SVM_EVTINJ_TYPE_INTR`), as compiled; `..` is a byte of an offset, which differs between versions.
///
/// The interrupt is delivered at once, but `exception_index` keeps its vector. If the emulator leaves its inner loop
/// before something resets it (the instruction budget is used up, another thread asks for the CPU), it takes the vector
/// for an exception still to be delivered: the guest gets the interrupt a second time, wherever it is and whether or
/// not it has interrupts disabled, and waits for ever for a lock that it holds. Nothing reads the value before that.
const INJECTION: [&str; 5] = [
    "41 0f b6 f4",                      // movzbl %r12b, %esi: the vector
    "44 89 ab .. .. .. ..",             // mov %r13d, error_code
    "89 b3 .. .. .. ..",                // mov %esi, exception_index
    "c7 83 .. .. .. .. 00 00 00 00",    // movl $0, exception_is_int
    "48 c7 83 .. .. .. .. ff ff ff ff", // movq $-1, exception_next_eip
];
/// Where in it `exception_index` is written, and what stands there instead: an instruction that does nothing.
const STORE: usize = 11;
const NOTHING: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0, 0];

/// QEMU's command, unpacked in the cache; the release's own if the newer one cannot be had any more.
pub(crate) fn command() -> Result<Command> {
    let folder = match unpacked() {
        Ok(folder) => folder,
        Err(error) => {
            step::say(&format!("lab: the release's own QEMU, as there is no newer one: {error:#}"));
            return Ok(Command::new("qemu-system-x86_64"));
        }
    };
    if let Ok(why) = fs::read_to_string(folder.join(UNCORRECTED)) {
        step::say(&format!("lab: guests may get an interrupt twice and hang: {why}"));
    }
    let mut command = Command::new(folder.join(PROGRAM));
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
            match correct(&mut code) {
                Ok(()) => fs::write(&program, code)?,
                Err(why) => fs::write(folder.join(UNCORRECTED), why.to_string())?,
            }
            Ok(())
        })
    })
}

/// Takes the write of `exception_index` out of the one place in `code` that looks like [`INJECTION`].
fn correct(code: &mut [u8]) -> Result<()> {
    let pattern: Vec<Option<u8>> = INJECTION
        .iter()
        .flat_map(|line| line.split(' '))
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let is_injection = |window: &[u8]| {
        window.iter().zip(&pattern).all(|(byte, known)| known.is_none_or(|known| known == *byte))
    };
    let places: Vec<usize> = code
        .windows(pattern.len())
        .enumerate()
        .filter_map(|(place, window)| is_injection(window).then_some(place))
        .collect();
    ensure!(places.len() == 1, "QEMU's injection of interrupts was found at {} places", places.len());
    code[places[0] + STORE..][..NOTHING.len()].copy_from_slice(&NOTHING);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GCC made of it in QEMU 10.0.2.
    const COMPILED: [u8; 38] = [
        0x41, 0x0f, 0xb6, 0xf4, 0x44, 0x89, 0xab, 0xe0, 0x33, 0, 0, 0x89, 0xb3, 0x10, 0xd7, 0xff, 0xff, 0xc7,
        0x83, 0xe4, 0x33, 0, 0, 0, 0, 0, 0, 0x48, 0xc7, 0x83, 0xe8, 0x33, 0, 0, 0xff, 0xff, 0xff, 0xff,
    ];

    #[test]
    fn only_the_write_of_the_vector_goes() {
        let mut code = [&[0x90; 5][..], &COMPILED, &[0xc3; 3]].concat();
        let before = code.clone();
        correct(&mut code).unwrap();
        assert_eq!(code[16..22], NOTHING);
        assert_eq!((&code[..16], &code[22..]), (&before[..16], &before[22..]));
    }

    #[test]
    fn code_without_the_one_place_is_left_alone() {
        for code in [vec![0x90; 100], [COMPILED, COMPILED].concat()] {
            let mut corrected = code.clone();
            assert!(correct(&mut corrected).is_err());
            assert_eq!(corrected, code);
        }
    }
}
