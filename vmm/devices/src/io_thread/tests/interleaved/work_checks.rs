//! A device's thread that is notified, asks for more of its own time and is stopped, in many orders.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::EventSet;
use kiai_interleave::check;
use kiai_interleave::shuttle::rand::Rng;
use kiai_interleave::shuttle::rand::thread_rng;
use kiai_interleave::shuttle::sync::atomic::AtomicBool;
use kiai_interleave::shuttle::sync::atomic::AtomicUsize;
use kiai_interleave::shuttle::sync::atomic::Ordering::SeqCst;

use super::Handler;
use super::Interest;
use super::IoThread;
use super::Running;
use super::os::EventFd;
use super::os::thread;

const INPUT: u32 = 0;

/// A queue in shared memory: how much was put in and taken out, and who is told.
struct Queue {
    available: AtomicUsize,
    used: AtomicUsize,
    /// For the device: there is more.
    notification: EventFd,
    /// For the driver: something was taken.
    interrupt: EventFd,
}

impl Queue {
    fn new() -> Arc<Self> {
        let event = || EventFd::new(0).unwrap();
        let (available, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { available, used, notification: event(), interrupt: event() })
    }

    /// What a driver does.
    fn offer(&self) {
        self.available.fetch_add(1, SeqCst);
        self.notification.write(1).unwrap();
    }
}

/// A device that takes `budget` entries at a time.
struct Device {
    queue: Arc<Queue>,
    taken: usize,
    budget: usize,
    /// It is broken after this many entries.
    fails_after: usize,
    /// It panics over this one.
    panics_over: usize,
    gone: Arc<AtomicBool>,
}

impl Device {
    fn new(queue: &Arc<Queue>, budget: usize) -> Self {
        Self {
            queue: queue.clone(),
            taken: 0,
            budget,
            fails_after: usize::MAX,
            panics_over: usize::MAX,
            gone: Arc::default(),
        }
    }

    fn begin(self) -> Running<Self> {
        let notification = self.queue.notification.as_raw_fd();
        Running::begin(self, &[(notification, INPUT)])
    }

    fn on(self, thread: &Arc<IoThread>) -> Running<Self> {
        let notification = self.queue.notification.as_raw_fd();
        Running::on(thread, self, &[(notification, INPUT)])
    }

    fn work(&mut self, interest: &Interest<'_>) -> ControlFlow<()> {
        let available = self.queue.available.load(SeqCst);
        let count = self.budget.min(available - self.taken);
        self.taken += count;
        assert!(self.taken < self.panics_over, "told to");
        if self.taken < available {
            interest.again();
        }
        if count > 0 {
            self.queue.used.store(self.taken, SeqCst);
            self.queue.interrupt.write(1).unwrap();
        }
        if self.taken >= self.fails_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Handler for Device {
    fn start(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.work(interest)
    }

    fn ready(&mut self, token: u32, _: EventSet, interest: &mut Interest<'_>) -> ControlFlow<()> {
        assert_eq!(token, INPUT);
        let _ = self.queue.notification.read();
        self.work(interest)
    }

    fn again(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.work(interest)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.gone.store(true, SeqCst);
    }
}

#[test]
fn what_was_notified_of_before_the_stop_is_taken() {
    check(|| {
        let queue = Queue::new();
        let running = Device::new(&queue, usize::MAX).begin();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..2).for_each(|_| other.offer()));
        for _ in 0..2 {
            queue.offer();
        }
        // As a vCPU does that notifies of the guest's last words and then resets the device.
        let device = running.stop().unwrap();
        assert!(device.taken >= 2, "{} of 2", device.taken);
        driver.join().unwrap();
    });
}

#[test]
fn a_queue_is_emptied_a_part_at_a_time_without_a_further_word_of_the_driver() {
    check(|| {
        let queue = Queue::new();
        queue.offer();
        let running = Device::new(&queue, 1).begin();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..3).for_each(|_| other.offer()));
        while queue.used.load(SeqCst) < 4 {
            queue.interrupt.wait();
        }
        driver.join().unwrap();
        assert!(running.stop().is_some());
    });
}

#[test]
fn nothing_is_lost_of_what_is_told_around_a_pause() {
    check(|| {
        let queue = Queue::new();
        let mut running = Device::new(&queue, 1).begin();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..3).for_each(|_| other.offer()));
        running.pause_and_resume();
        while queue.used.load(SeqCst) < 3 {
            queue.interrupt.wait();
        }
        driver.join().unwrap();
        assert_eq!(running.stop().unwrap().taken, 3);
    });
}

#[test]
fn a_thread_can_be_stopped_whenever_and_is_gone_then() {
    check(|| {
        let queue = Queue::new();
        let gone = Arc::<AtomicBool>::default();
        let fails_after = thread_rng().gen_range(0..4);
        let mut device = Device::new(&queue, 1);
        (device.fails_after, device.gone) = (fails_after, gone.clone());
        let running = device.begin();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..2).for_each(|_| other.offer()));
        if thread_rng().gen_bool(0.5) {
            let device = running.stop().unwrap();
            assert!(device.taken <= 2 && !gone.load(SeqCst));
        } else {
            drop(running);
            assert!(gone.load(SeqCst));
        }
        driver.join().unwrap();
    });
}

#[test]
fn devices_of_one_thread_come_and_go_without_each_other() {
    check(|| {
        let io = Arc::new(IoThread::start("shared", || Ok(())).unwrap());
        let (queue, neighbours) = (Queue::new(), Queue::new());
        let neighbour = Device::new(&neighbours, 1).on(&io);
        let mut device = Device::new(&queue, 1);
        device.fails_after = thread_rng().gen_range(1..4);
        let running = device.on(&io);
        let other = queue.clone();
        let driver = thread::spawn(move || {
            (0..2).for_each(|_| other.offer());
            assert!(running.stop().is_some());
        });
        for count in 1..3 {
            neighbours.offer();
            while neighbours.used.load(SeqCst) < count {
                neighbours.interrupt.wait();
            }
        }
        driver.join().unwrap();
        assert_eq!(neighbour.stop().unwrap().taken, 2);
    });
}

#[test]
fn a_panic_is_the_end_of_one_device_of_a_thread() {
    check(|| {
        let io = Arc::new(IoThread::start("shared", || Ok(())).unwrap());
        let (queue, neighbours) = (Queue::new(), Queue::new());
        let mut device = Device::new(&queue, 1);
        let gone = device.gone.clone();
        device.panics_over = 1;
        let running = device.on(&io);
        let neighbour = Device::new(&neighbours, 1).on(&io);
        let driver = thread::spawn(move || {
            queue.offer();
            assert!(running.stop().is_none());
            assert!(gone.load(SeqCst));
        });
        neighbours.offer();
        while neighbours.used.load(SeqCst) < 1 {
            neighbours.interrupt.wait();
        }
        driver.join().unwrap();
        assert!(neighbour.stop().is_some());
    });
}
