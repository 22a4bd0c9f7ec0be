//! A driver for the device in plain memory: split virtqueues (virtio 1.2 §2.7) and raw FUSE messages.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::sync::mpsc::channel;
use std::time::Duration;

use kiai_devices::io_thread::IoThread;
use kiai_devices::virtio::device::Activation;
use kiai_devices::virtio::device::ActiveQueue;
use kiai_devices::virtio::device::VirtioDevice;
use kiai_devices::virtio::device::VirtioInterrupt;
use kiai_fs::Fs;
use virtio_queue::Queue;
use virtio_queue::QueueT;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryAtomic;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

/// Two regions with a hole between them.
pub(crate) const RAM: [(u64, usize); 2] = [(0, 4 << 20), (8 << 20, 4 << 20)];

const SIZE: u16 = 64;
const REQUEST_QUEUE: u16 = 1;
const HIPRIO_RINGS: u64 = 0x1_0000;
const REQUEST_RINGS: u64 = 0x2_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const MESSAGE: u64 = 0x10_0000;
const REPLY: u64 = 9 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What the device said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Used(u16),
    NeedsReset,
}

struct Line(Sender<Event>);

impl VirtioInterrupt for Line {
    fn used_buffers(&self, index: u16) {
        let _ = self.0.send(Event::Used(index));
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        let _ = self.0.send(Event::NeedsReset);
    }
}

/// The driver, the device and the memory between them.
pub(crate) struct Driver {
    pub(crate) device: Fs,
    pub(crate) memory: GuestMemoryAtomic<GuestMemoryMmap>,
    thread: Arc<IoThread>,
    events: Receiver<Event>,
    notification: Arc<EventFd>,
    submitted: u16,
    /// User and group of the process whose requests these are.
    pub(crate) user: (u32, u32),
    unique: u64,
}

impl Driver {
    /// A device that shares `directory`, with the driver ready but no FUSE session yet.
    pub(crate) fn without_session(directory: &Path) -> Driver {
        let ranges = RAM.map(|(start, size)| (GuestAddress(start), size));
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let device = Fs::new("shared", directory).unwrap();
        let mut driver = Driver {
            device,
            memory: GuestMemoryAtomic::new(memory),
            thread: Arc::new(IoThread::start("virtio-fs", || Ok(())).unwrap()),
            events: channel().1,
            notification: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            submitted: 0,
            user: (0, 0),
            unique: 1,
        };
        driver.activate();
        driver
    }

    /// The same, after FUSE_INIT.
    pub(crate) fn new(directory: &Path) -> Driver {
        let mut driver = Driver::without_session(directory);
        driver.init().unwrap();
        driver
    }

    /// Resets the device, sets the queues up afresh and activates it.
    pub(crate) fn activate(&mut self) {
        self.device.reset().unwrap();
        let (events_in, events) = channel();
        self.events = events;
        self.submitted = 0;
        let memory = self.memory();
        for rings in [HIPRIO_RINGS, REQUEST_RINGS] {
            memory.write_slice(&[0; 0x9000], GuestAddress(rings)).unwrap();
        }
        let queue = |index, rings, notification| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(rings)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(rings + AVAIL)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(rings + USED)).unwrap();
            queue.set_ready(true);
            ActiveQueue { index, queue, notification }
        };
        let idle = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queues = vec![
            queue(0, HIPRIO_RINGS, idle),
            queue(REQUEST_QUEUE, REQUEST_RINGS, Arc::clone(&self.notification)),
        ];
        self.device
            .activate(Activation {
                memory: self.memory.clone(),
                features: 1 << 32,
                queues,
                interrupt: Arc::new(Line(events_in)),
                threads: vec![self.thread.clone()],
            })
            .unwrap();
    }

    pub(crate) fn memory(&self) -> GuestMemoryMmap {
        (*self.memory.memory()).clone()
    }

    /// What the device says next.
    pub(crate) fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(20)).expect("the device is silent")
    }

    /// Puts one chain of (address, length, flags) on the request queue and notifies.
    pub(crate) fn submit(&mut self, buffers: &[(u64, u32, u16)]) {
        let memory = self.memory();
        for (index, (address, length, flags)) in buffers.iter().enumerate() {
            let last = index + 1 == buffers.len();
            let descriptor = GuestAddress(REQUEST_RINGS + 16 * index as u64);
            memory.write_obj(*address, descriptor).unwrap();
            memory.write_obj(*length, GuestAddress(descriptor.0 + 8)).unwrap();
            let flags = flags | if last { 0 } else { NEXT };
            memory.write_obj(flags, GuestAddress(descriptor.0 + 12)).unwrap();
            memory.write_obj(index as u16 + 1, GuestAddress(descriptor.0 + 14)).unwrap();
        }
        let slot = REQUEST_RINGS + AVAIL + 4 + 2 * u64::from(self.submitted % SIZE);
        memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.submitted = self.submitted.wrapping_add(1);
        self.publish(self.submitted);
    }

    /// Sets the available ring's index, right or wrong, and notifies.
    pub(crate) fn publish(&mut self, index: u16) {
        let address = GuestAddress(REQUEST_RINGS + AVAIL + 2);
        self.memory().store(index, address, std::sync::atomic::Ordering::SeqCst).unwrap();
        self.notification.write(1).unwrap();
    }

    /// Sends `message` as it is, with `room` bytes for the reply; what came back.
    pub(crate) fn exchange(&mut self, message: &[u8], room: u32) -> Vec<u8> {
        let memory = self.memory();
        memory.write_slice(message, GuestAddress(MESSAGE)).unwrap();
        let mut chain = vec![(MESSAGE, message.len() as u32, 0)];
        if room > 0 {
            chain.push((REPLY, room, WRITE));
        }
        self.submit(&chain);
        assert_eq!(self.event(), Event::Used(REQUEST_QUEUE));
        let slot = u64::from(self.submitted.wrapping_sub(1) % SIZE);
        let element = REQUEST_RINGS + USED + 4 + 8 * slot;
        let written: u32 = memory.read_obj(GuestAddress(element + 4)).unwrap();
        assert!(written <= room, "the device wrote {written} bytes into {room}");
        let mut reply = vec![0; written as usize];
        memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        reply
    }

    /// One FUSE request; the reply's body, or the errno.
    pub(crate) fn call(&mut self, opcode: u32, node: u64, body: Body, room: u32) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let length = 40 + body.0.len() as u32;
        let header = Body::new()
            .u32(length)
            .u32(opcode)
            .u64(self.unique)
            .u64(node)
            .u32(self.user.0)
            .u32(self.user.1)
            .u32(1)
            .u32(0);
        let reply = self.exchange(&[header.0, body.0].concat(), 16 + room);
        assert_eq!(u32_at(&reply, 0) as usize, reply.len(), "length in the reply's header");
        assert_eq!(u64_at(&reply, 8), self.unique);
        match u32_at(&reply, 4).cast_signed() {
            0 => Ok(reply[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// FUSE_INIT as Linux 6.12 sends it; the flags agreed on and the largest write.
    pub(crate) fn init(&mut self) -> Result<(u64, u32), i32> {
        let everything = Body::new().u32(7).u32(41).u32(1 << 20).u32(u32::MAX).u32(u32::MAX);
        let reply = self.call(26, 0, everything.zeroes(44), 64)?;
        assert_eq!(u32_at(&reply, 0), 7);
        Ok((u64::from(u32_at(&reply, 12)) | u64::from(u32_at(&reply, 32)) << 32, u32_at(&reply, 20)))
    }
}

/// Bytes of a message, field by field.
#[derive(Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn new() -> Body {
        Body::default()
    }

    pub(crate) fn u32(mut self, value: u32) -> Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `text` and the zero byte that ends it.
    pub(crate) fn name(mut self, text: impl AsRef<[u8]>) -> Body {
        self.0.extend(text.as_ref());
        self.0.push(0);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Body {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn zeroes(mut self, count: usize) -> Body {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}
