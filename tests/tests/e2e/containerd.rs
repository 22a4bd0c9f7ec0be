//! The same binary as containerd's shim: `ctr run --runtime io.containerd.kiai.v2`.

use std::fs;
use std::process::Command;

use kiai_tests::Running;
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

        let words = ["run", "-d", "--runtime", "io.containerd.kiai.v2", &reference, "third"];
        containerd.ctr(&[&words[..], &["sh", "-c", "sleep 3600; true"]].concat()).finish().success();
        let inside = ["task", "exec", "--exec-id", "e", "third", "echo", "inside"];
        assert_eq!(containerd.ctr(&inside).finish().success(), "inside");
        let tasks = containerd.ctr(&["task", "ls"]).finish().success();
        assert!(tasks.contains("third") && tasks.contains("RUNNING"), "{tasks}");
        containerd.ctr(&["task", "metrics", "third"]).finish().success();
        pids(&containerd, "third");
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
        let log = containerd.stop();
        assert!(!log.contains("failed to clean up after shim"), "every end was a normal one");
    });
}

/// Every process of a container is there with the pid of its task.
fn pids(containerd: &Containerd, id: &str) {
    let tasks = containerd.ctr(&["task", "ls"]).finish().success();
    let pid = tasks.lines().find(|line| line.starts_with(id)).unwrap().split_whitespace().nth(1).unwrap();
    let listed = containerd.ctr(&["task", "ps", id]).finish().success();
    let listed: Vec<_> = listed.lines().skip(1).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(listed, [pid, pid], "sh and sleep");
}

/// A spec for a container with a root file system of its own that runs `script`.
fn spec(containerd: &Containerd, script: &str) -> serde_json::Value {
    let rootfs = containerd.folder().join("rootfs");
    let source = image("busybox-rootfs");
    process::run("cp", &["-a", source.to_str().unwrap(), rootfs.to_str().unwrap()]);
    let text = containerd.ctr(&["oci", "spec"]).finish().success();
    let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    spec["root"] = serde_json::json!({ "path": rootfs });
    spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
    spec["process"]["terminal"] = false.into();
    spec
}

#[test]
fn hooks_run_on_the_host_and_fill_the_network() {
    scenario(|_| {
        let containerd = Containerd::start();
        let folder = containerd.folder();
        // As nerdctl does: interfaces go into the network namespace of the pid that the hook is told.
        let program = folder.join("hook");
        let script = r#"#!/bin/sh
            state=$(cat)
            pid=$(echo "$state" | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
            echo "$1 $(readlink /proc/self/ns/net) $(readlink /proc/self/ns/mnt)" >> "$2/hooks"
            case $1 in
            createRuntime)
                ip link add kiai-hook type veth peer name eth0 netns "/proc/$pid/ns/net"
                ip addr add 10.77.0.1/24 dev kiai-hook && ip link set kiai-hook up
                nsenter --net="/proc/$pid/ns/net" ip addr add 10.77.0.2/24 dev eth0
                nsenter --net="/proc/$pid/ns/net" ip link set eth0 up ;;
            poststop) ip link del kiai-hook ;;
            fail) echo "no good" >&2; exit 4 ;;
            esac
        "#;
        fs::write(&program, script.trim_start()).unwrap();
        process::run("chmod", &["+x", program.to_str().unwrap()]);
        let hook = |name: &str| {
            let args = ["hook", name, folder.to_str().unwrap()];
            let env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
            serde_json::json!([{ "path": program, "args": args, "env": env, "timeout": 60 }])
        };
        let mut spec = spec(&containerd, "ping -c 1 -W 10 10.77.0.1 && ip addr show eth0");
        let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
        spec["hooks"] = kinds.map(|kind| (kind, hook(kind))).into_iter().collect();
        let config = folder.join("hooks.json");
        fs::write(&config, spec.to_string()).unwrap();
        let run = ["run", "--rm", "--runtime", "io.containerd.kiai.v2", "--config", config.to_str().unwrap()];
        let seen = containerd.ctr(&[&run[..], &["filled"]].concat()).finish().success();
        assert!(seen.contains("10.77.0.2/24"), "{seen}");
        let here = |kind: &str| {
            let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            format!("{kind} {} {}\n", namespace("net").display(), namespace("mnt").display())
        };
        let ran = fs::read_to_string(folder.join("hooks")).unwrap();
        assert_eq!(ran, kinds.map(here).concat(), "once each, in the host's namespaces");

        // One that fails is named with what it says, and the hooks for the end run.
        fs::remove_file(folder.join("hooks")).unwrap();
        spec["hooks"] = [("createRuntime", hook("fail")), ("poststop", hook("end"))].into_iter().collect();
        fs::write(&config, spec.to_string()).unwrap();
        let failed = containerd.ctr(&[&run[..], &["failed"]].concat()).finish();
        failed.refused(&["createRuntime hook", "no good"]);
        assert_eq!(fs::read_to_string(folder.join("hooks")).unwrap(), here("fail") + &here("end"));
        containerd.stop();
    });
}

#[test]
fn output_goes_to_a_logging_program_or_a_file() {
    scenario(|_| {
        let containerd = Containerd::start();
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let folder = containerd.folder();
        let program = folder.join("logger");
        // Ready at once, and done when both outputs have ended.
        let script = r#"#!/bin/sh
            exec 5>&-
            { echo "$CONTAINER_NAMESPACE $CONTAINER_ID"; echo "$@"; cat <&3; cat <&4; } > "$2"
        "#;
        fs::write(&program, script.trim_start()).unwrap();
        process::run("chmod", &["+x", program.to_str().unwrap()]);
        let logged = folder.join("logged");
        process::run("mkfifo", &[logged.to_str().unwrap()]);
        let run = |uri: &str, id: &str| {
            let words =
                ["run", "--rm", "--runtime", "io.containerd.kiai.v2", "--log-uri", uri, &reference, id];
            containerd.ctr(&[&words[..], &["sh", "-c", "echo out; echo err >&2"]].concat()).finish()
        };
        let mut reader = Command::new("cat");
        reader.arg(&logged);
        let reader = Running::start(reader, None);
        let uri = format!("binary://{}?to={}&word=a%20b", program.display(), logged.display());
        run(&uri, "program").success();
        let arguments = format!("to {} word a b", logged.display());
        let text = reader.finish().success();
        assert_eq!(text.lines().collect::<Vec<_>>(), ["default program", &arguments, "out", "err"]);

        let missing = format!("binary://{}/missing", folder.display());
        run(&missing, "missing").refused(&["stdout", "logging program", "missing"]);
        let file = folder.join("logs/of/file");
        run(&format!("file://{}", file.display()), "file").success();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
        containerd.stop();
    });
}

#[test]
fn a_runtime_class_has_a_configuration_of_its_own() {
    scenario(|_| {
        let containerd = Containerd::start();
        let reference = containerd.import(&image("busybox"), "test/busybox");
        let file = containerd.folder().join("class.toml");
        let run = |id: &str| {
            let file = file.to_str().unwrap();
            let words = ["run", "--rm", "--runtime", "io.containerd.kiai.v2", "--runtime-config-path", file];
            containerd.ctr(&[&words[..], &[&reference, id, "nproc"]].concat()).finish()
        };
        run("missing").refused(&["class.toml", "No such file"]);
        fs::write(&file, "[sandbox]\nvcpu = 2\n").unwrap();
        run("unknown").refused(&["class.toml", "vcpu"]);
        fs::write(&file, "[sandbox]\nvcpus = 2\n").unwrap();
        assert_eq!(run("two").success(), "2");
        containerd.stop();
    });
}
