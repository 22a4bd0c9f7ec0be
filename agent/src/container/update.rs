//! Updating a container's limits and device rules: all of them, or none.

use anyhow::Context;
use oci_spec::runtime::LinuxResources;

use super::devices::RuleProgram;
use super::state::Container;
use crate::fault::Fault;
use crate::fault::Result;

impl Container {
    /// Sets limits, and device rules if `resources` has any, which are the host's; blocks. Rules are checked as when
    /// the container was created. A memory limit below the memory that cannot be reclaimed is refused, because the
    /// OOM killer would kill a process.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.check_memory(resources)?;
        let change = self.devices.change_blocking();
        // Everything that can be refused is checked before the first change.
        let rules = resources.devices().as_deref().filter(|rules| !rules.is_empty());
        let inventory = rules.map(|rules| change.inventory().with_rules(rules)).transpose()?;
        let loaded = inventory.map(|inventory| RuleProgram::load(inventory.into())).transpose()?;
        let limits =
            self.cgroup.limits().with_context(|| format!("read the limits of container {}", self.id))?;
        let updated = self.cgroup.update(resources).with_context(|| format!("update container {}", self.id));
        let updated = updated.map_err(Fault::Internal);
        // The rules are last: enforcing them succeeds, or leaves the rules before in force.
        let enforced = updated
            .and_then(|()| loaded.map_or(Ok(()), |loaded| change.enforce_loaded(loaded, &self.cgroup)));
        enforced.inspect_err(|_| {
            if let Err(error) = limits.restore() {
                tracing::error!("restore the limits of container {}: {error}", self.id);
            }
        })
    }

    fn check_memory(&self, resources: &LinuxResources) -> Result<()> {
        let limit = resources.memory().as_ref().and_then(|memory| memory.limit());
        if let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit > 0) {
            let stats = self.cgroup.stats();
            let held = stats.memory_anon + stats.memory_kernel;
            if held > limit {
                return Err(Fault::FailedPrecondition(format!(
                    "container {} uses {held} bytes of memory that cannot be reclaimed: more than {limit}",
                    self.id
                )));
            }
        }
        Ok(())
    }
}
