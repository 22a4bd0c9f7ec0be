//! Volumes, devices and interfaces that come to a container while it runs, and go before it does.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use kiai_tests::freeze::Frozen;
use kiai_tests::kiai::Kiai;
use kiai_tests::kiai::busybox;
use kiai_tests::kiai::scratch;
use kiai_tests::process;
use kiai_tests::scenario;

use crate::devices::Loop;
use crate::devices::VendorFile;

/// What plugging leaves on the host: links of the host and of pods, leased addresses, volumes mounted by shims.
fn on_host(kiai: &Kiai) -> BTreeSet<String> {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    // A bridge serves all containers and stays.
    let links = names("/sys/class/net").into_iter();
    let links = links.filter(|name| !Path::new(&format!("/sys/class/net/{name}/bridge")).exists());
    let mut all: BTreeSet<_> = links.map(|name| format!("link {name}")).collect();
    for pod in names("/run/netns") {
        let namespace = format!("--net=/run/netns/{pod}");
        let links = process::run("nsenter", &[&namespace, "ip", "-o", "link"]);
        all.extend(links.lines().map(|line| {
            // Number, name, flags.
            let name = line.split_whitespace().nth(1).unwrap();
            format!("link of {pod} {}", name.split(['@', ':']).next().unwrap())
        }));
    }
    let leases = names("/run/kiai-networks/kiai");
    let leases = leases.into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok());
    all.extend(leases.map(|address| format!("address {address}")));
    if let Some(shim) = kiai.shims().first() {
        let mounts = fs::read_to_string(format!("/proc/{shim}/mountinfo")).unwrap();
        let points = mounts.lines().map(|line| line.split(' ').nth(4).unwrap());
        all.extend(points.filter(|at| at.contains("/volume-")).map(|at| format!("mount {at}")));
    }
    all
}

fn interfaces(kiai: &Kiai, name: &str) -> String {
    kiai.ok(&["exec", name, "ls", "/sys/class/net"]).replace('\n', " ")
}

/// Name and address of an interface that is plugged in now.
fn plug_interface(kiai: &Kiai, name: &str) -> (String, String) {
    let plugged = kiai.ok(&["plug", name, "--network", "default"]);
    let (interface, address) = plugged.split_once(' ').unwrap();
    (interface.to_owned(), address.split('/').next().unwrap().to_owned())
}

#[test]
fn an_interface_comes_to_a_running_container_and_goes() {
    scenario(|kiai| {
        let server = "trap 'exit 0' TERM; mkdir /srv; echo served > /srv/file; httpd -p 7777 -h /srv; \
                      echo up; while :; do sleep 3600 & wait; done";
        kiai.ok(&["run", "-d", "--name", "net", &busybox(), "sh", "-c", server]);
        kiai.start(&["logs", "-f", "net"]).until("up");
        let before = on_host(kiai);

        let (interface, address) = plug_interface(kiai, "net");
        assert_eq!(interface, "eth1");
        assert_eq!(interfaces(kiai, "net"), "eth0 eth1 lo");
        let shown = kiai.ok(&["exec", "net", "ip", "addr", "show", "eth1"]);
        assert!(shown.contains(&address) && shown.contains("LOWER_UP"), "{shown}");
        assert!(kiai.ok(&["inspect", "net"]).contains(&address));
        let routes = kiai.ok(&["exec", "net", "ip", "route"]);
        assert_eq!(routes.matches("default").count(), 1, "{routes}");
        assert!(routes.lines().any(|line| line.starts_with("default") && line.contains("eth0")), "{routes}");

        let received = || -> u64 {
            let counter = "/sys/class/net/eth1/statistics/rx_packets";
            kiai.ok(&["exec", "net", "cat", counter]).parse().unwrap()
        };
        let so_far = received();
        let mut client = TcpStream::connect(format!("{address}:7777")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("served"), "{answer}");
        assert!(received() > so_far + 2, "it came in by the new interface");
        kiai.ok(&["exec", "net", "ping", "-c", "1", "-W", "60", "-I", "eth1", "10.88.0.1"]);

        let (second, _) = plug_interface(kiai, "net");
        assert_eq!(second, "eth2");
        kiai.ok(&["unplug", "net", "--network", "eth1", "--network", "eth2"]);
        assert_eq!(interfaces(kiai, "net"), "eth0 lo");
        assert_eq!(on_host(kiai), before);
        assert!(!kiai.ok(&["inspect", "net"]).contains(&address));
        kiai.ok(&["exec", "net", "ping", "-c", "1", "-W", "60", "10.88.0.1"]);
        kiai.call(&["unplug", "net", "--network", "eth1"]).refused(&["eth1", "not plugged in"]);
        kiai.ok(&["rm", "-f", "net"]);
    });
}

#[test]
fn volumes_come_to_a_running_container_and_go() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["writable", "fixed"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("from-host"), format!("{name}\n")).unwrap();
        }
        fs::write(at("setting"), "before\n").unwrap();
        kiai.keep_running("vol", &["--cap-add", "SYS_ADMIN"]);
        let before = on_host(kiai);
        let mounts = || kiai.ok(&["exec", "vol", "cat", "/proc/mounts"]);
        let mounted = mounts();

        let volumes = [
            format!("{}:/new/deep", at("writable").display()),
            format!("{}:/fixed:ro", at("fixed").display()),
            format!("{}:/etc/setting", at("setting").display()),
        ];
        let options: Vec<&str> = volumes.iter().flat_map(|volume| ["-v", volume.as_str()]).collect();
        kiai.ok(&[&["plug", "vol"], &options[..]].concat());
        assert_eq!(on_host(kiai).difference(&before).count(), 12, "each in a directory and in a view of it");
        let script = "cat /new/deep/from-host /fixed/from-host /etc/setting; echo answer > /new/deep/from-guest; \
                      echo after > /etc/setting; echo x > /fixed/new; echo x > /fixed/from-host; \
                      mount -o remount,rw,bind /fixed; echo x > /fixed/new; true";
        let finished = kiai.call(&["exec", "vol", "sh", "-c", script]);
        assert_eq!(finished.text(), "writable\nfixed\nbefore\n", "{finished}");
        assert!(finished.stderr.matches("Read-only file system").count() >= 3, "{finished}");
        assert_eq!(fs::read_dir(at("fixed")).unwrap().count(), 1, "whatever the guest does to its own mount");
        assert_eq!(fs::read_to_string(at("writable/from-guest")).unwrap(), "answer\n");
        assert_eq!(fs::read_to_string(at("setting")).unwrap(), "after\n");
        fs::write(at("writable/later"), "later").unwrap();
        assert_eq!(kiai.ok(&["exec", "vol", "cat", "/new/deep/later"]), "later");
        assert!(kiai.ok(&["inspect", "vol"]).contains(&volumes[1]));
        kiai.call(&["plug", "vol", "-v", &volumes[0]]).refused(&["/new/deep", "exists"]);

        kiai.ok(&["unplug", "vol", "-v", "/fixed/"]);
        assert_eq!(kiai.ok(&["exec", "vol", "ls", "/fixed"]), "");
        // What the container has got rid of itself, and the rest.
        kiai.ok(&["exec", "vol", "umount", "/etc/setting"]);
        kiai.ok(&["unplug", "vol", "-v", "/etc/setting", "-v", "/new/deep"]);
        assert_eq!(kiai.ok(&["exec", "vol", "ls", "/new/deep"]), "");
        assert_eq!(mounts(), mounted);
        assert_eq!(on_host(kiai), before);
        assert!(!kiai.ok(&["inspect", "vol"]).contains(&volumes[1]));
        assert_eq!(fs::read_to_string(at("fixed/from-host")).unwrap(), "fixed\n");
        kiai.call(&["unplug", "vol", "-v", "/fixed"]).refused(&["/fixed", "not plugged in"]);
        kiai.ok(&["rm", "-f", "vol"]);
    });
}

#[test]
fn a_disk_comes_to_a_running_container_and_goes() {
    scenario(|kiai| {
        let (disk, folder) = (Loop::new("disk"), tempfile::tempdir_in(scratch()).unwrap());
        kiai.keep_running("assigned", &[]);
        // Made beforehand: a node alone opens nothing.
        kiai.ok(&["exec", "assigned", "mknod", "/guess", "b", "254", "0"]);
        let refused = |node: &str| {
            let finished = kiai.call(&["exec", "assigned", "head", "-c", "4", node]);
            assert!(finished.failure(1).contains("Operation not permitted"), "{finished}");
        };
        refused("/guess");
        let read_only = format!("{}:/dev/assigned/disk:r", disk.node);
        let good = format!("{}:/data", folder.path().display());
        kiai.ok(&["plug", "assigned", "--device", &read_only, "-v", &good]);
        assert_eq!(kiai.ok(&["exec", "assigned", "head", "-c", "4", "/dev/assigned/disk"]), "disk");
        let finished = kiai.call(&["exec", "assigned", "sh", "-c", "echo x > /dev/assigned/disk"]);
        assert!(finished.failure(1).contains("Operation not permitted"), "{finished}");
        let table = kiai.ok(&["inspect", "--devices", "assigned"]);
        for word in ["/dev/assigned/disk", &disk.node, "virtio disk, read-only", "allow b 254:0 r"] {
            assert!(table.contains(word), "{word}: {table}");
        }
        let again = format!("{}:/dev/again:r", disk.node);
        kiai.call(&["plug", "assigned", "--device", &again]).refused(&["/dev/again", "/dev/assigned/disk"]);
        kiai.ok(&["unplug", "assigned", "--device", "/dev/assigned/disk", "-v", "/data"]);
        kiai.call(&["exec", "assigned", "ls", "/dev/assigned/disk"]).refused(&["no such file"]);
        let table = kiai.ok(&["inspect", "--devices", "assigned"]);
        assert!(!table.contains("/dev/assigned/disk") && !table.contains("254:0"), "{table}");

        // With the number it had, and what cannot be beside it.
        let writable = format!("{}:/dev/assigned/disk", disk.node);
        let bad = format!("{}:/etc/passwd/x", folder.path().display());
        kiai.call(&["plug", "assigned", "--device", &writable, "-v", &bad]).refused(&["/etc/passwd/x"]);
        kiai.call(&["exec", "assigned", "ls", "/dev/assigned/disk"]).refused(&["no such file"]);
        kiai.call(&["plug", "assigned", "--device", "/dev/kvm"]).refused(&["/dev/kvm", "cannot be assigned"]);
        kiai.call(&["plug", "assigned", "--device", "pci:0000:00:1e.7"]).refused(&["0000:00:1e.7"]);
        kiai.ok(&["plug", "assigned", "--device", &writable]);
        kiai.ok(&["exec", "assigned", "sh", "-c", "echo made | dd of=/dev/assigned/disk conv=notrunc; sync"]);
        assert!(fs::read(&disk.node).unwrap().starts_with(b"made\n"), "what the container wrote");
        kiai.ok(&["rm", "-f", "assigned"]);
    });
}

#[test]
fn a_disk_goes_when_nobody_uses_it_and_what_every_guest_has_comes_too() {
    scenario(|kiai| {
        let disk = Loop::new("disk");
        kiai.keep_running("user", &[]);
        let devices = || kiai.ok(&["inspect", "--devices", "user"]);
        let before = devices();
        let device = format!("{}:/dev/x", disk.node);
        kiai.ok(&["plug", "user", "--device", &device, "--device", "/dev/fuse"]);
        assert_eq!(kiai.ok(&["exec", "user", "sh", "-c", ": <> /dev/fuse; echo opened"]), "opened");
        let table = devices();
        for word in ["/dev/fuse", "the guest's own", "allow c 10:229 rwm"] {
            assert!(table.contains(word), "{word}: {table}");
        }
        let user = "exec 3< /dev/x; mkfifo /release; echo there; cat /release";
        let user = kiai.start(&["exec", "user", "sh", "-c", user]);
        user.until("there");
        let all = ["unplug", "user", "--device", &device, "--device", "/dev/fuse"];
        kiai.call(&all).refused(&["/dev/x", "in use"]);
        assert_eq!(devices(), table);
        kiai.ok(&["exec", "user", "sh", "-c", "head -c 4 /dev/x; : <> /dev/fuse; echo > /release"]);
        user.finish().success();
        kiai.ok(&all);
        assert_eq!(devices(), before);
        kiai.ok(&["exec", "user", "mknod", "/guess", "c", "10", "229"]);
        kiai.call(&["exec", "user", "sh", "-c", ": <> /guess"]).refused(&["not permitted"]);
        kiai.ok(&["rm", "-f", "user"]);
    });
}

#[test]
fn a_vendors_device_comes_to_a_running_container_with_what_can_come() {
    scenario(|kiai| {
        let (disk, library) = (Loop::new("cdi!"), tempfile::tempdir_in(scratch()).unwrap());
        fs::write(library.path().join("lib"), "of the vendor\n").unwrap();
        let library = library.path();
        let mount = serde_json::json!({"hostPath": library, "containerPath": "/vendor",
            "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]});
        let node = serde_json::json!({"path": "/dev/vendor", "hostPath": disk.node, "permissions": "r", "gid": 6,
            "fileMode": 0o660});
        let _file = VendorFile::new(
            "plugged",
            serde_json::json!([
                {"name": "first", "containerEdits": {"deviceNodes": [node], "mounts": [mount], "env": ["VENDOR=here"]}},
                {"name": "second", "containerEdits": {"mounts": [mount], "env": ["VENDOR=here"]}},
                {"name": "set", "containerEdits": {"deviceNodes": [node], "env": ["OTHER=1"]}},
                {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/hook"}]}},
                {"name": "grouped", "containerEdits": {"deviceNodes": [node], "additionalGids": [4711]}}
            ]),
        );
        kiai.keep_running("vendor", &["-e", "VENDOR=here"]);
        let before = (on_host(kiai), kiai.ok(&["inspect", "--devices", "vendor"]));
        let now = || (on_host(kiai), kiai.ok(&["inspect", "--devices", "vendor"]));
        let good = format!("{}:/data", library.display());
        for (name, words) in [
            ("set", ["variable OTHER", "running container"]),
            ("hooked", ["createContainer", "/bin/hook"]),
            ("grouped", ["group 4711", "running container"]),
            ("absent", ["/etc/cdi", "absent"]),
        ] {
            let device = format!("kiai.test/plugged={name}");
            let refused = kiai.call(&["plug", "vendor", "-v", &good, "--device", &device]);
            refused.refused(&[&[device.as_str()], &words[..]].concat());
            assert_eq!(now(), before, "{name}");
        }

        let [first, second] = ["first", "second"].map(|name| format!("kiai.test/plugged={name}"));
        kiai.ok(&["plug", "vendor", "--device", &first]);
        let script = "head -c 4 /dev/vendor; echo; cat /vendor/lib; stat -c '%g %a' /dev/vendor; \
                      grep -o ' /vendor .*' /proc/mounts | grep -c 'ro,nosuid,nodev'";
        let used = kiai.ok(&["exec", "vendor", "sh", "-c", script]);
        assert_eq!(used, "cdi!\nof the vendor\n6 660\n1");
        let written = kiai.call(&["exec", "vendor", "sh", "-c", "echo x > /dev/vendor"]);
        assert!(written.failure(1).contains("Operation not permitted"), "{written}");
        kiai.call(&["plug", "vendor", "--device", &first]).refused(&[&first, "exists"]);
        // What both need is there once, and goes with the last.
        kiai.ok(&["plug", "vendor", "--device", &second]);
        kiai.ok(&["unplug", "vendor", "--device", &first]);
        assert_eq!(kiai.ok(&["exec", "vendor", "cat", "/vendor/lib"]), "of the vendor");
        kiai.call(&["exec", "vendor", "ls", "/dev/vendor"]).refused(&["no such file"]);
        kiai.ok(&["unplug", "vendor", "--device", &second]);
        assert_eq!(now(), before);
        kiai.call(&["unplug", "vendor", "--device", &first]).refused(&[&first, "not plugged in"]);
        kiai.ok(&["rm", "-f", "vendor"]);
    });
}

#[test]
fn a_volume_the_guest_threw_off_its_bus_is_taken_back_and_its_place_is_free() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        fs::write(folder.path().join("file"), "here\n").unwrap();
        kiai.keep_running("thrower", &["--privileged"]);
        let before = on_host(kiai);
        let volume = |at: &str| format!("{}:{at}", folder.path().display());
        kiai.ok(&["plug", "thrower", "-v", &volume("/first"), "-v", &volume("/second")]);
        let throw = "for fs in /sys/fs/virtiofs/*; do grep -q volume- $fs/tag && echo 1 > $fs/device/../remove; done; \
                     cat /first/file || echo dead";
        assert_eq!(kiai.ok(&["exec", "thrower", "sh", "-c", throw]), "dead");
        kiai.ok(&["unplug", "thrower", "-v", "/first", "-v", "/second"]);
        assert_eq!(on_host(kiai), before);
        kiai.ok(&["plug", "thrower", "-v", &volume("/third")]);
        assert_eq!(kiai.ok(&["exec", "thrower", "cat", "/third/file"]), "here");
        kiai.ok(&["rm", "-f", "thrower"]);
    });
}

#[test]
fn what_is_in_use_stays_with_its_whole_batch() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        kiai.keep_running("busy", &[]);
        let before = on_host(kiai);
        let volumes = ["first", "second"].map(|name| {
            fs::create_dir(folder.path().join(name)).unwrap();
            format!("{}:/{name}", folder.path().join(name).display())
        });
        kiai.ok(&["plug", "busy", "-v", &volumes[0], "-v", &volumes[1], "--network", "default"]);
        let there = on_host(kiai);
        // The second is unmounted first, and put back.
        let user = "mkfifo /release; cd /first; echo there; cat /release";
        let user = kiai.start(&["exec", "busy", "sh", "-c", user]);
        user.until("there");
        let all = ["unplug", "busy", "-v", "/first", "-v", "/second", "--network", "eth1"];
        kiai.call(&all).refused(&["/first", "in use"]);
        assert_eq!(on_host(kiai), there);
        kiai.ok(&["exec", "busy", "sh", "-c", "echo x > /first/file; echo y > /second/file"]);
        assert!(folder.path().join("first/file").exists() && folder.path().join("second/file").exists());
        assert_eq!(interfaces(kiai, "busy"), "eth0 eth1 lo");

        kiai.ok(&["exec", "busy", "sh", "-c", "echo > /release"]);
        user.finish().success();
        kiai.ok(&all);
        assert_eq!(on_host(kiai), before);
        assert_eq!(kiai.ok(&["exec", "busy", "ls", "/first", "/second"]), "/first:\n\n/second:");
        kiai.ok(&["rm", "-f", "busy"]);
    });
}

#[test]
fn a_batch_with_one_bad_part_leaves_nothing() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let good = format!("{}:/good/place", folder.path().display());
        kiai.keep_running("whole", &[]);
        kiai.ok(&["exec", "whole", "ln", "-s", "/../../..", "/up"]);
        kiai.ok(&["exec", "whole", "ln", "-s", "/up/there", "/last"]);
        let before = on_host(kiai);
        let mounts = || kiai.ok(&["exec", "whole", "cat", "/proc/mounts"]);
        let mounted = mounts();
        let file = tempfile::NamedTempFile::new_in(scratch()).unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let missing = folder.path().join("missing");
        let shown = |path: &Path| path.display().to_string();
        for (source, destination, words) in [
            (shown(&missing), "/x", shown(&missing)),
            (shown(&socket), "/x", shown(&socket)),
            ("/proc".to_owned(), "/x", "/proc".to_owned()),
            // Both are found out by the guest, when all else is there.
            (shown(folder.path()), "/etc/passwd/x", "/etc/passwd/x".to_owned()),
            (shown(folder.path()), "/bin/busybox", "/bin/busybox".to_owned()),
            // A file where a directory is, on which something of the container's is mounted.
            (shown(file.path()), "/proc", "/proc".to_owned()),
        ] {
            let bad = format!("{source}:{destination}");
            let request = ["plug", "whole", "-v", &good, "--network", "default", "-v", &bad];
            kiai.call(&request).refused(&[&words]);
            assert_eq!(on_host(kiai), before, "{bad}");
            assert_eq!(interfaces(kiai, "whole"), "eth0 lo", "{bad}");
            kiai.call(&["exec", "whole", "ls", "/good"]).refused(&["/good"]);
            assert_eq!(mounts(), mounted, "{bad}");
        }
        assert!(!missing.exists());
        // Links lead where they lead in the container.
        kiai.ok(&["plug", "whole", "-v", &format!("{}:/up/there", folder.path().display())]);
        assert_eq!(kiai.ok(&["exec", "whole", "ls", "/there"]), "socket");
        kiai.ok(&["unplug", "whole", "-v", "/up/there"]);
        kiai.ok(&["plug", "whole", "-v", &format!("{}:/last", folder.path().display())]);
        assert_eq!(kiai.ok(&["exec", "whole", "ls", "/there"]), "socket");
        kiai.ok(&["unplug", "whole", "-v", "/last"]);
        assert_eq!((mounts(), on_host(kiai)), (mounted, before));
        kiai.ok(&["rm", "-f", "whole"]);

        kiai.keep_running("alone", &["--network", "none"]);
        kiai.call(&["plug", "alone", "--network", "default"]).refused(&["network"]);
        kiai.ok(&["rm", "-f", "alone"]);
    });
}

#[test]
fn a_container_that_ends_takes_what_was_plugged_in_with_it() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let volume = format!("{}:/data", folder.path().display());
        let before = on_host(kiai);
        for end in [&["stop", "ends"][..], &["rm", "-f", "ends"]] {
            kiai.keep_running("ends", &[]);
            kiai.ok(&["plug", "ends", "-v", &volume, "--network", "default"]);
            kiai.ok(end);
            kiai.call(&["rm", "-f", "ends"]);
            assert_eq!(on_host(kiai), before, "{end:?}");
        }
    });
}

#[test]
fn a_killed_shim_leaves_nothing_of_what_was_plugged_in() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let volume = format!("{}:/data", folder.path().display());
        let before = on_host(kiai);
        kiai.keep_running("orphan", &["-p", "18081:80"]);
        kiai.ok(&["plug", "orphan", "-v", &volume, "--network", "default"]);
        kiai.kill_shim();
        kiai.call(&["plug", "orphan", "--network", "default"]).refused(&["orphan"]);
        kiai.ok(&["rm", "orphan"]);
        assert_eq!(on_host(kiai), before);
    });
}

#[test]
fn a_guest_that_does_not_answer_costs_the_batch_and_nothing_else() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        fs::write(folder.path().join("file"), "shared\n").unwrap();
        let disk = Loop::new("disk");
        kiai.keep_running("deaf", &[]);
        let before = on_host(kiai);
        let volume = format!("{}:/data", folder.path().display());
        let request = ["plug", "deaf", "--network", "default", "-v", &volume, "--device", &disk.node];
        let frozen = Frozen::vcpus(kiai.shim());
        kiai.call(&request).refused(&["RescanPci", "no answer within 60 s"]);
        assert_eq!(on_host(kiai), before);
        drop(frozen);

        assert_eq!(interfaces(kiai, "deaf"), "eth0 lo");
        kiai.call(&["exec", "deaf", "ls", "/data"]).refused(&["No such file"]);
        kiai.ok(&request);
        assert_eq!(kiai.ok(&["exec", "deaf", "cat", "/data/file"]), "shared");
        assert_eq!(kiai.ok(&["exec", "deaf", "head", "-c", "4", &disk.node]), "disk");
        assert_eq!(interfaces(kiai, "deaf"), "eth0 eth1 lo");
        kiai.ok(&["rm", "-f", "deaf"]);
    });
}
