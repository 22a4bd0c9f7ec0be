//! The same binary as containerd's shim: `ctr run --runtime io.containerd.kiai.v2`.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use kiai_tests::Running;
use kiai_tests::kiai::image;
use kiai_tests::kiai::scratch;
use kiai_tests::process;
use kiai_tests::scenario;
use rustix::process::Signal;

/// Debian's containerd with folders of its own.
pub(crate) struct Containerd {
    server: Option<Running>,
    socket: String,
    folder: tempfile::TempDir,
}

impl Containerd {
    pub(crate) fn start() -> Containerd {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let socket = path("containerd.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n",
            path("root"),
            path("state")
        );
        fs::write(path("config.toml"), config).unwrap();
        // containerd finds a runtime by the name of its shim on PATH.
        fs::create_dir(path("bin")).unwrap();
        let kiai = process::run("sh", &["-c", "command -v kiai"]);
        symlink(kiai, folder.path().join("bin/containerd-shim-kiai-v2")).unwrap();

        let mut command = Command::new("sh");
        command.args(["-c", "exec containerd --config \"$0\" 2>&1", &path("config.toml")]);
        command.env("PATH", format!("{}:{}", path("bin"), env::var("PATH").unwrap()));
        let server = Running::start(command, None);
        server.until("containerd successfully booted");
        Containerd { server: Some(server), socket, folder }
    }

    pub(crate) fn ctr(&self, words: &[&str]) -> Running {
        let mut command = Command::new("ctr");
        command.args(["--address", &self.socket]).args(words);
        Running::start(command, None)
    }

    pub(crate) fn import(&self, layout: &Path, name: &str) {
        let archive = self.folder.path().join("image.tar");
        let archive = archive.to_str().unwrap();
        process::run("tar", &["-C", layout.to_str().unwrap(), "-cf", archive, "."]);
        self.ctr(&["image", "import", "--base-name", name, archive]).finish().success();
    }

    pub(crate) fn stop(mut self) {
        let server = self.server.take().unwrap();
        server.signal(Signal::TERM);
        server.finish();
    }
}

#[test]
fn ctr_runs_containers() {
    scenario(|_| {
        let containerd = Containerd::start();
        containerd.import(&image("busybox"), "test/busybox");
        let images = containerd.ctr(&["image", "ls", "-q"]).finish().success();
        let reference = images.lines().next().unwrap().to_owned();
        let run = ["run", "--rm", "--runtime", "io.containerd.kiai.v2"];
        let ctr = |words: &[&str]| containerd.ctr(&[&run, words].concat()).finish();

        let script = "uname -r; echo error >&2";
        let first = ctr(&[&reference, "first", "sh", "-c", script]);
        assert_ne!(first.success(), process::run("uname", &["-r"]), "the host's kernel");
        assert!(first.stderr.contains("error"), "{first}");
        ctr(&[&reference, "second", "sh", "-c", "exit 7"]).failure(7);

        let words = ["run", "-d", "--runtime", "io.containerd.kiai.v2", &reference, "third", "sleep", "3600"];
        containerd.ctr(&words).finish().success();
        let inside = ["task", "exec", "--exec-id", "e", "third", "echo", "inside"];
        assert_eq!(containerd.ctr(&inside).finish().success(), "inside");
        let tasks = containerd.ctr(&["task", "ls"]).finish().success();
        assert!(tasks.contains("third") && tasks.contains("RUNNING"), "{tasks}");
        containerd.ctr(&["task", "metrics", "third"]).finish().success();
        containerd.ctr(&["task", "kill", "-s", "KILL", "third"]).finish().success();
        let ended = containerd.ctr(&["task", "delete", "third"]).finish();
        assert!(matches!(ended.code, Some(0 | 137)), "{ended}");
        containerd.ctr(&["container", "delete", "third"]).finish().success();

        // A root file system of its own and a hook that is a program of the container.
        let rootfs = containerd.folder.path().join("rootfs");
        let source = image("busybox-rootfs");
        process::run("cp", &["-a", source.to_str().unwrap(), rootfs.to_str().unwrap()]);
        let mut spec: serde_json::Value =
            serde_json::from_str(&containerd.ctr(&["oci", "spec"]).finish().success()).unwrap();
        spec["root"] = serde_json::json!({ "path": rootfs });
        spec["process"]["args"] = serde_json::json!(["cat", "/hooked"]);
        spec["process"]["terminal"] = false.into();
        let hook = ["sh", "-c", "echo by a hook > /hooked"];
        spec["hooks"] = serde_json::json!({ "startContainer": [{ "path": "/bin/sh", "args": hook }] });
        let config = containerd.folder.path().join("spec.json");
        fs::write(&config, spec.to_string()).unwrap();
        let words = ["--config", config.to_str().unwrap(), "hooked"];
        assert_eq!(ctr(&words).success(), "by a hook");
        containerd.stop();
    });
}
