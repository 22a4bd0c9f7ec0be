//! Checks of the processor, KVM, the guest kernel and the initial file system.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;

use kiai_vmm::ProbeError;

use crate::check::Finding;
use crate::config::Config;

/// Whether the processor is supported and reports virtualisation.
pub(super) fn processor() -> Finding {
    const NAME: &str = "processor";
    if std::env::consts::ARCH != "x86_64" {
        return Finding::failed(NAME, std::env::consts::ARCH, "use an x86-64 machine");
    }
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match virtualisation(&info) {
        Some(feature) => Finding::good(NAME, format!("x86-64 with {feature}")),
        // Only the check of KVM decides: some clouds hide the flag although KVM works.
        None => Finding::doubtful(
            NAME,
            "neither vmx (Intel) nor svm (AMD) among its flags",
            "switch virtualisation on in the firmware, or nested virtualisation on in the hypervisor",
        ),
    }
}

fn virtualisation(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if has("vmx") {
        Some("VMX")
    } else if has("svm") {
        Some("SVM")
    } else {
        None
    }
}

/// Whether KVM runs the code of an unmodified kernel.
pub(super) fn kvm() -> Finding {
    const NAME: &str = "kvm";
    match kiai_vmm::probe() {
        Ok(()) => Finding::good(NAME, "/dev/kvm runs 64-bit kernel code"),
        Err(error) => {
            let hint = match &error {
                ProbeError::NoDevice => "load the module (modprobe kvm-intel or kvm-amd); in a virtual \
                                         machine, have nested virtualisation switched on"
                    .to_owned(),
                ProbeError::Permission => "run as root, or join the group that owns /dev/kvm".to_owned(),
                ProbeError::CannotRunKernels(_) => "this is a KVM without hardware virtualisation behind \
                                                    it, as some nested clouds have; use another machine or \
                                                    another kind of instance"
                    .to_owned(),
                ProbeError::Kvm(_) | ProbeError::Memory(_) => "see the kernel's messages (dmesg)".to_owned(),
            };
            Finding::failed(NAME, crate::failure::chain(&error), hint)
        }
    }
}

/// Whether the guest kernel exists and has a known format.
pub(super) fn kernel(config: &Config) -> Finding {
    let hint = "build it (cargo xtask kernel), or name one in KIAI_KERNEL or the configuration file";
    let describe = |start: &[u8]| {
        if start.starts_with(b"\x7fELF") {
            Some("ELF")
        } else if start.get(0x202..0x206) == Some(b"HdrS") {
            Some("bzImage; an uncompressed vmlinux starts faster")
        } else {
            None
        }
    };
    artifact("guest kernel", &config.kernel, hint, describe)
}

/// Whether the guest's initial file system exists and has a known format.
pub(super) fn initrd(config: &Config) -> Finding {
    let hint = "build it (cargo xtask rootfs), or name one in KIAI_INITRD or the configuration file";
    let describe = |start: &[u8]| {
        let known: [(&[u8], &str); 5] = [
            (b"070701", "cpio"),
            (b"\x1f\x8b", "cpio, gzip"),
            (b"\x28\xb5\x2f\xfd", "cpio, zstd"),
            (b"\x02\x21\x4c\x18", "cpio, lz4"),
            (b"\x04\x22\x4d\x18", "cpio, lz4"),
        ];
        known.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| *name)
    };
    artifact("guest image", &config.initrd, hint, describe)
}

fn artifact(
    name: &'static str,
    path: &Path,
    hint: &str,
    describe: impl Fn(&[u8]) -> Option<&'static str>,
) -> Finding {
    match start_of(path) {
        Ok((start, length)) => match describe(&start) {
            Some(kind) => Finding::good(name, format!("{} ({kind}, {} KiB)", path.display(), length >> 10)),
            None => Finding::failed(name, format!("{} is in no known format", path.display()), hint),
        },
        Err(error) => Finding::failed(name, format!("{}: {error}", path.display()), hint),
    }
}

fn start_of(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = Vec::new();
    file.take(1024).read_to_end(&mut start)?;
    Ok((start, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        assert_eq!(virtualisation("model: vmx\nflags\t\t: fpu vmx sse\n"), Some("VMX"));
        assert_eq!(virtualisation("flags : fpu svm\n"), Some("SVM"));
        assert_eq!(virtualisation("flags : fpu svm_lock vmxx\n"), None);
        assert_eq!(virtualisation(""), None);
    }

    #[test]
    fn a_damaged_kernel_is_told_from_a_missing_one() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(temporary.path(), "not a kernel").unwrap();
        let mut config = Config { kernel: temporary.path().to_owned(), ..Config::default() };
        assert!(kernel(&config).detail.ends_with("is in no known format"));
        config.kernel = "/nonexistent/vmlinux".into();
        assert!(kernel(&config).detail.starts_with("/nonexistent/vmlinux: No such file"));
        std::fs::write(temporary.path(), b"\x7fELF").unwrap();
        config.kernel = temporary.path().to_owned();
        assert_eq!(kernel(&config).outcome, crate::check::Outcome::Good);
    }
}
