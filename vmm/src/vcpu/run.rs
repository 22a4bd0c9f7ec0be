//! The threads that run vCPUs, and the one place that decides whether they may.
//!
//! ```text
//!              request = Run              request = Pause
//!   parked ───────────────────► in guest ───────────────► parked
//!      └───────────── request = Stop ───────┴──► ended
//! ```
//! Lock order in [`Control`]: `state`, then `kickers`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use kiai_devices::bus::Bus;
use kiai_devices::ioapic::IoApic;
use kvm_ioctls::VcpuExit;
use kvm_ioctls::VcpuFd;
use parking_lot::Condvar;
use parking_lot::Mutex;

use super::kick::Kicker;
use crate::handle::Ending;
use crate::seccomp;

/// KVM_SYSTEM_EVENT types (KVM api.rst 5).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Run,
    Pause,
    Stop,
}

struct State {
    request: Request,
    parked: usize,
    alive: usize,
    ending: Option<Ending>,
}

/// What the vCPU threads have been told, shared with everything that may tell them.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Copy of `request != Run`, for the fast path between two exits.
    leave: AtomicBool,
    kickers: Mutex<Vec<Option<Kicker>>>,
}

impl Control {
    /// For `vcpus` threads, told to pause.
    pub(crate) fn new(vcpus: u8) -> Arc<Self> {
        let state = State { request: Request::Pause, parked: 0, alive: usize::from(vcpus), ending: None };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            leave: AtomicBool::new(true),
            kickers: Mutex::new((0..vcpus).map(|_| None).collect()),
        })
    }

    /// Lets the vCPUs run. False if the machine has ended.
    pub(crate) fn resume(&self) -> bool {
        self.request(Request::Run)
    }

    /// Returns once every vCPU is out of the guest. False if the machine has ended.
    pub(crate) fn pause(&self) -> bool {
        if !self.request(Request::Pause) {
            return false;
        }
        let mut state = self.state.lock();
        while state.ending.is_none() && state.request == Request::Pause && state.parked < state.alive {
            self.changed.wait(&mut state);
        }
        state.ending.is_none()
    }

    /// Ends the machine for good; the first reason given is the one reported. Callable from a vCPU thread.
    pub(crate) fn end(&self, ending: Ending) {
        {
            let mut state = self.state.lock();
            state.ending.get_or_insert(ending);
            state.request = Request::Stop;
            self.leave.store(true, Ordering::SeqCst);
            self.changed.notify_all();
        }
        self.kick();
    }

    /// Blocks until the machine has ended and no vCPU thread touches it any more.
    pub(crate) fn wait(&self) -> Ending {
        let mut state = self.state.lock();
        loop {
            match &state.ending {
                Some(ending) if state.alive == 0 => return ending.clone(),
                _ => self.changed.wait(&mut state),
            }
        }
    }

    /// How it ended, if it has; otherwise whether it may run.
    pub(crate) fn status(&self) -> Result<bool, Ending> {
        let state = self.state.lock();
        match &state.ending {
            Some(ending) => Err(ending.clone()),
            None => Ok(state.request == Request::Run),
        }
    }

    fn request(&self, request: Request) -> bool {
        let mut state = self.state.lock();
        if state.ending.is_some() {
            return false;
        }
        state.request = request;
        self.leave.store(request != Request::Run, Ordering::SeqCst);
        self.changed.notify_all();
        drop(state);
        if request != Request::Run {
            self.kick();
        }
        true
    }

    fn kick(&self) {
        self.kickers.lock().iter().flatten().for_each(Kicker::kick);
    }

    /// Parks the calling vCPU thread until it may run (true) or must end (false).
    fn may_run(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            match state.request {
                Request::Run => return true,
                Request::Stop => return false,
                Request::Pause => {
                    state.parked += 1;
                    self.changed.notify_all();
                    self.changed.wait(&mut state);
                    state.parked -= 1;
                }
            }
        }
    }

    fn thread_ended(&self) {
        let mut state = self.state.lock();
        state.alive -= 1;
        self.changed.notify_all();
    }
}

/// What a vCPU's exits reach.
#[derive(Clone)]
pub(crate) struct Buses {
    pub(crate) mmio: Arc<Bus>,
    pub(crate) pio: Arc<Bus>,
    pub(crate) ioapic: Arc<IoApic>,
}

/// The threads. Dropping ends them.
pub(crate) struct Vcpus {
    control: Arc<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Vcpus {
    /// Starts one thread a vCPU, parked.
    pub(crate) fn spawn(vcpus: Vec<VcpuFd>, control: Arc<Control>, buses: &Buses) -> io::Result<Self> {
        let started = Self { control: control.clone(), threads: Mutex::new(Vec::new()) };
        let count = vcpus.len();
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let thread = Thread { id, vcpu, control: control.clone(), buses: buses.clone() };
            match std::thread::Builder::new().name(format!("vcpu{id}")).spawn(move || thread.main()) {
                Ok(handle) => started.threads.lock().push(handle),
                Err(e) => {
                    // Those that never started count as ended; dropping `started` ends the others.
                    (id..count).for_each(|_| control.thread_ended());
                    return Err(e);
                }
            }
        }
        Ok(started)
    }

    /// Ends all threads and waits for them. Not to be called from one of them.
    pub(crate) fn stop(&self) {
        self.control.end(Ending::Stopped);
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Thread {
    id: usize,
    vcpu: VcpuFd,
    control: Arc<Control>,
    buses: Buses,
}

impl Thread {
    fn main(mut self) {
        let kicker = Kicker::of_this_thread(&mut self.vcpu);
        self.control.kickers.lock()[self.id] = Some(kicker);
        let guard = ThreadEnd { control: self.control.clone(), id: self.id };
        if let Err(e) = seccomp::confine(seccomp::Kind::Vcpu) {
            let reason = format!("vCPU {}: its thread cannot be confined: {e}", self.id);
            self.control.end(Ending::VcpuError(reason));
        }
        while self.control.may_run() {
            if let Some(ending) = self.run_until_told() {
                self.control.end(ending);
            }
        }
        // The kicker goes before the VcpuFd whose memory it points into.
        drop(guard);
    }

    /// Runs guest code until the thread is asked to leave it, or the guest is at an end.
    fn run_until_told(&mut self) -> Option<Ending> {
        while !self.control.leave.load(Ordering::SeqCst) {
            let exit = match self.vcpu.run() {
                Ok(exit) => exit,
                Err(e) if e.errno() == libc::EINTR => {
                    self.vcpu.set_kvm_immediate_exit(0);
                    continue;
                }
                // A vCPU that was just woken by INIT or SIPI.
                Err(e) if e.errno() == libc::EAGAIN => continue,
                Err(e) => return Some(self.failed(format_args!("KVM_RUN: {e}"))),
            };
            let reason = match exit {
                VcpuExit::IoOut(port, data) => {
                    self.buses.pio.write(u64::from(port), data);
                    continue;
                }
                VcpuExit::IoIn(port, data) => {
                    self.buses.pio.read(u64::from(port), data);
                    continue;
                }
                VcpuExit::MmioWrite(address, data) => {
                    self.buses.mmio.write(address, data);
                    continue;
                }
                VcpuExit::MmioRead(address, data) => {
                    self.buses.mmio.read(address, data);
                    continue;
                }
                VcpuExit::IoapicEoi(vector) => {
                    self.buses.ioapic.eoi(vector);
                    continue;
                }
                VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => continue,
                VcpuExit::Shutdown => return Some(Ending::TripleFault),
                VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _) => return Some(Ending::PowerOff),
                VcpuExit::SystemEvent(_, _) => return Some(Ending::Reset),
                VcpuExit::FailEntry(reason, cpu) => {
                    format!("entry into the guest failed with hardware reason {reason:#x} on CPU {cpu}")
                }
                // Most often an instruction that this KVM cannot emulate.
                VcpuExit::InternalError => "KVM internal error (emulation failure?)".to_owned(),
                other => format!("unexpected exit {other:?}"),
            };
            return Some(self.failed(format_args!("{reason}")));
        }
        None
    }

    fn failed(&self, reason: std::fmt::Arguments<'_>) -> Ending {
        let place = self.vcpu.get_regs().map(|r| format!(" at {:#x}", r.rip)).unwrap_or_default();
        Ending::VcpuError(format!("vCPU {}{place}: {reason}", self.id))
    }
}

/// Takes a vCPU thread out of the books, also when it unwinds.
struct ThreadEnd {
    control: Arc<Control>,
    id: usize,
}

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        self.control.kickers.lock()[self.id] = None;
        if std::thread::panicking() {
            self.control.end(Ending::VcpuError(format!("vCPU {}: its thread panicked", self.id)));
        }
        self.control.thread_ended();
    }
}
