//! `kiai plug`: volumes, devices and interfaces for a container that runs.
//!
//! An interface is made in the pod's namespace here, as the first one was by `run`; its shim takes it over, with
//! the volumes, in one transaction. What is to be undone is written down before it is done, so that whoever
//! releases the container can.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::bail;

use crate::cli::Context;
use crate::cli::exec::running_task;
use crate::cli::failure::Failure;
use crate::cli::format;
use crate::cli::options::NetworkOption;
use crate::cli::prepare;
use crate::container;
use crate::container::PlugVolume;
use crate::network;
use crate::network::Interface;
use crate::spec::device;
use crate::spec::device::DeviceOption;
use crate::spec::volume::VolumeOption;
use crate::spec::volume::VolumeSource;
use crate::store::Container;
use crate::store::Paths;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::volumes::volume_directory;

/// Plug volumes, devices and interfaces into a running container: all of them or none
#[derive(Debug, clap::Args)]
pub(super) struct Plug {
    /// Name or id
    container: String,
    /// Mount a file, a directory or a named volume
    #[arg(short, long, value_name = "SOURCE:PATH[:ro]", required_unless_present_any = ["network", "device"])]
    volume: Vec<VolumeOption>,
    /// Assign a device of the host, named as for run. Variables of a running process cannot be changed: those
    /// that name PCI functions (PCIDEVICE_*) are right in what exec starts afterwards, and a CDI device that
    /// sets some is refused
    #[arg(long, value_name = "HOST[:PATH[:rwm]]|pci:ADDRESS[,MODE]|VENDOR/CLASS=NAME")]
    device: Vec<DeviceOption>,
    /// Join the network with one more interface, whose name and addresses are printed
    #[arg(long, value_enum)]
    network: Vec<NetworkOption>,
}

impl Plug {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, Failure> {
        if self.network.contains(&NetworkOption::None) {
            return Err(Failure::own(anyhow::anyhow!("--network none: there is nothing to plug in")));
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
                    eprintln!("kiai: cannot give interface {} back: {error}", interface.name);
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

    /// The devices as they would be in a spec.
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

    /// What `inspect` will show.
    fn recorded(&self, record: &Record, interfaces: &[Interface]) -> Record {
        let mut record = record.clone();
        record.volumes.extend(self.volume.iter().map(ToString::to_string));
        record.addresses.extend(interfaces.iter().flat_map(|interface| interface.addresses.clone()));
        record
    }
}

/// A container by name or id, held so that nobody else changes it.
pub(super) fn locked(context: &Context, name: &str) -> anyhow::Result<(Container, Record, Lock)> {
    let (container, _) = context.store.find(name)?;
    let gone = || StoreError::NoContainer(name.to_owned());
    let lock = container.lock()?.ok_or_else(gone)?;
    // Of now: it may have changed before the lock was ours.
    let record = container.record()?.ok_or_else(gone)?;
    Ok((container, record, lock))
}

/// A volume's place on the host. Unlike `run` it makes no directory for a path that is not there: what a batch
/// that failed would leave behind.
fn find(volume: &VolumeOption, paths: &Paths) -> anyhow::Result<PlugVolume> {
    let source: PathBuf = match &volume.source {
        VolumeSource::Named(name) => volume_directory(paths, name)?,
        VolumeSource::Path(path) => {
            fs::canonicalize(path).with_context(|| format!("volume {}", path.display()))?
        }
    };
    if source.to_str().is_none() {
        bail!("volume {}: its path is not UTF-8", source.display());
    }
    Ok(PlugVolume { source, destination: volume.destination.clone(), read_only: volume.read_only })
}
