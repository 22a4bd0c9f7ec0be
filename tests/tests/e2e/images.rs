//! Images: pulled, imported, listed, removed; and those that mean harm.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use kiai_tests::Finished;
use kiai_tests::Kiai;
use kiai_tests::Running;
use kiai_tests::fixture;
use kiai_tests::fixture::Entry;
use kiai_tests::kiai::image;
use kiai_tests::kiai::scratch;
use kiai_tests::process;
use kiai_tests::scenario;
use tar::EntryType;

/// A registry on loopback that knows busybox; ends when dropped.
struct Registry {
    _server: Running,
    port: u16,
}

impl Registry {
    fn start(folder: &Path) -> Registry {
        // The port is free now and taken a moment later; nothing else on this machine takes ports meanwhile.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            folder.join("registry").display()
        );
        fs::write(&config, text).unwrap();
        // It says on standard error when it listens; that is what is waited for.
        let mut command = Command::new("sh");
        command.args(["-c", "exec docker-registry serve \"$0\" 2>&1", config.to_str().unwrap()]);
        let server = Running::start(command, None);
        server.until("listening on");
        let source = format!("oci:{}", image("busybox").display());
        let target = format!("docker://127.0.0.1:{port}/busybox:1");
        process::run("skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", &source, &target]);
        Registry { _server: server, port }
    }

    fn reference(&self) -> String {
        format!("127.0.0.1:{}/busybox:1", self.port)
    }
}

/// A kiai with an image store of its own, below `folder`.
fn fresh(folder: &Path) -> Kiai {
    Kiai::with_root(&folder.join("root"))
}

#[test]
fn two_processes_pull_the_same_image_at_once() {
    scenario(|_| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let registry = Registry::start(folder.path());
        let reference = registry.reference();
        let kiai = fresh(folder.path());
        let both = [kiai.start(&["pull", &reference]), kiai.start(&["pull", &reference])];
        for pulling in both {
            pulling.finish().success();
        }
        let images = kiai.ok(&["images"]);
        assert_eq!(images.lines().filter(|line| line.contains("busybox")).count(), 1, "{images}");
        assert_eq!(kiai.ok(&["run", "--rm", &reference, "echo", "pulled"]), "pulled");
        kiai.ok(&["rmi", &reference]);
        assert!(!kiai.ok(&["images"]).contains("busybox"));
        let bytes = process::run("du", &["-sb", folder.path().join("root").to_str().unwrap()]);
        let bytes: u64 = bytes.split_whitespace().next().unwrap().parse().unwrap();
        assert!(bytes < 200_000, "a removed image takes no room: {bytes} bytes");
    });
}

#[test]
fn run_pulls_what_is_not_there_and_a_name_nobody_has_is_named() {
    scenario(|_| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let registry = Registry::start(folder.path());
        let kiai = fresh(folder.path());
        assert_eq!(kiai.ok(&["run", "--rm", &registry.reference(), "echo", "first"]), "first");
        let missing = format!("127.0.0.1:{}/nothing:1", registry.port);
        kiai.call(&["pull", &missing]).refused(&[&missing]);
    });
}

#[test]
fn layers_lie_over_each_other() {
    scenario(|_| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let layout = folder.path().join("layered");
        let layers = [
            fixture::layer(&[
                Entry::file("bin/kept", "kept"),
                Entry::file("bin/gone", "gone"),
                Entry::file("opaque/old", "old"),
                Entry::hard_link("bin/again", "bin/kept"),
            ]),
            fixture::layer(&[
                Entry::file("bin/.wh.gone", ""),
                Entry::file("opaque/.wh..wh..opq", ""),
                Entry::file("opaque/new", "new"),
                Entry::symlink("etc/link", "/bin/kept"),
            ]),
        ];
        fixture::write_layout(&layout, &layers);
        let kiai = fresh(folder.path());
        kiai.ok(&["import", &format!("oci:{}", layout.display())]);
        // It has no shell: busybox looks at it as a second pair of eyes.
        let image = format!("oci:{}", layout.display());
        let busybox = image_volume();
        let words = ["run", "--rm", "-v", &busybox, &image, "/busybox", "sh", "-c"];
        let script = "cd /; set -- bin/* opaque/*; echo $*; /busybox cat etc/link bin/again";
        assert_eq!(kiai.ok(&[&words[..], &[script]].concat()), "bin/again bin/kept opaque/new\nkeptkept");
    });
}

fn image_volume() -> String {
    format!("{}:/busybox:ro", image("busybox-rootfs").join("bin/busybox").display())
}

/// Imports an image of these layers into a fresh store and checks that nothing of it is used.
fn refused_image(layers: &[Vec<u8>], damage: impl FnOnce(&Path, &[String])) -> Finished {
    let folder = tempfile::tempdir_in(scratch()).unwrap();
    let layout = folder.path().join("layout");
    let digests = fixture::write_layout(&layout, layers);
    damage(&layout, &digests);
    let kiai = fresh(folder.path());
    let finished = kiai.call(&["import", &format!("oci:{}", layout.display())]);
    let listed = kiai.ok(&["images", "--format", "json"]);
    assert!(!listed.contains("sha256:"), "{listed}");
    let outside: Vec<_> =
        fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(outside.len() <= 2, "something beside the layout and the store: {outside:?}");
    finished
}

#[test]
fn an_image_that_means_harm_is_refused() {
    scenario(|_| {
        let untouched = |_: &Path, _: &[String]| {};
        let climbs = fixture::layer(&[Entry::file("../../../escaped", "x")]);
        refused_image(&[climbs], untouched).refused(&["../../../escaped"]);
        let through = [
            fixture::layer(&[Entry::symlink("out", "/tmp")]),
            fixture::layer(&[Entry::file("out/escaped-through-link", "x")]),
        ];
        let escaped = Path::new("/tmp/escaped-through-link");
        // Refused, or kept inside: what counts is that nothing appears outside.
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let layout = folder.path().join("layout");
        fixture::write_layout(&layout, &through);
        let finished = fresh(folder.path()).call(&["import", &format!("oci:{}", layout.display())]);
        assert!(!escaped.exists());
        if finished.code == Some(0) {
            let kept =
                process::run("find", &[folder.path().to_str().unwrap(), "-name", "escaped-through-link"]);
            assert!(!kept.is_empty(), "neither refused nor kept: {finished}");
        } else {
            finished.refused(&["escaped-through-link"]);
        }

        let device = Entry { path: "disk", kind: EntryType::Block, content: "" };
        refused_image(&[fixture::layer(&[device])], untouched).refused(&["disk", "device"]);
        let hard = fixture::layer(&[Entry::hard_link("shadow", "/etc/shadow")]);
        refused_image(&[hard], untouched).refused(&["shadow"]);
    });
}

#[test]
fn a_damaged_image_is_refused_and_the_damage_named() {
    scenario(|_| {
        let layer = fixture::layer(&[Entry::file("file", "content")]);
        let mut name = String::new();
        let flipped = refused_image(std::slice::from_ref(&layer), |layout, digests| {
            let blob = fixture::blob(layout, &digests[0]);
            let mut bytes = fs::read(&blob).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(blob, bytes).unwrap();
            name.clone_from(&digests[0]);
        });
        flipped.refused(&[&name[7..19]]);
        let truncated = refused_image(std::slice::from_ref(&layer), |layout, digests| {
            let blob = fixture::blob(layout, &digests[0]);
            fs::write(&blob, &fs::read(&blob).unwrap()[..20]).unwrap();
        });
        truncated.refused(&[&name[7..19]]);
        let missing = refused_image(&[layer], |layout, digests| {
            fs::remove_file(fixture::blob(layout, &digests[0])).unwrap();
        });
        missing.refused(&[&name[7..19]]);
        let index = refused_image(&[], |layout, _| fs::write(layout.join("index.json"), "{").unwrap());
        index.refused(&["index.json"]);
    });
}
