//! The devices of a container: the right ones under the right numbers, and no others.
//!
//! Runs in a lab, whose own disks have the very numbers a guest gives to the first disks that are assigned (254:0,
//! 254:16, ...), so that host and guest numbers collide. Those disks are mounted: they are only read.

use std::fs;
use std::path::Path;

use kiai_tests::Finished;
use kiai_tests::containerd::Containerd;
use kiai_tests::kiai::busybox;
use kiai_tests::kiai::image;
use kiai_tests::kiai::scratch;
use kiai_tests::process;
use kiai_tests::scenario;

/// The lab's disks.
const FIRST: &str = "/dev/vda";
const SECOND: &str = "/dev/vdb";

/// A loop device of the host whose content is a word. Dropping it frees it.
pub(super) struct Loop {
    _file: tempfile::NamedTempFile,
    pub(super) node: String,
}

impl Loop {
    pub(super) fn new(word: &str) -> Self {
        let file = tempfile::NamedTempFile::new_in(scratch()).unwrap();
        fs::write(&file, format!("{word:4095}\n").repeat(16)).unwrap();
        let node = process::run("losetup", &["--find", "--show", file.path().to_str().unwrap()]);
        Self { _file: file, node }
    }

    /// `major:minor` on the host.
    fn number(&self) -> String {
        number(&self.node)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        process::run("losetup", &["--detach", &self.node]);
    }
}

/// `major:minor` of a block device of the host.
fn number(node: &str) -> String {
    let name = Path::new(node).file_name().unwrap().to_str().unwrap();
    fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap().trim().to_owned()
}

/// What tells one ext4 file system from another: its UUID.
fn uuid(node: &str) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 16];
    fs::File::open(node).unwrap().read_exact_at(&mut bytes, 1024 + 0x68).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Shell functions for the container: the number of a node in decimal, and the UUID of the ext4 on it.
const FUNCTIONS: &str = "number() { printf '%d:%d\\n' $(stat -c '0x%t 0x%T' $1); }; \
    uuid() { dd if=$1 bs=8 skip=141 count=2 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'; echo; }; ";

fn script(body: &str) -> String {
    format!("{FUNCTIONS}{body}")
}

#[test]
fn numbers_that_swap_between_host_and_guest_name_the_right_disks() {
    scenario(|kiai| {
        let (x, y) = (format!("{SECOND}:/dev/x:r"), format!("{FIRST}:/dev/y:r"));
        let script = script("number /dev/x; number /dev/y; uuid /dev/x; uuid /dev/y");
        let words = ["run", "--rm", "--device", &x, "--device", &y, &busybox(), "sh", "-c", &script];
        let output = kiai.ok(&words);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[..2], [number(FIRST), number(SECOND)], "a swap: {output}");
        assert_eq!(lines[2..], [uuid(SECOND), uuid(FIRST)], "the right disks: {output}");
    });
}

#[test]
fn numbers_that_form_a_chain_are_followed_one_step_only() {
    scenario(|kiai| {
        let disk = Loop::new("loop");
        let own = format!("{}:/dev/own", disk.node);
        let (y, x) = (format!("{FIRST}:/dev/y:r"), format!("{SECOND}:/dev/x:r"));
        let script = script(
            "number /dev/own; number /dev/y; number /dev/x; head -c 4 /dev/own; echo; uuid /dev/y; uuid /dev/x; \
             echo made | dd of=/dev/own conv=notrunc 2>/dev/null; sync; \
             dd if=/dev/zero of=/dev/y count=1 2>&1 | head -n 1",
        );
        let devices = ["run", "--rm", "--device", &own, "--device", &y, "--device", &x];
        let output = kiai.ok(&[&devices[..], &[&busybox(), "sh", "-c", &script]].concat());
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[..2], [number(FIRST), number(SECOND)], "each has the next one's: {output}");
        assert_eq!(lines[3..6], ["loop".to_owned(), uuid(FIRST), uuid(SECOND)], "{output}");
        assert!(lines[6].contains("Operation not permitted"), "only reading was allowed: {output}");
        assert!(fs::read(&disk.node).unwrap().starts_with(b"made\n"), "what the container wrote");
    });
}

#[test]
fn a_container_has_the_default_devices_and_no_others() {
    scenario(|kiai| {
        let script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 2 /dev/urandom | wc -c && \
            head -c 2 /dev/random | wc -c; echo x 2>/dev/null > /dev/full || echo full; \
            mknod /dev/memory c 1 1 && mknod /dev/log c 1 11 && mknod /dev/disk b 254 0 && \
            for node in memory log disk; do head -c 1 /dev/$node 2>&1; done";
        let output = kiai.ok(&["run", "--rm", "-t", &busybox(), "sh", "-c", &format!("tty; {script}; true")]);
        let lines: Vec<_> = output.lines().map(|line| line.trim_end_matches('\r')).collect();
        assert!(lines[0].starts_with("/dev/pts/") || lines[0] == "/dev/console", "{output}");
        assert_eq!(lines[1..5], ["4", "2", "2", "full"], "{output}");
        assert_eq!(lines.len(), 8, "{output}");
        assert!(lines[5..].iter().all(|line| line.contains("Operation not permitted")), "{output}");
    });
}

#[test]
fn a_privileged_container_has_every_device_of_its_guest() {
    scenario(|kiai| {
        let disk = Loop::new("priv");
        let device = format!("{}:/dev/mine", disk.node);
        let script = "mknod /dev/again b $(number /dev/mine | tr : ' '); head -c 4 /dev/again; echo; \
            head -c 4 /dev/vda; echo; head -c 1 /dev/kmsg > /dev/null && echo log; \
            grep Seccomp: /proc/self/status; mkdir /m && mount -t tmpfs none /m && echo mounted; \
            echo 1 > /proc/sys/net/ipv4/ip_forward && echo written; grep CapEff /proc/self/status";
        let words = [
            "run",
            "--rm",
            "--privileged",
            "--device",
            &device,
            &busybox(),
            "sh",
            "-c",
            &self::script(script),
        ];
        let output = kiai.ok(&words);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[..3], ["priv", "priv", "log"], "{output}");
        assert_eq!(lines[3..6], ["Seccomp:\t0", "mounted", "written"], "{output}");
        assert_eq!(lines[6], "CapEff:\t000001ffffffffff", "{output}");
    });
}

#[test]
fn containers_of_one_pod_reach_their_own_disk_and_not_their_neighbours() {
    scenario(|_| {
        let containerd = Containerd::start();
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let kind = "io.kubernetes.cri.container-type";
        let start = |name: &str, role: &str, options: &[&str]| {
            let role = format!("{kind}={role}");
            let words = ["run", "-d", "--runtime", "io.containerd.kiai.v2", "--annotation", &role];
            let of = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];
            let command = [&reference, name, "sleep", "3600"];
            containerd.ctr(&[&words[..], &of, options, &command].concat()).finish().success();
        };
        start("pod", "sandbox", &[]);
        // Crosswise: the guest gives A the number B's disk has on the host, and the other way round.
        start("a", "container", &["--device", SECOND]);
        start("b", "container", &["--device", FIRST]);
        let inside = |name: &str, body: &str| {
            let script = script(body);
            let words = ["task", "exec", "--exec-id", "e", name, "sh", "-c", &script];
            containerd.ctr(&words).finish().success()
        };
        let body = |own: &str, others: &str| {
            let others = others.replace(':', " ");
            format!(
                "number {own}; uuid {own}; mknod /dev/neighbour b {others}; uuid /dev/neighbour; \
                 head -c 1 /dev/neighbour 2>&1; echo > /dev/null && echo null"
            )
        };
        for (name, own, guest, others) in
            [("a", SECOND, number(FIRST), number(SECOND)), ("b", FIRST, number(SECOND), number(FIRST))]
        {
            let output = inside(name, &body(own, &others));
            let lines: Vec<_> = output.lines().collect();
            assert_eq!(lines[..3], [guest, uuid(own), String::new()], "{name}: {output}");
            assert!(lines[3].contains("Operation not permitted"), "{name}: {output}");
            assert_eq!(lines[4], "null", "{name}: {output}");
        }
        for name in ["b", "a", "pod"] {
            containerd.ctr(&["task", "kill", "-s", "KILL", name]).finish().success();
            let ended = containerd.ctr(&["task", "delete", name]).finish();
            assert!(matches!(ended.code, Some(0 | 137)), "{ended}");
            containerd.ctr(&["container", "delete", name]).finish().success();
        }
        containerd.stop();
    });
}

#[test]
fn a_rule_for_a_driver_of_the_host_opens_no_neighbours_disk() {
    scenario(|_| {
        let containerd = Containerd::start();
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let kind = "io.kubernetes.cri.container-type";
        let start = |name: &str, role: &str, options: &[&str]| {
            let role = format!("{kind}={role}");
            let words = ["run", "-d", "--runtime", "io.containerd.kiai.v2", "--annotation", &role];
            let of = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];
            let command = [&reference, name, "sleep", "3600"];
            containerd.ctr(&[&words[..], &of, options, &command].concat()).finish().success();
        };
        start("pod", "sandbox", &[]);
        start("a", "container", &["--device", SECOND]);
        let rootfs = containerd.folder().join("rootfs");
        process::run("cp", &["-a", image("busybox-rootfs").to_str().unwrap(), rootfs.to_str().unwrap()]);
        let mut spec: serde_json::Value =
            serde_json::from_str(&containerd.ctr(&["oci", "spec"]).finish().success()).unwrap();
        // A's disk is the guest's first, and virtio disks have one major number on either side.
        let (disk, number) = (number(FIRST), number(FIRST).replace(':', " "));
        let major: i64 = disk.split_once(':').unwrap().0.parse().unwrap();
        let rule = serde_json::json!({"allow": true, "type": "b", "major": major, "access": "rwm"});
        spec["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
        spec["annotations"] = serde_json::json!({kind: "container", "io.kubernetes.cri.sandbox-id": "pod"});
        spec["root"] = serde_json::json!({ "path": rootfs });
        let script = format!("mknod /dev/n b {number}; head -c 1 /dev/n 2>&1; echo > /dev/null && echo null");
        spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
        spec["process"]["terminal"] = false.into();
        let config = containerd.folder().join("spec.json");
        fs::write(&config, spec.to_string()).unwrap();
        let words = ["run", "--rm", "--runtime", "io.containerd.kiai.v2", "--config"];
        let output =
            containerd.ctr(&[&words[..], &[config.to_str().unwrap(), "b"]].concat()).finish().success();
        let lines: Vec<_> = output.lines().collect();
        assert!(lines[0].contains("Operation not permitted"), "{output}");
        assert_eq!(lines[1..], ["null"], "{output}");
        for name in ["a", "pod"] {
            containerd.ctr(&["task", "kill", "-s", "KILL", name]).finish().success();
            let ended = containerd.ctr(&["task", "delete", name]).finish();
            assert!(matches!(ended.code, Some(0 | 137)), "{ended}");
            containerd.ctr(&["container", "delete", name]).finish().success();
        }
        containerd.stop();
    });
}

#[test]
fn a_dry_run_shows_the_plan_and_leaves_nothing_behind() {
    scenario(|kiai| {
        let disk = Loop::new("plan");
        let device = format!("{}:/dev/planned:r", disk.node);
        let options = ["--device", &device, "-m", "64m", "--cpus", "2", "-v", "never-made:/data"];
        let plan = |dry_run: &str| {
            let words = ["run", "--rm", "--network", "none", dry_run];
            kiai.ok(&[&words[..], &options, &[&busybox(), "echo", "it's planned"]].concat())
        };
        let json: serde_json::Value = serde_json::from_str(&plan("--dry-run=json")).unwrap();
        assert_eq!(json["sandbox"]["vcpus"], 2);
        assert_eq!(json["process"]["arguments"], serde_json::json!(["echo", "it's planned"]));
        let planned = &json["devices"]["devices"][0];
        assert_eq!(
            (&planned["entry"], &planned["guest"]),
            (&"/dev/planned".into(), &serde_json::Value::Null)
        );
        assert_eq!(planned["host"]["node"], disk.node.as_str());
        let table = plan("--dry-run");
        for word in ["vCPUs", "'it'\\''s planned'", "/data", "virtio disk, read-only", "deny a *:* rwm"] {
            assert!(table.contains(word), "{word}: {table}");
        }
        assert!(kiai.ok(&["ps", "-a"]).lines().count() == 1, "no container");
    });
}

/// A file of a vendor's devices below /etc/cdi. Dropping it removes the file.
pub(crate) struct VendorFile(String);

impl VendorFile {
    /// Devices of `kiai.test/CLASS`.
    pub(crate) fn new(class: &str, devices: serde_json::Value) -> Self {
        let kind = format!("kiai.test/{class}");
        let file = serde_json::json!({"cdiVersion": "0.6.0", "kind": kind, "devices": devices});
        let path = format!("/etc/cdi/kiai-test-{class}.json");
        fs::create_dir_all("/etc/cdi").unwrap();
        fs::write(&path, file.to_string()).unwrap();
        Self(path)
    }
}

impl Drop for VendorFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A vendor with a disk and a library.
struct Vendor {
    _file: VendorFile,
    _disk: Loop,
    _library: tempfile::TempDir,
}

impl Vendor {
    /// For the container: uses all of it, and does at last what it may not.
    const SCRIPT: &str = "head -c 4 /dev/vendor; echo; cat /vendor/lib; echo $VENDOR; echo x > /dev/vendor";

    fn new() -> Self {
        let disk = Loop::new("cdi!");
        let library = tempfile::tempdir_in(scratch()).unwrap();
        fs::write(library.path().join("lib"), "of the vendor\n").unwrap();
        let devices = serde_json::json!([
            {"name": "0", "containerEdits": {
                "deviceNodes": [{"path": "/dev/vendor", "hostPath": disk.node, "permissions": "r"}],
                "mounts": [{"hostPath": library.path(), "containerPath": "/vendor", "options": ["ro"]}],
                "env": ["VENDOR=here"]
            }},
            {"name": "hooked", "containerEdits": {"hooks": [
                {"hookName": "createContainer", "path": "/usr/bin/vendor-hook"}
            ]}}
        ]);
        Self { _file: VendorFile::new("disk", devices), _disk: disk, _library: library }
    }

    fn check(finished: &Finished) {
        assert_eq!(finished.text(), "cdi!\nof the vendor\nhere\n", "{finished}");
        assert!(finished.failure(1).contains("Operation not permitted"), "{finished}");
    }
}

#[test]
fn a_vendors_device_comes_with_all_its_file_says() {
    scenario(|kiai| {
        let _vendor = Vendor::new();
        let words = ["sh", "-c", Vendor::SCRIPT];
        let run = |device: &str| {
            kiai.call(&[&["run", "--rm", "--device", device, &busybox()], &words[..]].concat())
        };
        Vendor::check(&run("kiai.test/disk=0"));
        run("kiai.test/disk=hooked").refused(&[
            "kiai.test/disk=hooked",
            "/usr/bin/vendor-hook",
            "not supported",
        ]);
        run("kiai.test/disk=1").refused(&["kiai.test/disk=1", "/etc/cdi"]);
    });
}

#[test]
fn a_vendors_device_comes_by_an_annotation_of_containerds() {
    scenario(|_| {
        let _vendor = Vendor::new();
        let containerd = Containerd::start();
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let run = |name: &str, device: &str| {
            let annotation = format!("cdi.k8s.io/test=kiai.test/disk={device}");
            let runtime = ["run", "--rm", "--runtime", "io.containerd.kiai.v2", "--annotation", &annotation];
            containerd.ctr(&[&runtime[..], &[&reference, name, "sh", "-c", Vendor::SCRIPT]].concat()).finish()
        };
        Vendor::check(&run("assigned", "0"));
        let refused = run("refused", "1");
        assert!(refused.failure(1).contains("kiai.test/disk=1"), "{refused}");
        // ctr leaves behind what it could not start.
        containerd.ctr(&["container", "delete", "refused"]).finish();
        containerd.stop();
    });
}

#[test]
fn inspect_shows_where_each_device_is() {
    scenario(|kiai| {
        let disk = Loop::new("seen");
        let device = format!("{}:/dev/seen:r", disk.node);
        kiai.keep_running("seen", &["--device", &device, "--device", "/dev/fuse"]);
        let json = kiai.ok(&["inspect", "--devices", "--format", "json", "seen"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let seen = &json[0]["devices"][0];
        let host = format!("{}:{}", seen["host"]["major"], seen["host"]["minor"]);
        assert_eq!((host, &seen["host"]["node"]), (disk.number(), &disk.node.as_str().into()));
        assert_eq!(seen["attachment"], "read-only-disk");
        let guest = &seen["guest"];
        let inside = kiai.ok(&["exec", "seen", "sh", "-c", &script("number /dev/seen")]);
        assert_eq!(format!("{}:{}", guest["major"], guest["minor"]), inside);
        assert_eq!(guest["access"], "rm", "making any node is allowed");
        assert_eq!(json[0]["devices"][1]["attachment"], "guests-own");
        let table = kiai.ok(&["inspect", "--devices", "seen"]);
        for word in ["/dev/seen", &disk.node, &inside, guest["pciPath"].as_str().unwrap(), "the guest's own"]
        {
            assert!(table.contains(word), "{word}: {table}");
        }
        kiai.ok(&["rm", "-f", "seen"]);
    });
}
