//! Clients that start, pause, resume and remove a process at the same time, while it ends.

use std::sync::Arc;

use kiai_interleave::check;
use kiai_interleave::parking_lot::Mutex;
use kiai_interleave::shuttle::future;

use super::Exit;
use super::ProcessState;
use super::lifecycle::KILLED;
use super::lifecycle::Lifecycle;
use super::lifecycle::NotRemoved;

/// The process as the guest knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Created,
    Running,
    Frozen,
    Dead,
    Removed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Started,
    Paused,
    Resumed,
    Exited,
    Removed,
}

/// A process, its state in the guest, and the events that were reported to the client.
struct World {
    lifecycle: Lifecycle,
    inside: Mutex<Inside>,
    events: Mutex<Vec<Event>>,
}

impl World {
    fn new() -> Arc<Self> {
        let (inside, events) = (Mutex::new(Inside::Created), Mutex::default());
        Arc::new(Self { lifecycle: Lifecycle::new(KILLED), inside, events })
    }

    fn report(&self, event: Event) {
        self.events.lock().push(event);
    }

    /// A call to the guest: request and answer take a while each.
    async fn ask(&self, from: Inside, to: Inside) -> Result<(), Inside> {
        future::yield_now().await;
        let done = {
            let mut inside = self.inside.lock();
            let was = *inside;
            if was == from {
                *inside = to;
                Ok(())
            } else {
                Err(was)
            }
        };
        future::yield_now().await;
        done
    }

    async fn start(&self) -> bool {
        let ask = self.ask(Inside::Created, Inside::Running);
        let states = (ProcessState::Created, ProcessState::Running);
        self.lifecycle.change(states, ask, || self.report(Event::Started)).await.is_ok()
    }

    async fn pause(&self) {
        let ask = self.ask(Inside::Running, Inside::Frozen);
        let states = (ProcessState::Running, ProcessState::Paused);
        let _ = self.lifecycle.change(states, ask, || self.report(Event::Paused)).await;
    }

    async fn resume(&self) {
        let ask = self.ask(Inside::Frozen, Inside::Running);
        let states = (ProcessState::Paused, ProcessState::Running);
        let _ = self.lifecycle.change(states, ask, || self.report(Event::Resumed)).await;
    }

    /// Kills the process in the guest, which the waiting task hears of.
    async fn die(&self, status: u32) {
        *self.inside.lock() = Inside::Dead;
        self.hear_of_the_end(status).await;
    }

    async fn hear_of_the_end(&self, status: u32) {
        future::yield_now().await;
        self.lifecycle.end(Exit::now(status), || self.report(Event::Exited)).await;
    }

    async fn remove(&self) -> Result<Exit, NotRemoved> {
        let work = async |_| {
            future::yield_now().await;
            let was = std::mem::replace(&mut *self.inside.lock(), Inside::Removed);
            assert!(matches!(was, Inside::Created | Inside::Dead), "{was:?} is removed");
        };
        self.lifecycle.remove(work, |_| self.report(Event::Removed)).await
    }

    /// The events in the order of their reports are those of a process.
    fn check_events(&self) {
        let mut state = Inside::Created;
        let all = self.events.lock().clone();
        for &event in &all {
            state = match (state, event) {
                (Inside::Created, Event::Started) | (Inside::Frozen, Event::Resumed) => Inside::Running,
                (Inside::Running, Event::Paused) => Inside::Frozen,
                (Inside::Running | Inside::Frozen, Event::Exited) => Inside::Dead,
                (Inside::Created | Inside::Dead, Event::Removed) => Inside::Removed,
                _ => panic!("{event:?} of a process that is {state:?}: {all:?}"),
            };
        }
    }
}

#[test]
fn the_state_is_the_guests_whichever_tasks_pause_and_resume() {
    check(|| {
        let world = World::new();
        future::block_on(async {
            assert!(world.start().await);
            let tasks = [true, false, true, false].map(|pauses| {
                let world = world.clone();
                future::spawn(async move { if pauses { world.pause().await } else { world.resume().await } })
            });
            for task in tasks {
                task.await.unwrap();
            }
        });
        let inside = *world.inside.lock();
        match world.lifecycle.state() {
            ProcessState::Running => assert_eq!(inside, Inside::Running),
            ProcessState::Paused => assert_eq!(inside, Inside::Frozen),
            other => panic!("{other:?}"),
        }
        world.check_events();
    });
}

#[test]
fn an_end_is_reported_after_the_start_and_before_the_removal_and_each_once() {
    check(|| {
        let world = World::new();
        future::block_on(async {
            let (starting, pausing) = (world.clone(), world.clone());
            let start = future::spawn(async move {
                if starting.start().await {
                    starting.die(3).await;
                }
            });
            let pause = future::spawn(async move { pausing.pause().await });
            let removes = [(); 2].map(|()| {
                let world = world.clone();
                future::spawn(async move {
                    let exit = world.lifecycle.wait().await;
                    (exit, world.remove().await)
                })
            });
            start.await.unwrap();
            pause.await.unwrap();
            let mut removed = 0;
            for remove in removes {
                let (exit, result) = remove.await.unwrap();
                assert_eq!(exit.status, 3);
                match result {
                    Ok(reported) => {
                        assert_eq!(reported, exit);
                        removed += 1;
                    }
                    Err(why) => assert_eq!(why, NotRemoved::Gone),
                }
            }
            assert_eq!(removed, 1, "of two who remove it, one has");
            assert_eq!(world.lifecycle.wait().await.status, 3);
        });
        world.check_events();
        let events = world.events.lock();
        assert!(events.starts_with(&[Event::Started]) && events.ends_with(&[Event::Exited, Event::Removed]));
    });
}

#[test]
fn a_process_removed_before_its_start_is_not_started_and_nothing_is_reported_after() {
    check(|| {
        let world = World::new();
        future::block_on(async {
            let (starting, ending) = (world.clone(), world.clone());
            let start = future::spawn(async move { starting.start().await });
            let removed = world.remove().await;
            // A task that waits for the end of a removed process hears that it has ended.
            let end = future::spawn(async move { ending.die(9).await });
            let started = start.await.unwrap();
            end.await.unwrap();
            assert_eq!(started, removed.is_err());
            let exit = world.lifecycle.wait().await;
            assert_eq!(exit.status, if started { 9 } else { 137 }, "the first exit counts");
        });
        world.check_events();
    });
}

#[test]
fn a_container_is_removed_after_the_ends_of_processes_that_are_being_started() {
    check(|| {
        let (init, exec) = (World::new(), World::new());
        future::block_on(async {
            let started = exec.clone();
            // The client starts the process, and then waits for its end.
            let start = future::spawn(async move {
                if started.start().await {
                    started.hear_of_the_end(137).await;
                }
            });
            let (inside, over) = (exec.clone(), exec.clone());
            let work = async |_| {
                future::yield_now().await;
                // Removing the container kills its processes, and none is started after that.
                *inside.inside.lock() = Inside::Removed;
                future::yield_now().await;
                over.lifecycle.over().await;
            };
            let report = |_| exec.report(Event::Removed);
            init.lifecycle.remove(work, report).await.unwrap();
            assert!(matches!(exec.lifecycle.state(), ProcessState::Stopped(_)));
            start.await.unwrap();
        });
        exec.check_events();
        assert!(exec.events.lock().ends_with(&[Event::Removed]));
    });
}
