//! `kiai run --dry-run`: prints the plan of a container.
//!
//! The steps are those of `kiai run` up to the plan, with a temporary bundle.

use std::path::Path;

use anyhow::Context as _;
use oci_spec::runtime::Spec;
use serde::Serialize;

use crate::cdi;
use crate::cli::container_options::ContainerOptions;
use crate::cli::creation;
use crate::cli::device_table;
use crate::cli::format;
use crate::cli::format::Format;
use crate::cli::mounts::Mounts;
use crate::cli::options::NetworkOption;
use crate::cli::options::ProcessOptions;
use crate::cli::prepare;
use crate::cli::prepare::BundleTarget;
use crate::cli::prepare::Source;
use crate::config::Config;
use crate::host::facts;
use crate::plan::Annotations;
use crate::plan::ContainerPlan;
use crate::plan::DeviceMap;
use crate::plan::HostFacts;
use crate::plan::SandboxPlan;
use crate::plan::SourceKind;
use crate::plan::plan_container;
use crate::plan::plan_sandbox;
use crate::plan::wanted_sources;
use crate::store::Paths;

/// Placeholder for the container's id and host name.
const NEW: &str = "new";

/// A dry run of a container.
pub(super) struct Rehearsal<'a> {
    pub(super) paths: &'a Paths,
    pub(super) source: &'a Source,
    pub(super) process: &'a ProcessOptions,
    pub(super) container: &'a ContainerOptions,
    pub(super) command: &'a [String],
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Decided {
    sandbox: SandboxFigures,
    process: ProcessFigures,
    mounts: Vec<MountFigures>,
    devices: DeviceMap,
    /// The device rules with the host's numbers, in order: the last one that matches decides.
    device_rules: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SandboxFigures {
    /// vCPUs online at first.
    vcpus: u8,
    most_vcpus: u8,
    /// Memory plugged at first.
    memory_mib: u32,
    most_memory_mib: u32,
    kernel: String,
    initrd: String,
    kernel_parameters: Vec<String>,
    huge_pages: bool,
    network: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessFigures {
    root: String,
    arguments: Vec<String>,
    directory: String,
    user: String,
    capabilities: Vec<String>,
    seccomp: bool,
    environment: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MountFigures {
    destination: String,
    /// The source on the host; none for a file system that the guest's kernel mounts.
    source: Option<String>,
    #[serde(rename = "type")]
    typ: String,
    read_only: bool,
}

impl Rehearsal<'_> {
    /// Plans and prints.
    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        let decided = self.decide()?;
        match format {
            Format::Json => format::print_json(&decided),
            Format::Table => Ok(format::print(&text(&decided))?),
        }
    }

    fn decide(&self) -> anyhow::Result<Decided> {
        let bundle = tempfile::tempdir().context("cannot make a temporary bundle")?;
        let id = self.container.name.as_deref().unwrap_or(NEW);
        let startup = creation::startup(id, self.process, self.container, &self.source.config)?;
        let planned = Mounts::plan(&self.source.config, self.container, || Ok(NEW.to_owned()))?;
        let volumes = planned.provide(self.paths, &self.source.layers, true)?;
        let target = BundleTarget {
            bundle: bundle.path(),
            network: None,
            startup: &startup,
            volumes,
            tmpfs: &planned.tmpfs,
        };
        let spec = prepare::prepare(target, self.source, self.process, self.container, self.command)?;
        let spec = cdi::apply_annotations(spec, cdi::Registry::read)?;
        let config = Config::load()?;
        let all = spec.annotations().clone().unwrap_or_default();
        let annotations = Annotations::parse(&all, &config.pod_annotations)?;
        let mut facts = facts::gather(&spec);
        made_at_start(&spec, &mut facts);
        let container = plan_container(id, &spec, &annotations, &facts)?;
        let sandbox = plan_sandbox(id, &spec, &annotations, &config, &facts)?;
        Ok(Decided {
            sandbox: self.sandbox(&sandbox),
            process: self.process(&spec),
            mounts: mounts(&spec, &container, bundle.path()),
            devices: DeviceMap::of_plan(&container),
            device_rules: device_rules(&spec),
        })
    }

    fn sandbox(&self, plan: &SandboxPlan) -> SandboxFigures {
        SandboxFigures {
            vcpus: plan.size.vcpus,
            most_vcpus: plan.bounds.most_vcpus,
            memory_mib: plan.size.memory_mib,
            most_memory_mib: plan.bounds.most_mib,
            kernel: plan.kernel.display().to_string(),
            initrd: plan.initrd.display().to_string(),
            kernel_parameters: plan.kernel_parameters.clone(),
            huge_pages: plan.huge_pages,
            network: match self.container.network {
                NetworkOption::Bridge(_) => "a bridge of the CNI plugins, joined at the start",
                NetworkOption::None => "none",
            },
        }
    }

    fn process(&self, spec: &Spec) -> ProcessFigures {
        let process = spec.process().clone().unwrap_or_default();
        let capabilities = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone());
        let mut capabilities: Vec<_> =
            capabilities.iter().flatten().map(|capability| capability.to_string()).collect();
        capabilities.sort();
        ProcessFigures {
            root: self.source.name.clone(),
            arguments: process.args().clone().unwrap_or_default(),
            directory: process.cwd().display().to_string(),
            user: format!("{}:{}", process.user().uid(), process.user().gid()),
            capabilities,
            seccomp: spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some()),
            environment: process.env().clone().unwrap_or_default(),
        }
    }
}

/// Treats sources of volumes that do not exist as directories, which `run` would make.
fn made_at_start(spec: &Spec, facts: &mut HostFacts) {
    for source in wanted_sources(spec).0 {
        if !source.exists() {
            facts.sources.insert(source.into(), SourceKind::Directory);
        }
    }
}

fn mounts(spec: &Spec, plan: &ContainerPlan, bundle: &Path) -> Vec<MountFigures> {
    let mut figures = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let target = Path::new("mounts").join(index.to_string());
        let volume = plan.volumes.iter().find(|volume| volume.target == target);
        let source = volume.map(|volume| match volume.source.strip_prefix(bundle) {
            Ok(own) => format!("{} of the bundle", own.display()),
            Err(_) => volume.source.display().to_string(),
        });
        figures.push(MountFigures {
            destination: mount.destination().display().to_string(),
            source,
            typ: mount.typ().clone().unwrap_or_default(),
            read_only: mount.options().iter().flatten().any(|option| option == "ro"),
        });
    }
    figures
}

fn device_rules(spec: &Spec) -> Vec<String> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().clone()).unwrap_or_default();
    let verb = |allow| if allow { "allow" } else { "deny" };
    rules.iter().map(|rule| format!("{} {rule}", verb(rule.allow()))).collect()
}

fn text(decided: &Decided) -> String {
    let Decided { sandbox, process, mounts, devices, device_rules } = decided;
    let huge = if sandbox.huge_pages { " of 2 MiB pages" } else { "" };
    let seccomp = if process.seccomp { "the default profile" } else { "none" };
    let lines = [
        ("vCPUs", format!("{}, at most {}", sandbox.vcpus, sandbox.most_vcpus)),
        ("memory", format!("{} MiB{huge}, at most {} MiB", sandbox.memory_mib, sandbox.most_memory_mib)),
        ("kernel", sandbox.kernel.clone()),
        ("initrd", sandbox.initrd.clone()),
        ("parameters", sandbox.kernel_parameters.join(" ")),
        ("network", sandbox.network.to_owned()),
        ("root", process.root.clone()),
        ("command", process.arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")),
        ("directory", process.directory.clone()),
        ("user", process.user.clone()),
        ("capabilities", format!("{}: {}", process.capabilities.len(), process.capabilities.join(" "))),
        ("seccomp", seccomp.to_owned()),
    ];
    let mut text = String::new();
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name:14}{value}\n"));
    }
    let rows: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let source = mount.source.clone().unwrap_or_else(|| "the guest's own".to_owned());
            let mode = if mount.read_only { "read-only" } else { "" };
            vec![mount.destination.clone(), mount.typ.clone(), source, mode.to_owned()]
        })
        .collect();
    text.push_str(&format!("\n{}", format::table(&["MOUNT", "TYPE", "SOURCE", ""], &rows)));
    text.push_str(&format!("\n{}", device_table::of(devices)));
    text.push_str("\nDevice rules, of which the last one that matches decides:\n");
    for rule in device_rules {
        text.push_str(&format!("  {rule}\n"));
    }
    text
}

/// An argument as it would be typed in a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shown_as_they_would_be_typed() {
        assert_eq!(quoted("/bin/sh"), "/bin/sh");
        assert_eq!(quoted("echo it's"), "'echo it'\\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_plan_reads_from_the_machine_to_the_rules() {
        let decided = Decided {
            sandbox: SandboxFigures {
                vcpus: 2,
                most_vcpus: 4,
                memory_mib: 256,
                most_memory_mib: 1024,
                kernel: "/k".into(),
                initrd: "/i".into(),
                kernel_parameters: Vec::new(),
                huge_pages: false,
                network: "none",
            },
            process: ProcessFigures {
                root: "debian".into(),
                arguments: vec!["echo".into(), "a b".into()],
                directory: "/".into(),
                user: "0:0".into(),
                capabilities: vec!["CHOWN".into()],
                seccomp: true,
                environment: Vec::new(),
            },
            mounts: vec![
                MountFigures {
                    destination: "/proc".into(),
                    source: None,
                    typ: "proc".into(),
                    read_only: false,
                },
                MountFigures {
                    destination: "/data".into(),
                    source: Some("/srv".into()),
                    typ: "bind".into(),
                    read_only: true,
                },
            ],
            devices: DeviceMap::default(),
            device_rules: vec!["deny a *:* rwm".into()],
        };
        let expected = "\
vCPUs         2, at most 4
memory        256 MiB, at most 1024 MiB
kernel        /k
initrd        /i
network       none
root          debian
command       echo 'a b'
directory     /
user          0:0
capabilities  1: CHOWN
seccomp       the default profile

MOUNT   TYPE   SOURCE
/proc   proc   the guest's own
/data   bind   /srv              read-only

no devices except those of every container

Device rules, of which the last one that matches decides:
  deny a *:* rwm
";
        assert_eq!(text(&decided), expected);
    }
}
