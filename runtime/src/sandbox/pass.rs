//! The VFIO files of PCI functions that are passed to the sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;

use kiai_vmm::NamedFile;
use kiai_vmm::OpenFunction;
use kiai_vmm::VfioGroup;
use parking_lot::Mutex;

use super::LendError;
use crate::host::pci::IOMMUFD;
use crate::plan::VfioInterface;

/// Groups that are open. The kernel opens each once, so functions of one group share it.
#[derive(Default)]
pub(super) struct Groups(Mutex<BTreeMap<u32, Weak<VfioGroup>>>);

impl Groups {
    /// Opens a function as was planned.
    pub(super) fn open(&self, interface: &VfioInterface) -> Result<OpenFunction, LendError> {
        match interface {
            VfioInterface::Group(number) => self.group(*number).map(OpenFunction::Group),
            VfioInterface::Cdev(node) => {
                let cdev = NamedFile { name: node.display().to_string(), file: open(node.clone())?.into() };
                Ok(OpenFunction::Cdev { cdev, iommufd: open(IOMMUFD.into())? })
            }
        }
    }

    /// The group of that number, which must be free.
    fn group(&self, number: u32) -> Result<Arc<VfioGroup>, LendError> {
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
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(in_use(path)),
        Err(source) => Err(LendError::Vfio { path, source }),
    }
}

/// What is open elsewhere.
fn in_use(path: PathBuf) -> LendError {
    let source = io::Error::new(io::ErrorKind::ResourceBusy, "another pod or program has it open");
    LendError::Vfio { path, source }
}
