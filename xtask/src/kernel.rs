//! The guest kernel: Debian's source of the pinned series, our fragments over the smallest configuration, one ELF file.
//!
//! What the fragments ask for and why is in `guest-kernel/config`; how they become a kernel is here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};

use crate::{apt, cache, step, workspace};

/// The series, and with it Debian's package. Debian decides which release of the series it is.
pub(crate) const SERIES: &str = "6.12";
/// Raised when this file changes what comes out.
const RECIPE: u32 = 1;
const FRAGMENTS: &str = "guest-kernel/config";

/// The folder with `vmlinux`, its `config`, and `version` (Debian's), built if it is not there.
pub(crate) fn artifact() -> Result<PathBuf> {
    let fragments = read_fragments()?;
    let source = apt::Source::machine();
    let package = format!("linux-source-{SERIES}");
    source.of_newest(&package, |version| {
        let inputs = cache::Inputs::new(RECIPE).text("symbols", &symbols(&fragments)).text(&package, version);
        cache::artifact("kernel", &inputs, |folder| build(&fragments, &source, version, folder))
    })
}

fn read_fragments() -> Result<String> {
    let folder = workspace::path(FRAGMENTS);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "config"));
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).with_context(|| path.display().to_string())).collect()
}

/// What fragments ask for: the reasons beside the symbols change nothing of the kernel.
fn symbols(fragments: &str) -> String {
    let asks = |line: &&str| line.starts_with("CONFIG_") || turned_off(line).is_some();
    fragments.lines().filter(asks).collect::<Vec<_>>().join("\n")
}

fn build(fragments: &str, source: &apt::Source, version: &str, folder: &Path) -> Result<()> {
    let work = cache::scratch()?;
    let work = work.path();
    step::say("the guest kernel is built once, in about ten minutes on two cores");
    let package = format!("linux-source-{SERIES}");
    source.fetch(&format!("{package}={version}"), work)?;
    let archive = work.join(format!("usr/src/{package}.tar.xz"));
    step::run(
        "unpacking the kernel's source",
        Command::new("tar").arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(work),
    )?;
    let built_at = fs::metadata(&archive)?.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
    let timestamp = step::output(Command::new("date").args(["--utc", &format!("--date=@{built_at}")]))?;

    let wanted = work.join("wanted.config");
    fs::write(&wanted, fragments)?;
    let objects = work.join("objects");
    fs::create_dir(&objects)?;
    let make = |target: &str| {
        let mut command = Command::new("make");
        command.arg("--directory").arg(work.join(&package)).arg(format!("O={}", objects.display()));
        command.arg(format!("--jobs={}", std::thread::available_parallelism().map_or(1, usize::from)));
        command.arg(target).env("KCONFIG_ALLCONFIG", &wanted);
        // The same source and configuration result in the same kernel, independent of builder and time.
        command.env("KBUILD_BUILD_USER", "kiai").env("KBUILD_BUILD_HOST", "kiai");
        command.env("KBUILD_BUILD_VERSION", "1").env("KBUILD_BUILD_TIMESTAMP", timestamp.trim());
        command
    };
    // What tinyconfig is made of: every symbol that is not asked for is off, not at its default.
    step::run("configuring the guest kernel", &mut make("allnoconfig"))?;
    let config = fs::read_to_string(objects.join(".config"))?;
    check(fragments, &config)?;
    step::run("building the guest kernel", &mut make("vmlinux"))?;

    let vmlinux = folder.join("vmlinux");
    step::run(
        "stripping the guest kernel",
        Command::new("strip").arg("-o").arg(&vmlinux).arg(objects.join("vmlinux")),
    )?;
    fs::write(folder.join("config"), config)?;
    fs::write(folder.join("version"), format!("{version}\n"))?;
    step::say(&format!("guest kernel {version}: {:.1} MB", fs::metadata(&vmlinux)?.len() as f64 / 1e6));
    Ok(())
}

/// Fails if the final configuration lacks a symbol that a fragment asks for, or has one that a fragment turns off.
fn check(fragments: &str, config: &str) -> Result<()> {
    let is_set = |symbol: &str| config.lines().any(|line| line.starts_with(&format!("{symbol}=")));
    let unmet: Vec<&str> = fragments
        .lines()
        .filter(|line| match turned_off(line) {
            Some(symbol) => is_set(symbol),
            None => line.starts_with("CONFIG_") && !config.lines().any(|has| has == *line),
        })
        .collect();
    if unmet.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel's configuration does not come out as asked; a dependency is missing for:\n{}",
        unmet.join("\n")
    )
}

fn turned_off(line: &str) -> Option<&str> {
    line.strip_prefix("# ")?.strip_suffix(" is not set")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINAL: &str = "CONFIG_A=y\nCONFIG_N=64\n# CONFIG_B is not set\n";

    #[test]
    fn a_configuration_as_asked_passes() {
        check(
            "# why\nCONFIG_A=y\n\nCONFIG_N=64\n# CONFIG_B is not set\n# CONFIG_UNKNOWN is not set\n",
            FINAL,
        )
        .unwrap();
    }

    #[test]
    fn reasons_do_not_make_another_kernel() {
        let fragments = "# why\nCONFIG_A=y\n\n# CONFIG_B is not set\n# and why not\n";
        assert_eq!(symbols(fragments), "CONFIG_A=y\n# CONFIG_B is not set");
    }

    #[test]
    fn a_symbol_that_got_lost_is_named() {
        let error = check("CONFIG_A=y\nCONFIG_LOST=y\nCONFIG_N=8\n", FINAL).unwrap_err().to_string();
        assert!(error.contains("CONFIG_LOST=y") && error.contains("CONFIG_N=8"), "{error}");
        assert!(!error.contains("CONFIG_A"), "{error}");
    }

    #[test]
    fn a_symbol_that_was_forced_on_is_named() {
        assert!(check("# CONFIG_A is not set\n", FINAL).unwrap_err().to_string().contains("CONFIG_A"));
    }
}
