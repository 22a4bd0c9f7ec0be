//! `kiai plug`: plugs volumes, devices and interfaces into a running container.
//!
//! This command makes an interface in the pod's namespace, as `run` made the first one; the shim takes it over together
//! with the volumes and devices, in one transaction. Each step is recorded before it is done, so that a later command
//! can undo it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::exec::running_task;
use crate::cli::format;
use crate::cli::options::NetworkOption;
use crate::cli::prepare;
use crate::container;
use crate::container::PlugVolume;
use crate::network;
use crate::network::CniInterface;
use crate::spec::device;
use crate::spec::device::DeviceOption;
use crate::spec::volume::VolumeOption;
use crate::spec::volume::VolumeSource;
use crate::store::ContainerDirectory;
use crate::store::Paths;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::timestamp::Timestamp;
use crate::store::volumes::VolumeRecord;
use crate::store::volumes::Volumes;

/// Plug volumes, devices and interfaces into a running container: all of them or none
#[derive(Debug, clap::Args)]
pub(super) struct Plug {
    /// Name or id
    container: String,
    /// Mount a file, a directory or a named volume
    #[arg(short, long, value_name = "SOURCE:PATH[:ro]", value_parser = parse_volume,
        required_unless_present_any = ["network", "device"])]
    volume: Vec<VolumeOption>,
    /// Assign a device of the host, named as for run. Variables of a running process cannot be changed: those
    /// with PCI addresses (PCIDEVICE_*) are right in processes that exec starts afterwards, and a CDI device
    /// that sets variables is refused
    #[arg(long, value_name = "HOST[:PATH[:rwm]]|pci:ADDRESS[,MODE]|VENDOR/CLASS=NAME")]
    device: Vec<DeviceOption>,
    /// Join the network with another interface, whose name and addresses are printed
    #[arg(long, value_name = "NETWORK")]
    network: Vec<NetworkOption>,
}

impl Plug {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        if self.network.contains(&NetworkOption::None) {
            return Err(CommandError::own(anyhow::anyhow!(
                "--network none has no interface to plug in; use --network default"
            )));
        }
        let paths = context.store.paths();
        let volumes =
            self.volume.iter().map(|volume| find(volume, paths)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut plug = self.devices()?;
        let (container, record, _lock) = locked(context, &self.container)?;
        let task = running_task(&record).await?;
        let mut interfaces = Vec::new();
        let plugged = async {
            for _ in &self.network {
                interfaces.push(network::plug(&container.network_file())?);
            }
            container.write_record(&self.recorded(&record, &interfaces))?;
            plug.volumes = volumes;
            plug.interfaces = interfaces.iter().map(|interface| interface.name.clone()).collect();
            Ok::<_, anyhow::Error>(task.plug(&plug).await?)
        };
        if let Err(error) = plugged.await {
            for interface in interfaces.iter().rev() {
                if let Err(error) = network::unplug(&container.network_file(), &interface.name) {
                    eprintln!("kiai: cannot remove interface {}: {error}", interface.name);
                }
            }
            container.write_record(&record)?;
            return Err(error.into());
        }
        for interface in &interfaces {
            format::print(&format!("{} {}\n", interface.name, interface.addresses.join(" ")))?;
        }
        Ok(0)
    }

    /// The plug request for the devices, as entries and rules of a spec.
    fn devices(&self) -> anyhow::Result<container::PlugOptions> {
        let found = self.device.iter().filter_map(|device| prepare::find_device(device).transpose());
        let found = found.collect::<anyhow::Result<Vec<_>>>()?;
        let vendors = self.device.iter().filter_map(|device| match device {
            DeviceOption::Cdi(name) => Some(name.clone()),
            _ => None,
        });
        Ok(container::PlugOptions {
            devices: device::nodes(&found),
            rules: device::rules(&found),
            functions: found.iter().filter_map(|device| device.function).collect(),
            cdi_devices: vendors.collect(),
            ..container::PlugOptions::default()
        })
    }

    /// The record with the plugged volumes and interfaces.
    fn recorded(&self, record: &Record, interfaces: &[CniInterface]) -> Record {
        let mut record = record.clone();
        record.volumes.extend(self.volume.iter().map(ToString::to_string));
        record.addresses.extend(interfaces.iter().flat_map(|interface| interface.addresses.clone()));
        record
    }
}

/// A volume with a source: an anonymous one would be lost when it is unplugged.
fn parse_volume(text: &str) -> Result<VolumeOption, String> {
    match text.parse::<VolumeOption>() {
        Ok(VolumeOption { source: VolumeSource::Anonymous, .. }) => Err("write SOURCE:PATH".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// Finds a container by name or id and locks it.
pub(super) fn locked(context: &Context, name: &str) -> anyhow::Result<(ContainerDirectory, Record, Lock)> {
    let (container, _) = context.store.find(name)?;
    let gone = || StoreError::NoContainer(name.to_owned());
    let lock = container.lock()?.ok_or_else(gone)?;
    // Read again: the record may have changed before the lock was taken.
    let record = container.record()?.ok_or_else(gone)?;
    Ok((container, record, lock))
}

/// The path of a volume on the host. Unlike `run`, this makes no directory for a path that does not exist, because a
/// failed request would leave it behind.
fn find(volume: &VolumeOption, paths: &Paths) -> anyhow::Result<PlugVolume> {
    let source: PathBuf = match &volume.source {
        VolumeSource::Named(name) => {
            let volumes = Volumes::new(paths);
            let _lock = volumes.lock()?;
            volumes.create(&VolumeRecord {
                name: name.clone(),
                created: Some(Timestamp::now()),
                labels: BTreeMap::new(),
                anonymous: false,
            })?;
            volumes.path(name)
        }
        VolumeSource::Anonymous => bail!("volume {volume}: write SOURCE:PATH"),
        VolumeSource::Path(path) => {
            fs::canonicalize(path).with_context(|| format!("volume {}", path.display()))?
        }
    };
    if source.to_str().is_none() {
        bail!("volume {}: the path is not UTF-8", source.display());
    }
    Ok(PlugVolume { source, destination: volume.destination.clone(), read_only: volume.read_only })
}
