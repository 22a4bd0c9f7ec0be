//! PCI functions of the host in a pod, in a lab that has some to assign: an NVMe disk, QEMU's `edu`, and two
//! functions that share a group.

mod running;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use kiai_tests::Finished;
use kiai_tests::Kiai;
use kiai_tests::kiai::debian;
use kiai_tests::kiai::image;
use kiai_tests::kiai::scratch;
use kiai_tests::process;
use kiai_tests::scenario;

use kiai_tests::containerd::Containerd;

/// Vendor and device id as sysfs writes them.
const NVME: (&str, &str) = ("0x1b36", "0x0010");
const EDU: (&str, &str) = ("0x1234", "0x11e8");
const E1000: (&str, &str) = ("0x8086", "0x100e");
const RNG: (&str, &str) = ("0x1af4", "0x1005");

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

/// The group of a function, and whether the lab's kernel gives the function a file of its own: what `cargo xtask test`
/// says of this lab must be so.
fn interface(address: &str) -> (String, bool) {
    let own_file = std::env::var_os("KIAI_LAB_IOMMUFD").is_some();
    assert_eq!(Path::new("/dev/iommu").exists(), own_file);
    let group = fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group")).unwrap();
    (group.file_name().unwrap().to_str().unwrap().to_owned(), own_file)
}

/// The VFIO files that any process of this machine has open, each once.
fn open_files() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    // A process, or one of its files, may be gone again.
    let files =
        processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok()).flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok()?.to_str().map(str::to_owned))
        .filter(|path| path.starts_with("/dev/vfio") || path == "/dev/iommu")
        .collect()
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

/// A folder with our programs that drive functions.
fn programs() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(scratch()).unwrap();
    for (name, text) in [
        ("function.py", include_str!("vfio/function.py")),
        ("edu.py", include_str!("vfio/edu.py")),
        ("e1000.py", include_str!("vfio/e1000.py")),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Runs one of our programs on a function that it drives itself; what it printed.
fn drive(function: &Bound<'_>, program: &str) -> String {
    let folder = programs();
    let volume = format!("{}:/test:ro", folder.path().display());
    let device = format!("{},user-space", function.device());
    let variable = format!("PCIDEVICE_TEST={}", function.address);
    let words = ["run", "--rm", "-v", &volume, "--device", &device, "-e", &variable];
    let rights = ["--cap-add", "SYS_RAWIO", "--cap-add", "SYS_ADMIN"];
    let (image, program) = (debian(), format!("/test/{program}"));
    function.kiai.ok(&[&words[..], &rights, &[&image, "python3", "-B", &program]].concat())
}

#[test]
fn a_program_in_the_container_drives_a_function_itself() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let expected = [
            "identified as 010000ed",
            "interrupted by 0x00000001",
            "factorial of 10 is 3628800",
            "interrupted by 0x00000042",
            "interrupted by 0x00000100",
            "interrupted by 0x00000100",
            "1024 bytes came back",
        ];
        assert_eq!(drive(&edu, "edu.py").lines().collect::<Vec<_>>(), expected);
    });
}

#[test]
fn a_group_goes_whole_or_not_at_all_and_a_pin_interrupts_as_often_as_it_is_pulled() {
    scenario(|kiai| {
        // Both behind one old bridge: nothing keeps their DMA apart. The host drives the first.
        let (other, network) = (find(RNG), find(E1000));
        assert_eq!(driver(&other).as_deref(), Some("virtio-pci"));
        let in_the_way = format!("{other} (virtio-pci)");
        let told = kiai.ok(&["devices", "bind", &network]);
        assert!(told.contains(&in_the_way), "{told}");
        let (device, image) = (format!("pci:{network},user-space"), debian());
        let refused = kiai.call(&["run", "--rm", "--device", &device, &image, "true"]);
        refused.refused(&[&in_the_way, "whole or not at all"]);

        kiai.ok(&["devices", "bind", &other]);
        let function = Bound::new(kiai, E1000);
        let expected = ["interrupted by 0x4"; 3];
        assert_eq!(drive(&function, "e1000.py").lines().collect::<Vec<_>>(), expected);
        // By its node the whole group goes, and two functions share one map of the guest's memory.
        let node = format!("/dev/vfio/{}", interface(&network).0);
        let both = kiai.ok(&["run", "--rm", "--device", &node, &image, "ls", "/dev/vfio"]);
        assert_eq!(both.lines().collect::<Vec<_>>(), ["noiommu-0", "noiommu-1", "vfio"]);
        drop(function);
        kiai.ok(&["devices", "unbind", &other]);
        assert_eq!(driver(&other).as_deref(), Some("virtio-pci"));
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

/// What is said of a function that another pod has: with a file of its own, what the kernel said, and what that
/// can mean.
fn taken(function: &Bound<'_>) -> Vec<&'static str> {
    match interface(&function.address).1 {
        true => vec!["/dev/vfio/devices/", "another program has it", "coherent", "invalid argument"],
        false => vec!["/dev/vfio/", "another pod"],
    }
}

#[test]
fn an_assigned_function_is_neither_assigned_again_nor_unbound() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let (device, image) = (format!("{},user-space", edu.device()), debian());
        kiai.keep_running("holder", &["--device", &device]);
        let again = kiai.call(&["run", "--rm", "--device", &device, &image, "true"]);
        again.refused(&taken(&edu));
        kiai.call(&["devices", "unbind", &edu.address]).refused(&[&edu.address, "in use"]);
        kiai.ok(&["stop", "holder"]);
        kiai.ok(&["rm", "holder"]);

        // Who has the group open has the function, however it would be opened.
        let (group, _) = interface(&edu.address);
        let program = fs::File::options().read(true).write(true).open(format!("/dev/vfio/{group}")).unwrap();
        let taken = kiai.call(&["run", "--rm", "--device", &device, &image, "true"]);
        taken.refused(&["/dev/vfio/", "another p"]);
        drop(program);

        // The guest has no driver for it: that is found out there, and undone.
        let undriven = kiai.call(&["run", "--rm", "--device", &edu.device(), &image, "true"]);
        undriven.refused(&["no driver", "user-space"]);
        kiai.ok(&["run", "--rm", "--device", &device, &image, "ls", "/dev/vfio/vfio"]);
    });
}

#[test]
fn who_asks_is_told_how_a_function_was_opened() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let (group, own_file) = interface(&edu.address);
        let node = format!("/dev/vfio/{group}");
        let (way, told, files) = match own_file {
            true => (
                "cdev".to_owned(),
                serde_json::json!({"cdev": "/dev/vfio/devices/vfio0"}),
                ["/dev/iommu".to_owned(), "/dev/vfio/devices/vfio0".to_owned()],
            ),
            false => (
                format!("group {group}"),
                serde_json::json!({"group": group.parse::<u32>().unwrap()}),
                [node.clone(), "/dev/vfio/vfio".to_owned()],
            ),
        };
        let list = kiai.ok(&["devices", "--format", "json"]);
        let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.iter().find(|row| row["address"] == edu.address).unwrap()["vfio"], told);

        // By its address and by its group, which is how a spec says it.
        for device in [format!("{},user-space", edu.device()), node.clone()] {
            assert_eq!(open_files(), BTreeSet::new());
            kiai.keep_running("holder", &["--device", &device]);
            assert_eq!(open_files(), BTreeSet::from(files.clone()), "{device}");
            let table = kiai.ok(&["inspect", "--devices", "holder"]);
            let row = table.lines().find(|row| row.starts_with(&node)).expect(&table);
            let host = format!("{} ", edu.address);
            let attached = format!("VFIO ({way}), user space ");
            assert!(row.contains(&host) && row.contains(&attached), "{table}");
            let json = kiai.ok(&["inspect", "--devices", "--format", "json", "holder"]);
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(json[0]["devices"][0]["host"]["vfio"], told, "{json}");
            kiai.ok(&["stop", "holder"]);
            kiai.ok(&["rm", "holder"]);
        }
    });
}

#[test]
fn memory_comes_and_goes_under_a_function() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let device = format!("{},user-space", edu.device());
        kiai.keep_running("holder", &["--device", &device, "-m", "128m"]);
        let memory = || -> u64 {
            let told = kiai.ok(&["exec", "holder", "grep", "MemTotal", "/proc/meminfo"]);
            told.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
        };
        // What is plugged is also mapped for the function, or else there is an error and no memory.
        let before = memory();
        kiai.ok(&["update", "-m", "512m", "holder"]);
        assert_eq!(memory(), before + 384);
        kiai.ok(&["update", "-m", "128m", "holder"]);
        assert!(memory() <= before + 32, "{} MiB after {before}", memory());
        kiai.ok(&["stop", "holder"]);
        kiai.ok(&["rm", "holder"]);
    });
}

#[test]
fn a_function_comes_and_goes_while_the_pod_runs() {
    scenario(|kiai| {
        let containerd = Containerd::start();
        containerd.import(&image("busybox"), "test/busybox");
        let reference = containerd.ctr(&["image", "ls", "-q"]).finish().success();
        let reference = reference.lines().next().unwrap();
        let runtime = ["run", "--runtime", "io.containerd.kiai.v2"];
        let pod = ["-d", "--annotation", "io.kubernetes.cri.container-type=sandbox", reference, "pod"];
        let command = ["sleep", "3600"];
        containerd.ctr(&[&runtime[..], &pod, &command].concat()).finish().success();
        let functions = || {
            let list = ["task", "exec", "--exec-id", "list", "pod", "ls", "/sys/bus/pci/devices"];
            containerd.ctr(&list).finish().success()
        };
        let before = functions();

        let edu = Bound::new(kiai, EDU);
        let group = fs::read_link(format!("/sys/bus/pci/devices/{}/iommu_group", edu.address)).unwrap();
        let group = format!("/dev/vfio/{}", group.file_name().unwrap().to_str().unwrap());
        let script = "ls /dev/vfio; ls /sys/bus/pci/devices | wc -l";
        let expected = format!("noiommu-0\nvfio\n{}", before.lines().count() + 1);
        for name in ["first", "second"] {
            let member = [
                "--rm",
                "--annotation",
                "io.kubernetes.cri.container-type=container",
                "--annotation",
                "io.kubernetes.cri.sandbox-id=pod",
                "--device",
                &group,
                reference,
                name,
            ];
            let plugged = containerd.ctr(&[&runtime[..], &member, &["sh", "-c", script]].concat()).finish();
            assert_eq!(plugged.success(), expected, "{name}");
            assert_eq!(functions(), before, "{name} is gone, and so is its function");
        }
        // The pod runs, and the function is free.
        let address = edu.address.clone();
        drop(edu);
        assert_eq!(driver(&address), None);
        containerd.ctr(&["task", "kill", "-s", "KILL", "pod"]).finish().success();
        containerd.ctr(&["task", "delete", "pod"]).finish();
        containerd.ctr(&["container", "delete", "pod"]).finish().success();
        containerd.stop();
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
