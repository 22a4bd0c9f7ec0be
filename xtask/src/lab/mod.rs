//! `cargo xtask lab`: one command, run as root in an emulated machine that has nested KVM.
//!
//! The recipe and what the machine offers: `tests/lab/README.md`. Here: what goes into the machine, how it is started,
//! how its end is found out.

pub(crate) mod disk;
mod emulator;
pub(crate) mod iommufd;
mod link;
mod machine;
mod monitor;
pub(crate) mod root;

pub(crate) use link::{Gone, Input, LabEvent, Session};

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kiai_lab::Job;

use crate::build::{self, SHIM};
use crate::{cache, containerd, image, kernel, rootfs, step, store};
use disk::Payload;
use machine::Access;

/// The exit code when the time ran out, as `timeout` has it.
const TIMED_OUT: u8 = 124;
/// The exit code when the lab failed rather than the command in it.
const FAILED: u8 = 125;

/// Where the payload disk is mounted in the lab.
const PAYLOAD: &str = "/lab";
/// Where the test images are mounted in the lab.
const IMAGES: &str = "/images";
/// Where an image store that has the test images is mounted in the lab.
const STORE: &str = "/store";
/// What nothing loads by itself when it is first used. Links, traffic control and netfilter do.
const MODULES: [&str; 5] = ["kvm-amd", "tun", "loop", "fuse", "overlay"];

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// One CPU whose clock counts instructions: one nanosecond each
    #[arg(long, conflicts_with = "cpus")]
    deterministic: bool,
    /// CPUs of the lab
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// Memory of the lab, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u32,
    /// An IOMMU, and devices that can be passed to a guest: `edu`, an NVMe disk, two that share a group
    #[arg(long)]
    vfio: bool,
    /// As --vfio, with a kernel that has iommufd
    #[arg(long)]
    iommufd: bool,
    /// Put a host file or folder into the lab, at LABPATH or at its own path
    #[arg(long, value_name = "HOSTPATH[:LABPATH]")]
    with: Vec<String>,
    /// Stop the lab after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Do not build or put in anything of the project: only the machine and what --with names
    #[arg(long)]
    bare: bool,
    /// Another QEMU than that of Debian's backports, as it is
    #[arg(long, value_name = "PROGRAM")]
    emulator: Option<PathBuf>,
    /// Show the kernel's console and how long things took
    #[arg(long, short)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the lab. The exit code is the command's; 124 if the time ran out, 125 if the lab failed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut job = Lab::new(arguments.command.clone());
    for with in &arguments.with {
        job.put(with)?;
    }
    if !arguments.bare {
        job.put_project()?;
    }
    job.run(&Machine {
        cpus: if arguments.deterministic { 1 } else { arguments.cpus },
        memory_mib: arguments.memory,
        deterministic: arguments.deterministic,
        vfio: arguments.vfio || arguments.iommufd,
        iommufd: arguments.iommufd,
        timeout: Duration::from_secs(arguments.timeout),
        emulator: arguments.emulator.clone(),
        verbose: arguments.verbose,
    })
}

/// The emulated machine.
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) deterministic: bool,
    pub(crate) vfio: bool,
    /// The kernel is one that has iommufd.
    pub(crate) iommufd: bool,
    pub(crate) timeout: Duration,
    /// Instead of the corrected one.
    pub(crate) emulator: Option<PathBuf>,
    pub(crate) verbose: bool,
}

impl Default for Machine {
    fn default() -> Self {
        let timeout = Duration::from_secs(600);
        Self {
            cpus: 2,
            memory_mib: 4096,
            deterministic: false,
            vfio: false,
            iommufd: false,
            timeout,
            emulator: None,
            verbose: false,
        }
    }
}

/// A command to run in the lab and what it finds there.
pub(crate) struct Lab {
    job: Job,
    payload: Payload,
    /// Disks that are made once for many labs, and where each is mounted.
    shared: Vec<(PathBuf, Access, &'static str)>,
}

impl Lab {
    /// A lab that runs `command` and holds nothing of the host yet.
    pub(crate) fn new(command: Vec<String>) -> Self {
        let job = Job {
            argv: command,
            cwd: "/root".into(),
            modules: MODULES.map(str::to_owned).to_vec(),
            env: vec![
                format!("PATH={PAYLOAD}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
                "HOME=/root".into(),
                "LANG=C.UTF-8".into(),
                "TERM=linux".into(),
                "RUST_BACKTRACE=1".into(),
                "KIAI_IN_LAB=1".into(),
            ],
            ..Job::default()
        };
        Self { job, payload: Payload::default(), shared: Vec::new() }
    }

    /// Sets a variable in the command's environment.
    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.job.env.push(format!("{name}={value}"));
    }

    /// Puts a host file or folder in: `HOSTPATH[:LABPATH]`.
    pub(crate) fn put(&mut self, with: &str) -> Result<()> {
        let (host, lab) = with.split_once(':').unwrap_or((with, ""));
        let host = std::fs::canonicalize(host).with_context(|| host.to_owned())?;
        let lab = if lab.is_empty() { host.to_string_lossy().into_owned() } else { lab.to_owned() };
        let name = format!("with/{}", self.job.binds.len() / 2);
        self.job.binds.extend([format!("{PAYLOAD}/{name}"), lab]);
        self.payload.add(host, &name);
        Ok(())
    }

    /// Puts a host file at `name` below the payload's mount point, and returns its path in the lab.
    pub(crate) fn place(&mut self, host: PathBuf, name: &str) -> String {
        self.payload.add(host, name);
        format!("{PAYLOAD}/{name}")
    }

    /// Puts in what the project is made of: binaries on PATH, guest kernel, guest image, test images.
    pub(crate) fn put_project(&mut self) -> Result<()> {
        let vmlinux = self.place(kernel::artifact()?.join("vmlinux"), "vmlinux");
        let initramfs = self.place(rootfs::artifact()?, "initramfs");
        self.env("KIAI_KERNEL", &vmlinux);
        self.env("KIAI_INITRD", &initramfs);
        self.env("KIAI_TEST_IMAGES", IMAGES);
        self.shared.push((image::artifact()?.disk(), Access::Read, IMAGES));
        self.place(build::kiai()?, "bin/kiai");
        self.payload.link(&format!("bin/{SHIM}"), "kiai");
        Ok(())
    }

    /// Puts in an image store that has the test images, under the names they have in the lab. What a run writes to it is
    /// gone with the lab.
    pub(crate) fn put_store(&mut self) -> Result<()> {
        self.shared.push((store::artifact(IMAGES)?, Access::Copy, STORE));
        self.env("KIAI_ROOT", STORE);
        Ok(())
    }

    /// Puts in a newer containerd than the lab's Debian has. Without it the tests that need it say so.
    pub(crate) fn put_containerd(&mut self) {
        match containerd::newest() {
            Ok(folder) => {
                let folder = self.place(folder, "containerd");
                self.env(containerd::VARIABLE, &folder);
            }
            Err(error) => step::say(&format!("lab: without containerd 2: {error:#}")),
        }
    }

    /// Runs the command to its end with this process's own standard streams, and stops the machine, whatever happens.
    pub(crate) fn run(self, machine: &Machine) -> Result<ExitCode> {
        let mut session = match self.start(machine)? {
            Ok(session) => session,
            Err(gone) => {
                eprint!("xtask: {gone}");
                return Ok(ExitCode::from(FAILED));
            }
        };
        let input = session.input()?;
        thread::spawn(move || feed(input));
        let deadline = Instant::now() + machine.timeout;
        loop {
            match session.next(deadline)? {
                LabEvent::Stdout(bytes) => pass_on(&mut io::stdout(), &bytes)?,
                LabEvent::Stderr(bytes) => pass_on(&mut io::stderr(), &bytes)?,
                LabEvent::Exit(status) => {
                    if machine.verbose {
                        eprint!("{}", session.console());
                        let lived = session.started().elapsed().as_secs_f32();
                        step::say(&format!("lab: stopped after {lived:.1} s"));
                    }
                    return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
                }
                LabEvent::Nothing => {
                    let reason = format!("no end after {} s", machine.timeout.as_secs());
                    let gone = if machine.verbose {
                        let (said, gone) = session.stop_silent(&reason);
                        eprint!("{said}");
                        gone
                    } else {
                        session.stop(&reason)
                    };
                    eprint!("xtask: {gone}");
                    return Ok(ExitCode::from(TIMED_OUT));
                }
                LabEvent::Gone(gone) => {
                    eprint!("xtask: {gone}");
                    return Ok(ExitCode::from(FAILED));
                }
            }
        }
    }

    /// Starts the machine and the command. Nothing of it is left behind, even if this process is killed.
    pub(crate) fn start(mut self, machine: &Machine) -> Result<Result<Session, Gone>> {
        let mut kernel = root::kernel()?;
        let root_disk = root::disk(&kernel)?;
        if machine.iommufd {
            kernel = iommufd::kernel()?;
            self.env("KIAI_LAB_IOMMUFD", "1");
            // The root disk has the modules of the other kernel.
            let release = std::fs::read_to_string(kernel.join("release"))?;
            self.put(&format!("{}:/usr/lib/modules/{release}", kernel.join("modules").display()))?;
        }
        let initramfs = root::initramfs(&kernel)?;

        let scratch = cache::scratch()?;
        let payload_disk = scratch.path().join("payload.ext4");
        self.payload.write(scratch.path(), &payload_disk)?;
        let scratch_disk = scratch.path().join("scratch.ext4");
        disk::format_empty(&scratch_disk)?;
        let mut disks = vec![(scratch_disk, Access::Write), (payload_disk, Access::Write)];
        self.job.disks = vec!["/scratch".into(), PAYLOAD.into()];
        for (image, access, mountpoint) in self.shared {
            disks.push((image, access));
            self.job.disks.push(mountpoint.into());
        }
        if machine.vfio {
            self.job.modules.push("vfio-pci".into());
        }

        let files = machine::Files {
            kernel: kernel.join("vmlinux"),
            initramfs,
            root_disk,
            disks,
            scratch: scratch.path().to_path_buf(),
        };
        let running = machine::start(machine, &files)?;
        let session = Session::begin(running, &self.job, machine)?;
        // QEMU has everything open: from here on nothing is left behind even if this process is killed.
        drop(scratch);
        Ok(session)
    }
}

/// Standard input, if it is not a terminal: a lab command is no interactive session.
fn feed(mut input: Input) {
    let mut stdin = io::stdin();
    let mut buffer = vec![0; 64 << 10];
    while !stdin.is_terminal() {
        match stdin.read(&mut buffer) {
            Ok(length @ 1..) if input.send(&buffer[..length]).is_ok() => {}
            _ => break,
        }
    }
    input.close();
}

fn pass_on(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}
