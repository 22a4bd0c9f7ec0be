//! A device's thread that is notified, asks for more of its own time and is stopped, in many orders.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kiai_interleave::check;
use kiai_interleave::shuttle::rand::Rng;
use kiai_interleave::shuttle::rand::thread_rng;
use kiai_interleave::shuttle::sync::atomic::AtomicBool;
use kiai_interleave::shuttle::sync::atomic::AtomicUsize;
use kiai_interleave::shuttle::sync::atomic::Ordering::SeqCst;
use vmm_sys_util::epoll::EventSet;

use super::os::EventFd;
use super::os::thread;
use super::worker::Handler;
use super::worker::Interest;
use super::worker::Worker;

const INPUT: u64 = 0;

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
    gone: Arc<AtomicBool>,
}

impl Device {
    fn new(queue: &Arc<Queue>, budget: usize) -> Self {
        Self { queue: queue.clone(), taken: 0, budget, fails_after: usize::MAX, gone: Arc::default() }
    }

    fn spawn(self) -> Worker<Self> {
        let notification = self.queue.notification.as_raw_fd();
        Worker::spawn("device", self, &[(notification, INPUT)]).unwrap()
    }

    fn work(&mut self, interest: &Interest) -> ControlFlow<()> {
        let available = self.queue.available.load(SeqCst);
        let count = self.budget.min(available - self.taken);
        self.taken += count;
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
    fn start(&mut self, interest: &Interest) -> ControlFlow<()> {
        self.work(interest)
    }

    fn ready(&mut self, token: u64, _: EventSet, interest: &Interest) -> ControlFlow<()> {
        assert_eq!(token, INPUT);
        let _ = self.queue.notification.read();
        self.work(interest)
    }

    fn again(&mut self, interest: &Interest) -> ControlFlow<()> {
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
        let worker = Device::new(&queue, usize::MAX).spawn();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..2).for_each(|_| other.offer()));
        for _ in 0..2 {
            queue.offer();
        }
        // As a vCPU does that notifies of the guest's last words and then resets the device.
        let device = worker.stop().unwrap();
        assert!(device.taken >= 2, "{} of 2", device.taken);
        driver.join().unwrap();
    });
}

#[test]
fn a_queue_is_emptied_a_part_at_a_time_without_a_further_word_of_the_driver() {
    check(|| {
        let queue = Queue::new();
        queue.offer();
        let worker = Device::new(&queue, 1).spawn();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..3).for_each(|_| other.offer()));
        while queue.used.load(SeqCst) < 4 {
            queue.interrupt.wait();
        }
        driver.join().unwrap();
        assert!(worker.stop().is_some());
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
        let worker = device.spawn();
        let other = queue.clone();
        let driver = thread::spawn(move || (0..2).for_each(|_| other.offer()));
        if thread_rng().gen_bool(0.5) {
            let device = worker.stop().unwrap();
            assert!(device.taken <= 2 && !gone.load(SeqCst));
        } else {
            drop(worker);
            assert!(gone.load(SeqCst));
        }
        driver.join().unwrap();
    });
}
