//! The guest itself: kernel parameters, host name, clock, entropy, CPUs, PCI.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kiai_protocol::agent::{DeviceLocator, GuestDetailsResponse};
use kiai_protocol::pci_path::PciPath;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::fault::{Fault, Result};
use crate::uevent::Uevents;
use crate::{device, sys};

/// Limits that the kernel derives from the memory it boots with. A pod boots with little memory and grows, so they
/// would stay too low; the pod is limited by its cgroups.
const GROWN_LIMITS: [(&str, &str); 4] = [
    ("kernel.threads-max", "4194303"),
    ("kernel.pid_max", "4194304"),
    ("fs.file-max", "9223372036854775807"),
    ("fs.inotify.max_user_watches", "1048576"),
];

/// Raises [`GROWN_LIMITS`]. A parameter that the kernel does not have is skipped.
pub fn lift_limits() {
    for (key, value) in GROWN_LIMITS {
        if let Err(error) = fs::write(parameter(key).expect("the keys of this table are well-formed"), value)
        {
            tracing::debug!("{key}: {error}");
        }
    }
}

/// Writes kernel parameters (sysctl.d(5) keys).
pub fn set_sysctls<'a>(parameters: impl Iterator<Item = (&'a String, &'a String)>) -> Result<()> {
    for (key, value) in parameters {
        let path = parameter(key)
            .ok_or_else(|| Fault::InvalidArgument(format!("{key:?} is not a kernel parameter")))?;
        fs::write(&path, value).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Fault::InvalidArgument(format!("the guest has no kernel parameter {key}")),
            ErrorKind::InvalidInput => {
                Fault::InvalidArgument(format!("kernel parameter {key} cannot be {value:?}"))
            }
            _ => anyhow::Error::new(error).context(format!("set {key} to {value:?}")).into(),
        })?;
    }
    Ok(())
}

/// The file of a parameter. The first dot or slash of the key is the separator, and the other character is part of a
/// name (`net/ipv4/conf/eth0.1/forwarding`, `net.ipv4.conf.eth0/1.forwarding`).
fn parameter(key: &str) -> Option<PathBuf> {
    let separator = key.chars().find(|c| matches!(c, '.' | '/'))?;
    let mut path = PathBuf::from("/proc/sys");
    for part in key.split(separator) {
        let name = if separator == '.' { part.replace('/', ".") } else { part.to_owned() };
        if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
            return None;
        }
        path.push(name);
    }
    Some(path)
}

/// Sets the guest's host name; empty leaves it.
pub fn set_hostname(name: &str) -> Result<()> {
    if name.len() > 64 {
        return Err(Fault::InvalidArgument(format!("host name {name:?} is longer than 64 bytes")));
    }
    if !name.is_empty() {
        rustix::system::sethostname(name.as_bytes()).context("set the host name")?;
    }
    Ok(())
}

/// Writes the guest's resolv.conf; no lines leave it absent.
pub fn set_dns(lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    fs::create_dir_all("/etc").context("make /etc")?;
    let mut text = lines.join("\n");
    text.push('\n');
    Ok(fs::write("/etc/resolv.conf", text).context("write /etc/resolv.conf")?)
}

/// Sets the wall clock.
pub fn set_clock(seconds: i64, nanoseconds: i64) -> Result<()> {
    if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
        return Err(Fault::InvalidArgument(format!("{seconds} s {nanoseconds} ns is not a time")));
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Ok(clock_settime(ClockId::Realtime, time).context("set the clock")?)
}

/// Adds entropy to the kernel's random generator and reseeds it at once.
pub fn add_entropy(data: &[u8]) -> Result<()> {
    if data.len() > sys::MAX_ENTROPY {
        return Err(Fault::InvalidArgument(format!(
            "{} bytes of entropy are more than {}",
            data.len(),
            sys::MAX_ENTROPY
        )));
    }
    let random = File::options().write(true).open("/dev/random").context("open /dev/random")?;
    Ok(sys::credit_entropy(&random, data).context("credit entropy")?)
}

/// Details of the guest for the host.
pub fn details() -> GuestDetailsResponse {
    let info = rustix::system::sysinfo();
    GuestDetailsResponse {
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        memory_bytes: info.totalram * u64::from(info.mem_unit.max(1)),
        online_cpus: count(&online()),
        present_cpus: count(&cpus("present")),
        ..Default::default()
    }
}

/// Brings CPUs online or offline until the `wanted` lowest are online; blocks. Returns how many are online.
pub fn online_cpus(wanted: u32) -> Result<u32> {
    let present = cpus("present");
    if wanted == 0 || wanted > count(&present) {
        let present = count(&present);
        return Err(Fault::InvalidArgument(format!("{wanted} CPUs cannot be online: {present} are present")));
    }
    for (rank, cpu) in present.iter().enumerate() {
        let (state, change) = if rank < wanted as usize { ("1", "online") } else { ("0", "offline") };
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        match fs::read_to_string(&file) {
            // The boot CPU cannot go offline and has no such file.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Ok(now) if now.trim() == state => continue,
            _ => {}
        }
        fs::write(&file, state).with_context(|| format!("CPU {cpu} does not go {change}"))?;
    }
    Ok(count(&online()))
}

/// The numbers of the CPUs that are online.
pub fn online() -> Vec<u32> {
    cpus("online")
}

fn cpus(which: &str) -> Vec<u32> {
    let text = fs::read_to_string(Path::new("/sys/devices/system/cpu").join(which)).unwrap_or_default();
    parse_list(&text)
}

fn count(cpus: &[u32]) -> u32 {
    u32::try_from(cpus.len()).unwrap_or(u32::MAX)
}

/// Parses a list of CPUs as the kernel writes it: `0-2,5`.
fn parse_list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// Rescans the PCI bus and waits until every device of `expected` has its node.
pub async fn rescan_pci(uevents: &Uevents, expected: &[DeviceLocator], timeout: Duration) -> Result<()> {
    let rescan = || fs::write("/sys/bus/pci/rescan", "1");
    tokio::task::spawn_blocking(rescan).await.context("rescan the PCI bus")?.context("rescan the PCI bus")?;
    let deadline = tokio::time::Instant::now() + timeout;
    for locator in expected {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        device::wait_for(uevents, locator, left).await?;
    }
    Ok(())
}

/// Removes a PCI function from its driver and from the guest's bus; blocks.
pub fn remove_pci(path: &str) -> Result<()> {
    let path: PciPath = path.parse().map_err(|error| Fault::InvalidArgument(format!("{error}")))?;
    let function = device::pci_function(Path::new("/sys"), &path)
        .ok_or_else(|| Fault::NotFound(format!("no PCI function at {path}")))?;
    Ok(fs::write(function.join("remove"), "1").with_context(|| format!("remove PCI function {path}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_files_below_proc_sys_and_nowhere_else() {
        let file = |key| parameter(key).map(|path| path.display().to_string());
        assert_eq!(file("kernel.shmmax").unwrap(), "/proc/sys/kernel/shmmax");
        assert_eq!(file("net/ipv4/conf/eth0.1/mtu").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/mtu");
        assert_eq!(file("net.ipv4.conf.eth0/1.mtu").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/mtu");
        for wrong in ["", "shmmax", "/etc/passwd", "../etc", "net/../../etc/x", "a..b", "net./..x.y", "a.\0"]
        {
            assert_eq!(parameter(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("0\n"), [0]);
        assert_eq!(parse_list("\n"), [] as [u32; 0]);
    }

    #[test]
    fn details_of_this_machine_are_plausible() {
        let details = details();
        assert!(details.memory_bytes > 1 << 20);
        assert!(details.online_cpus >= 1 && details.online_cpus <= details.present_cpus);
        assert!(!details.kernel_release.is_empty());
    }

    #[test]
    fn what_is_no_time_and_no_cpu_count_is_refused() {
        assert!(set_clock(1, 1_000_000_000).is_err());
        assert!(set_clock(-1, 0).is_err());
        assert!(online_cpus(0).is_err());
        assert!(online_cpus(100_000).is_err());
    }
}
