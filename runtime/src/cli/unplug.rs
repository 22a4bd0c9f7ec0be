//! `kiai unplug`: unplugs volumes, devices and interfaces that `kiai plug` has plugged in.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::exec::running_task;
use crate::cli::plug::locked;
use crate::container;
use crate::network;
use crate::spec::device::PluggedOption;
use crate::spec::volume::VolumeOption;

/// Unplug volumes, devices and interfaces from a running container: all of them or none
#[derive(Debug, clap::Args)]
pub(super) struct Unplug {
    /// Name or id
    container: String,
    /// Unmount the volume at this path, unless it is in use
    #[arg(short, long, value_name = "PATH", required_unless_present_any = ["network", "device"])]
    volume: Vec<PathBuf>,
    /// Remove the device at this path, this PCI function, or all that came for this CDI device, unless it is in
    /// use
    #[arg(long, value_name = "PATH|pci:ADDRESS|VENDOR/CLASS=NAME")]
    device: Vec<PluggedOption>,
    /// Remove this interface
    #[arg(long, value_name = "INTERFACE")]
    network: Vec<String>,
}

impl Unplug {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let (container, mut record, _lock) = locked(context, &self.container)?;
        let task = running_task(&record).await?;
        // Normalized, because paths are compared.
        let volumes: Vec<PathBuf> = self.volume.iter().map(|path| path.components().collect()).collect();
        let (devices, interfaces) = (self.device.clone(), self.network.clone());
        task.unplug(&container::UnplugOptions { volumes: volumes.clone(), devices, interfaces }).await?;

        for path in &volumes {
            // Of several volumes at one path the last is removed first.
            if let Some(index) = record.volumes.iter().rposition(|word| is_at(word, path)) {
                record.volumes.remove(index);
            }
        }
        // Recorded before the next step, which may fail.
        container.write_record(&record)?;
        for name in &self.network {
            let addresses = network::unplug(&container.network_file(), name)
                .with_context(|| format!("cannot remove interface {name}"))?;
            record.addresses.retain(|address| !addresses.contains(address));
        }
        container.write_record(&record)?;
        Ok(0)
    }
}

/// Whether a recorded volume is at `path`.
fn is_at(word: &str, path: &Path) -> bool {
    word.parse::<VolumeOption>().is_ok_and(|volume| volume.destination == path)
}
