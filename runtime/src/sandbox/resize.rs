//! The machine's size follows the limits of its containers: it grows before they rise, shrinks after they fall, and
//! returns to its size before if a step fails.

use std::future::Future;
use std::time::Duration;

use kiai_vmm::MemoryRequestError;
use kiai_vmm::MemorySizes;
use kiai_vmm::VcpuError;
use kiai_vmm::VmHandle;
use tokio::sync::OnceCell;

use super::Sandbox;
use crate::agent::AgentError;
use crate::failure::chain;
use crate::plan::Limits;
use crate::plan::MachineSize;
use crate::plan::PlanError;

/// How long a guest may take to plug memory. It only has to make page structures for it.
const GROWTH: Duration = Duration::from_secs(60);
/// How long to wait for a guest to unplug memory. Memory that it cannot spare by then it unplugs later.
const SHRINKAGE: Duration = Duration::from_secs(10);

/// The guest did not plug the memory it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("the guest plugged {} of {} MiB of memory", sizes.plugged, sizes.requested)]
pub struct GrowError {
    sizes: MemorySizes,
}

/// Why limits were not changed; containers and machine are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The limits need a machine larger than this one can be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The machine has ended, or was built without memory hotplug.
    #[error(transparent)]
    Request(#[from] MemoryRequestError),
    /// The host could not create the vCPUs.
    #[error(transparent)]
    Vcpus(#[from] VcpuError),
    /// The guest did not plug the memory.
    #[error(transparent)]
    Memory(#[from] GrowError),
    /// The guest could not change its CPUs or the limits.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// The CPUs that the guest did not boot with and is to have when a process of a container starts.
pub(super) struct FirstCpus {
    boot: u8,
    wanted: u8,
    online: OnceCell<()>,
}

impl FirstCpus {
    /// Has their vCPUs made, for a guest that boots meanwhile.
    pub(super) fn create(vm: &VmHandle, boot: u8, wanted: u8) -> Self {
        if wanted > boot {
            let vm = vm.clone();
            // An error comes again when they are to come online.
            tokio::task::spawn_blocking(move || vm.create_vcpus(wanted));
        }
        Self { boot, wanted, online: OnceCell::new() }
    }

    async fn online(&self, machine: &impl Resizable) -> Result<(), ResizeError> {
        if self.wanted <= self.boot {
            return Ok(());
        }
        self.online.get_or_try_init(|| more_cpus(machine, self.boot, self.wanted)).await.map(drop)
    }
}

impl Sandbox {
    /// Brings the CPUs online that the guest did not boot with, once. To be called before a process of a container
    /// starts, which must never see fewer.
    pub async fn bring_cpus_online(&self) -> Result<(), ResizeError> {
        self.cpus.online(self).await
    }

    /// Changes the limits of one container from `from` to `to`. `limit(true)` sets the new limits in the guest,
    /// `limit(false)` the old ones.
    pub async fn resize<F: Future<Output = Result<(), AgentError>> + Send>(
        &self,
        from: Limits,
        to: Limits,
        limit: impl Fn(bool) -> F + Sync,
    ) -> Result<(), ResizeError> {
        self.bring_cpus_online().await?;
        let mut pod = self.pod.lock().await;
        let after = pod.moved(from, to);
        let sizes = (self.bounds.size(*pod)?, self.bounds.size(after)?);
        resize(self, sizes, limit).await?;
        *pod = after;
        Ok(())
    }
}

/// A machine whose size can change, with its guest.
trait Resizable: Sync {
    /// Asks the guest to have `mib` MiB of memory.
    fn request_memory(&self, mib: u32) -> Result<(), MemoryRequestError>;
    /// Waits until the guest has the memory it was asked to, but no longer than `patience`.
    fn settled(&self, patience: Duration) -> impl Future<Output = MemorySizes> + Send;
    /// Makes sure that `count` vCPUs exist, which the guest can bring online.
    fn create_vcpus(&self, count: u8) -> impl Future<Output = Result<(), VcpuError>> + Send;
    /// Has the guest bring CPUs online or offline until `count` are online.
    fn online_cpus(&self, count: u8) -> impl Future<Output = Result<(), AgentError>> + Send;
}

impl Resizable for Sandbox {
    fn request_memory(&self, mib: u32) -> Result<(), MemoryRequestError> {
        self.vm.0.request_memory(mib)
    }

    fn settled(&self, patience: Duration) -> impl Future<Output = MemorySizes> + Send {
        settled(&self.vm.0, patience)
    }

    async fn create_vcpus(&self, count: u8) -> Result<(), VcpuError> {
        let vm = self.vm.0.clone();
        let created = tokio::task::spawn_blocking(move || vm.create_vcpus(count)).await;
        created.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    async fn online_cpus(&self, count: u8) -> Result<(), AgentError> {
        self.agent.online_cpus(count).await
    }
}

/// Changes the size from `before` to `after`; the limits change while the machine is large enough for both.
async fn resize<F: Future<Output = Result<(), AgentError>> + Send>(
    machine: &impl Resizable,
    (before, after): (MachineSize, MachineSize),
    limit: impl Fn(bool) -> F + Sync,
) -> Result<(), ResizeError> {
    grow(machine, before, after).await?;
    if let Err(error) = limit(true).await {
        shrink(machine, after, before).await.unwrap_or_else(|error| lost("size of the machine", &error));
        return Err(error.into());
    }
    if let Err(error) = shrink(machine, before, after).await {
        // Some CPUs may be offline already.
        grow(machine, after, before).await.unwrap_or_else(|error| lost("size of the machine", &error));
        limit(false).await.unwrap_or_else(|error| lost("limits of the container", &error));
        shrink(machine, after, before).await.unwrap_or_else(|error| lost("size of the machine", &error));
        return Err(error);
    }
    Ok(())
}

/// Grows from `now` to what is more in `then`; on an error the size is `now` again.
async fn grow(machine: &impl Resizable, now: MachineSize, then: MachineSize) -> Result<(), ResizeError> {
    if then.memory_mib > now.memory_mib {
        machine.request_memory(then.memory_mib)?;
        let sizes = machine.settled(GROWTH).await;
        if sizes.plugged < sizes.requested {
            machine.request_memory(now.memory_mib)?;
            return Err(GrowError { sizes }.into());
        }
    }
    if then.vcpus > now.vcpus
        && let Err(error) = more_cpus(machine, now.vcpus, then.vcpus).await
    {
        if then.memory_mib > now.memory_mib {
            machine.request_memory(now.memory_mib)?;
        }
        return Err(error);
    }
    Ok(())
}

/// Creates vCPUs and brings them online. A vCPU that goes offline again sleeps; it is not destroyed.
async fn more_cpus(machine: &impl Resizable, now: u8, then: u8) -> Result<(), ResizeError> {
    machine.create_vcpus(then).await?;
    if let Err(error) = machine.online_cpus(then).await {
        // Some may have come online.
        machine.online_cpus(now).await.unwrap_or_else(|error| lost("CPUs", &error));
        return Err(error.into());
    }
    Ok(())
}

/// Shrinks from `now` to what is less in `then`. Memory that the guest cannot spare yet is no error.
async fn shrink(machine: &impl Resizable, now: MachineSize, then: MachineSize) -> Result<(), ResizeError> {
    if then.vcpus < now.vcpus {
        machine.online_cpus(then.vcpus).await?;
    }
    if then.memory_mib < now.memory_mib {
        machine.request_memory(then.memory_mib)?;
        let MemorySizes { requested, plugged, .. } = machine.settled(SHRINKAGE).await;
        if plugged > requested {
            tracing::info!("the guest still has {plugged} MiB of memory; {requested} MiB were requested");
        }
    }
    Ok(())
}

/// Waits until the guest has the memory it was asked to have at boot.
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

/// Logs that a step back failed, after an error that the caller returns.
fn lost(item: &str, error: &dyn std::error::Error) {
    tracing::error!("{item} not as before: {}", chain(error));
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// A machine that obeys but for one request, and logs all of them.
    #[derive(Default)]
    struct FakeMachine {
        log: Mutex<Vec<String>>,
        memory: Mutex<u32>,
        /// The amount of memory it always has, whatever is requested.
        stuck_at: Option<u32>,
        /// The number of CPUs it refuses.
        refuses_cpus: Option<u8>,
        /// The host has no more vCPUs than this.
        most_vcpus: Option<u8>,
        /// The guest refuses the limits.
        refuses_limits: bool,
    }

    fn refused() -> AgentError {
        AgentError::Refused { call: "test", code: ttrpc::Code::INTERNAL, message: "no".into() }
    }

    impl Resizable for FakeMachine {
        fn request_memory(&self, mib: u32) -> Result<(), MemoryRequestError> {
            self.log.lock().push(format!("{mib} MiB"));
            *self.memory.lock() = mib;
            Ok(())
        }

        async fn settled(&self, _: Duration) -> MemorySizes {
            let requested = *self.memory.lock();
            let plugged = self.stuck_at.unwrap_or(requested);
            MemorySizes { boot: 256, requested, plugged, most: 4096 }
        }

        async fn create_vcpus(&self, count: u8) -> Result<(), VcpuError> {
            self.log.lock().push(format!("{count} vCPUs"));
            let most = self.most_vcpus.unwrap_or(count);
            if count > most { Err(VcpuError::TooMany { count, most }) } else { Ok(()) }
        }

        async fn online_cpus(&self, count: u8) -> Result<(), AgentError> {
            self.log.lock().push(format!("{count} CPUs"));
            if self.refuses_cpus == Some(count) { Err(refused()) } else { Ok(()) }
        }
    }

    const SMALL: MachineSize = MachineSize { memory_mib: 256, vcpus: 1 };
    const LARGE: MachineSize = MachineSize { memory_mib: 1024, vcpus: 4 };

    /// The requests that the machine got, those for limits among them.
    async fn requests(machine: &FakeMachine, sizes: (MachineSize, MachineSize)) -> (bool, Vec<String>) {
        let limit = |there: bool| async move {
            machine.log.lock().push(if there { "limits".into() } else { "limits back".to_owned() });
            if there && machine.refuses_limits { Err(refused()) } else { Ok(()) }
        };
        let went_well = resize(machine, sizes, limit).await.is_ok();
        (went_well, machine.log.lock().clone())
    }

    #[tokio::test]
    async fn the_machine_is_large_enough_whichever_limits_hold() {
        let (ok, log) = requests(&FakeMachine::default(), (SMALL, LARGE)).await;
        assert_eq!((ok, log.join(", ").as_str()), (true, "1024 MiB, 4 vCPUs, 4 CPUs, limits"));
        let (ok, log) = requests(&FakeMachine::default(), (LARGE, SMALL)).await;
        assert_eq!((ok, log.join(", ").as_str()), (true, "limits, 1 CPUs, 256 MiB"));
        let mixed = MachineSize { memory_mib: 1024, vcpus: 1 };
        let (ok, log) = requests(&FakeMachine::default(), (MachineSize { vcpus: 4, ..SMALL }, mixed)).await;
        assert_eq!((ok, log.join(", ").as_str()), (true, "1024 MiB, limits, 1 CPUs"));
    }

    #[tokio::test]
    async fn what_cannot_grow_is_as_before_and_no_limit_was_changed() {
        let machine = FakeMachine { stuck_at: Some(512), ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (SMALL, LARGE)).await;
        assert_eq!((ok, log.join(", ").as_str()), (false, "1024 MiB, 256 MiB"));
        let machine = FakeMachine { refuses_cpus: Some(4), ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (SMALL, LARGE)).await;
        assert_eq!((ok, log.join(", ").as_str()), (false, "1024 MiB, 4 vCPUs, 4 CPUs, 1 CPUs, 256 MiB"));
        let machine = FakeMachine { most_vcpus: Some(2), ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (SMALL, LARGE)).await;
        assert_eq!((ok, log.join(", ").as_str()), (false, "1024 MiB, 4 vCPUs, 256 MiB"));
    }

    #[tokio::test]
    async fn limits_the_guest_refuses_leave_the_machine_as_it_was() {
        let machine = FakeMachine { refuses_limits: true, ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (SMALL, LARGE)).await;
        assert_eq!(
            (ok, log.join(", ").as_str()),
            (false, "1024 MiB, 4 vCPUs, 4 CPUs, limits, 1 CPUs, 256 MiB")
        );
        let machine = FakeMachine { refuses_limits: true, ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (LARGE, SMALL)).await;
        assert_eq!((ok, log.join(", ").as_str()), (false, "limits"));
    }

    #[tokio::test]
    async fn a_cpu_that_does_not_go_brings_everything_back() {
        let machine = FakeMachine { refuses_cpus: Some(1), ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (LARGE, SMALL)).await;
        assert!(!ok);
        assert_eq!(log.join(", "), "limits, 1 CPUs, 1024 MiB, 4 vCPUs, 4 CPUs, limits back");
    }

    #[tokio::test]
    async fn cpus_the_guest_did_not_boot_with_come_online_once_whoever_asks() {
        let machine = FakeMachine::default();
        let cpus = FirstCpus { boot: 1, wanted: 4, online: OnceCell::new() };
        let (one, other) = tokio::join!(cpus.online(&machine), cpus.online(&machine));
        assert!(one.is_ok() && other.is_ok() && cpus.online(&machine).await.is_ok());
        assert_eq!(machine.log.lock().join(", "), "4 vCPUs, 4 CPUs");
        let all = FirstCpus { boot: 4, wanted: 4, online: OnceCell::new() };
        assert!(all.online(&machine).await.is_ok());
        assert_eq!(machine.log.lock().len(), 2, "a kernel that boots on all of them");
    }

    #[tokio::test]
    async fn a_cpu_that_does_not_come_online_is_an_error_for_each_who_asks() {
        let machine = FakeMachine { refuses_cpus: Some(4), ..FakeMachine::default() };
        let cpus = FirstCpus { boot: 1, wanted: 4, online: OnceCell::new() };
        assert!(cpus.online(&machine).await.is_err() && cpus.online(&machine).await.is_err());
        assert_eq!(machine.log.lock().join(", "), "4 vCPUs, 4 CPUs, 1 CPUs, 4 vCPUs, 4 CPUs, 1 CPUs");
    }

    #[tokio::test]
    async fn memory_the_guest_cannot_spare_yet_is_no_failure() {
        let machine = FakeMachine { stuck_at: Some(1000), ..FakeMachine::default() };
        let (ok, log) = requests(&machine, (LARGE, SMALL)).await;
        assert_eq!((ok, log.join(", ").as_str()), (true, "limits, 1 CPUs, 256 MiB"));
    }
}
