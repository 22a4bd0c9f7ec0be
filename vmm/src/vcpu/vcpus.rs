//! All vCPUs of a machine: made for its start and when it grows, joined at its end.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use parking_lot::Mutex;
use vm_memory::GuestMemoryMmap;

use super::Control;
use super::actor::Actor;
use super::run::Answer;
use super::run::Buses;
use super::run::KvmCpu;
use super::run::Question;
use super::setup::Maker;
use super::setup::SetupError;
use super::state::VcpuState;
use super::state::host_tsc;
use super::state::saved_msrs;
use crate::boot::Entry;
use crate::handle::Ending;
use crate::kvm::KvmError;

/// How long a stop waits for a vCPU that does not leave what it does for the guest.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there are no more vCPUs; those that were there still are.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The machine is over.
    #[error("the microVM has ended: {0}")]
    Ended(Ending),
    /// The guest's tables have no room for them.
    #[error("{count} vCPUs: this microVM can have {most}")]
    TooMany {
        /// Asked for.
        count: u8,
        /// At most.
        most: u8,
    },
    /// One could not be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// There is none of this number, or its thread has ended.
    #[error("there is no vCPU {0}")]
    None(u8),
    /// KVM refused what was asked of one.
    #[error("vCPU {id}")]
    Kvm {
        /// Which vCPU.
        id: u8,
        /// What was refused.
        #[source]
        source: KvmError,
    },
    /// The host gave no thread.
    #[error("thread of vCPU {id}")]
    Thread {
        /// Which vCPU.
        id: u8,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The threads. Dropping ends them.
pub(crate) struct Vcpus {
    maker: Maker,
    control: Arc<Control>,
    buses: Buses,
    /// By vCPU; empty after the end.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Vcpus {
    /// The first vCPU, about to start at the entry into `memory`, does as `control` says.
    pub(crate) fn start(
        maker: Maker,
        control: Arc<Control>,
        buses: Buses,
        (memory, entry): (&GuestMemoryMmap, Entry),
    ) -> Result<Self, VcpuError> {
        let first = maker.make_first(memory, entry)?;
        let vcpus = Self { maker, control, buses, threads: Mutex::default() };
        let thread = vcpus.spawn(0, first)?;
        vcpus.threads.lock().push(thread);
        Ok(vcpus)
    }

    /// Makes vCPUs until there are `count`. They wait for the guest to start them.
    pub(crate) fn grow(&self, count: u8) -> Result<(), VcpuError> {
        let most = self.maker.most();
        if count > most {
            return Err(VcpuError::TooMany { count, most });
        }
        let mut threads = self.threads.lock();
        self.control.status().map_err(VcpuError::Ended)?;
        for id in (0..count).skip(threads.len()) {
            let vcpu = self.maker.make(id)?;
            threads.push(self.spawn(id, vcpu)?);
        }
        Ok(())
    }

    /// Those that were saved when the host's counter was at `tsc`, about to go on, do as `control` says.
    pub(crate) fn restore(
        maker: Maker,
        control: Arc<Control>,
        buses: Buses,
        (states, tsc): (&[VcpuState], u64),
    ) -> Result<Self, VcpuError> {
        // The same for all: their counters are to agree.
        let elapsed = host_tsc().wrapping_sub(tsc);
        let vcpus = Self { maker, control, buses, threads: Mutex::default() };
        for (id, state) in (0..).zip(states) {
            if state.topology != vcpus.maker.topology(id) {
                return Err(VcpuError::None(id));
            }
            let vcpu = vcpus.maker.make_saved(state, elapsed)?;
            let thread = vcpus.spawn(id, vcpu)?;
            vcpus.threads.lock().push(thread);
        }
        Ok(vcpus)
    }

    /// All there is to each vCPU. They are to be parked: each is asked by itself.
    pub(crate) fn save(&self) -> Result<Vec<VcpuState>, VcpuError> {
        let count = u8::try_from(self.threads.lock().len()).expect("at most 64");
        let msrs = saved_msrs().map_err(|source| VcpuError::Kvm { id: 0, source })?;
        let msrs: Arc<[u32]> = msrs.into();
        let save = |id| {
            let bare = self.ask(id, |answer| Question::Save(msrs.clone(), answer))?;
            let topology = self.maker.topology(id);
            Ok(bare.with(topology, self.maker.cpuid(topology)))
        };
        (0..count).map(save).collect()
    }

    pub(crate) fn registers(&self, id: u8) -> Result<kvm_regs, VcpuError> {
        self.ask(id, Question::Registers)
    }

    pub(crate) fn set_registers(&self, id: u8, registers: kvm_regs) -> Result<(), VcpuError> {
        self.ask(id, |answer| Question::SetRegisters(Box::new(registers), answer))
    }

    fn ask<T>(&self, id: u8, question: impl FnOnce(Answer<T>) -> Question) -> Result<T, VcpuError> {
        let (answer, answered) = mpsc::channel();
        self.control.ask(id, question(answer));
        let answered = answered.recv().map_err(|_| VcpuError::None(id))?;
        answered.map_err(|source| VcpuError::Kvm { id, source })
    }

    fn spawn(&self, id: u8, vcpu: VcpuFd) -> Result<JoinHandle<()>, VcpuError> {
        let cpu = KvmCpu { id, vcpu, buses: self.buses.clone() };
        let actor = Actor::new(self.control.seat(id), cpu);
        std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || actor.live())
            .map_err(|source| VcpuError::Thread { id, source })
    }

    /// Ends all threads and waits for them. Not to be called from one of them. False if one hangs: it is left to
    /// itself, with what it can reach.
    pub(crate) fn stop(&self) -> bool {
        self.control.end(Ending::Stopped);
        let threads = std::mem::take(&mut *self.threads.lock());
        // Those that hung before are not waited for again.
        let patience = if threads.is_empty() { Duration::ZERO } else { PATIENCE };
        let hung = self.control.wait_until(Instant::now() + patience);
        if !hung.is_empty() {
            tracing::error!("the threads of vCPUs {hung:?} hang: they are left behind");
            return false;
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
        true
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kiai_devices::bus::Bus;
    use kiai_devices::ioapic::IoApic;
    use vm_memory::GuestAddress;
    use vm_memory::GuestAddressSpace;

    use super::*;
    use crate::boot::Protocol;
    use crate::kvm;
    use crate::memory;
    use crate::seccomp;

    const START: u64 = 0x10_0000;

    /// One vCPU of at most `most`, or none where there is no KVM. None of them enters the guest here: what stands
    /// for a machine's KVM need not be able to.
    fn vcpus(most: u8) -> Option<Vcpus> {
        if !std::path::Path::new("/dev/kvm").exists() {
            kiai_skip::skip("no /dev/kvm");
            return None;
        }
        super::super::install_signal_handler().unwrap();
        seccomp::prepare().unwrap();
        let (memory, reservation) = memory::allocate(32, false).unwrap();
        let ram = memory.memory();
        let (kvm, vm) = kvm::open().unwrap();
        let _slots = kvm::equip(&vm, &memory::regions(&ram)).unwrap();
        let buses = Buses {
            mmio: Arc::new(Bus::new("MMIO")),
            pio: Arc::new(Bus::new("PIO")),
            ioapic: Arc::new(IoApic::new(&kvm::KvmInterrupts::new(vm.clone())).unwrap()),
            _ram: Arc::new(reservation),
        };
        let maker = Maker::new(&kvm, vm, most).unwrap();
        let entry = Entry { address: GuestAddress(START), protocol: Protocol::Pvh };
        Some(Vcpus::start(maker, Control::new(), buses, (&ram, entry)).unwrap())
    }

    /// What the threads of this name have used of a CPU, all together.
    fn cpu_time(thread: &str) -> Duration {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let named =
            tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|c| c.trim() == thread));
        let times = named.map(|task| {
            let times = fs::read_to_string(task.join("schedstat")).unwrap();
            times.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(times.sum())
    }

    #[test]
    fn parked_vcpus_sleep() {
        let Some(vcpus) = vcpus(8) else { return };
        vcpus.grow(8).unwrap();
        vcpus.control.pause();
        // No other test has one of these numbers.
        let used = || (4..8).map(|id| cpu_time(&format!("vcpu{id}"))).sum::<Duration>();
        let before = used();
        assert!(before > Duration::ZERO, "they have not been found");
        std::thread::sleep(Duration::from_secs(1));
        let used = used() - before;
        assert!(used < Duration::from_micros(500), "half of eight vCPUs used {used:?} of a second");
    }

    #[test]
    fn vcpus_are_made_when_they_are_asked_for() {
        let Some(vcpus) = vcpus(3) else { return };
        assert!(matches!(vcpus.registers(1), Err(VcpuError::None(1))));
        vcpus.grow(2).unwrap();
        vcpus.grow(1).unwrap();
        assert!(vcpus.registers(1).is_ok() && vcpus.registers(2).is_err());
        assert!(matches!(vcpus.grow(4), Err(VcpuError::TooMany { count: 4, most: 3 })));
        vcpus.grow(3).unwrap();
        assert!(vcpus.registers(2).is_ok());
        assert!(vcpus.stop());
        assert!(matches!(vcpus.grow(3), Err(VcpuError::Ended(Ending::Stopped))));
        assert!(matches!(vcpus.registers(0), Err(VcpuError::None(0))));
        assert!(vcpus.stop(), "again");
    }

    #[test]
    fn a_vcpu_answers_for_its_registers() {
        let Some(vcpus) = vcpus(1) else { return };
        let registers = vcpus.registers(0).unwrap();
        assert_eq!(registers.rip, START);
        vcpus.set_registers(0, kvm_regs { rax: 42, ..registers }).unwrap();
        assert_eq!(vcpus.registers(0).unwrap(), kvm_regs { rax: 42, ..registers });
    }
}
