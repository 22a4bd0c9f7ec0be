//! One container of a sandbox and its processes, as the host sees them.
//!
//! `create` is the whole story of a container; `process` is what init and exec have in common; `stdio` carries
//! bytes between the client's ends and the guest.

mod create;
mod process;
mod stdio;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::failure::Failure;
use crate::failure::Outcome;

pub use create::CreateContainer;
pub use create::create;
pub use process::Exit;
pub use process::Process;
pub use process::Status;
pub use stdio::StdioPaths;

/// A container.
pub struct Container {
    /// Its id, also in the guest.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The process the specification names.
    pub init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
}

impl Container {
    /// A process: `exec_id` empty is the container's init.
    pub fn process(&self, exec_id: &str) -> Outcome<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs
            .lock()
            .get(exec_id)
            .cloned()
            .ok_or_else(|| Failure::not_found(format!("container {} has no process {exec_id:?}", self.id)))
    }

    /// Adds a process that is to be started in the container.
    pub fn add_exec(&self, process: Process) -> Outcome<()> {
        let mut execs = self.execs.lock();
        let exec_id = process.exec_id.clone();
        if execs.contains_key(&exec_id) {
            return Err(Failure::already_exists(format!(
                "container {} has a process {exec_id:?} already",
                self.id
            )));
        }
        execs.insert(exec_id, Arc::new(process));
        Ok(())
    }

    /// Forgets a process.
    pub fn remove_exec(&self, exec_id: &str) {
        self.execs.lock().remove(exec_id);
    }

    /// Every process there is.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        let execs = self.execs.lock();
        std::iter::once(&self.init).chain(execs.values()).cloned().collect()
    }
}
