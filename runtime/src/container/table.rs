//! Tables by id: the containers of a pod, the processes run in a container. An id is taken from the moment at which the
//! making of its container or process begins.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::os::Mutex;

/// Containers or processes by id. A closed table takes no more of them.
pub struct Table<T>(Mutex<State<T>>);

struct State<T> {
    /// `None` while the entry is being made.
    entries: BTreeMap<String, Option<Arc<T>>>,
    closed: bool,
}

/// Why an id cannot be reserved.
#[derive(Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// Another entry has the id.
    Taken,
    /// The table is closed.
    Closed,
}

/// A reserved id. Dropping it frees the id.
pub struct Reservation<'a, T> {
    table: &'a Table<T>,
    id: Option<String>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Mutex::new(State { entries: BTreeMap::new(), closed: false }))
    }
}

impl<T> State<T> {
    fn insert(&mut self, id: &str, entry: Option<Arc<T>>) -> Result<(), NoEntry> {
        if self.closed {
            return Err(NoEntry::Closed);
        }
        match self.entries.entry(id.to_owned()) {
            Entry::Occupied(_) => Err(NoEntry::Taken),
            Entry::Vacant(vacant) => {
                vacant.insert(entry);
                Ok(())
            }
        }
    }
}

impl<T> Table<T> {
    /// Reserves an id for an entry that is to be made.
    pub fn reserve(&self, id: &str) -> Result<Reservation<'_, T>, NoEntry> {
        self.0.lock().insert(id, None)?;
        Ok(Reservation { table: self, id: Some(id.to_owned()) })
    }

    /// Adds an entry, and reports it before another task can find it or close the table. `report` must not block.
    pub fn add(&self, id: &str, entry: Arc<T>, report: impl FnOnce()) -> Result<(), NoEntry> {
        let mut state = self.0.lock();
        state.insert(id, Some(entry))?;
        report();
        Ok(())
    }

    /// The entry with an id, once it is made.
    pub fn get(&self, id: &str) -> Option<Arc<T>> {
        self.0.lock().entries.get(id).cloned().flatten()
    }

    /// All entries that are made.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.0.lock().entries.values().flatten().cloned().collect()
    }

    /// Removes `entry`, but not another entry that has its id by now.
    pub fn remove(&self, id: &str, entry: &Arc<T>) {
        let mut state = self.0.lock();
        if state.entries.get(id).and_then(Option::as_ref).is_some_and(|found| Arc::ptr_eq(found, entry)) {
            state.entries.remove(id);
        }
    }

    /// Closes the table. Entries that are being made may still be filled in.
    pub fn close(&self) {
        self.0.lock().closed = true;
    }

    /// Closes the table if it has no entry and none is being made; returns whether it is closed.
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.0.lock();
        state.closed |= state.entries.is_empty();
        state.closed
    }
}

impl<T> Reservation<'_, T> {
    /// Fills in the entry that was made.
    pub fn fill(mut self, entry: Arc<T>) {
        if let Some(id) = self.id.take() {
            self.table.0.lock().entries.insert(id, Some(entry));
        }
    }
}

impl<T> Drop for Reservation<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.table.0.lock().entries.remove(&id);
        }
    }
}
