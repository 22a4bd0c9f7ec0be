//! Takes pages from the queues and gives them back to the host.

use std::io;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use event_manager::EventSet;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryMmap;

use super::BalloonControl;
use super::DEFLATE;
use super::F_MUST_TELL_HOST;
use super::INFLATE;
use super::PAGE;
use super::blocks::Blocks;
use super::blocks::Run;
use super::reclaim::reclaim;
use crate::io_thread::Handler;
use crate::io_thread::Interest;
use crate::log_limit::LogLimit;
use crate::platform::Discards;
use crate::virtio::device::Activation;
use crate::virtio::device::ActiveQueue;
use crate::virtio::queue;
use crate::virtio::queue::Chain;
use crate::virtio::queue::ChainError;

/// Most page numbers in one request: a bound on the work it can ask for. Linux sends 256.
const MOST: usize = 4096;

/// What is on the device's thread.
pub(super) struct Pages {
    queues: Vec<ActiveQueue>,
    activation: Activation,
    host: Host,
    /// With a driver that tells before it takes pages out (MUST_TELL_HOST). One that does not could use what is
    /// collected here already.
    collected: Option<Blocks>,
}

/// The host as pages are given back to it.
struct Host {
    control: BalloonControl,
    discards: Option<Arc<dyn Discards>>,
}

impl Pages {
    pub(super) fn new(
        queues: Vec<ActiveQueue>,
        activation: Activation,
        control: BalloonControl,
        discards: Option<Arc<dyn Discards>>,
    ) -> Self {
        let collected = (activation.features & F_MUST_TELL_HOST != 0).then(Blocks::default);
        Self { queues, activation, host: Host { control, discards }, collected }
    }

    pub(super) fn queues(&self) -> &[ActiveQueue] {
        &self.queues
    }

    fn serve(&mut self, index: u16) -> ControlFlow<()> {
        let Some(queue) = self.queues.iter_mut().find(|queue| queue.index == index) else {
            return ControlFlow::Continue(());
        };
        queue::clear(queue);
        let memory = self.activation.memory.memory();
        let (host, collected) = (&self.host, &mut self.collected);
        let served = queue::serve(queue, &memory, &self.activation.interrupt, |memory, chain| {
            match index {
                INFLATE => inflate(memory, chain, host, collected.as_mut())?,
                // The guest takes pages back by touching them, but not before it has its answer.
                DEFLATE => {
                    let rest = collected.as_mut().map_or_else(Vec::new, Blocks::rest);
                    rest.into_iter().for_each(|run| give_back_pages(memory, run, host));
                }
                _ => report(memory, chain, host)?,
            }
            Ok(0)
        });
        queue::stop_if_malformed("virtio-balloon", served, &self.activation.interrupt)
    }
}

/// Page numbers, 32 bits each (§5.5.6.1).
fn inflate(
    memory: &GuestMemoryMmap,
    chain: Chain<'_>,
    host: &Host,
    collected: Option<&mut Blocks>,
) -> Result<(), ChainError> {
    let mut reader = chain.reader(memory)?;
    let count = reader.available_bytes() / 4;
    if count > MOST {
        return Err(ChainError::Layout("too many page numbers in one request"));
    }
    let mut numbers = vec![0; count];
    for number in &mut numbers {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(ChainError::Memory)?;
        *number = u32::from_le_bytes(bytes);
    }
    numbers.sort_unstable();
    numbers.dedup();
    // Pages that follow each other, in whatever order the guest has them, are one system call.
    let runs: Vec<Run> = numbers
        .chunk_by(|&page, &next| next - page == 1)
        .map(|run| u64::from(run[0])..u64::from(run[run.len() - 1]) + 1)
        .collect();
    for run in &runs {
        check(memory, run.start * PAGE, (run.end - run.start) * PAGE)?;
    }
    let back = collected.map_or(runs, |collected| collected.add(&numbers));
    back.into_iter().for_each(|run| give_back_pages(memory, run, host));
    Ok(())
}

/// Free memory as device-writable buffers (§5.5.6.7).
fn report(memory: &GuestMemoryMmap, chain: Chain<'_>, host: &Host) -> Result<(), ChainError> {
    for descriptor in chain {
        if !descriptor.is_write_only() {
            return Err(ChainError::Layout("free pages that the device may not write"));
        }
        let (start, length) = (descriptor.addr().0, u64::from(descriptor.len()));
        check(memory, start, length)?;
        give_back(memory, start, length, host);
    }
    Ok(())
}

fn check(memory: &GuestMemoryMmap, start: u64, length: u64) -> Result<(), ChainError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let is_ram = vm_memory::GuestMemoryBackend::check_range(memory, vm_memory::GuestAddress(start), length);
    if is_ram { Ok(()) } else { Err(ChainError::Layout("pages that are not RAM")) }
}

/// Pages that were checked.
fn give_back_pages(memory: &GuestMemoryMmap, run: Run, host: &Host) {
    give_back(memory, run.start * PAGE, (run.end - run.start) * PAGE, host);
}

/// `start` and `length` were checked.
fn give_back(memory: &GuestMemoryMmap, start: u64, length: u64, host: &Host) {
    match host.reclaim(memory, start, length) {
        Ok(bytes) => host.control.count_returned(bytes),
        // The host keeps memory it could have had; the guest has done its part.
        Err(e) => {
            static REPORTS: LogLimit = LogLimit::new();
            if REPORTS.allows() {
                tracing::warn!("virtio-balloon: {start:#x}+{length:#x} stays: {e}");
            }
        }
    }
}

impl Host {
    fn reclaim(&self, memory: &GuestMemoryMmap, start: u64, length: u64) -> io::Result<u64> {
        // Pinned: nothing is given back.
        let mut reclaimed = Ok(0);
        let mut discard = || reclaimed = reclaim(memory, start, length);
        match &self.discards {
            Some(discards) => {
                discards.discard(&mut discard);
            }
            None => discard(),
        }
        reclaimed
    }
}

impl Handler for Pages {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        let indices: Vec<_> = self.queues.iter().map(|queue| queue.index).collect();
        indices.into_iter().try_for_each(|index| self.serve(index))
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        u16::try_from(token).map_or(ControlFlow::Continue(()), |index| self.serve(index))
    }
}
