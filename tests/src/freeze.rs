//! A guest whose CPUs stand still while the rest of its microVM goes on: what a guest that never answers looks like.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;

/// A cgroup of the vCPUs' threads alone, frozen. Dropping it lets them run.
pub struct Frozen {
    cgroup: PathBuf,
    threads: Vec<String>,
}

impl Frozen {
    /// Stops the vCPUs of a shim's microVM, and returns once they stand still.
    pub fn vcpus(shim: i32) -> Self {
        let cgroups = fs::read_to_string(format!("/proc/{shim}/cgroup")).unwrap();
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let cgroup = Path::new("/sys/fs/cgroup").join(path).join("vcpus");
        fs::create_dir(&cgroup).unwrap();
        let frozen = Frozen { cgroup, threads: vcpus(shim) };
        assert!(!frozen.threads.is_empty(), "no vCPU among the threads of {shim}");
        frozen.write("cgroup.type", "threaded");
        for thread in &frozen.threads {
            frozen.write("cgroup.threads", thread);
        }
        let mut events = File::open(frozen.cgroup.join("cgroup.events")).unwrap();
        let mut still = || {
            let mut text = String::new();
            events.rewind().unwrap();
            events.read_to_string(&mut text).unwrap();
            text.contains("frozen 1")
        };
        frozen.write("cgroup.freeze", "1");
        let patience = Duration::from_secs(60).try_into().unwrap();
        let told = File::open(frozen.cgroup.join("cgroup.events")).unwrap();
        while !still() {
            let came =
                rustix::event::poll(&mut [PollFd::new(&told, PollFlags::PRI)], Some(&patience)).unwrap();
            assert_ne!(came, 0, "vCPUs that do not stand still");
            let _ = rustix::io::pread(&told, &mut [0; 64], 0);
        }
        frozen
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.cgroup.join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.freeze"), "0");
        for thread in &self.threads {
            let _ = fs::write(self.cgroup.with_file_name("cgroup.threads"), thread);
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn vcpus(shim: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{shim}/task")).unwrap().map(|task| task.unwrap());
    let is_vcpu =
        |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("vcpu"));
    tasks.filter(|task| is_vcpu(&task.path())).map(|task| task.file_name().into_string().unwrap()).collect()
}
