//! Boots a kernel and an initrd and shows the guest's console: the VMM without containers.
//!
//!     cargo run -p kiai-vmm --example boot -- VMLINUX INITRD [DISK]

#![expect(clippy::print_stderr, reason = "a command line program")]

use std::fs::File;
use std::process::ExitCode;

use kiai_vmm::DeviceConfig;
use kiai_vmm::NamedFile;
use kiai_vmm::VmConfig;
use kiai_vmm::VmHandle;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match boot(&arguments) {
        Ok(ending) => {
            eprintln!("{ending}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("boot: {e}");
            let mut cause = e.source();
            while let Some(e) = cause {
                eprintln!("  because: {e}");
                cause = e.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn boot(arguments: &[String]) -> Result<kiai_vmm::Ending, Box<dyn std::error::Error>> {
    let [kernel, initrd, disks @ ..] = arguments else {
        return Err("usage: boot VMLINUX INITRD [DISK...]".into());
    };
    let open = |name: &String| -> std::io::Result<NamedFile> {
        Ok(NamedFile { name: name.clone(), file: File::open(name)? })
    };
    let mut devices = vec![DeviceConfig::Rng];
    for (i, disk) in disks.iter().enumerate() {
        devices.push(DeviceConfig::Block { disk: open(disk)?, read_only: true, serial: format!("disk{i}") });
    }
    let vm = VmHandle::build(VmConfig {
        vcpus: 1,
        max_vcpus: 2,
        memory_mib: 128,
        max_memory_mib: 128,
        huge_pages: false,
        kernel: open(kernel)?,
        initrd: Some(open(initrd)?),
        command_line: Vec::new(),
        console: Some(Box::new(std::io::stdout())),
        devices,
    })?;
    vm.resume()?;
    Ok(vm.wait())
}
