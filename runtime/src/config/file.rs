//! The format of the configuration file: every key is optional, and an unknown key is an error.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("configuration {path}")]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Line, column and reason.
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// The content of `kiai.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct File {
    pub(super) sandbox: Sandbox,
    pub(super) pods: Pods,
}

/// `[sandbox]`: kernel, initial file system and size of each microVM.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Sandbox {
    pub(super) vcpus: Option<u8>,
    pub(super) max_vcpus: Option<u8>,
    pub(super) memory_mib: Option<u32>,
    pub(super) max_memory_mib: Option<u32>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) kernel_parameters: Option<Vec<String>>,
    pub(super) huge_pages: Option<bool>,
    pub(super) console_log: Option<bool>,
    pub(super) templates: Option<bool>,
    pub(super) boot_timeout_seconds: Option<u32>,
}

/// `[pods]`: the annotations that a Kubernetes pod may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Pods {
    pub(super) annotations: Option<Vec<String>>,
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    pub(super) fn read_if_present(path: &Path) -> Result<Self, ConfigError> {
        match Self::read(path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })
    }
}
