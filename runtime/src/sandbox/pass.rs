//! The VFIO groups of PCI functions that are passed to the sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;

use kiai_vmm::VfioGroup;
use parking_lot::Mutex;

use super::LendError;

/// Groups that are open. The kernel opens each once, so functions of one group share it.
#[derive(Default)]
pub(super) struct Groups(Mutex<BTreeMap<u32, Weak<VfioGroup>>>);

impl Groups {
    /// The group of that number, which must be free.
    pub(super) fn open(&self, number: u32) -> Result<Arc<VfioGroup>, LendError> {
        let mut groups = self.0.lock();
        if let Some(group) = groups.get(&number).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let container = open("/dev/vfio/vfio".into())?;
        let group = VfioGroup::new(number, open(format!("/dev/vfio/{number}").into())?, container);
        groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }
}

fn open(path: PathBuf) -> Result<OwnedFd, LendError> {
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let source = io::Error::new(error.kind(), "another pod or program has it open");
            Err(LendError::Vfio { path, source })
        }
        Err(source) => Err(LendError::Vfio { path, source }),
    }
}
