//! The machine follows what its containers may use: larger before they may use more, smaller after they may use
//! less, as before if any step fails.

use std::future::Future;
use std::time::Duration;

use kiai_vmm::MemoryRequestError;
use kiai_vmm::MemorySizes;
use kiai_vmm::VmHandle;

use super::Sandbox;
use crate::agent::AgentError;
use crate::failure::chain;
use crate::plan::Limits;
use crate::plan::MachineSize;
use crate::plan::PlanError;

/// How long a guest may take to plug the memory it is given. It has to make page structures of it, no more.
const GROWTH: Duration = Duration::from_secs(60);
/// How long is waited for a guest to give memory up. What it cannot spare by then it gives up later, when it can.
const SHRINKAGE: Duration = Duration::from_secs(10);

/// The guest did not plug the memory it was given.
#[derive(Debug, thiserror::Error)]
#[error("the guest took {} of {} MiB of memory", sizes.plugged, sizes.requested)]
pub struct GrowError {
    sizes: MemorySizes,
}

/// Why limits were not changed: containers and machine are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// More than the machine can have.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The machine is over, or was not built for it.
    #[error(transparent)]
    Request(#[from] MemoryRequestError),
    /// The guest's part: memory.
    #[error(transparent)]
    Memory(#[from] GrowError),
    /// The guest's part: CPUs and limits.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Sandbox {
    /// Changes what one of the containers may use from `from` to `to`. `limit` says so to the guest, with true,
    /// and takes it back with false.
    pub async fn resize<F: Future<Output = Result<(), AgentError>>>(
        &self,
        from: Limits,
        to: Limits,
        limit: impl Fn(bool) -> F,
    ) -> Result<(), ResizeError> {
        let mut pod = self.pod.lock().await;
        let after = pod.moved(from, to);
        let (small, large) = (self.bounds.size(*pod)?, self.bounds.size(after)?);
        self.grow(small, large).await?;
        if let Err(error) = limit(true).await {
            self.shrink(large, small).await.unwrap_or_else(|error| lost("size of the machine", &error));
            return Err(error.into());
        }
        if let Err(error) = self.shrink(small, large).await {
            limit(false).await.unwrap_or_else(|error| lost("limits of the container", &error));
            self.shrink(large, small).await.unwrap_or_else(|error| lost("size of the machine", &error));
            return Err(error);
        }
        *pod = after;
        Ok(())
    }

    /// From `now` to whatever is more in `then`; on an error it is `now` again.
    async fn grow(&self, now: MachineSize, then: MachineSize) -> Result<(), ResizeError> {
        if then.memory_mib > now.memory_mib {
            self.vm.0.request_memory(then.memory_mib)?;
            if let Err(error) = grown(&self.vm.0).await {
                self.vm.0.request_memory(now.memory_mib)?;
                return Err(error.into());
            }
        }
        if then.vcpus > now.vcpus
            && let Err(error) = self.agent.online_cpus(then.vcpus).await
        {
            // Some may have come online.
            self.agent.online_cpus(now.vcpus).await.unwrap_or_else(|error| lost("CPUs", &error));
            if then.memory_mib > now.memory_mib {
                self.vm.0.request_memory(now.memory_mib)?;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// From `now` to whatever is less in `then`. The guest gives memory up as it can spare it: that is waited for
    /// a while, and no error.
    async fn shrink(&self, now: MachineSize, then: MachineSize) -> Result<(), ResizeError> {
        if then.vcpus < now.vcpus {
            self.agent.online_cpus(then.vcpus).await?;
        }
        if then.memory_mib < now.memory_mib {
            self.vm.0.request_memory(then.memory_mib)?;
            let MemorySizes { requested, plugged, .. } = settled(&self.vm.0, SHRINKAGE).await;
            if plugged > requested {
                tracing::info!("the guest still has {plugged} MiB of memory, and is to have {requested}");
            }
        }
        Ok(())
    }
}

/// Waits until the guest has the memory it is to have.
pub(super) async fn grown(vm: &VmHandle) -> Result<(), GrowError> {
    let sizes = settled(vm, GROWTH).await;
    if sizes.plugged < sizes.requested { Err(GrowError { sizes }) } else { Ok(()) }
}

async fn settled(vm: &VmHandle, patience: Duration) -> MemorySizes {
    let now = vm.memory();
    if now.plugged == now.requested {
        return now;
    }
    let waiting = vm.clone();
    let settled = tokio::task::spawn_blocking(move || waiting.await_memory(patience)).await;
    settled.unwrap_or_else(|_| vm.memory())
}

/// What could not be put back as it was, after an error that is told to the caller.
fn lost(what: &str, error: &dyn std::error::Error) {
    tracing::error!("{what} not as before: {}", chain(error));
}
