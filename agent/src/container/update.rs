//! New limits and device rules for a container: all of them, or all is as it was.

use anyhow::Context;
use oci_spec::runtime::LinuxResources;

use super::devices::InForce;
use super::state::Container;
use crate::fault::Fault;
use crate::fault::Result;

impl Container {
    /// Sets limits, and with new device rules, which are the host's, what it may do with devices; blocking. Rules are
    /// checked as when the container was made. A memory limit below what the container cannot do without would be the
    /// end of one of its processes, so it is refused.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.check_memory(resources)?;
        let change = self.devices.change_blocking();
        // Whatever can be refused is, before anything changes.
        let rules = resources.devices().as_deref().filter(|rules| !rules.is_empty());
        let inventory = rules.map(|rules| change.inventory().with_rules(rules)).transpose()?;
        let loaded = inventory.map(|inventory| InForce::load(inventory.into())).transpose()?;
        let limits =
            self.cgroup.limits().with_context(|| format!("read the limits of container {}", self.id))?;
        let updated = self.cgroup.update(resources).with_context(|| format!("update container {}", self.id));
        let updated = updated.map_err(Fault::Internal);
        // The rules are last: they are in force, or those that were.
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
