//! A vCPU of KVM: what its exits lead to.

use std::sync::Arc;
use std::sync::mpsc;

use kiai_devices::bus::Bus;
use kiai_devices::ioapic::IoApic;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;
use kvm_ioctls::VcpuFd;

use super::actor::Cpu;
use super::kick::Kicker;
use super::state::Bare;
use crate::handle::Ending;
use crate::kvm::KvmError;
use crate::memory::Reservation;
use crate::seccomp;

/// KVM_SYSTEM_EVENT types (KVM api.rst 5).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;

/// What a vCPU's exits reach.
#[derive(Clone)]
pub(crate) struct Buses {
    pub(crate) mmio: Arc<Bus>,
    pub(crate) pio: Arc<Bus>,
    pub(crate) ioapic: Arc<IoApic>,
    /// Stays mapped for a vCPU that outlives its machine. Last: the others reach it.
    pub(crate) _ram: Arc<Reservation>,
}

/// Where an answer goes.
pub(crate) type Answer<T> = mpsc::Sender<Result<T, KvmError>>;

/// What a vCPU can be asked, in the guest or not, and where the answer goes.
pub(crate) enum Question {
    /// The general registers.
    Registers(Answer<kvm_regs>),
    /// Takes these instead.
    SetRegisters(Box<kvm_regs>, Answer<()>),
    /// All there is to it, these model-specific registers included.
    Save(Arc<[u32]>, Answer<Box<Bare>>),
}

/// A vCPU and what it needs to run.
pub(crate) struct KvmCpu {
    pub(super) id: u8,
    pub(super) vcpu: VcpuFd,
    pub(super) buses: Buses,
}

impl Cpu for KvmCpu {
    type Kicker = Kicker;
    type Question = Question;

    fn begin(&mut self) -> Result<Kicker, Ending> {
        let kicker = Kicker::of_this_thread(&mut self.vcpu);
        seccomp::confine(seccomp::Kind::Vcpu).map_err(|e| {
            Ending::VcpuError(format!("vCPU {}: its thread cannot be confined: {e}", self.id))
        })?;
        Ok(kicker)
    }

    /// No exit is followed by anything but the next KVM_RUN, which finishes what the exit began: only after that
    /// the registers are those of a place between two instructions (KVM api.rst 5, KVM_EXIT_IO).
    fn run(&mut self) -> Option<Ending> {
        loop {
            let exit = match self.vcpu.run() {
                Ok(exit) => exit,
                Err(e) if e.errno() == libc::EINTR => {
                    // Before the mailbox is looked at: a kick that comes from now on stays.
                    self.vcpu.set_kvm_immediate_exit(0);
                    return None;
                }
                // A vCPU that was just woken by INIT or SIPI.
                Err(e) if e.errno() == libc::EAGAIN => continue,
                Err(e) => return Some(self.failed(format_args!("KVM_RUN: {e}"))),
            };
            match exit {
                VcpuExit::IoOut(port, data) => self.buses.pio.write(u64::from(port), data),
                VcpuExit::IoIn(port, data) => self.buses.pio.read(u64::from(port), data),
                VcpuExit::MmioWrite(address, data) => self.buses.mmio.write(address, data),
                VcpuExit::MmioRead(address, data) => self.buses.mmio.read(address, data),
                VcpuExit::IoapicEoi(vector) => self.buses.ioapic.eoi(vector),
                VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
                VcpuExit::Shutdown => return Some(Ending::TripleFault),
                VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _) => return Some(Ending::PowerOff),
                VcpuExit::SystemEvent(_, _) => return Some(Ending::Reset),
                other => {
                    let reason = reason(&other);
                    return Some(self.failed(format_args!("{reason}")));
                }
            }
        }
    }

    fn parked(&mut self) {
        // Tells the guest's watchdogs that time passed without it. A guest that has no kvmclock (yet) is not
        // told, which is how KVM refuses.
        let _ = self.vcpu.kvmclock_ctrl();
    }

    fn answer(&mut self, question: Question) {
        // Whoever asked may have gone.
        match question {
            Question::Registers(answer) => {
                let registers = self.vcpu.get_regs().map_err(KvmError::at("get registers"));
                let _ = answer.send(registers);
            }
            Question::SetRegisters(registers, answer) => {
                let set = self.vcpu.set_regs(&registers).map_err(KvmError::at("set registers"));
                let _ = answer.send(set);
            }
            Question::Save(msrs, answer) => {
                let _ = answer.send(Bare::of(&self.vcpu, &msrs).map(Box::new));
            }
        }
    }
}

impl KvmCpu {
    fn failed(&self, reason: std::fmt::Arguments<'_>) -> Ending {
        let place = self.vcpu.get_regs().map(|r| format!(" at {:#x}", r.rip)).unwrap_or_default();
        Ending::VcpuError(format!("vCPU {}{place}: {reason}", self.id))
    }
}

/// Why the guest cannot go on after such an exit.
fn reason(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::FailEntry(reason, cpu) => {
            format!("entry into the guest failed with hardware reason {reason:#x} on CPU {cpu}")
        }
        // Most often an instruction that this KVM cannot emulate.
        VcpuExit::InternalError => "KVM internal error (emulation failure?)".to_owned(),
        other => format!("unexpected exit {other:?}"),
    }
}
