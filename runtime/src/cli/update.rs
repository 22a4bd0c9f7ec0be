//! `kiai update`: changes the limits of running containers, and with them the size of their sandboxes.

use std::path::Path;

use anyhow::Context as _;
use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::Spec;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::exec::running_task;
use crate::cli::format;
use crate::spec::quantity::Cpus;
use crate::spec::quantity::MemorySize;
use crate::spec::resources::plan_limits;

/// Change the limits of running containers
#[derive(Debug, clap::Args)]
pub(super) struct Update {
    /// Memory limit, with a unit: 256m, 2g
    #[arg(short, long, value_name = "SIZE", required_unless_present = "cpus")]
    memory: Option<MemorySize>,
    /// CPU time, in CPUs; the sandbox has as many CPUs, rounded up
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<Cpus>,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let limits = plan_limits(self.cpus, self.memory);
        each(&self.containers, async |name| {
            let (container, record) = context.store.find(name)?;
            running_task(&record).await?.update(&limits).await?;
            write_down(&container.bundle(), &limits)?;
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}

/// Records the limits in the bundle, for `inspect`.
fn write_down(bundle: &Path, limits: &LinuxResources) -> anyhow::Result<()> {
    let path = bundle.join("config.json");
    let mut spec = Spec::load(&path).with_context(|| path.display().to_string())?;
    if let Some(linux) = spec.linux_mut() {
        let mut resources = linux.resources().clone().unwrap_or_default();
        if let Some(memory) = limits.memory() {
            let mut all = resources.memory().unwrap_or_default();
            all.set_limit(memory.limit());
            resources.set_memory(Some(all));
        }
        if let Some(cpu) = limits.cpu() {
            let mut all = resources.cpu().clone().unwrap_or_default();
            all.set_quota(cpu.quota()).set_period(cpu.period());
            resources.set_cpu(Some(all));
        }
        linux.set_resources(Some(resources));
    }
    Ok(crate::store::file::write_json(&path, &spec)?)
}
