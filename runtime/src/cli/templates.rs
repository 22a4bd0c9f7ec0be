//! `kiai template`: makes, lists and removes the saved machines that pods go on from instead of booting.

use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use oci_spec::runtime::LinuxBuilder;
use oci_spec::runtime::LinuxCpuBuilder;
use oci_spec::runtime::LinuxResourcesBuilder;
use oci_spec::runtime::SpecBuilder;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::format::Format;
use crate::config::Config;
use crate::host::facts;
use crate::plan::Annotations;
use crate::plan::SandboxPlan;
use crate::plan::plan_sandbox;
use crate::sandbox::template;
use crate::sandbox::template::TemplateKey;

/// Period of a CPU quota, microseconds.
const PERIOD: u64 = 100_000;

/// Make, list or remove templates, the saved microVMs that pods start from without a boot
#[derive(Debug, clap::Args)]
pub(super) struct Template {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the template for the configuration as it is, unless it is there, and print its key
    Create {
        /// For pods with so many CPUs
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
        cpus: Option<u8>,
    },
    /// List templates
    Ls {
        /// How to print
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Remove templates; pods that started from one keep what they have
    Rm {
        /// As `ls` prints them
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Remove all but the one that pods of the configuration as it is start from
    Prune,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    key: String,
    /// Bytes on the host.
    size: u64,
    complete: bool,
    /// Pods of the present configuration without limits start from it.
    current: bool,
}

impl Template {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let folder = folder(context);
        match self.action {
            Action::Create { cpus } => {
                let key = template::make(&folder, plan(cpus)?).await.map_err(anyhow::Error::from)?;
                format::print(&format!("{}\n", key.as_str())).map_err(anyhow::Error::from)?;
            }
            Action::Ls { format } => list(context, format)?,
            Action::Rm { keys } => {
                for key in keys {
                    remove(context, &key)?;
                }
            }
            Action::Prune => {
                for row in rows(context)?.into_iter().filter(|row| !row.current) {
                    remove(context, &row.key)?;
                }
            }
        }
        Ok(0)
    }
}

/// Where templates are. They do not outlive a boot of the host.
fn folder(context: &Context) -> PathBuf {
    context.store.paths().state.join(crate::config::TEMPLATES)
}

/// The sandbox of a container without limits but for its CPUs.
fn plan(cpus: Option<u8>) -> anyhow::Result<SandboxPlan> {
    let config = Config::load()?;
    let mut resources = LinuxResourcesBuilder::default();
    if let Some(cpus) = cpus {
        let quota = i64::from(cpus) * i64::try_from(PERIOD).expect("a tenth of a second");
        resources = resources.cpu(LinuxCpuBuilder::default().quota(quota).period(PERIOD).build()?);
    }
    let linux = LinuxBuilder::default().resources(resources.build()?).build()?;
    let spec = SpecBuilder::default().linux(linux).build()?;
    Ok(plan_sandbox("template", &spec, &Annotations::default(), &config, &facts::gather(&spec))?)
}

fn rows(context: &Context) -> anyhow::Result<Vec<Row>> {
    let folder = folder(context);
    let found = template::list(&folder).with_context(|| folder.display().to_string())?;
    let current = TemplateKey::of(&plan(None)?).ok();
    let row = |facts: template::TemplateFacts| Row {
        current: current.as_ref().is_some_and(|current| current.as_str() == facts.key),
        size: facts.bytes,
        complete: !facts.incomplete,
        key: facts.key,
    };
    Ok(found.into_iter().map(row).collect())
}

fn list(context: &Context, format: Format) -> anyhow::Result<()> {
    let rows = rows(context)?;
    match format {
        Format::Json => format::print_json(&rows),
        Format::Table => {
            let lines: Vec<Vec<String>> = rows
                .into_iter()
                .map(|row| {
                    let state = match (row.complete, row.current) {
                        (false, _) => "incomplete",
                        (true, true) => "current",
                        (true, false) => "",
                    };
                    vec![row.key, format::bytes(row.size), state.to_owned()]
                })
                .collect();
            Ok(format::print(&format::table(&["KEY", "SIZE", "STATE"], &lines))?)
        }
    }
}

fn remove(context: &Context, key: &str) -> anyhow::Result<()> {
    template::remove(&folder(context), key).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("no such template: {key}"),
        _ => anyhow::Error::new(error).context(format!("cannot remove template {key}")),
    })
}
