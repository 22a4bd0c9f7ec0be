//! Interrupts, doorbells and mappings that keep a record instead of asking a hypervisor.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Condvar;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use crate::io_thread::IoThread;
use crate::platform::Doorbells;
use crate::platform::Interrupts;
use crate::platform::Mapper;
use crate::platform::MsiMessage;
use crate::platform::MsiVector;
use crate::platform::Platform;
use crate::platform::Role;
use crate::platform::Threads;

/// How long a test waits for an interrupt before it gives up. No test waits this long on purpose.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a device asked of its platform, and a way to make the platform refuse.
#[derive(Default)]
pub struct FakePlatform {
    received: Mutex<BTreeMap<MsiMessage, u64>>,
    arrival: Condvar,
    doorbells: Mutex<Vec<(u64, Arc<EventFd>)>>,
    mappings: Mutex<Vec<Mapping>>,
    refusing: Mutex<bool>,
    vectors: Mutex<usize>,
    routes: Mutex<usize>,
    made: Mutex<Vec<Weak<FakeVector>>>,
    shared: Mutex<Option<Arc<IoThread>>>,
    confine: Option<Confine>,
}

/// What a thread of a device begins with.
pub type Confine = fn(Role) -> io::Result<()>;

/// Host memory in the guest's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First guest-physical address.
    pub guest_address: u64,
    /// Where it is in this process.
    pub host_address: u64,
    /// Bytes.
    pub length: u64,
    /// The guest may not write.
    pub read_only: bool,
}

impl FakePlatform {
    /// Nothing asked yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Nothing asked yet; each device's thread begins with `confine`.
    pub fn confined(confine: Confine) -> Arc<Self> {
        Arc::new(Self { confine: Some(confine), ..Self::default() })
    }

    /// As devices see it.
    pub fn platform(self: &Arc<Self>) -> Platform {
        let interrupts = Arc::new(FakeInterrupts(self.clone()));
        Platform { interrupts, doorbells: self.clone(), mapper: self.clone(), threads: self.clone() }
    }

    /// From now on routes, doorbells and mappings are refused (or not any more).
    pub fn refuse(&self, refuse: bool) {
        *self.refusing.lock() = refuse;
    }

    /// Waits for the interrupt `message` and takes one of it. Panics when it does not come.
    pub fn wait_for(&self, message: MsiMessage) {
        self.wait_for_any(&[message]);
    }

    /// Waits for one of several interrupts and takes it. Panics when none comes.
    pub fn wait_for_any(&self, messages: &[MsiMessage]) {
        let deadline = Instant::now() + PATIENCE;
        let mut received = self.received.lock();
        while !messages.iter().any(|message| take(&mut received, *message)) {
            let late = self.arrival.wait_until(&mut received, deadline).timed_out();
            assert!(!late, "none of the interrupts {messages:x?}; received: {received:x?}");
        }
    }

    /// Takes one interrupt `message` if it has come.
    pub fn take(&self, message: MsiMessage) -> bool {
        take(&mut self.received.lock(), message)
    }

    /// How many of `message` have come and were not taken.
    pub fn count(&self, message: MsiMessage) -> u64 {
        self.received.lock().get(&message).copied().unwrap_or(0)
    }

    /// Every message that has come and was not taken.
    pub fn received(&self) -> Vec<MsiMessage> {
        self.received.lock().keys().copied().collect()
    }

    /// Rings the doorbell at `address`, if there is one: the write then never reaches the bus.
    pub fn ring(&self, address: u64) -> bool {
        let doorbells = self.doorbells.lock();
        let rung = doorbells.iter().filter(|(at, _)| *at == address);
        rung.inspect(|(_, event)| event.write(1).unwrap()).count() > 0
    }

    /// Addresses of all doorbells, sorted.
    pub fn doorbells(&self) -> Vec<u64> {
        let mut addresses: Vec<_> = self.doorbells.lock().iter().map(|(address, _)| *address).collect();
        addresses.sort_unstable();
        addresses
    }

    /// All mappings, in the order in which they were made.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.mappings.lock().clone()
    }

    /// Interrupt vectors alive.
    pub fn vectors(&self) -> usize {
        *self.vectors.lock()
    }

    /// Does what an irqfd does: each vector whose eventfd was signalled and that is routed sends its message.
    pub fn deliver(&self) {
        for vector in self.made.lock().iter().filter_map(Weak::upgrade) {
            if vector.routed.lock().is_some() && vector.event.read().is_ok() {
                vector.trigger().unwrap();
            }
        }
    }

    /// How often a vector was given a message.
    pub fn routes(&self) -> usize {
        *self.routes.lock()
    }

    fn refused(&self) -> io::Result<()> {
        if *self.refusing.lock() { Err(io::Error::other("the test refuses")) } else { Ok(()) }
    }
}

fn take(received: &mut BTreeMap<MsiMessage, u64>, message: MsiMessage) -> bool {
    match received.get_mut(&message) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}

impl Doorbells for FakePlatform {
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.refused()?;
        let mut doorbells = self.doorbells.lock();
        assert!(doorbells.iter().all(|(at, _)| *at != address), "two doorbells at {address:#x}");
        doorbells.push((address, Arc::new(event.try_clone()?)));
        Ok(())
    }

    fn remove(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock();
        let found = doorbells.iter().position(|(at, _)| *at == address);
        let at = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        doorbells.remove(at);
        Ok(())
    }
}

impl Mapper for FakePlatform {
    fn map(&self, guest_address: u64, host_address: u64, length: u64, read_only: bool) -> io::Result<()> {
        self.refused()?;
        let mut mappings = self.mappings.lock();
        let overlap = mappings
            .iter()
            .any(|m| guest_address < m.guest_address + m.length && m.guest_address < guest_address + length);
        assert!(!overlap, "{guest_address:#x}+{length:#x} overlaps {mappings:x?}");
        mappings.push(Mapping { guest_address, host_address, length, read_only });
        Ok(())
    }

    fn unmap(&self, guest_address: u64, length: u64) -> io::Result<()> {
        let mut mappings = self.mappings.lock();
        let found = mappings.iter().position(|m| (m.guest_address, m.length) == (guest_address, length));
        let at = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        mappings.remove(at);
        Ok(())
    }
}

impl Threads for FakePlatform {
    fn thread(&self, role: Role) -> io::Result<Arc<IoThread>> {
        let confine = self.confine.unwrap_or(|_| Ok(()));
        let start = || IoThread::start(role.name(), move || confine(role)).map(Arc::new);
        if role != Role::Shared {
            return start();
        }
        let mut shared = self.shared.lock();
        let thread = shared.clone().map_or_else(start, Ok)?;
        *shared = Some(thread.clone());
        Ok(thread)
    }
}

struct FakeInterrupts(Arc<FakePlatform>);

impl Interrupts for FakeInterrupts {
    fn vectors(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        self.0.refused()?;
        let vector = |_| {
            *self.0.vectors.lock() += 1;
            let event = EventFd::new(EFD_NONBLOCK)?;
            let vector = Arc::new(FakeVector { platform: self.0.clone(), routed: Mutex::new(None), event });
            self.0.made.lock().push(Arc::downgrade(&vector));
            Ok(vector as Arc<dyn MsiVector>)
        };
        (0..count).map(vector).collect()
    }

    fn ioapic_pin(&self, _: u8) -> io::Result<Arc<dyn MsiVector>> {
        Ok(self.vectors(1)?.remove(0))
    }
}

struct FakeVector {
    platform: Arc<FakePlatform>,
    routed: Mutex<Option<MsiMessage>>,
    event: EventFd,
}

impl MsiVector for FakeVector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        if message.is_some() {
            self.platform.refused()?;
            *self.platform.routes.lock() += 1;
        }
        *self.routed.lock() = message;
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        if let Some(message) = *self.routed.lock() {
            *self.platform.received.lock().entry(message).or_default() += 1;
            self.platform.arrival.notify_all();
        }
        Ok(())
    }

    fn eventfd(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for FakeVector {
    fn drop(&mut self) {
        *self.platform.vectors.lock() -= 1;
    }
}
