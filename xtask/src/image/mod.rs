//! The images the tests run: a real Debian userland and a small busybox, made on the spot from Debian's packages.
//!
//! Both as OCI image layouts, Debian also as a docker archive, busybox also as a plain folder. Knows no container
//! runtime: what reads these is under test.

mod oci;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::{disk, root};
use crate::registry::{Access, Registry};
use crate::{apt, cache, step};

/// Raised when this file changes what comes out.
const RECIPE: u32 = 2;
/// What the Debian image has beside the essential packages: an interpreter and a server to talk to.
const DEBIAN_PACKAGES: &str = "python3-minimal,redis-server,procps,iproute2,ca-certificates";
const BUSYBOX: &str = "/usr/bin/busybox";
/// The second layer of the Debian image: a file it adds, and one of the first layer that it deletes.
const ADDED: (&str, &str) = ("etc/kiai-image", "The second layer of the test image.\n");
const DELETED: &str = "etc/.wh.issue.net";

/// The storage of a registry that has the Debian image: filled here, because under emulation it takes half a minute.
pub(crate) const REGISTRY: &str = "registry";
/// How the Debian image is called in it.
pub(crate) const REGISTRY_NAME: &str = "kiai/debian:latest";

/// The test images, made once.
pub(crate) struct Images(PathBuf);

impl Images {
    /// The folder with `debian/` and `busybox/` (OCI layouts), `debian.tar` (docker archive), `registry/` (the storage of
    /// a registry with `kiai/debian:latest`) and `busybox-rootfs/`.
    pub(crate) fn folder(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The same as an ext4 image, for a machine to mount.
    pub(crate) fn disk(&self) -> PathBuf {
        self.0.join("images.ext4")
    }
}

/// Makes the test images if they are not there.
pub(crate) fn artifact() -> Result<Images> {
    let inputs = cache::Inputs::new(RECIPE).text("debian", DEBIAN_PACKAGES);
    let folder = cache::artifact("images", &inputs, |folder| {
        let images = folder.join("images");
        fs::create_dir(&images)?;
        debian(&images)?;
        busybox(&images)?;
        disk::format_from(&images, &folder.join("images.ext4"))
    })?;
    Ok(Images(folder))
}

fn debian(images: &Path) -> Result<()> {
    let work = cache::scratch()?;
    let root = work.path().join("root");
    root::debootstrap(&root, DEBIAN_PACKAGES, "making the Debian test image")?;
    // The host's own name and resolver have no place in an image; a runtime provides both.
    for host_file in ["etc/resolv.conf", "etc/hostname"] {
        step::output(apt::as_root("rm").arg("-f").arg(root.join(host_file)))?;
    }
    let base = tar(&root, &work.path().join("base.tar"))?;
    step::output(apt::as_root("rm").arg("-rf").arg(&root))?;

    let changes = work.path().join("changes");
    fs::create_dir_all(changes.join("etc"))?;
    fs::write(changes.join(ADDED.0), ADDED.1)?;
    fs::write(changes.join(DELETED), "")?;
    let changes = tar(&changes, &work.path().join("changes.tar"))?;

    let layout = images.join("debian");
    oci::write(&layout, "latest", &[base, changes], &["/bin/bash"])?;
    let copy = |to: String| {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--insecure-policy", "--dest-tls-verify=false"]);
        skopeo.arg(format!("oci:{}:latest", layout.display())).arg(to);
        skopeo
    };
    let archive = images.join("debian.tar");
    step::run(
        "packing the docker archive",
        &mut copy(format!("docker-archive:{}:{REGISTRY_NAME}", archive.display())),
    )?;
    let registry = Registry::start(&images.join(REGISTRY), Access::Write)?;
    step::run("filling the registry", &mut copy(format!("docker://{}/{REGISTRY_NAME}", registry.address)))
}

fn busybox(images: &Path) -> Result<()> {
    let root = images.join("busybox-rootfs");
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "usr", "var/tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::create_dir(root.join("tmp"))?;
    for folder in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o1777))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context(BUSYBOX)?;
    for applet in step::output(Command::new(BUSYBOX).arg("--list"))?.lines().filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let work = cache::scratch()?;
    let layer = tar(&root, &work.path().join("busybox.tar"))?;
    oci::write(&images.join("busybox"), "latest", &[layer], &["sh"])
}

/// Packs what is in `folder`, with owners by number and extended attributes, in an order that does not change.
fn tar(folder: &Path, archive: &Path) -> Result<PathBuf> {
    let mut tar = apt::as_root("tar");
    tar.args(["--create", "--numeric-owner", "--xattrs", "--sort=name", "--mtime=@0", "--file"]);
    tar.arg(archive).arg("--directory").arg(folder).arg(".");
    step::output(&mut tar)?;
    Ok(archive.to_path_buf())
}
