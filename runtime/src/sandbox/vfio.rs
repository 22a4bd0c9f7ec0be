//! The VFIO files of PCI functions that are passed through to the sandbox.

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

use super::AssignError;
use crate::host::pci::IOMMUFD;
use crate::plan::VfioInterface;

/// IOMMU groups that are open. The kernel lets each be opened once, so functions of one group share the file.
#[derive(Default)]
pub(super) struct OpenGroups(Mutex<BTreeMap<u32, Weak<VfioGroup>>>);

impl OpenGroups {
    /// Opens a function by the interface that was planned for it.
    pub(super) fn open(&self, interface: &VfioInterface) -> Result<OpenFunction, AssignError> {
        match interface {
            VfioInterface::Group(number) => self.group(*number).map(OpenFunction::Group),
            VfioInterface::Cdev(node) => {
                let cdev = NamedFile { name: node.display().to_string(), file: open(node.clone())?.into() };
                Ok(OpenFunction::Cdev { cdev, iommufd: open(IOMMUFD.into())? })
            }
        }
    }

    /// The group of this number; an error if another process has it open.
    fn group(&self, number: u32) -> Result<Arc<VfioGroup>, AssignError> {
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

fn open(path: PathBuf) -> Result<OwnedFd, AssignError> {
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(in_use(path)),
        Err(source) => Err(AssignError::Vfio { path, source }),
    }
}

/// The error for a file that another process has open.
fn in_use(path: PathBuf) -> AssignError {
    let source = io::Error::new(io::ErrorKind::ResourceBusy, "another pod or program has it open");
    AssignError::Vfio { path, source }
}
