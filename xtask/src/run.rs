//! `cargo xtask run`: a program of a real image, pulled from a registry, in a microVM.
//!
//! The same steps run on this machine or in the lab: there, this program is put in and starts itself again.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, Machine};
use crate::place::{self, Place};
use crate::{cache, step, test};

/// How the image is called in the registry.
const IMAGE: &str = "kiai/debian:latest";
const PYTHON: &str =
    "import platform, sys; print('Python', platform.python_version(), 'on', sys.platform, 2**100)";

/// Shows it, where microVMs can run.
pub(crate) fn show() -> Result<ExitCode> {
    match place::choose()? {
        Place::Machine => {
            let scratch = cache::scratch()?;
            let mut command = Command::new(std::env::current_exe()?);
            test::environment(command.arg("run-here"), scratch.path())?;
            Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Place::Lab => {
            let mut lab = Lab::new(vec!["xtask".into(), "run-here".into()]);
            lab.put_project()?;
            lab.place(std::env::current_exe()?, "bin/xtask");
            step::say("starting the lab");
            lab.start(&Machine::default())
        }
    }
}

/// The steps themselves, where `kiai` is on PATH and the environment names kernel, guest image and test images.
pub(crate) fn here() -> Result<()> {
    let images = std::env::var("KIAI_TEST_IMAGES").context("KIAI_TEST_IMAGES")?;
    let folder = tempfile::tempdir()?;
    let registry = Registry::start(folder.path())?;
    let image = format!("{}/{IMAGE}", registry.address);
    step::run(
        "filling the local registry",
        Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{images}/debian:latest"))
            .arg(format!("docker://{image}")),
    )?;
    kiai(&["pull", &image])?;
    for command in [&["uname", "-a"][..], &["cat", "/etc/os-release"], &["python3", "-c", PYTHON]] {
        kiai(&[&["run", "--rm", &image][..], command].concat())?;
    }
    Ok(())
}

/// Runs `kiai` as a user would type it, and says when its first output came.
fn kiai(arguments: &[&str]) -> Result<()> {
    println!("\n$ kiai {}", arguments.join(" "));
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

/// A registry on loopback, for as long as this lives.
struct Registry {
    process: Child,
    address: String,
    /// Kept open: the registry would die of writing to a closed pipe.
    _log: BufReader<ChildStderr>,
}

impl Registry {
    fn start(folder: &Path) -> Result<Self> {
        let config = folder.join("registry.yml");
        let storage = folder.join("registry");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
                storage.display()
            ),
        )?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry")?;
        let mut log = BufReader::new(process.stderr.take().context("the registry's log")?);
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                bail!("docker-registry does not start:\n{said}");
            }
            if let Some(address) = listening_address(&line) {
                return Ok(Self { process, address, _log: log });
            }
            said += &line;
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Killing fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address in the registry's announcement that it is ready.
fn listening_address(line: &str) -> Option<String> {
    let (_, after) = line.split_once("listening on ")?;
    let address: String =
        after.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    Some(address).filter(|address| address.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_address_is_read_from_its_log() {
        let line = r#"{"level":"info","msg":"listening on 127.0.0.1:44321","version":"2.8"}"#;
        assert_eq!(listening_address(line).as_deref(), Some("127.0.0.1:44321"));
        assert_eq!(listening_address(r#"{"msg":"using inmemory cache"}"#), None);
    }
}
