//! What a container could leave behind, listed: processes, mounts, network links and namespaces, cgroups,
//! sockets, directories, addresses and firewall chains.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;

/// How long a process may take to end after the command that ended it has returned.
const WINDING_DOWN: Duration = Duration::from_secs(20);
/// Chains that the CNI plugins share between all containers and keep.
const SHARED_CHAINS: [&str; 5] =
    ["CNI-ADMIN", "CNI-FORWARD", "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"];

/// Where host-local notes the addresses in use: that of kiai's own networks, and its default, which containerd's have.
const ADDRESSES: [&str; 2] = ["/run/kiai-networks", "/var/lib/cni/networks"];

/// One line per thing.
pub type Census = BTreeSet<String>;

/// Lists everything now. `root` is where images and the containers' writable layers are kept.
pub fn take(root: &Path) -> Census {
    let mut census = Census::new();
    census.extend(processes().into_iter().map(|(pid, name)| format!("process {pid} {name}")));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The folder of named network namespaces is made a mount once, as ip-netns(8) does, and stays.
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    census.extend(points.filter(|point| *point != "/run/netns").map(|point| format!("mount {point}")));
    // A bridge serves all containers and stays.
    let links = names("/sys/class/net").into_iter();
    census.extend(
        links
            .filter(|link| !Path::new(&format!("/sys/class/net/{link}/bridge")).exists())
            .map(|link| format!("link {link}")),
    );
    census.extend(names("/run/netns").into_iter().map(|name| format!("network namespace {name}")));
    directories(Path::new("/sys/fs/cgroup"), usize::MAX, &mut |path| {
        census.insert(format!("cgroup {path}"));
    });
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let sockets = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    census.extend(sockets.filter(|path| path.contains("kiai")).map(|path| format!("socket {path}")));
    census.extend(names("/run/containerd/s").into_iter().map(|name| format!("shim socket {name}")));
    directories(root, 3, &mut |path| {
        // Folders that hold nothing are the store's own skeleton.
        if !names(path).is_empty() {
            census.insert(format!("directory {path}"));
        }
    });
    for (folder, network) in
        ADDRESSES.iter().flat_map(|folder| names(folder).into_iter().map(move |n| (folder, n)))
    {
        let leases = names(format!("{folder}/{network}"));
        let leases = leases.into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok());
        census.extend(leases.map(|address| format!("address {address} of network {network}")));
    }
    census.extend(chains());
    census
}

/// Waits for kiai's processes that were not there `before` to end; those that do not will be in the next list.
pub fn await_processes(before: &Census) {
    for (pid, name) in processes() {
        if before.contains(&format!("process {pid} {name}")) {
            continue;
        }
        let Some(pid) = Pid::from_raw(pid) else { continue };
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            let limit = WINDING_DOWN.try_into().unwrap();
            let _ = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit));
        }
    }
}

/// Processes of kiai: pid and command line.
pub(crate) fn processes() -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for name in names("/proc") {
        let Ok(pid) = name.parse::<i32>() else { continue };
        let Ok(comm) = fs::read_to_string(format!("/proc/{name}/comm")) else { continue };
        // A zombie has ended; whose child it is, is not kiai's to decide.
        let status = fs::read_to_string(format!("/proc/{name}/stat")).unwrap_or_default();
        let zombie = status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
        if (comm.starts_with("kiai") || comm.starts_with("containerd-shim")) && !zombie {
            let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()));
        }
    }
    found
}

/// Firewall chains of single containers, where there is a firewall.
fn chains() -> Vec<String> {
    let Ok(saved) = Command::new("iptables-save").output() else { return Vec::new() };
    String::from_utf8_lossy(&saved.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .filter(|chain| chain.starts_with("CNI-") && !SHARED_CHAINS.contains(chain))
        .map(|chain| format!("firewall chain {chain}"))
        .collect()
}

fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn directories(top: &Path, depth: usize, found: &mut dyn FnMut(&str)) {
    let Ok(entries) = fs::read_dir(top) else { return };
    for entry in entries.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found(&entry.path().to_string_lossy());
            directories(&entry.path(), depth - 1, found);
        }
    }
}
