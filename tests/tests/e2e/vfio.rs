//! PCI functions of the host in a pod, in a lab that has some to lend: an NVMe disk and QEMU's `edu`.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use kiai_tests::Finished;
use kiai_tests::Kiai;
use kiai_tests::kiai::debian;
use kiai_tests::kiai::scratch;
use kiai_tests::process;
use kiai_tests::scenario;

/// Vendor and device id as sysfs writes them.
const NVME: (&str, &str) = ("0x1b36", "0x0010");
const EDU: (&str, &str) = ("0x1234", "0x11e8");

/// A function of the host in VFIO's hands. Dropping it gives it back.
struct Bound<'a> {
    kiai: &'a Kiai,
    address: String,
}

impl<'a> Bound<'a> {
    fn new(kiai: &'a Kiai, id: (&str, &str)) -> Self {
        let address = find(id);
        let told = kiai.ok(&["devices", "bind", &address]);
        let expected = format!("{address} is on vfio-pci: kiai run --device pci:{address}");
        assert_eq!(told, expected);
        assert_eq!(driver(&address).as_deref(), Some("vfio-pci"));
        Self { kiai, address }
    }

    fn device(&self) -> String {
        format!("pci:{}", self.address)
    }

    /// `kiai run --device` of this function, in a Debian with the host's programs below /host.
    fn run(&self, options: &[&str], script: &str) -> Finished {
        let (device, image) = (self.device(), debian());
        let tools = ["run", "--rm", "-v", "/usr:/host:ro", "--cap-add", "SYS_ADMIN", "--device", &device];
        self.kiai.call(&[&tools, options, &[&image, "sh", "-ec", script]].concat())
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.kiai.call(&["devices", "unbind", &self.address]);
    }
}

/// The address of the one function with these ids.
fn find((vendor, device): (&str, &str)) -> String {
    let is =
        |path: &Path, file: &str, text: &str| fs::read_to_string(path.join(file)).unwrap().trim() == text;
    let devices = fs::read_dir("/sys/bus/pci/devices").unwrap();
    let found: Vec<PathBuf> = devices
        .map(|entry| entry.unwrap().path())
        .filter(|path| is(path, "vendor", vendor) && is(path, "device", device))
        .collect();
    let [only] = &found[..] else { panic!("not one function {vendor}:{device} but {found:?}") };
    only.file_name().unwrap().to_str().unwrap().to_owned()
}

fn driver(address: &str) -> Option<String> {
    let driver = fs::read_link(format!("/sys/bus/pci/devices/{address}/driver")).ok()?;
    Some(driver.file_name().unwrap().to_str().unwrap().to_owned())
}

/// Waits until the kernel has made a node: its driver looks for disks in its own time.
fn await_node(path: &str) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fs::inotify;
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&events, "/dev", inotify::WatchFlags::CREATE).unwrap();
    let patience = std::time::Duration::from_secs(60).try_into().unwrap();
    while !Path::new(path).exists() {
        let came = poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&patience)).unwrap();
        assert_ne!(came, 0, "no {path}");
        // What it says is seen in the folder; only that it spoke counts.
        let _ = rustix::io::read(&events, &mut [0; 4096]);
    }
}

/// A partition table with one Linux partition, from 1 MiB on for 128 MiB.
fn partition_table() -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&(128u32 << 11).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn a_disk_keeps_its_data_over_the_pods_restart_and_goes_back_to_the_host() {
    scenario(|kiai| {
        fs::write("/dev/nvme0n1", partition_table()).unwrap();
        let disk = Bound::new(kiai, NVME);
        let write = "ls /dev/nvme0 /dev/nvme0n1 /dev/nvme0n1p1; \
                     export LD_LIBRARY_PATH=/host/lib/x86_64-linux-gnu; \
                     /host/sbin/mke2fs -q -t ext4 /dev/nvme0n1p1; \
                     mount /dev/nvme0n1p1 /mnt; \
                     dd if=/dev/urandom of=/mnt/data bs=1M count=32 2>/dev/null; \
                     sha256sum /mnt/data; umount /mnt";
        let written = disk.run(&[], write).success();
        let written: Vec<&str> = written.lines().collect();
        assert_eq!(written[..3], ["/dev/nvme0", "/dev/nvme0n1", "/dev/nvme0n1p1"]);
        assert_eq!(written[3].split(' ').next().unwrap().len(), 64, "{written:?}");
        assert!(!Path::new("/dev/nvme0n1").exists(), "it is not the host's now");

        let read = disk.run(&[], "mount -o ro /dev/nvme0n1p1 /mnt; sha256sum /mnt/data").success();
        assert_eq!(read, written[3]);

        let address = disk.address.clone();
        drop(disk);
        assert_eq!(driver(&address).as_deref(), Some("nvme"));
        await_node("/dev/nvme0n1p1");
        let folder = tempfile::tempdir().unwrap();
        let mounted = folder.path().to_str().unwrap();
        process::run("mount", &["-o", "ro", "/dev/nvme0n1p1", mounted]);
        let host = process::run("sha256sum", &[&format!("{mounted}/data")]);
        process::run("umount", &[mounted]);
        assert_eq!(host.split(' ').next(), written[3].split(' ').next());
    });
}

#[test]
fn a_program_in_the_container_drives_a_function_itself() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        fs::write(folder.path().join("edu.py"), include_str!("vfio/edu.py")).unwrap();
        let volume = format!("{}:/test:ro", folder.path().display());
        let device = format!("{},user-space", edu.device());
        let variable = format!("PCIDEVICE_EDU={}", edu.address);
        let words = ["run", "--rm", "-v", &volume, "--device", &device, "-e", &variable];
        let rights = ["--cap-add", "SYS_RAWIO", "--cap-add", "SYS_ADMIN"];
        let image = debian();
        let command = [&image, "python3", "/test/edu.py"];
        let told = kiai.ok(&[&words[..], &rights, &command].concat());
        let expected = [
            "identified as 010000ed",
            "interrupted by 0x00000001",
            "factorial of 10 is 3628800",
            "interrupted by 0x00000042",
            "interrupted by 0x00000100",
            "interrupted by 0x00000100",
            "1024 bytes came back",
        ];
        assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    });
}

#[test]
fn what_cannot_be_passed_is_refused_by_name() {
    scenario(|kiai| {
        let nvme = find(NVME);
        let image = debian();
        let run = |device: &str| kiai.call(&["run", "--rm", "--device", device, &image, "true"]);
        run(&format!("pci:{nvme}")).refused(&[&nvme, "nvme", &format!("kiai devices bind {nvme}")]);
        run("pci:0000:00:1e.7").refused(&["no PCI function 0000:00:1e.7"]);
        run("pci:nonsense").refused(&["nonsense"]);
        // The lab's root disk.
        let root = fs::canonicalize("/sys/block/vda/device/..").unwrap();
        let root = root.file_name().unwrap().to_str().unwrap();
        kiai.call(&["devices", "bind", root]).refused(&[root, "/dev/vda"]);
        assert_eq!(driver(root).as_deref(), Some("virtio-pci"));
        kiai.call(&["devices", "bind", "0000:00:1f.0"]).refused(&["bridge"]);
        kiai.call(&["devices", "unbind", &nvme]).refused(&[&nvme, "not on vfio-pci"]);
    });
}

#[test]
fn a_group_goes_whole_or_not_at_all() {
    scenario(|kiai| {
        // The chipset's functions share a group, and the host drives the disk controller of it.
        process::run("modprobe", &["ahci"]);
        assert_eq!(driver("0000:00:1f.2").as_deref(), Some("ahci"));
        let told = kiai.ok(&["devices", "bind", "0000:00:1f.3"]);
        assert!(told.contains("0000:00:1f.2 (ahci)"), "{told}");
        let image = debian();
        let refused = kiai.call(&["run", "--rm", "--device", "pci:0000:00:1f.3", &image, "true"]);
        kiai.ok(&["devices", "unbind", "0000:00:1f.3"]);
        process::run("modprobe", &["-r", "ahci"]);
        refused.refused(&["0000:00:1f.2 (ahci)", "whole or not at all"]);
    });
}

#[test]
fn devices_are_listed_with_what_to_do() {
    scenario(|kiai| {
        let rows = || -> Vec<serde_json::Value> {
            serde_json::from_str(&kiai.ok(&["devices", "--format", "json"])).unwrap()
        };
        let row = |address: &str| rows().into_iter().find(|row| row["address"] == address).unwrap();
        let nvme = find(NVME);
        let before = row(&nvme);
        assert_eq!((&before["driver"], &before["ready"]), (&"nvme".into(), &false.into()));
        assert_eq!((&before["resets"], &before["class"]), (&true.into(), &"010802".into()));
        assert!(before["name"].as_str().unwrap().contains("NVM"), "{before}");
        let bound = Bound::new(kiai, NVME);
        assert_eq!(row(&nvme)["ready"], true);
        let table = kiai.ok(&["devices"]);
        let line = table.lines().find(|line| line.starts_with(&nvme)).unwrap();
        assert!(line.ends_with(&format!("ready: kiai run --device pci:{nvme}")), "{table}");
        drop(bound);
        assert_eq!(row(&nvme)["driver"], "nvme");
    });
}
