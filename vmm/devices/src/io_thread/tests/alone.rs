//! A test that is its own device's thread.

use std::cell::RefCell;
use std::rc::Rc;

use event_manager::EventManager;
use event_manager::EventOps;
use event_manager::EventSet;
use event_manager::Events;
use event_manager::MutEventSubscriber;
use event_manager::SubscriberId;
use event_manager::SubscriberOps;

use crate::io_thread::Interest;
use crate::io_thread::handler::Watched;

/// What was ready, by token.
type Ready = Rc<RefCell<Vec<(u32, EventSet)>>>;

/// The loop of a thread, one step at a time.
pub(crate) struct Alone {
    manager: EventManager<Recorder>,
    id: SubscriberId,
    watched: Watched,
    ready: Ready,
}

struct Recorder(Ready);

impl MutEventSubscriber for Recorder {
    fn init(&mut self, _: &mut EventOps<'_>) {}

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        self.0.borrow_mut().push((events.data(), events.event_set()));
    }
}

impl Alone {
    pub(crate) fn new() -> Self {
        let (mut manager, ready) = (EventManager::new().unwrap(), Ready::default());
        let id = manager.add_subscriber(Recorder(ready.clone()));
        Self { manager, id, watched: Watched::new().unwrap(), ready }
    }

    /// Does what a handler would.
    pub(crate) fn with<T>(&mut self, act: impl FnOnce(&mut Interest<'_>) -> T) -> T {
        let mut ops = self.manager.event_ops(self.id).unwrap();
        act(&mut Interest::new(&mut ops, &mut self.watched))
    }

    /// What is ready now, by token.
    pub(crate) fn poll(&mut self) -> Vec<(u32, EventSet)> {
        self.manager.run_with_timeout(0).unwrap();
        self.ready.take()
    }
}
