//! Debian's containerd with `kiai` as one of its shims.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::evidence;
use crate::kiai::scratch;
use crate::process;
use crate::process::Running;

/// Debian's containerd with folders of its own.
pub struct Containerd {
    server: Option<Running>,
    socket: String,
    folder: tempfile::TempDir,
}

impl Containerd {
    /// Starts it, with `kiai` as a shim on its path.
    pub fn start() -> Containerd {
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
        // Shims write where it does.
        command.env("KIAI_LOG", "debug");
        evidence::watch(folder.path());
        let server = Running::start(command, None);
        server.until("containerd successfully booted");
        Containerd { server: Some(server), socket, folder }
    }

    /// A folder of its own, on a disk with room.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `ctr WORDS`.
    pub fn ctr(&self, words: &[&str]) -> Running {
        let mut command = Command::new("ctr");
        command.args(["--address", &self.socket]).args(words);
        Running::start(command, None)
    }

    /// Imports an OCI layout; the reference by which `ctr` knows it.
    pub fn import(&self, layout: &Path, name: &str) -> String {
        let archive = self.folder.path().join("image.tar");
        let archive = archive.to_str().unwrap();
        process::run("tar", &["-C", layout.to_str().unwrap(), "-cf", archive, "."]);
        self.ctr(&["image", "import", "--base-name", name, archive]).finish().success();
        let images = self.ctr(&["image", "ls", "-q"]).finish().success();
        images.lines().find(|reference| reference.contains(name)).unwrap().to_owned()
    }

    /// Ends it. What it had to say is the test's output, which is shown if the test fails.
    pub fn stop(mut self) {
        let server = self.server.take().unwrap();
        server.signal(Signal::TERM);
        println!("{}", server.finish().text());
    }
}
