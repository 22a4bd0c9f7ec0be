//! Checks of the host's kernel, its directories and the network's tools.

use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Access;

use crate::check::Finding;
use crate::network::Settings;

/// Whether the user is root: mounts, taps and namespaces need root.
pub(super) fn root() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => Finding::good("user", "root"),
        false => Finding::failed("user", "not root", "run kiai with sudo"),
    }
}

/// Whether a directory, or its nearest existing parent, is writable.
pub(super) fn directory(name: &'static str, path: &Path) -> Finding {
    let existing = nearest_existing(path);
    let hint = format!("make {} writable, or name another folder (--root, --state)", path.display());
    if !existing.is_dir() {
        return Finding::failed(name, format!("{} is not a directory", existing.display()), hint);
    }
    let writable = rustix::fs::access(&existing, Access::WRITE_OK | Access::EXEC_OK);
    // access(2) reports /proc and /sys as writable, but no file can be made there.
    let kind = rustix::fs::statfs(&existing).map(|stat| stat.f_type);
    match (writable, kind) {
        (Err(errno), _) | (_, Err(errno)) => {
            Finding::failed(name, format!("{}: {errno}", existing.display()), hint)
        }
        (Ok(()), Ok(PROC_MAGIC | SYSFS_MAGIC)) => {
            Finding::failed(name, format!("{} is not on a disk or tmpfs", path.display()), hint)
        }
        (Ok(()), Ok(_)) => Finding::good(name, path.display().to_string()),
    }
}

const PROC_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;
const OVERLAY_MAGIC: i64 = 0x794c_7630;

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Whether overlay mounts are available and supported by the root directory's file system.
pub(super) fn overlay(root: &Path) -> Finding {
    const NAME: &str = "overlayfs";
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let built_in = known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    if !built_in && !module_exists("overlay") {
        return Finding::failed(NAME, "not in this kernel", "use a kernel with CONFIG_OVERLAY_FS");
    }
    let on_overlay =
        rustix::fs::statfs(nearest_existing(root)).is_ok_and(|stat| stat.f_type == OVERLAY_MAGIC);
    if on_overlay {
        return Finding::failed(
            NAME,
            format!("{} is itself on an overlay, which cannot be written through another", root.display()),
            "name a folder on a disk or tmpfs (--root or KIAI_ROOT)",
        );
    }
    Finding::good(NAME, "available")
}

/// Whether modprobe(8) would find a module of the running kernel.
fn module_exists(name: &str) -> bool {
    let release = rustix::system::uname();
    let list = Path::new("/lib/modules").join(&*release.release().to_string_lossy()).join("modules.dep");
    std::fs::read_to_string(list).is_ok_and(|list| list.contains(&format!("/{name}.ko")))
}

/// The version of the host's control groups. Sandboxes run with each; limits on the host need the memory controller.
pub(super) fn cgroups() -> Finding {
    const NAME: &str = "control groups";
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    match controllers {
        Ok(list) if list.split_whitespace().any(|word| word == "memory") => Finding::good(NAME, "v2"),
        Ok(list) => Finding::doubtful(
            NAME,
            format!("v2 without the memory controller ({})", list.trim()),
            "pods' processes on the host are not accounted; boot without cgroup_disable=memory",
        ),
        Err(_) if Path::new("/sys/fs/cgroup/memory").is_dir() => Finding::good(NAME, "v1 or hybrid"),
        Err(_) => Finding::doubtful(
            NAME,
            "no control groups are mounted",
            "mount them (mount -t cgroup2 none /sys/fs/cgroup) to account for pods on the host",
        ),
    }
}

/// Whether tap devices can be made. Without them the only network is loopback.
pub(super) fn tun() -> Finding {
    const NAME: &str = "tun";
    let path = Path::new("/dev/net/tun");
    if !path.exists() {
        return Finding::doubtful(NAME, "/dev/net/tun does not exist", "modprobe tun, or use --network none");
    }
    match std::fs::File::options().read(true).write(true).open(path) {
        Ok(_) => Finding::good(NAME, "/dev/net/tun"),
        Err(error) => {
            Finding::doubtful(NAME, format!("/dev/net/tun: {error}"), "modprobe tun, or use --network none")
        }
    }
}

/// Whether the CNI plugins of the default network are installed.
pub(super) fn plugins() -> Finding {
    const NAME: &str = "CNI plugins";
    let settings = Settings::default();
    let missing: Vec<&str> = ["bridge", "host-local", "portmap"]
        .into_iter()
        .filter(|name| !settings.plugin_path.iter().any(|folder| folder.join(name).is_file()))
        .collect();
    if missing.is_empty() {
        return Finding::good(NAME, "bridge, host-local, portmap");
    }
    Finding::doubtful(
        NAME,
        format!("missing: {}", missing.join(", ")),
        "apt-get install containernetworking-plugins, name their folder in CNI_PATH, or use --network none",
    )
}

/// Whether iptables is installed: the plugins call it for masquerading and port mappings.
pub(super) fn iptables() -> Finding {
    const NAME: &str = "iptables";
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join("iptables").is_file());
    if found {
        Finding::good(NAME, "installed")
    } else {
        Finding::doubtful(NAME, "not installed", "apt-get install iptables, or use --network none")
    }
}
