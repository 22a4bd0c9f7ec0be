//! The administrator's configuration of every sandbox: one file and a few environment variables.
//!
//! `/etc/kiai/kiai.toml` (or the file that `KIAI_CONFIG` names, or the one of a pod's runtime class) is read first; `KIAI_KERNEL` and `KIAI_INITRD` override
//! it. Annotations of a pod override both; module `plan` reads them. An unknown key is an error that names it.

mod file;
mod paths;

use std::path::Path;
use std::path::PathBuf;

pub use file::ConfigError;
use file::File;
pub use paths::TEMPLATES;
pub use paths::state_root;

/// Path of the configuration file unless `KIAI_CONFIG` is set.
pub const DEFAULT_FILE: &str = "/etc/kiai/kiai.toml";

const DEFAULT_KERNEL: &str = "/usr/share/kiai/vmlinux";
const DEFAULT_INITRD: &str = "/usr/share/kiai/initramfs.cpio";

/// The effective configuration: every value is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// vCPUs of a sandbox without a request of its own.
    pub vcpus: u8,
    /// Maximum of vCPUs of a sandbox; by default those of the host, at most 8.
    pub max_vcpus: Option<u8>,
    /// MiB of a sandbox in addition to the limits of its containers. It boots with this memory; the rest is plugged in.
    pub memory_mib: u32,
    /// Maximum of a sandbox's memory in MiB; by default the host's memory.
    pub max_memory_mib: Option<u32>,
    /// Path of the guest kernel.
    pub kernel: PathBuf,
    /// Path of the initial RAM file system with the agent.
    pub initrd: PathBuf,
    /// Parameters appended to the guest kernel's command line.
    pub kernel_parameters: Vec<String>,
    /// Back guest RAM with the host's 2 MiB pages.
    pub huge_pages: bool,
    /// Append the guest's console to `console.log` in the bundle of the pod's first container.
    pub console_log: bool,
    /// Sandboxes go on from a template if there is one for them.
    pub templates: bool,
    /// Maximum time in seconds until the guest's agent connects.
    pub boot_timeout_seconds: u32,
    /// The `io.kiai.` annotations that a Kubernetes pod may have, without the prefix. Users of `kiai` and `ctr` are
    /// root and may use all.
    pub pod_annotations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vcpus: 1,
            max_vcpus: None,
            memory_mib: 256,
            max_memory_mib: None,
            kernel: DEFAULT_KERNEL.into(),
            initrd: DEFAULT_INITRD.into(),
            kernel_parameters: Vec::new(),
            huge_pages: false,
            console_log: false,
            templates: true,
            boot_timeout_seconds: 60,
            pod_annotations: ["vcpus", "max-vcpus", "memory-mib", "max-memory-mib"].map(String::from).into(),
        }
    }
}

impl Config {
    /// Reads the file and the environment. A missing file counts as empty, unless `KIAI_CONFIG` names it.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_class(None)
    }

    /// The same for a pod of a runtime class, whose own file takes the place of the other.
    pub fn load_class(class: Option<&Path>) -> Result<Self, ConfigError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let file = match (class, variable("KIAI_CONFIG")) {
            (Some(path), _) => File::read(path)?,
            (None, Some(path)) => File::read(Path::new(&path))?,
            (None, None) => File::read_if_present(Path::new(DEFAULT_FILE))?,
        };
        let mut config = Self::resolve(file);
        if let Some(kernel) = variable("KIAI_KERNEL") {
            config.kernel = kernel.into();
        }
        if let Some(initrd) = variable("KIAI_INITRD") {
            config.initrd = initrd.into();
        }
        Ok(config)
    }

    fn resolve(file: File) -> Self {
        let otherwise = Self::default();
        let File { sandbox, pods } = file;
        Self {
            vcpus: sandbox.vcpus.unwrap_or(otherwise.vcpus),
            max_vcpus: sandbox.max_vcpus,
            memory_mib: sandbox.memory_mib.unwrap_or(otherwise.memory_mib),
            max_memory_mib: sandbox.max_memory_mib,
            kernel: sandbox.kernel.unwrap_or(otherwise.kernel),
            initrd: sandbox.initrd.unwrap_or(otherwise.initrd),
            kernel_parameters: sandbox.kernel_parameters.unwrap_or(otherwise.kernel_parameters),
            huge_pages: sandbox.huge_pages.unwrap_or(otherwise.huge_pages),
            console_log: sandbox.console_log.unwrap_or(otherwise.console_log),
            templates: sandbox.templates.unwrap_or(otherwise.templates),
            boot_timeout_seconds: sandbox.boot_timeout_seconds.unwrap_or(otherwise.boot_timeout_seconds),
            pod_annotations: pods.annotations.unwrap_or(otherwise.pod_annotations),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_changes_nothing() {
        let file = File::parse(Path::new("kiai.toml"), "").unwrap();
        assert_eq!(Config::resolve(file), Config::default());
    }

    #[test]
    fn what_the_file_says_wins() {
        let text = "[sandbox]\nvcpus = 4\nmemory-mib = 512\nkernel = '/k'\n[pods]\nannotations = []\n";
        let config = Config::resolve(File::parse(Path::new("kiai.toml"), text).unwrap());
        assert_eq!((config.vcpus, config.memory_mib, config.kernel), (4, 512, "/k".into()));
        assert!(config.pod_annotations.is_empty());
    }

    #[test]
    fn the_file_of_a_runtime_class_is_read_and_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("class.toml");
        let missing = Config::load_class(Some(&path)).unwrap_err().to_string();
        assert!(missing.contains("class.toml"), "{missing}");
        std::fs::write(&path, "[sandbox]\nvcpus = 3\n").unwrap();
        assert_eq!(Config::load_class(Some(&path)).unwrap().vcpus, 3);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let error = File::parse(Path::new("/etc/kiai/kiai.toml"), "[sandbox]\nvcpu = 4\n").unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("/etc/kiai/kiai.toml") && text.contains("vcpu"), "{text}");
    }
}
