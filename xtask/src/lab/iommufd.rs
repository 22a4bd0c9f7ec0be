//! A newer kernel for the lab, with iommufd: Debian's 6.12 and the modules that its configuration leaves out.
//!
//! Debian turns iommufd off, and with it the device files of VFIO (`/dev/vfio/devices/`). Both are modules, and so is
//! all of VFIO: these few are built from the source of the very same package version, against its headers, and take
//! the places of Debian's. The rest of the kernel is as it comes. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use super::root;
use crate::{apt, cache, kernel, step};

const RECIPE: u32 = 1;
const FLAVOUR: &str = "-cloud-amd64";
/// What is built, below a kernel's source. Iommufd includes a header of the folder above it.
const SOURCES: [&str; 3] = ["drivers/iommu", "drivers/vfio", "lib/interval_tree.c"];
const BUILT: &str = "obj-m := drivers/iommu/iommufd/ drivers/vfio/\n";
/// Debian's kernel lacks the part of its interval trees that only iommufd uses. The module gets a whole copy, which
/// it keeps to itself.
const INTERVAL_TREE: &str = "iommufd-y += interval_tree.o\nCFLAGS_interval_tree.o := -D__DISABLE_EXPORTS\n";
/// The configuration, for make and for the compiler. Without debug information, which is not used here.
const CONFIG: [&str; 3] = ["CONFIG_IOMMUFD=m", "CONFIG_VFIO_DEVICE_CDEV=y", "CONFIG_DEBUG_INFO_BTF_MODULES="];
const DEFINES: &str =
    "-g0 -DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1";

/// The folder with `vmlinux`, `modules/` and `release`.
pub(crate) fn kernel() -> Result<PathBuf> {
    let package = format!("linux-image-{}{FLAVOUR}", kernel::SERIES);
    apt::Source::machine().of_newest(&package, |version| {
        let inputs = cache::Inputs::new(RECIPE).text("package", &package).text("version", version);
        cache::artifact("lab-kernel", &inputs, |folder| {
            let version = root::fetch_kernel(&package, folder)?;
            let modules = folder.join("modules");
            // Unpacking is what takes the lab long.
            each_module(&modules, "xz", |path| {
                step::output(Command::new("xz").arg("-d").arg(path)).map(drop)
            })?;
            build(folder, &version)?;
            root::index_modules(folder)
        })
    })
}

/// Builds the modules for the kernel in `folder`, which is Debian's `version`, and puts them where they belong.
fn build(folder: &Path, version: &str) -> Result<()> {
    let release = fs::read_to_string(folder.join("release"))?;
    let common = release.trim_end_matches(FLAVOUR);
    let work = cache::scratch()?;
    let work = work.path();
    let source = apt::Source::machine();
    let package = format!("linux-source-{}", kernel::SERIES);
    for package in [
        format!("linux-headers-{release}"),
        format!("linux-headers-{common}-common"),
        format!("linux-kbuild-{common}"),
        package.clone(),
    ] {
        // Another kernel may be the newest by now; all packages must be of one kernel.
        source.fetch(&format!("{package}={version}"), work)?;
    }
    let sources = work.join("usr/src");
    step::run(
        "unpacking the source of VFIO and iommufd",
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(sources.join(format!("{package}.tar.xz")))
            .arg("--directory")
            .arg(work)
            .args(SOURCES.map(|path| format!("{package}/{path}"))),
    )?;
    let tree = work.join(&package);
    let iommufd = tree.join("drivers/iommu/iommufd");
    fs::write(tree.join("Kbuild"), BUILT)?;
    fs::copy(tree.join("lib/interval_tree.c"), iommufd.join("interval_tree.c"))?;
    let makefile = iommufd.join("Makefile");
    fs::write(&makefile, fs::read_to_string(&makefile)? + INTERVAL_TREE)?;

    let mut make = Command::new("make");
    make.arg("--directory").arg(sources.join(format!("linux-headers-{common}-common")));
    make.arg(format!("O={}", sources.join(format!("linux-headers-{release}")).display()));
    make.arg(format!("M={}", tree.display())).arg(format!("KCFLAGS={DEFINES}")).args(CONFIG);
    make.arg(format!("--jobs={}", std::thread::available_parallelism().map_or(1, usize::from)));
    step::run("building VFIO and iommufd for the lab", make.arg("modules"))?;

    each_module(&tree, "ko", |built| {
        let place = folder.join("modules/kernel").join(built.strip_prefix(&tree)?);
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(built, &place).map(drop).with_context(|| place.display().to_string())
    })
}

/// Does `what` with each file below `folder` whose name ends so.
fn each_module(folder: &Path, extension: &str, what: impl Fn(&Path) -> Result<()>) -> Result<()> {
    for entry in WalkDir::new(folder) {
        let entry = entry?;
        if entry.path().extension().is_some_and(|found| found == extension) {
            what(entry.path())?;
        }
    }
    Ok(())
}
