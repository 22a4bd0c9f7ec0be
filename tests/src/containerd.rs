//! containerd with `kiai` as one of its shims: Debian's own, or the newest one.

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

/// The folder of the newest containerd's programs.
const NEWEST: &str = "KIAI_TEST_CONTAINERD";

/// containerd with folders of its own.
pub struct Containerd {
    server: Option<Running>,
    /// The PATH on which its programs are.
    path: String,
    socket: String,
    folder: tempfile::TempDir,
}

impl Containerd {
    /// Starts Debian's, with `kiai` as a shim on its path.
    pub fn start() -> Containerd {
        let plugins = "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]";
        Self::started(&env::var("PATH").unwrap(), &format!("version = 2\n{plugins}"), |_| String::new())
    }

    /// Starts the newest, with the CRI and a class `kiai` whose sandboxes are asked for by the Sandbox service; none if
    /// this machine has none.
    pub fn start_newest() -> Option<Containerd> {
        let folder = env::var(NEWEST).ok()?;
        let path = format!("{folder}:{}", env::var("PATH").unwrap());
        let range = serde_json::json!({
            "type": "host-local", "ranges": [[{ "subnet": "10.91.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let bridge =
            serde_json::json!({ "type": "bridge", "bridge": "kiai-cri", "isGateway": true, "ipam": range });
        let list = serde_json::json!({ "cniVersion": "0.4.0", "name": "kiai-cri", "plugins": [bridge] });
        let cri = "[plugins.\"io.containerd.cri.v1.runtime\"";
        let class = |networks: &Path| {
            fs::write(networks.join("10.conflist"), list.to_string()).unwrap();
            format!(
                "{cri}.cni]\nbin_dirs = [\"/usr/lib/cni\"]\nconf_dir = {networks:?}\n\
                 {cri}.containerd.runtimes.kiai]\nruntime_type = \"io.containerd.kiai.v2\"\nsandboxer = \"shim\"\n"
            )
        };
        Some(Self::started(&path, "version = 3", class))
    }

    fn started(programs: &str, head: &str, tail: impl FnOnce(&Path) -> String) -> Containerd {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let socket = path("containerd.sock");
        let networks = folder.path().join("networks");
        fs::create_dir(&networks).unwrap();
        let tail = tail(&networks);
        let config = format!(
            "{head}\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {socket:?}\n{tail}",
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
        let programs = format!("{}:{programs}", path("bin"));
        command.env("PATH", &programs);
        // Shims write where it does.
        command.env("KIAI_LOG", "debug");
        evidence::watch(folder.path());
        let server = Running::start(command, None);
        server.until("containerd successfully booted");
        Containerd { server: Some(server), path: programs, socket, folder }
    }

    /// A folder of its own, on a disk with room.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `ctr WORDS`.
    pub fn ctr(&self, words: &[&str]) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", "exec ctr \"$@\"", "ctr", "--address", &self.socket]).args(words);
        command.env("PATH", &self.path);
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

    /// Its socket.
    pub fn socket(&self) -> &Path {
        Path::new(&self.socket)
    }

    /// Waits until it has logged `text`; everything that it has logged.
    pub fn logged(&self, text: &str) -> String {
        self.server.as_ref().unwrap().until(text)
    }

    /// Ends it; what it logged, which is the test's output too, and shown if the test fails.
    pub fn stop(mut self) -> String {
        let server = self.server.take().unwrap();
        server.signal(Signal::TERM);
        let log = server.finish().text();
        println!("{log}");
        log
    }
}
