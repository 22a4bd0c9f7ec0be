//! Clients that start, pause, resume and remove a process at the same time, while it ends.

use std::sync::Arc;

use kiai_interleave::check;
use kiai_interleave::parking_lot::Mutex;
use kiai_interleave::shuttle::future;

use super::Exit;
use super::ProcessState;
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
enum Told {
    Started,
    Paused,
    Resumed,
    Exited,
    Removed,
}

/// A process, what the guest makes of it, and what the client was told.
struct World {
    lifecycle: Lifecycle,
    inside: Mutex<Inside>,
    told: Mutex<Vec<Told>>,
}

impl World {
    fn new() -> Arc<Self> {
        let (inside, told) = (Mutex::new(Inside::Created), Mutex::default());
        Arc::new(Self { lifecycle: Lifecycle::new(), inside, told })
    }

    fn tell(&self, what: Told) {
        self.told.lock().push(what);
    }

    /// A call of the guest: it takes a while to get there, and as long back.
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
        self.lifecycle.change(states, ask, || self.tell(Told::Started)).await.is_ok()
    }

    async fn pause(&self) {
        let ask = self.ask(Inside::Running, Inside::Frozen);
        let states = (ProcessState::Running, ProcessState::Paused);
        let _ = self.lifecycle.change(states, ask, || self.tell(Told::Paused)).await;
    }

    async fn resume(&self) {
        let ask = self.ask(Inside::Frozen, Inside::Running);
        let states = (ProcessState::Paused, ProcessState::Running);
        let _ = self.lifecycle.change(states, ask, || self.tell(Told::Resumed)).await;
    }

    /// It is killed, unless it never ran: who waits for it hears of that in either case.
    async fn die(&self, status: u32) {
        *self.inside.lock() = Inside::Dead;
        self.hear_of_the_end(status).await;
    }

    async fn hear_of_the_end(&self, status: u32) {
        future::yield_now().await;
        self.lifecycle.end(Exit::now(status), || self.tell(Told::Exited)).await;
    }

    async fn remove(&self) -> Result<Exit, NotRemoved> {
        let work = async |_| {
            future::yield_now().await;
            let was = std::mem::replace(&mut *self.inside.lock(), Inside::Removed);
            assert!(matches!(was, Inside::Created | Inside::Dead), "{was:?} is removed");
        };
        self.lifecycle.remove(work, |_| self.tell(Told::Removed)).await
    }

    /// What was told is a life.
    fn check_told(&self) {
        let mut state = Inside::Created;
        let all = self.told.lock().clone();
        for &told in &all {
            state = match (state, told) {
                (Inside::Created, Told::Started) | (Inside::Frozen, Told::Resumed) => Inside::Running,
                (Inside::Running, Told::Paused) => Inside::Frozen,
                (Inside::Running | Inside::Frozen, Told::Exited) => Inside::Dead,
                (Inside::Created | Inside::Dead, Told::Removed) => Inside::Removed,
                _ => panic!("{told:?} of what is {state:?}: {all:?}"),
            };
        }
    }
}

#[test]
fn the_state_is_the_guests_whoever_pauses_and_resumes_it() {
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
        world.check_told();
    });
}

#[test]
fn an_end_is_told_after_the_start_and_before_the_removal_and_each_once() {
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
                    Ok(told) => {
                        assert_eq!(told, exit);
                        removed += 1;
                    }
                    Err(why) => assert_eq!(why, NotRemoved::Gone),
                }
            }
            assert_eq!(removed, 1, "of two who remove it, one has");
            assert_eq!(world.lifecycle.wait().await.status, 3);
        });
        world.check_told();
        let told = world.told.lock();
        assert!(told.starts_with(&[Told::Started]) && told.ends_with(&[Told::Exited, Told::Removed]));
    });
}

#[test]
fn what_is_removed_before_it_was_started_is_not_started_and_nothing_is_told_after() {
    check(|| {
        let world = World::new();
        future::block_on(async {
            let (starting, ending) = (world.clone(), world.clone());
            let start = future::spawn(async move { starting.start().await });
            let removed = world.remove().await;
            // Who waits for the end of what was removed hears that it has ended.
            let end = future::spawn(async move { ending.die(9).await });
            let started = start.await.unwrap();
            end.await.unwrap();
            assert_eq!(started, removed.is_err());
            let exit = world.lifecycle.wait().await;
            assert_eq!(exit.status, if started { 9 } else { 137 }, "the first exit counts");
        });
        world.check_told();
    });
}

#[test]
fn a_container_is_gone_after_the_ends_of_what_is_being_run_in_it() {
    check(|| {
        let (init, exec) = (World::new(), World::new());
        future::block_on(async {
            let started = exec.clone();
            // The client starts it, and then waits for its end.
            let start = future::spawn(async move {
                if started.start().await {
                    started.hear_of_the_end(137).await;
                }
            });
            let (inside, over) = (exec.clone(), exec.clone());
            let work = async |_| {
                future::yield_now().await;
                // With the container goes whatever runs in it, and nothing is run there any more.
                *inside.inside.lock() = Inside::Removed;
                future::yield_now().await;
                over.lifecycle.over().await;
            };
            let tell = |_| exec.tell(Told::Removed);
            init.lifecycle.remove(work, tell).await.unwrap();
            assert!(matches!(exec.lifecycle.state(), ProcessState::Stopped(_)));
            start.await.unwrap();
        });
        exec.check_told();
        assert!(exec.told.lock().ends_with(&[Told::Removed]));
    });
}
