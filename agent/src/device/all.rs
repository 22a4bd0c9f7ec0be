//! Entries for every device of the guest, for a container that gets all of them.
//!
//! Read from sysfs, as device managers do: `/sys/dev/{block,char}/<major>:<minor>/uevent` has the node's name and, if
//! the driver sets them, its permissions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, Spec};

/// Nodes that every container has of its own: its terminal and its `ptmx`.
const OWN: [&str; 2] = ["console", "ptmx"];

/// The spec with an entry added for each device of the guest whose path has no entry.
pub fn with_all(spec: &Spec) -> io::Result<Spec> {
    add_all(spec, Path::new("/sys"))
}

fn add_all(spec: &Spec, sys: &Path) -> io::Result<Spec> {
    let mut spec = spec.clone();
    let entries = spec.linux_mut().get_or_insert_default().devices_mut().get_or_insert_default();
    for (class, typ) in [("block", LinuxDeviceType::B), ("char", LinuxDeviceType::C)] {
        let mut found: Vec<_> = fs::read_dir(sys.join("dev").join(class))?
            .flatten()
            // A device may be removed while this reads.
            .filter_map(|device| entry(typ, &fs::read_to_string(device.path().join("uevent")).ok()?))
            .collect();
        found.sort_by(|one, other| one.path().cmp(other.path()));
        for device in found {
            if entries.iter().all(|entry| entry.path() != device.path()) {
                entries.push(device);
            }
        }
    }
    Ok(spec)
}

fn entry(typ: LinuxDeviceType, uevent: &str) -> Option<LinuxDevice> {
    let value = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = value("DEVNAME").filter(|name| !OWN.contains(name))?;
    let mode = value("DEVMODE").and_then(|octal| u32::from_str_radix(octal, 8).ok());
    let device = LinuxDeviceBuilder::default()
        .path(PathBuf::from("/dev").join(name))
        .typ(typ)
        .major(value("MAJOR")?.parse::<i64>().ok()?)
        .minor(value("MINOR")?.parse::<i64>().ok()?)
        .file_mode(mode.unwrap_or(0o600))
        .uid(0u32)
        .gid(0u32)
        .build();
    Some(device.expect("every field of a device has a default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_added_whose_path_is_free() {
        let sys = tempfile::tempdir().unwrap();
        let device = |class: &str, number: &str, uevent: &str| {
            let directory = sys.path().join("dev").join(class).join(number);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("uevent"), uevent).unwrap();
        };
        device("block", "254:0", "MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n");
        device("char", "1:3", "MAJOR=1\nMINOR=3\nDEVNAME=null\nDEVMODE=0666\n");
        device("char", "10:200", "MAJOR=10\nMINOR=200\nDEVNAME=net/tun\n");
        device("char", "5:2", "MAJOR=5\nMINOR=2\nDEVNAME=ptmx\n");
        device("char", "4:0", "MAJOR=4\nMINOR=0\n");
        let spec: Spec =
            serde_json::from_value(serde_json::json!({"ociVersion": "1.1.0", "linux": {"devices": [
                {"path": "/dev/vda", "type": "b", "major": 254, "minor": 16},
            ]}}))
            .unwrap();
        let all = add_all(&spec, sys.path()).unwrap();
        let entries = all.linux().clone().unwrap().devices().clone().unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|e| {
                format!("{} {}:{} {:o}", e.path().display(), e.major(), e.minor(), e.file_mode().unwrap_or(0))
            })
            .collect();
        assert_eq!(shown, ["/dev/vda 254:16 0", "/dev/net/tun 10:200 600", "/dev/null 1:3 666"]);
    }
}
