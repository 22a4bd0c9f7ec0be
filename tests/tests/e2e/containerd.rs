//! The same binary as containerd's shim: `ctr run --runtime io.containerd.kiai.v2`.

use std::fs;

use kiai_tests::containerd::Containerd;
use kiai_tests::kiai::image;
use kiai_tests::process;
use kiai_tests::scenario;

/// Has clients pause and resume a container at the same time; what it is said to be in the end it is in the guest.
fn pause_and_resume(containerd: &Containerd, id: &str) {
    let asked = ["pause", "resume", "pause", "resume"].map(|word| containerd.ctr(&["task", word, id]));
    // Who comes too late is refused.
    asked.into_iter().for_each(|asked| drop(asked.finish()));
    let paused = || containerd.ctr(&["task", "ls"]).finish().success().contains("PAUSED");
    if !paused() {
        containerd.ctr(&["task", "pause", id]).finish().success();
    }
    assert!(paused());
    containerd.ctr(&["task", "resume", id]).finish().success();
    let thawed = ["task", "exec", "--exec-id", "thawed", id, "echo", "thawed"];
    assert_eq!(containerd.ctr(&thawed).finish().success(), "thawed");
}

/// A container that shares its processes' numbers with others of the pod sees those and the pod's init, and nothing of
/// the guest.
fn shared_pids(containerd: &Containerd, reference: &str) {
    let run = ["run", "-d", "--runtime", "io.containerd.kiai.v2", "--with-ns", "pid:/proc/1/ns/pid"];
    // An orphan that has ended is reaped.
    let script = "sh -c 'sleep 1 &'; sleep 2; for process in /proc/[0-9]*; do cat $process/comm; done; \
                  ls -A /proc/1/root | wc -l; true > /proc/1/exe || echo refused";
    for (name, options) in [("shared", &[][..]), ("open", &["--cap-add", "CAP_SYS_PTRACE"])] {
        let words = [&run[..], options, &[reference, name, "sleep", "3600"]].concat();
        containerd.ctr(&words).finish().success();
        let words = ["task", "exec", "--exec-id", "look", name, "sh", "-c", script];
        let seen = containerd.ctr(&words).finish().success();
        assert_eq!(seen.lines().collect::<Vec<_>>(), ["init", "sleep", "sh", "0", "refused"], "{name}");
        containerd.ctr(&["task", "kill", "-s", "KILL", name]).finish().success();
        containerd.ctr(&["task", "delete", name]).finish();
        containerd.ctr(&["container", "delete", name]).finish().success();
    }
}

#[test]
fn ctr_runs_containers() {
    scenario(|_| {
        let containerd = Containerd::start();
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let run = ["run", "--rm", "--runtime", "io.containerd.kiai.v2"];
        let ctr = |words: &[&str]| containerd.ctr(&[&run, words].concat()).finish();

        let script = "uname -r; echo error >&2";
        let first = ctr(&[&reference, "first", "sh", "-c", script]);
        assert_ne!(first.success(), process::run("uname", &["-r"]), "the host's kernel");
        assert!(first.stderr.contains("error"), "{first}");
        ctr(&[&reference, "second", "sh", "-c", "exit 7"]).failure(7);

        shared_pids(&containerd, &reference);

        let words = ["run", "-d", "--runtime", "io.containerd.kiai.v2", &reference, "third", "sleep", "3600"];
        containerd.ctr(&words).finish().success();
        let inside = ["task", "exec", "--exec-id", "e", "third", "echo", "inside"];
        assert_eq!(containerd.ctr(&inside).finish().success(), "inside");
        let tasks = containerd.ctr(&["task", "ls"]).finish().success();
        assert!(tasks.contains("third") && tasks.contains("RUNNING"), "{tasks}");
        containerd.ctr(&["task", "metrics", "third"]).finish().success();
        pause_and_resume(&containerd, "third");
        containerd.ctr(&["task", "kill", "-s", "KILL", "third"]).finish().success();
        let ended = containerd.ctr(&["task", "delete", "third"]).finish();
        assert!(matches!(ended.code, Some(0 | 137)), "{ended}");
        containerd.ctr(&["container", "delete", "third"]).finish().success();

        // A root file system of its own and a hook that is a program of the container.
        let rootfs = containerd.folder().join("rootfs");
        let source = image("busybox-rootfs");
        process::run("cp", &["-a", source.to_str().unwrap(), rootfs.to_str().unwrap()]);
        let mut spec: serde_json::Value =
            serde_json::from_str(&containerd.ctr(&["oci", "spec"]).finish().success()).unwrap();
        spec["root"] = serde_json::json!({ "path": rootfs });
        spec["process"]["args"] = serde_json::json!(["cat", "/hooked"]);
        spec["process"]["terminal"] = false.into();
        let hook = ["sh", "-c", "echo by a hook > /hooked"];
        spec["hooks"] = serde_json::json!({ "startContainer": [{ "path": "/bin/sh", "args": hook }] });
        let config = containerd.folder().join("spec.json");
        fs::write(&config, spec.to_string()).unwrap();
        let words = ["--config", config.to_str().unwrap(), "hooked"];
        assert_eq!(ctr(&words).success(), "by a hook");
        containerd.stop();
    });
}
