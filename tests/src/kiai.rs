//! The `kiai` under test, with a state directory per scenario and an image store that was filled beforehand.

use std::env;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::evidence;
use crate::process::Finished;
use crate::process::Running;

/// In the state directory.
const CONFIGURATION: &str = "kiai.toml";

/// A `kiai` to call.
pub struct Kiai {
    state: TempDir,
    root: PathBuf,
}

impl Kiai {
    /// One with a state of its own, and all test images in its store: what a scenario finds there afterwards
    /// that was not there before is then a container's.
    pub(crate) fn new() -> Kiai {
        let root = env::var_os("KIAI_ROOT").expect("KIAI_ROOT is not set: run `cargo xtask test`");
        Kiai::with_root(Path::new(&root))
    }

    /// One with a state of its own and everything persistent in `root`.
    pub fn with_root(root: &Path) -> Kiai {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run `cargo xtask test`");
        for variable in ["KIAI_KERNEL", "KIAI_INITRD", "KIAI_TEST_IMAGES"] {
            assert!(env::var_os(variable).is_some(), "{variable} is not set: run `cargo xtask test`");
        }
        // Sockets live below it, and a socket's path has at most 107 bytes.
        let state = tempfile::Builder::new().prefix("kiai-").tempdir_in("/run").unwrap();
        // The same on every machine, independent of its configuration and number of CPUs.
        let vcpus = vcpus();
        let most = vcpus.max(2);
        let configuration = format!("[sandbox]\nvcpus = {vcpus}\nmax-vcpus = {most}\nconsole-log = true\n");
        fs::write(state.path().join(CONFIGURATION), configuration).unwrap();
        evidence::watch(state.path());
        Kiai { state, root: root.to_owned() }
    }

    /// Where what does not outlive a boot is kept.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// All that shims of containers that are there have logged.
    pub fn shim_logs(&self) -> String {
        let mut found = Vec::new();
        find(self.state.path(), "shim.log", &mut found);
        found.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    }

    /// Where images and writable layers are kept.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The command, not started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kiai");
        command.args(arguments).env("KIAI_STATE", self.state.path()).env("KIAI_ROOT", &self.root);
        command.env("KIAI_CONFIG", self.state.path().join(CONFIGURATION));
        command
    }

    /// Starts `kiai ARGUMENTS` with nothing to read.
    pub fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments), None)
    }

    /// Runs `kiai ARGUMENTS` to its end.
    pub fn call(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).finish()
    }

    /// Runs `kiai ARGUMENTS` to its end with `input` piped in.
    pub fn call_with(&self, arguments: &[&str], input: Vec<u8>) -> Finished {
        Running::start(self.command(arguments), Some(input)).finish()
    }

    /// Runs `kiai ARGUMENTS`, which has to succeed; its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.call(arguments).success()
    }

    /// `kiai run --rm BUSYBOX WORDS`.
    pub fn busybox(&self, words: &[&str]) -> Finished {
        self.call(&[&["run", "--rm", &busybox()], words].concat())
    }

    /// Starts a container called `name` that runs until it is told to stop, and then stops at once.
    pub fn keep_running(&self, name: &str, options: &[&str]) {
        let image = busybox();
        let wait = "trap 'exit 0' TERM; echo up; while :; do sleep 3600 & wait; done";
        let words = ["run", "-d", "--name", name];
        self.ok(&[&words, options, &[&image, "sh", "-c", wait]].concat());
    }

    /// The process of the one shim of this scenario.
    pub fn shim(&self) -> i32 {
        let found = self.shims();
        let [shim] = found[..] else { panic!("not one shim but {found:?}") };
        shim
    }

    /// The processes of the shims of this scenario.
    pub fn shims(&self) -> Vec<i32> {
        let mut found = Vec::new();
        find(self.state.path(), "shim.pid", &mut found);
        found.iter().map(|file| fs::read_to_string(file).unwrap().trim().parse().unwrap()).collect()
    }

    /// That process, to be waited for.
    pub fn shim_process(&self) -> OwnedFd {
        rustix::process::pidfd_open(Pid::from_raw(self.shim()).unwrap(), PidfdFlags::empty()).unwrap()
    }

    /// Kills that shim as the kernel would, and waits until it is gone.
    pub fn kill_shim(&self) {
        let pidfd = self.shim_process();
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        await_end(&pidfd);
    }

    /// Containers the state directory still knows.
    pub(crate) fn containers_left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for namespace in fs::read_dir(self.state.path()).into_iter().flatten().flatten() {
            let containers = fs::read_dir(namespace.path().join("containers"));
            left.extend(containers.into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        left.into_iter().map(|path| format!("container {}", path.display())).collect()
    }

    /// Removes the remains of a failed scenario, so that the next one starts from a clean machine.
    pub(crate) fn discard(&self) {
        for container in self.containers_left() {
            let name = container.rsplit('/').next().unwrap_or_default();
            let _ = self.command(&["rm", "-f", name]).output();
        }
    }
}

/// How many vCPUs a pod has that does not ask for a number.
pub fn vcpus() -> u8 {
    env::var("KIAI_TEST_VCPUS").map_or(1, |text| text.parse().expect("KIAI_TEST_VCPUS is a number"))
}

/// Waits until a process is gone.
pub fn await_end(pidfd: &OwnedFd) {
    let mut ready = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut ready, None).unwrap();
}

/// Words that name the image of busybox.
pub fn busybox() -> String {
    format!("oci:{}", image("busybox").display())
}

/// Words that name the image of a real Debian.
pub fn debian() -> String {
    format!("oci:{}", image("debian").display())
}

/// Words that name the same Debian, packed by docker's rules.
pub fn debian_archive() -> String {
    format!("docker-archive:{}", image("debian.tar").display())
}

/// A file or folder among the test images.
pub fn image(name: &str) -> PathBuf {
    let folder = env::var_os("KIAI_TEST_IMAGES").expect("checked when the scenario began");
    PathBuf::from(folder).join(name)
}

/// Where there is room: the lab's disk, else the temporary directory.
pub fn scratch() -> PathBuf {
    let disk = Path::new("/scratch");
    if disk.is_dir() { disk.to_owned() } else { env::temp_dir() }
}

fn find(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name() == name {
            found.push(entry.path());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&entry.path(), name, found);
        }
    }
}
