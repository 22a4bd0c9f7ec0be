//! Scenarios, with a CPU that stands for KVM_RUN.

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::time::Instant;

use kiai_interleave::check;
use kiai_interleave::shuttle::thread;
use kiai_interleave::shuttle::thread::JoinHandle;

use super::actor::Actor;
use super::actor::Cpu;
use super::control::Control;
use super::mailbox::Kick;
use super::sync::Arc;
use super::sync::Condvar;
use super::sync::Mutex;
use super::sync::mpsc;
use crate::handle::Ending;

/// What a thread in KVM_RUN and the thread that kicks it share.
#[derive(Default)]
struct KvmRun {
    immediate_exit: bool,
    /// In the guest: only here the signal does something.
    inside: bool,
    stays: usize,
}

struct FakeKicker {
    run: Arc<(Mutex<KvmRun>, Condvar)>,
    /// Whether it sets `immediate_exit`, as it should.
    sets_immediate_exit: bool,
}

impl Kick for FakeKicker {
    fn kick(&self) {
        let (run, signal) = &*self.run;
        if self.sets_immediate_exit {
            run.lock().immediate_exit = true;
        }
        // Another step, as in reality.
        if run.lock().inside {
            signal.notify_all();
        }
    }
}

/// What a guest does when it is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// Runs until it is kicked.
    Idles,
    PowersOff,
    /// Its thread panics.
    Dies,
}

struct FakeCpu {
    guest: Guest,
    run: Arc<(Mutex<KvmRun>, Condvar)>,
    sets_immediate_exit: bool,
}

impl Cpu for FakeCpu {
    type Kicker = FakeKicker;
    type Question = mpsc::Sender<usize>;

    fn begin(&mut self) -> Result<FakeKicker, Ending> {
        Ok(FakeKicker { run: self.run.clone(), sets_immediate_exit: self.sets_immediate_exit })
    }

    fn run(&mut self) -> Option<Ending> {
        match self.guest {
            Guest::Idles => {}
            Guest::PowersOff => return Some(Ending::PowerOff),
            Guest::Dies => resume_unwind(Box::new("a vCPU's thread dies")),
        }
        let (run, signal) = &*self.run;
        let mut inside = run.lock();
        if !inside.immediate_exit {
            inside.inside = true;
            inside.stays += 1;
            signal.wait(&mut inside);
            inside.inside = false;
        }
        drop(inside);
        // Returned to us with EINTR, and then the flag is cleared.
        run.lock().immediate_exit = false;
        None
    }

    fn parked(&mut self) {}

    fn answer(&mut self, question: mpsc::Sender<usize>) {
        let _ = question.send(self.run.0.lock().stays);
    }
}

/// A machine of fake CPUs.
#[derive(Clone)]
struct Machine {
    control: Arc<Control<FakeCpu>>,
    runs: Vec<Arc<(Mutex<KvmRun>, Condvar)>>,
}

impl Machine {
    fn start(guests: &[Guest]) -> (Self, Vec<JoinHandle<()>>) {
        Self::with_kicks(guests, true)
    }

    fn with_kicks(guests: &[Guest], sets_immediate_exit: bool) -> (Self, Vec<JoinHandle<()>>) {
        let mut machine = Self { control: Control::new(), runs: Vec::new() };
        let threads = guests.iter().map(|&guest| machine.add(guest, sets_immediate_exit)).collect();
        (machine, threads)
    }

    fn add(&mut self, guest: Guest, sets_immediate_exit: bool) -> JoinHandle<()> {
        let run = Arc::new((Mutex::new(KvmRun::default()), Condvar::new()));
        let id = u8::try_from(self.runs.len()).unwrap();
        self.runs.push(run.clone());
        let actor = Actor::new(self.control.seat(id), FakeCpu { guest, run, sets_immediate_exit });
        thread::spawn(move || {
            // Here and not outside, as shuttle takes a panic for the end.
            let _ = catch_unwind(AssertUnwindSafe(|| actor.live()));
        })
    }

    fn nobody_is_inside(&self) {
        assert!(self.runs.iter().all(|run| !run.0.lock().inside), "paused, and a vCPU is in the guest");
    }

    fn ask(&self, vcpu: u8) -> Option<usize> {
        let (answer, answered) = mpsc::channel();
        self.control.ask(vcpu, answer);
        answered.recv().ok()
    }

    /// Ends it, as `Vcpus::stop` does.
    fn stop(&self, threads: Vec<JoinHandle<()>>) -> Ending {
        self.control.end(Ending::Stopped);
        assert!(self.control.wait_until(Instant::now()).is_empty());
        for thread in threads {
            thread.join().unwrap();
        }
        self.nobody_is_inside();
        self.control.wait()
    }
}

#[test]
fn a_pause_returns_when_all_are_out_of_the_guest() {
    check(|| {
        let (machine, threads) = Machine::start(&[Guest::Idles, Guest::Idles]);
        for _ in 0..2 {
            assert!(machine.control.resume());
            assert!(machine.control.pause());
            machine.nobody_is_inside();
            assert_eq!(machine.control.status(), Ok(false));
        }
        assert_eq!(machine.stop(threads), Ending::Stopped);
    });
}

#[test]
fn pause_and_resume_of_several_callers_take_turns() {
    check(|| {
        let (machine, threads) = Machine::start(&[Guest::Idles, Guest::Idles]);
        let other = machine.clone();
        let toggler = thread::spawn(move || {
            assert!(other.control.resume());
            assert!(other.control.pause());
        });
        assert!(machine.control.resume());
        assert!(machine.control.pause());
        toggler.join().unwrap();
        machine.control.pause();
        machine.nobody_is_inside();
        machine.stop(threads);
    });
}

#[test]
fn a_stop_comes_through_at_any_moment() {
    check(|| {
        let (machine, threads) = Machine::start(&[Guest::Idles, Guest::Idles]);
        let other = machine.clone();
        let toggler = thread::spawn(move || {
            other.control.resume();
            other.control.pause();
            other.control.resume();
        });
        let other = machine.clone();
        let waiter = thread::spawn(move || {
            assert_eq!(other.control.wait(), Ending::Stopped);
            other.nobody_is_inside();
        });
        assert_eq!(machine.stop(threads), Ending::Stopped);
        toggler.join().unwrap();
        waiter.join().unwrap();
        assert!(!machine.control.resume() && !machine.control.pause());
    });
}

#[test]
fn a_guest_that_ends_ends_all_vcpus_and_every_call() {
    let died = Ending::VcpuError("vCPU 0: its thread panicked".into());
    for (guest, first) in [(Guest::PowersOff, Ending::PowerOff), (Guest::Dies, died)] {
        check(move || {
            let (machine, threads) = Machine::start(&[guest, Guest::Idles]);
            let other = machine.clone();
            let pauser = thread::spawn(move || {
                other.control.pause();
                other.control.resume();
            });
            machine.control.resume();
            pauser.join().unwrap();
            assert_eq!(machine.control.wait(), first);
            assert!(!machine.control.pause());
            assert_eq!(machine.stop(threads), first);
        });
    }
}

#[test]
fn a_question_is_answered_or_known_not_to_be() {
    check(|| {
        let (machine, threads) = Machine::start(&[Guest::Idles]);
        assert_eq!(machine.ask(0), Some(0), "parked");
        assert_eq!(machine.ask(1), None, "there is none");
        machine.control.resume();
        assert!(machine.ask(0).unwrap() <= 1, "in the guest or about to be");
        let other = machine.clone();
        let asker = thread::spawn(move || other.ask(0));
        machine.stop(threads);
        asker.join().unwrap();
        assert_eq!(machine.ask(0), None, "gone");
    });
}

#[test]
fn a_vcpu_that_is_added_does_as_the_others() {
    check(|| {
        let (mut machine, mut threads) = Machine::start(&[Guest::Idles]);
        let other = machine.clone();
        let toggler = thread::spawn(move || {
            other.control.resume();
            other.control.pause()
        });
        threads.push(machine.add(Guest::Idles, true));
        assert!(toggler.join().unwrap());
        machine.nobody_is_inside();
        machine.control.resume();
        assert!(machine.control.pause());
        machine.nobody_is_inside();
        machine.stop(threads);
    });
}

#[test]
fn a_vcpu_whose_thread_never_starts_is_waited_for_by_nobody() {
    check(|| {
        let (machine, threads) = Machine::start(&[Guest::Idles]);
        let seat = machine.control.seat(1);
        let other = machine.clone();
        let pauser = thread::spawn(move || other.control.pause());
        drop(seat);
        assert!(pauser.join().unwrap());
        machine.stop(threads);
    });
}

/// The check finds what it is there to find.
#[test]
#[should_panic(expected = "deadlock")]
fn a_kick_between_the_mailbox_and_the_guest_is_lost_without_immediate_exit() {
    check(|| {
        let (machine, threads) = Machine::with_kicks(&[Guest::Idles], false);
        machine.control.resume();
        machine.control.pause();
        machine.stop(threads);
    });
}
