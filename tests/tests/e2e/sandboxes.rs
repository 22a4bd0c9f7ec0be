//! The newest containerd: pods whose sandbox is asked for before any container, and what it is told of the runtime.

use std::fs;
use std::path::Path;
use std::process::Command;

use kiai_tests::Running;
use kiai_tests::containerd::Containerd;
use kiai_tests::cri;
use kiai_tests::cri::Message;
use kiai_tests::kiai::image;
use kiai_tests::process;
use kiai_tests::scenario;

const RUNTIME: [&str; 2] = ["--runtime", "io.containerd.kiai.v2"];

fn start() -> Option<Containerd> {
    let containerd = Containerd::start_newest();
    if containerd.is_none() {
        kiai_skip::skip("this machine has no containerd 2");
    }
    containerd
}

#[test]
fn containerd_2_runs_containers_and_is_told_what_the_runtime_can_do() {
    scenario(|_| {
        let Some(containerd) = start() else { return };
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let run = [&["run", "--rm"], &RUNTIME[..], &[&reference, "first", "sh", "-c", "uname -r; exit 7"]];
        let first = containerd.ctr(&run.concat()).finish();
        first.failure(7);
        assert_ne!(first.text().trim(), process::run("uname", &["-r"]), "the host's kernel");

        let words = ["plugins", "inspect-runtime", RUNTIME[0], RUNTIME[1]];
        let told: serde_json::Value =
            serde_json::from_str(&containerd.ctr(&words).finish().success()).unwrap();
        assert_eq!(told["Name"], RUNTIME[1]);
        assert!(told["Features"]["mountOptions"].as_array().unwrap().contains(&"rro".into()), "{told}");
        let log = containerd.stop();
        assert!(!log.contains("failed to clean up after shim"), "every end was a normal one");
    });
}

/// Runs a container of a pod to its end; what it wrote.
fn run(
    cri: &dyn Fn(&str, Message) -> Result<Vec<u8>, String>,
    (pod, config): (&str, &Message),
    logs: &Path,
    (name, image, script): (&str, &str, &str),
) -> String {
    let container = Message::default()
        .with(1, Message::default().with(1, name))
        .with(2, Message::default().with(1, image))
        .with(3, "sh")
        .with(3, "-c")
        .with(3, script)
        // Its log is a fifo that is read here: the end of the container is the end of that.
        .with(11, name);
    let log = logs.join(name);
    process::run("mkfifo", &[log.to_str().unwrap()]);
    let mut reader = Command::new("cat");
    reader.arg(&log);
    let reader = Running::start(reader, None);
    let request = Message::default().with(1, pod).with(2, container).with(3, config);
    let id = cri::first_text(&cri("CreateContainer", request).unwrap());
    cri("StartContainer", Message::default().with(1, &id)).unwrap();
    let text = reader.finish().success();
    // Each line has a time, a stream and a mark before it.
    text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_pod_of_the_cri_is_a_sandbox_without_a_pause_container() {
    scenario(|_| {
        let Some(containerd) = start() else { return };
        let layout = image("busybox");
        let image = "docker.io/test/busybox:latest";
        let archive = containerd.folder().join("image.tar");
        process::run("tar", &["-C", layout.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        let import = ["-n", "k8s.io", "image", "import", "--base-name", "docker.io/test/busybox"];
        containerd.ctr(&[&import[..], &[archive.to_str().unwrap()]].concat()).finish().success();
        let calls = containerd.folder().join("calls");
        let logs = containerd.folder().join("logs");
        for folder in [&calls, &logs] {
            fs::create_dir(folder).unwrap();
        }
        let cri = |method: &str, request| cri::call(containerd.socket(), &calls, method, &request);

        let config = {
            let metadata = Message::default().with(1, "pod").with(2, "uid").with(3, "default");
            let dns = Message::default().with(1, "10.96.0.10").with(2, "svc.local");
            let modes = Message::default().with_number(1, 0);
            let linux = Message::default().with(1, "/kiai-cri").with(2, Message::default().with(1, modes));
            Message::default()
                .with(1, metadata)
                .with(2, "podhost")
                .with(3, logs.to_str().unwrap())
                .with(4, dns)
                .with(8, linux)
        };
        let answer = cri("RunPodSandbox", Message::default().with(1, &config).with(2, "kiai")).unwrap();
        let id = cri::first_text(&answer);
        let run = |name: &str, script: &str| run(&cri, (&id, &config), &logs, (name, image, script));
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let first =
            run("first", &format!("cat /etc/hostname /etc/resolv.conf; echo word > /dev/shm/file; {boot}"));
        let second =
            run("second", &format!("ip addr show eth0 | grep -c 10.91.0; cat /dev/shm/file; {boot}"));
        let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
        assert_eq!(first[..3], ["podhost", "search svc.local", "nameserver 10.96.0.10"]);
        assert_eq!(second[..2], ["1", "word"]);
        assert_eq!(first[3], second[2], "one machine, which outlived its first container");

        cri("StopPodSandbox", Message::default().with(1, &id)).unwrap();
        cri("RemovePodSandbox", Message::default().with(1, &id)).unwrap();
        let log = containerd.stop();
        assert!(!log.contains("failed to clean up after shim"), "the end was a normal one");
    });
}
