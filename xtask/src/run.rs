//! `cargo xtask run`: a program of a real image, pulled from a registry, in a microVM.
//!
//! The same steps run on this machine or in the lab: there, this program is put in and starts itself again.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, Machine};
use crate::registry::{Access, Registry};
use crate::venue::{self, Venue};
use crate::{cache, image, step, test};

const PYTHON: &str =
    "import platform, sys; print('Python', platform.python_version(), 'on', sys.platform, 2**100)";

/// Shows it, where microVMs can run.
pub(crate) fn show() -> Result<ExitCode> {
    match venue::choose()? {
        Venue::Machine => {
            let scratch = cache::scratch()?;
            let mut command = Command::new(std::env::current_exe()?);
            test::environment(command.arg("run-here"), scratch.path())?;
            Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Venue::Lab => {
            let mut lab = Lab::new(vec!["xtask".into(), "run-here".into()]);
            lab.put_project()?;
            lab.place(std::env::current_exe()?, "bin/xtask");
            step::say("starting the lab");
            lab.run(&Machine::default())
        }
    }
}

/// The steps themselves, where `kiai` is on PATH and the environment names kernel, guest image and test images.
pub(crate) fn here() -> Result<()> {
    let images = std::env::var("KIAI_TEST_IMAGES").context("KIAI_TEST_IMAGES")?;
    let registry = Registry::start(&Path::new(&images).join(image::REGISTRY), Access::Read)?;
    let image = format!("{}/{}", registry.address, image::REGISTRY_NAME);
    kiai(&["pull", &image])?;
    for command in [&["uname", "-a"][..], &["cat", "/etc/os-release"], &["python3", "-c", PYTHON]] {
        kiai(&[&["run", "--rm", &image][..], command].concat())?;
    }
    Ok(())
}

/// Runs `kiai` as a user would type it, and says when its first output came.
fn kiai(arguments: &[&str]) -> Result<()> {
    let quoted = |argument: &&str| {
        if argument.contains(' ') { format!("\"{argument}\"") } else { (*argument).to_owned() }
    };
    println!("\n$ kiai {}", arguments.iter().map(quoted).collect::<Vec<_>>().join(" "));
    let started = Instant::now();
    let mut child = Command::new("kiai").args(arguments).stdout(Stdio::piped()).spawn().context("kiai")?;
    let mut output = child.stdout.take().context("kiai's standard output")?;
    let mut first = None;
    let mut buffer = [0; 4096];
    loop {
        let length = output.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        first.get_or_insert_with(|| started.elapsed());
        io::stdout().write_all(&buffer[..length])?;
        io::stdout().flush()?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "kiai {}: {status}", arguments.join(" "));
    if let Some(first) = first {
        println!("({:.0} ms to the first output)", first.as_secs_f64() * 1e3);
    }
    Ok(())
}
