//! ext4 images as virtual disks: an empty one to scratch on, one that carries host files in.
//!
//! Files are linked, not copied, into a staging folder where the file system allows it, and `mke2fs -d` copies them
//! once into a sparse image. That was measured to be faster than any way of sharing a host folder with the lab.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::step;

const MIB: u64 = 1 << 20;
const SCRATCH_MIB: u64 = 12 * 1024;

/// Host files and folders that go onto one disk.
#[derive(Default)]
pub(crate) struct Payload {
    /// Where each comes from, and its path on the disk.
    entries: Vec<(PathBuf, String)>,
    /// Symbolic links on the disk: path and target.
    links: Vec<(String, String)>,
}

impl Payload {
    /// Adds a file, or a folder with all in it, at `path` on the disk.
    pub(crate) fn add(&mut self, source: PathBuf, path: &str) {
        self.entries.push((source, path.to_owned()));
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.links.push((path.to_owned(), target.to_owned()));
    }

    /// Writes the disk image. `scratch` is a folder for the staging tree.
    pub(crate) fn write(&self, scratch: &Path, image: &Path) -> Result<()> {
        let staging = scratch.join("payload");
        fs::create_dir_all(staging.join("bin"))?;
        for (source, path) in &self.entries {
            stage(source, &staging.join(path)).with_context(|| source.display().to_string())?;
        }
        for (path, target) in &self.links {
            std::os::unix::fs::symlink(target, staging.join(path))?;
        }
        format_from(&staging, image)
    }
}

/// Links or copies a tree. Special files are left out: nothing the lab needs is one.
fn stage(source: &Path, target: &Path) -> Result<()> {
    target.parent().map_or(Ok(()), fs::create_dir_all)?;
    for entry in WalkDir::new(source) {
        let entry = entry?;
        let below = entry.path().strip_prefix(source)?;
        let to = if below.as_os_str().is_empty() { target.to_path_buf() } else { target.join(below) };
        let kind = entry.file_type();
        if kind.is_dir() {
            fs::create_dir_all(&to)?;
            fs::set_permissions(&to, entry.metadata()?.permissions())?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &to)?;
        } else if kind.is_file() && fs::hard_link(entry.path(), &to).is_err() {
            fs::copy(entry.path(), &to).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

/// Makes an ext4 image that holds what is in `folder`, with a quarter of its size to spare.
pub(crate) fn format_from(folder: &Path, image: &Path) -> Result<()> {
    format_with_room(folder, image, 64)
}

/// Makes an ext4 image that holds what is in `folder`, with a quarter of its size and `room_mib` to spare.
pub(crate) fn format_with_room(folder: &Path, image: &Path, room_mib: u64) -> Result<()> {
    let (mut bytes, mut files) = (0, 0);
    for entry in WalkDir::new(folder) {
        bytes += entry?.metadata()?.size().next_multiple_of(4096);
        files += 1;
    }
    // As many more for what is written later as mke2fs would give that much room.
    let inodes = files + files / 4 + 1024 + room_mib * MIB / (16 << 10);
    let mib = (bytes + bytes / 4 + inodes * 256) / MIB + room_mib;
    let mut command = mke2fs(image, mib);
    command.arg("-N").arg(inodes.to_string()).arg("-d").arg(folder);
    step::output(&mut command).map(drop)
}

/// Makes an empty ext4 image of several GiB. It is sparse: it costs what is written to it.
pub(crate) fn format_empty(image: &Path) -> Result<()> {
    step::output(&mut mke2fs(image, SCRATCH_MIB)).map(drop)
}

/// No journal and nothing initialised ahead: the image lives as long as one run.
fn mke2fs(image: &Path, mib: u64) -> Command {
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"]);
    command.args(["-E", "lazy_itable_init=1,root_owner=0:0"]);
    command.arg(image).arg(format!("{mib}M"));
    command
}

/// Makes a sparse file of `mib` MiB: a blank disk.
pub(crate) fn blank(image: &Path, mib: u64) -> io::Result<()> {
    fs::File::create(image)?.set_len(mib * MIB)
}
