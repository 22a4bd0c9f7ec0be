//! What there is, by its id: containers of a pod, processes run in a container. An id is taken from the moment its
//! owner begins to be made.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::os::Mutex;

/// Containers or processes by their ids, until it is closed.
pub struct Table<T>(Mutex<State<T>>);

struct State<T> {
    /// `None` while it is being made.
    entries: BTreeMap<String, Option<Arc<T>>>,
    closed: bool,
}

/// Why an id is not to be had.
#[derive(Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// Another has it.
    Taken,
    /// Nothing is added any more.
    Closed,
}

/// An id that is taken. Dropping it lets the id go.
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
    /// Takes an id for what is to be made.
    pub fn reserve(&self, id: &str) -> Result<Reservation<'_, T>, NoEntry> {
        self.0.lock().insert(id, None)?;
        Ok(Reservation { table: self, id: Some(id.to_owned()) })
    }

    /// Adds what was made already, and tells it before anybody can find it or close the table. `tell` must not
    /// block.
    pub fn add(&self, id: &str, entry: Arc<T>, tell: impl FnOnce()) -> Result<(), NoEntry> {
        let mut state = self.0.lock();
        state.insert(id, Some(entry))?;
        tell();
        Ok(())
    }

    /// What was made under an id.
    pub fn get(&self, id: &str) -> Option<Arc<T>> {
        self.0.lock().entries.get(id).cloned().flatten()
    }

    /// All that was made.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.0.lock().entries.values().flatten().cloned().collect()
    }

    /// Removes `entry`, and not another that has come under its id meanwhile.
    pub fn remove(&self, id: &str, entry: &Arc<T>) {
        let mut state = self.0.lock();
        if state.entries.get(id).and_then(Option::as_ref).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            state.entries.remove(id);
        }
    }

    /// Nothing is added any more. What is being made may still be finished.
    pub fn close(&self) {
        self.0.lock().closed = true;
    }

    /// Closes the table if nothing is there or being made; whether it is closed.
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.0.lock();
        state.closed |= state.entries.is_empty();
        state.closed
    }
}

impl<T> Reservation<'_, T> {
    /// What was to be made is.
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
