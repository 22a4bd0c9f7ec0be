//! PCI functions that come to a container while it runs, and go before it does.

use std::collections::BTreeSet;
use std::fs;

use kiai_tests::Kiai;
use kiai_tests::freeze::Frozen;
use kiai_tests::kiai::debian;
use kiai_tests::kiai::scratch;
use kiai_tests::scenario;

use super::Bound;
use super::EDU;
use super::NVME;
use super::driver;
use super::interface;
use super::open_files;

/// A Debian that runs, with the host's programs below /host and ours below /test.
fn start(kiai: &Kiai, name: &str) {
    let programs = super::programs();
    let volume = format!("{}:/test", programs.path().display());
    let wait = "cp -r /test /programs; trap 'exit 0' TERM; echo up; while :; do sleep 3600 & wait; done";
    let rights = ["--cap-add", "SYS_ADMIN", "--cap-add", "SYS_RAWIO", "-v", "/usr:/host:ro", "-v", &volume];
    kiai.ok(&[&["run", "-d", "--name", name], &rights[..], &[&debian(), "sh", "-c", wait]].concat());
    kiai.start(&["logs", "-f", name]).until("up");
}

/// What a container sees of devices: nodes, functions on its bus, and what `inspect` says of it. A folder that was made
/// for a node stays, as one for a volume does.
fn seen(kiai: &Kiai, name: &str) -> String {
    let script = "cd /dev; find . ! -type d | sort; ls /sys/bus/pci/devices";
    let inside = kiai.ok(&["exec", name, "sh", "-c", script]);
    inside + &kiai.ok(&["inspect", "--devices", name])
}

#[test]
fn a_disk_comes_to_a_running_container_and_goes_back_to_the_host() {
    scenario(|kiai| {
        fs::write("/dev/nvme0n1", super::partition_table()).unwrap();
        let disk = Bound::new(kiai, NVME);
        start(kiai, "disk");
        let before = seen(kiai, "disk");
        let device = disk.device();
        kiai.ok(&["plug", "disk", "--device", &device]);
        let exec = |script: &str| kiai.ok(&["exec", "disk", "sh", "-ec", script]);
        let write = "ls /dev/nvme0 /dev/nvme0n1 /dev/nvme0n1p1; \
                     export LD_LIBRARY_PATH=/host/lib/x86_64-linux-gnu; \
                     /host/sbin/mke2fs -q -t ext4 /dev/nvme0n1p1; mount /dev/nvme0n1p1 /mnt; \
                     dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null; sha256sum /mnt/data";
        let written = exec(write);
        let written: Vec<&str> = written.lines().collect();
        assert_eq!(written[..3], ["/dev/nvme0", "/dev/nvme0n1", "/dev/nvme0n1p1"]);
        let (group, own_file) = interface(&disk.address);
        let way = if own_file { "VFIO (cdev), guest's driver" } else { "guest's driver" };
        let table = kiai.ok(&["inspect", "--devices", "disk"]);
        for word in [way, &format!("/dev/vfio/{group}"), &disk.address, "/dev/nvme0n1p1", "rwm"] {
            assert!(table.contains(word), "{word}: {table}");
        }

        let unplug = || kiai.call(&["unplug", "disk", "--device", &device]);
        kiai.call(&["plug", "disk", "--device", &device]).refused(&[&disk.address]);
        unplug().refused(&["/dev/nvme0n1", "in use"]);
        // It is as it was.
        assert_eq!(exec("cd /mnt; sha256sum /mnt/data"), written[3]);
        exec("umount /mnt");
        let user = "exec 3< /dev/nvme0n1p1; mkfifo /release; echo there; cat /release";
        let user = kiai.start(&["exec", "disk", "sh", "-c", user]);
        user.until("there");
        unplug().refused(&["/dev/nvme0n1p1", "in use"]);
        exec("echo > /release");
        user.finish().success();
        unplug().success();
        assert_eq!(seen(kiai, "disk"), before);
        assert_eq!(open_files(), BTreeSet::new());
        unplug().refused(&[&device, "not plugged in"]);

        // And again, with what was written.
        kiai.ok(&["plug", "disk", "--device", &device]);
        assert_eq!(exec("mount -o ro /dev/nvme0n1p1 /mnt; sha256sum /mnt/data; umount /mnt"), written[3]);
        kiai.ok(&["rm", "-f", "disk"]);
        assert_eq!(open_files(), BTreeSet::new());
        let address = disk.address.clone();
        drop(disk);
        assert_eq!(driver(&address).as_deref(), Some("nvme"));
    });
}

#[test]
fn a_program_that_runs_already_comes_to_drive_a_function() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        start(kiai, "driver");
        let before = seen(kiai, "driver");
        let (group, _) = interface(&edu.address);
        let node = format!("/dev/vfio/{group}");
        let by_address = format!("{},user-space", edu.device());
        for (plugged, unplugged) in [(&by_address, &edu.device()), (&node, &node)] {
            kiai.ok(&["plug", "driver", "--device", plugged]);
            assert_eq!(kiai.ok(&["exec", "driver", "ls", "/dev/vfio"]), "noiommu-0\nvfio");
            let table = kiai.ok(&["inspect", "--devices", "driver"]);
            assert!(table.contains("user space") && table.contains(&edu.address), "{table}");
            // The address in a variable is right in what starts from now on.
            let variable = format!("PCIDEVICE_TEST={}", edu.address);
            let drive = ["exec", "-e", &variable, "driver", "python3", "-B", "/programs/edu.py"];
            assert!(kiai.ok(&drive).contains("factorial of 10 is 3628800"));

            let user = "exec 3<> /dev/vfio/noiommu-0; mkfifo /release; echo there; cat /release; rm /release";
            let user = kiai.start(&["exec", "driver", "sh", "-c", user]);
            user.until("there");
            kiai.call(&["unplug", "driver", "--device", unplugged])
                .refused(&["/dev/vfio/noiommu-0", "in use"]);
            kiai.ok(&["exec", "driver", "sh", "-c", "echo > /release"]);
            user.finish().success();
            kiai.ok(&["unplug", "driver", "--device", unplugged]);
            assert_eq!(seen(kiai, "driver"), before, "{plugged}");
            assert_eq!(open_files(), BTreeSet::new());
        }
        kiai.ok(&["rm", "-f", "driver"]);
    });
}

#[test]
fn a_function_goes_back_with_its_whole_batch_if_anything_fails() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let user_space = format!("{},user-space", edu.device());
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        start(kiai, "whole");
        let before = seen(kiai, "whole");
        let check = |what: &str| {
            assert_eq!(seen(kiai, "whole"), before, "{what}");
            assert_eq!(open_files(), BTreeSet::new(), "{what}");
            assert_eq!(driver(&edu.address).as_deref(), Some("vfio-pci"), "{what}");
        };
        // Found out by the guest, when all else is there.
        let bad = format!("{}:/etc/passwd/x", folder.path().display());
        kiai.call(&["plug", "whole", "--device", &user_space, "-v", &bad]).refused(&["/etc/passwd/x"]);
        check("a volume with no place");
        kiai.call(&["plug", "whole", "--device", &edu.device()]).refused(&["no driver", "user-space"]);
        check("no driver in the guest");
        kiai.call(&["plug", "whole", "--device", &user_space, "--device", "/dev/kvm"]).refused(&["/dev/kvm"]);
        check("a device that cannot be assigned");
        kiai.call(&["plug", "whole", "--device", &format!("pci:{}", super::find(NVME))])
            .refused(&["kiai devices bind"]);

        let good = format!("{}:/data", folder.path().display());
        let request = ["plug", "whole", "--device", &user_space, "-v", &good];
        let frozen = Frozen::vcpus(kiai.shim());
        kiai.call(&request).refused(&["no answer within 60 s"]);
        assert_eq!(open_files(), BTreeSet::new(), "the guest does not have it, whatever it thinks");
        drop(frozen);
        kiai.ok(&request);
        assert_eq!(kiai.ok(&["exec", "whole", "ls", "/dev/vfio"]), "noiommu-0\nvfio");
        kiai.ok(&["unplug", "whole", "--device", &user_space, "-v", "/data"]);
        kiai.ok(&["rm", "-f", "whole"]);
    });
}

#[test]
fn a_group_comes_by_the_name_a_vendor_gave_it() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let node = format!("/dev/vfio/{}", interface(&edu.address).0);
        let _file = crate::devices::VendorFile::new(
            "function",
            serde_json::json!([{"name": "edu", "containerEdits": {"deviceNodes": [
                {"path": node}, {"path": "/dev/vfio/vfio"}
            ]}}]),
        );
        start(kiai, "vendor");
        let before = seen(kiai, "vendor");
        let name = "kiai.test/function=edu";
        kiai.ok(&["plug", "vendor", "--device", name]);
        assert_eq!(kiai.ok(&["exec", "vendor", "ls", "/dev/vfio"]), "noiommu-0\nvfio");
        let variable = format!("PCIDEVICE_TEST={}", edu.address);
        let drive = ["exec", "-e", &variable, "vendor", "python3", "-B", "/programs/edu.py"];
        assert!(kiai.ok(&drive).contains("1024 bytes came back"));
        kiai.ok(&["unplug", "vendor", "--device", name]);
        assert_eq!(seen(kiai, "vendor"), before);
        assert_eq!(open_files(), BTreeSet::new());
        kiai.ok(&["rm", "-f", "vendor"]);
    });
}

#[test]
fn one_function_comes_by_its_own_file_and_another_by_its_group() {
    scenario(|kiai| {
        let edu = Bound::new(kiai, EDU);
        let (group, own_file) = interface(&edu.address);
        if !own_file {
            // A kernel without such files opens all by their groups, as the other tests see.
            return;
        }
        // Without the node it can be opened by its group only. It is made again when the function is bound again.
        let own = fs::read_dir(format!("/sys/bus/pci/devices/{}/vfio-dev", edu.address)).unwrap();
        let own = own.map(|entry| entry.unwrap().file_name().into_string().unwrap()).next().unwrap();
        fs::remove_file(format!("/dev/vfio/devices/{own}")).unwrap();
        let disk = Bound::new(kiai, NVME);
        start(kiai, "both");
        kiai.ok(&["plug", "both", "--device", &disk.device()]);
        kiai.ok(&["plug", "both", "--device", &format!("{},user-space", edu.device())]);
        let files = open_files();
        for file in ["/dev/iommu", "/dev/vfio/vfio", &format!("/dev/vfio/{group}")] {
            assert!(files.contains(file), "{file}: {files:?}");
        }
        assert!(files.iter().any(|file| file.starts_with("/dev/vfio/devices/")), "{files:?}");
        let table = kiai.ok(&["inspect", "--devices", "both"]);
        assert!(table.contains("VFIO (cdev)") && table.contains(&format!("VFIO (group {group})")), "{table}");
        // Both reach the guest's memory.
        let script = "dd if=/dev/urandom of=/block bs=1M count=4 2>/dev/null; dd if=/block of=/dev/nvme0n1 bs=1M \
                      oflag=direct 2>/dev/null; dd if=/dev/nvme0n1 bs=1M count=4 iflag=direct 2>/dev/null | cmp - /block";
        kiai.ok(&["exec", "both", "sh", "-ec", script]);
        let variable = format!("PCIDEVICE_TEST={}", edu.address);
        let drive = ["exec", "-e", &variable, "both", "python3", "-B", "/programs/edu.py"];
        assert!(kiai.ok(&drive).contains("1024 bytes came back"));
        kiai.ok(&["unplug", "both", "--device", &disk.device()]);
        assert!(kiai.ok(&drive).contains("1024 bytes came back"));
        kiai.ok(&["unplug", "both", "--device", &edu.device()]);
        assert_eq!(open_files(), BTreeSet::new());
        kiai.ok(&["rm", "-f", "both"]);
    });
}
