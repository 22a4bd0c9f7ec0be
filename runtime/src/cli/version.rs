//! `kiai version`: prints the version of kiai and the guest's kernel and image.

use serde::Serialize;

use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::format::Format;
use crate::config::Config;

/// Print the version, and the guest kernel and guest image
#[derive(Debug, clap::Args)]
pub(super) struct Version {
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    version: &'static str,
    architecture: &'static str,
    kernel: String,
    initrd: String,
}

impl Version {
    pub(super) fn perform(self) -> Result<u8, CommandError> {
        let config = Config::load()?;
        let answer = Answer {
            version: env!("CARGO_PKG_VERSION"),
            architecture: std::env::consts::ARCH,
            kernel: config.kernel.display().to_string(),
            initrd: config.initrd.display().to_string(),
        };
        match self.format {
            Format::Json => format::print_json(&answer)?,
            Format::Table => format::print(&format!(
                "kiai {} ({})\nguest kernel  {}\nguest image   {}\n",
                answer.version, answer.architecture, answer.kernel, answer.initrd
            ))?,
        }
        Ok(0)
    }
}
