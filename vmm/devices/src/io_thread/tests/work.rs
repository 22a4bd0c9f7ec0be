//! A thread and the handlers on it.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use event_manager::EventSet;
use vmm_sys_util::eventfd::EFD_SEMAPHORE;
use vmm_sys_util::eventfd::EventFd;

use crate::io_thread::Handler;
use crate::io_thread::Hung;
use crate::io_thread::Interest;
use crate::io_thread::IoThread;
use crate::io_thread::Pausable;
use crate::io_thread::Work;

fn thread() -> Arc<IoThread> {
    Arc::new(IoThread::start("io", || Ok(())).unwrap())
}

/// Adds up what comes in, and panics over nine.
struct Echo {
    input: EventFd,
    output: EventFd,
    seen: u64,
    stopped: usize,
}

/// The handler and its two ends.
fn echo() -> (Echo, EventFd, EventFd) {
    let (input, output) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let (ours, theirs) = (input.try_clone().unwrap(), output.try_clone().unwrap());
    (Echo { input, output, seen: 0, stopped: 0 }, ours, theirs)
}

fn begin(thread: &Arc<IoThread>, echo: Echo, broken: &Arc<AtomicUsize>) -> Work<Echo> {
    let (mut work, broken) = (Work::default(), broken.clone());
    let descriptors = [(echo.input.as_raw_fd(), 7)];
    let broken = move || _ = broken.fetch_add(1, Ordering::SeqCst);
    work.begin((thread, "echo"), echo, &descriptors, broken).unwrap();
    work
}

impl Handler for Echo {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        assert_eq!((token, self.stopped), (7, 0));
        let seen = self.input.read().unwrap();
        assert_ne!(seen, 9, "told to");
        self.seen += seen;
        self.output.write(1).unwrap();
        if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn stop(&mut self) {
        self.stopped += 1;
        assert_ne!(self.seen, 8, "told to");
    }
}

#[test]
fn the_end_hands_the_handler_back() {
    let (thread, broken) = (thread(), Arc::default());
    for _ in 0..2 {
        let (echo, input, output) = echo();
        let mut work = begin(&thread, echo, &broken);
        input.write(3).unwrap();
        output.read().unwrap();
        let echo = work.end().unwrap().unwrap();
        assert_eq!((echo.seen, echo.stopped), (3, 1));
        assert!(work.end().unwrap().is_none(), "again");
    }
    assert_eq!(broken.load(Ordering::SeqCst), 0);
}

#[test]
fn what_was_said_before_the_end_is_heard() {
    let (thread, broken) = (thread(), Arc::default());
    for _ in 0..100 {
        let (echo, input, _output) = echo();
        let mut work = begin(&thread, echo, &broken);
        input.write(4).unwrap();
        assert_eq!(work.end().unwrap().unwrap().seen, 4);
    }
}

#[test]
fn a_handler_that_is_done_is_called_no_more_and_stopped_once() {
    let (thread, broken) = (thread(), Arc::default());
    let (echo, input, output) = echo();
    let mut work = begin(&thread, echo, &broken);
    input.write(5).unwrap();
    output.read().unwrap();
    input.write(2).unwrap();
    let echo = work.end().unwrap().unwrap();
    assert_eq!((echo.seen, echo.stopped, broken.load(Ordering::SeqCst)), (5, 1, 0));
}

#[test]
fn a_paused_handler_goes_on_and_one_that_has_ended_does_not() {
    let (thread, broken) = (thread(), Arc::<AtomicUsize>::default());
    let (handler, input, output) = echo();
    let mut work = begin(&thread, handler, &broken);
    input.write(1).unwrap();
    output.read().unwrap();
    work.pause().unwrap();
    assert_eq!(work.paused().map(|echo| (echo.seen, echo.stopped)), Some((1, 0)));
    input.write(1).unwrap();
    assert_eq!(work.paused().map(|echo| echo.seen), Some(1));
    work.resume().unwrap();
    output.read().unwrap();
    // Its last word.
    input.write(5).unwrap();
    output.read().unwrap();
    work.pause().unwrap();
    work.resume().unwrap();
    assert!(work.paused().is_none());
    assert!(work.end().unwrap().is_none());

    let (handler, input, output) = echo();
    let mut work = begin(&thread, handler, &broken);
    input.write(3).unwrap();
    output.read().unwrap();
    work.pause().unwrap();
    assert_eq!(work.end().unwrap().map(|echo| (echo.seen, echo.stopped)), Some((3, 1)));
    assert_eq!(broken.load(Ordering::SeqCst), 0);
}

#[test]
fn a_panic_is_told_and_leaves_the_neighbours_alone() {
    let thread = thread();
    let (broken, neighbours_broken) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (first, input, _output) = echo();
    let (second, neighbours_input, neighbours_output) = echo();
    let mut work = begin(&thread, first, &broken);
    let mut neighbour = begin(&thread, second, &neighbours_broken);
    input.write(9).unwrap();
    neighbours_input.write(1).unwrap();
    neighbours_output.read().unwrap();
    assert!(work.end().unwrap().is_none());
    assert_eq!(broken.load(Ordering::SeqCst), 1);
    // At its end as well.
    neighbours_input.write(7).unwrap();
    neighbours_output.read().unwrap();
    assert!(neighbour.end().unwrap().is_none());
    assert_eq!(neighbours_broken.load(Ordering::SeqCst), 1);
    // And the thread goes on.
    let (third, input, output) = echo();
    let mut work = begin(&thread, third, &broken);
    input.write(1).unwrap();
    output.read().unwrap();
    assert!(work.end().unwrap().is_some());
}

#[test]
fn a_descriptor_that_cannot_be_waited_for_breaks_the_device() {
    let (thread, broken) = (thread(), Arc::<AtomicUsize>::default());
    let (mut work, told) = (Work::default(), broken.clone());
    // A file is always ready, which epoll has no use for.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let (echo, ..) = echo();
    let broken_now = move || _ = told.fetch_add(1, Ordering::SeqCst);
    work.begin((&thread, "echo"), echo, &[(file.as_raw_fd(), 7)], broken_now).unwrap();
    assert!(work.end().unwrap().is_none());
    assert_eq!(broken.load(Ordering::SeqCst), 1);
}

#[test]
fn a_thread_that_cannot_begin_serves_nobody_and_says_so() {
    let broken = Arc::<AtomicUsize>::default();
    let refuse = || Err::<(), _>(io::Error::other("told to"));
    let thread = Arc::new(IoThread::start("io", refuse).unwrap());
    let (echo, ..) = echo();
    let (mut work, told) = (Work::default(), broken.clone());
    let begun = work.begin((&thread, "echo"), echo, &[], move || _ = told.fetch_add(1, Ordering::SeqCst));
    assert!(work.end().unwrap().is_none());
    drop(thread);
    drop(work);
    // One way or the other: it depends on when the thread ends.
    assert!(begun.is_err() || broken.load(Ordering::SeqCst) == 1);
}

#[test]
fn what_the_thread_keeps_goes_after_its_handlers() {
    let kept = Arc::new(());
    let weak = Arc::downgrade(&kept);
    let thread = IoThread::start("io", move || Ok(kept)).unwrap();
    assert!(weak.upgrade().is_some());
    drop(thread);
    assert!(weak.upgrade().is_none());
}

/// Does not come back before it is told to.
struct Stuck(mpsc::Receiver<()>);

impl Handler for Stuck {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        let _ = self.0.recv();
        ControlFlow::Continue(())
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        unreachable!("it waits for nothing")
    }
}

#[test]
fn nobody_waits_for_ever_for_one_that_hangs() {
    let (thread, mut work) = (thread(), Work::default());
    let (sender, receiver) = mpsc::channel();
    work.begin((&thread, "stuck"), Stuck(receiver), &[], || ()).unwrap();
    assert!(matches!(work.end(), Err(Hung)));
    // It is known by now.
    let before = std::time::Instant::now();
    assert!(matches!(work.end(), Err(Hung)));
    assert!(before.elapsed() < super::super::PATIENCE / 2);
    drop(sender);
    let handler = loop {
        match work.end() {
            Ok(handler) => break handler,
            Err(Hung) => std::thread::yield_now(),
        }
    };
    assert!(handler.is_some());
}

struct Tireless(EventFd);

impl Handler for Tireless {
    fn start(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.again(interest)
    }
    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        unreachable!("it waits for nothing")
    }
    fn again(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.0.write(1).unwrap();
        interest.again();
        ControlFlow::Continue(())
    }
}

#[test]
fn work_without_end_comes_back_lets_others_work_and_can_be_ended() {
    let (thread, mut work) = (thread(), Work::default());
    let turns = EventFd::new(EFD_SEMAPHORE).unwrap();
    let tireless = Tireless(turns.try_clone().unwrap());
    work.begin((&thread, "tireless"), tireless, &[], || ()).unwrap();
    for _ in 0..10 {
        turns.read().unwrap();
    }
    let (echo, input, output) = echo();
    let mut neighbour = begin(&thread, echo, &Arc::default());
    input.write(1).unwrap();
    output.read().unwrap();
    assert!(neighbour.end().unwrap().is_some());
    assert!(work.end().unwrap().is_some());
}
