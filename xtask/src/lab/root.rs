//! What the lab boots: Debian's kernel, a Debian userland on a disk, and an initramfs that leads from one to the other.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{apt, build, cache, cpio, step, workspace};

/// Debian's kernel for virtual machines, as the metapackage names it.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const KERNEL_RECIPE: u32 = 1;
const ROOT_RECIPE: u32 = 1;
/// What the initramfs needs to reach the root disk and the host, unless it is built in; their dependencies come by
/// themselves.
const BOOT_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_console"];
/// The root disk's size. It is sparse, and every run writes to a layer of its own over it.
const ROOT_SIZE: &str = "16G";

/// The folder with `vmlinux`, `modules/` and `release`.
pub(crate) fn kernel() -> Result<PathBuf> {
    apt::Source::machine().of_newest(KERNEL_PACKAGE, |version| {
        let inputs =
            cache::Inputs::new(KERNEL_RECIPE).text("package", KERNEL_PACKAGE).text("version", version);
        cache::artifact("lab-kernel", &inputs, |folder| {
            fetch_kernel(KERNEL_PACKAGE, folder)?;
            index_modules(folder)
        })
    })
}

/// Fetches the kernel that Debian's `metapackage` stands for, without an index of its modules. Returns the version of
/// the package.
pub(super) fn fetch_kernel(metapackage: &str, folder: &Path) -> Result<String> {
    let source = apt::Source::machine();
    let package = source.dependency(metapackage, "linux-image-")?;
    let release = package.trim_start_matches("linux-image-");
    let unpacked = folder.join("package");
    fs::create_dir(&unpacked)?;
    let version = source.fetch(&package, &unpacked)?;
    let image = fs::read(unpacked.join("boot").join(format!("vmlinuz-{release}")))?;
    fs::write(folder.join("vmlinux"), unpack_image(&image)?)?;
    fs::rename(unpacked.join("lib/modules").join(release), folder.join("modules"))?;
    fs::write(folder.join("release"), release)?;
    cache::remove_tree(&unpacked)?;
    Ok(version)
}

/// Writes down what each of the kernel's modules needs.
pub(super) fn index_modules(folder: &Path) -> Result<()> {
    let release = fs::read_to_string(folder.join("release"))?;
    // depmod wants the layout of an installed system.
    let tree = folder.join("depmod/lib/modules");
    fs::create_dir_all(&tree)?;
    std::os::unix::fs::symlink(folder.join("modules"), tree.join(&release))?;
    step::output(Command::new("/sbin/depmod").arg("-b").arg(folder.join("depmod")).arg(&release))?;
    cache::remove_tree(&folder.join("depmod"))
}

/// The ELF kernel inside a bzImage (x86 boot protocol §1.1): booted directly, it need not unpack itself under
/// emulation, which saves more than a second.
fn unpack_image(image: &[u8]) -> Result<Vec<u8>> {
    /// What a payload starts with, and who unpacks it.
    const PACKERS: [([u8; 4], &str); 2] =
        [([0x02, 0x21, 0x4c, 0x18], "lz4"), ([0x28, 0xb5, 0x2f, 0xfd], "zstd")];
    let field = |offset: usize| -> Result<usize> {
        let bytes = image.get(offset..offset + 4).context("the kernel image is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "the kernel image is no bzImage");
    let setup_sectors = usize::from(image[0x1f1]);
    let start = (setup_sectors + 1) * 512 + field(0x248)?;
    // The last four bytes are the unpacked size, not part of the compressed stream.
    let end = start + field(0x24c)?.saturating_sub(4);
    let payload = image.get(start..end).context("the kernel image is cut short")?;
    let (_, packer) = PACKERS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .context("Debian's kernel is packed neither with lz4 nor with zstd")?;

    let mut unpack = Command::new(packer)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(*packer)?;
    let mut stdin = unpack.stdin.take().context("the unpacker's standard input")?;
    let payload = payload.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&payload));
    let output = unpack.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("the thread that feeds {packer} panicked"))??;
    ensure!(
        output.status.success() && output.stdout.starts_with(b"\x7fELF"),
        "the kernel image does not unpack"
    );
    Ok(output.stdout)
}

/// The root disk: Debian with the lab's packages and the kernel's modules, as an ext4 image.
pub(crate) fn disk(kernel: &Path) -> Result<PathBuf> {
    let packages = workspace::read_list("tests/lab/packages.txt")?.join(",");
    let release = fs::read_to_string(kernel.join("release"))?;
    // Of base-files there is a new version with each point release, which is when Debian's packages change as a whole.
    let point_release = apt::Source::machine().version("base-files")?;
    let inputs = cache::Inputs::new(ROOT_RECIPE)
        .text("suite", apt::SUITE)
        .text("point release", &point_release)
        .text("packages", &packages)
        .text("kernel", &release);
    let folder = cache::artifact("lab-root", &inputs, |folder| {
        let work = cache::scratch()?;
        let root = work.path().join("root");
        debootstrap(&root, &packages, "installing the lab's Debian")?;
        let modules = root.join("usr/lib/modules");
        step::output(apt::as_root("mkdir").arg("-p").arg(&modules))?;
        step::output(
            apt::as_root("cp").arg("-a").arg(kernel.join("modules")).arg(modules.join(release.as_str())),
        )?;
        for directory in ["scratch", "lab", "images"] {
            step::output(apt::as_root("mkdir").arg(root.join(directory)))?;
        }
        let image = folder.join("root.ext4");
        let mut mke2fs = apt::as_root("/sbin/mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"]);
        mke2fs.args(["-E", "lazy_itable_init=1", "-d"]).arg(&root).arg(&image).arg(ROOT_SIZE);
        step::run("writing the lab's root disk", &mut mke2fs)?;
        step::output(apt::as_root("rm").arg("-rf").arg(&root)).map(drop)
    })?;
    Ok(folder.join("root.ext4"))
}

/// A Debian userland in the folder `root`: the essential packages, apt, and `packages` (comma separated).
pub(crate) fn debootstrap(root: &Path, packages: &str, what: &str) -> Result<()> {
    let mut command = apt::as_root("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={packages}"));
    command.arg("--aptopt=Apt::Install-Recommends \"false\"");
    for pruned in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{pruned}/*"));
    }
    command.arg(apt::SUITE).arg(root);
    step::run(what, &mut command)
}

/// The initramfs: our first process and the modules it needs, in the order they load.
pub(crate) fn initramfs(kernel: &Path) -> Result<Vec<u8>> {
    let modules = kernel.join("modules");
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    let built_in = fs::read_to_string(modules.join("modules.builtin"))?;
    let mut archive = cpio::Archive::new();
    for folder in ["dev", "proc", "sys", "root", "modules"] {
        archive.folder(folder, 0o755);
    }
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, &fs::read(build::lab_init()?)?);
    for (number, path) in load_order(&dependencies, &built_in, &BOOT_MODULES)?.iter().enumerate() {
        archive.file(&format!("modules/{number:02}.ko"), 0o644, &fs::read(modules.join(path))?);
    }
    Ok(archive.finish())
}

/// The paths of `wanted` and all they depend on, dependencies first, from the texts of `modules.dep` and
/// `modules.builtin`.
fn load_order<'a>(dependencies: &'a str, built_in: &str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for name in wanted {
        let file = format!("/{name}.ko");
        if built_in.lines().any(|path| path.ends_with(&file)) {
            continue;
        }
        let (path, needs) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| path.ends_with(&file))
            .with_context(|| format!("Debian's kernel has no module {name}"))?;
        // modules.dep lists what must be loaded first last.
        for module in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need_and_once() {
        let dependencies = "k/virtio_blk.ko: k/virtio.ko k/virtio_ring.ko\nk/virtio_ring.ko:\n\
                            k/virtio_pci.ko: k/modern.ko k/virtio.ko k/virtio_ring.ko\n";
        assert_eq!(
            load_order(dependencies, "", &["virtio_pci", "virtio_blk"]).unwrap(),
            ["k/virtio_ring.ko", "k/virtio.ko", "k/modern.ko", "k/virtio_pci.ko", "k/virtio_blk.ko"]
        );
        assert!(load_order(dependencies, "", &["absent"]).is_err());
        let built_in = "k/virtio_pci.ko\n";
        assert_eq!(load_order(dependencies, built_in, &["virtio_pci"]).unwrap(), [""; 0]);
    }

    #[test]
    fn a_kernel_is_unpacked_however_it_is_packed() {
        for packer in ["lz4 -l", "zstd"] {
            let script = format!("printf '\\177ELF and more' | {packer} -c");
            let packed = Command::new("sh").args(["-c", &script]).output().unwrap().stdout;
            // Two sectors before it, and after it the unpacked size.
            let mut image = vec![0; 1024];
            image[0x1f1] = 1;
            image[0x202..0x206].copy_from_slice(b"HdrS");
            let length = u32::try_from(packed.len()).unwrap() + 4;
            image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
            image.extend(packed);
            assert_eq!(unpack_image(&image).unwrap(), b"\x7fELF and more", "{packer}");
        }
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        assert!(unpack_image(b"").is_err());
        assert!(unpack_image(&[0; 4096]).is_err());
    }
}
