//! The QEMU recipe: emulated AMD with nested SVM, one virtio-serial port to this process, disks that leave no trace.
//!
//! Facts behind the recipe are in `tests/lab/README.md`. QEMU dies with this process, however that ends.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use kiai_lab::PORT_NAME;

use super::{Machine, disk, emulator};

/// The emulated processor. Its nested paging works under TCG; its XSAVES does not. With ERMS or FSRM, kernels copy and
/// clear memory byte by byte, which costs an emulator eight times the steps, and the instruction clock as much.
const CPU: &str = "EPYC-Milan,+svm,+pause-filter,+pfthreshold,-xsaves,-erms,-fsrm";

/// What the machine is made from.
pub(crate) struct Files {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: Vec<u8>,
    pub(crate) root_disk: PathBuf,
    /// Further disks, in the order of the job's mount points.
    pub(crate) disks: Vec<(PathBuf, Access)>,
    /// For what must be a file.
    pub(crate) scratch: PathBuf,
}

/// What a machine may do with a disk.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Read,
    Write,
    /// Read it, and write to a layer of its own over it.
    Copy,
}

/// A started machine. Dropping it stops it.
pub(crate) struct Running {
    qemu: Child,
    /// When.
    pub(crate) started: Instant,
    /// Our end of the virtio-serial port.
    pub(crate) port: UnixStream,
    /// The kernel's console so far.
    pub(crate) console: File,
    /// QEMU's monitor, which nobody has said a word to.
    pub(crate) monitor: UnixStream,
    /// What QEMU itself had to say.
    pub(crate) complaints: File,
}

impl Running {
    /// Stops the machine now.
    pub(crate) fn stop(&mut self) {
        // Killing fails only if it has ended, which is what is wanted.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the machine. Its scratch files may be unlinked once it has said the first word on its port.
pub(crate) fn start(machine: &Machine, files: &Files) -> Result<Running> {
    let (port, qemu_port) = UnixStream::pair()?;
    let (monitor, qemu_monitor) = UnixStream::pair()?;
    let initramfs = files.scratch.join("initramfs");
    fs::write(&initramfs, &files.initramfs)?;
    let console = files.scratch.join("console");
    fs::write(&console, "")?;
    let complaints = files.scratch.join("qemu");

    let mut qemu = emulator::command(machine.emulator.as_deref())?;
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    if machine.deterministic {
        qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi,tb-size=512"]);
    }
    qemu.args(["-cpu", CPU, "-M", "q35"]);
    qemu.args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()]);
    qemu.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&initramfs);
    qemu.args(["-append", &command_line(machine)]);
    qemu.args([
        "-chardev",
        &format!("file,id=console,path={}", console.display()),
        "-serial",
        "chardev:console",
    ]);
    if machine.vfio {
        // Without aw-bits=48 the IOMMU has 39 address bits, fewer than where guests put 64-bit BARs.
        qemu.args(["-device", "intel-iommu,intremap=on,device-iotlb=on,aw-bits=48"]);
    }
    qemu.args(["-chardev", &format!("socket,id=monitor,fd={}", qemu_monitor.as_raw_fd())]);
    qemu.args(["-mon", "chardev=monitor,mode=control"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    qemu.args(["-chardev", &format!("socket,id=port,fd={}", qemu_port.as_raw_fd())]);
    qemu.args(["-device", &format!("virtserialport,chardev=port,name={PORT_NAME}")]);
    drive(&mut qemu, "root", &files.root_disk, "snapshot=on", "virtio-blk-pci");
    for (index, (path, access)) in files.disks.iter().enumerate() {
        let access = match access {
            Access::Read => "readonly=on",
            Access::Write => "discard=unmap",
            Access::Copy => "snapshot=on",
        };
        drive(&mut qemu, &format!("disk{index}"), path, access, "virtio-blk-pci");
    }
    if machine.vfio {
        let nvme = files.scratch.join("nvme.raw");
        disk::blank(&nvme, 256)?;
        drive(&mut qemu, "nvme", &nvme, "discard=unmap", "nvme,serial=kiai-lab");
        qemu.args(["-device", "edu"]);
        // A bridge of conventional PCI, behind which the IOMMU cannot distinguish functions: one group. The network
        // card has no messages, only a pin.
        qemu.args(["-device", "pci-bridge,id=shared,chassis_nr=1"]);
        qemu.args(["-device", "virtio-rng-pci,bus=shared,addr=1"]);
        qemu.args(["-device", "e1000,bus=shared,addr=2,romfile="]);
    }

    // The layer over the root disk goes where the rest goes, and with it.
    qemu.env("TMPDIR", &files.scratch);
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&complaints)?);
    // A group of its own: the terminal's Ctrl-C ends this process, and that ends QEMU.
    qemu.process_group(0);
    die_with_parent(&mut qemu, [qemu_port.as_raw_fd(), qemu_monitor.as_raw_fd()]);
    let child = qemu.spawn().context("qemu-system-x86_64")?;
    Ok(Running {
        qemu: child,
        started: Instant::now(),
        port,
        console: File::open(console)?,
        monitor,
        complaints: File::open(complaints)?,
    })
}

fn command_line(machine: &Machine) -> String {
    let mut line = String::from("console=ttyS0 reboot=t panic=-1 mitigations=off tsc=reliable");
    // Work at boot that serves nothing here and takes a second under emulation: measuring the delay loop on each CPU (the
    // value is long enough on any host), testing ciphers, tracing probes, the keys of modules.
    line += " lpj=16000000 cryptomgr.notests";
    line += " initcall_blacklist=init_kprobe_trace,crypto_kdf108_init,load_system_certificate_list";
    // Whether the timer's interrupt arrives is tried against a delay that a busy host makes too short.
    line += " no_timer_check";
    // A CPU that is stuck for ever is the lab's end, not a test's: the kernel says where, and the machine stops.
    line += " softlockup_panic=1 sysctl.kernel.panic_on_rcu_stall=1";
    // So is one that says nothing: it is asked by an interrupt of this kind.
    line += " unknown_nmi_panic ";
    line += if machine.verbose { "ignore_loglevel" } else { "quiet loglevel=4" };
    if machine.vfio {
        line += " intel_iommu=on";
    }
    line
}

fn drive(qemu: &mut Command, id: &str, path: &std::path::Path, options: &str, device: &str) {
    // Nothing on these disks outlives the run, so nothing needs to reach the host's disk.
    let path = path.display();
    qemu.args(["-drive", &format!("if=none,id={id},format=raw,cache=unsafe,{options},file={path}")]);
    qemu.args(["-device", &format!("{device},drive={id}")]);
}

/// QEMU inherits `sockets` and is killed by the kernel when the thread that started it ends.
fn die_with_parent(qemu: &mut Command, sockets: [i32; 2]) {
    #![expect(unsafe_code, reason = "Command::pre_exec is unsafe by itself")]
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        for socket in sockets {
            // SAFETY: it is open in the parent until after the spawn, and this copy of it in the child is used here only.
            let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket) };
            rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure makes three system calls and touches no memory that another thread may hold a lock on.
    unsafe { qemu.pre_exec(prepare) };
}
