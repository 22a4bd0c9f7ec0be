//! `kiai inspect`: prints all details of containers as JSON, or a table of their devices.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::command_error::one_line;
use crate::cli::device_table;
use crate::cli::format;
use crate::cli::format::Format;
use crate::cli::state::State;
use crate::container::devices::DEVICES;
use crate::plan::DeviceMap;
use crate::store::Record;
use crate::store::rootfs;

/// Print all details of containers
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Print each device on the host and in the guest
    #[arg(long)]
    devices: bool,
    /// How --devices is printed
    #[arg(long, value_enum, default_value = "table", requires = "devices")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspection {
    #[serde(flatten)]
    record: Record,
    state: State,
    bundle: PathBuf,
    upper: PathBuf,
    spec: Option<serde_json::Value>,
}

impl Inspect {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        if self.devices {
            return self.print_devices(context);
        }
        let mut found = Vec::new();
        let mut status = 0;
        for name in &self.containers {
            match context.store.find(name) {
                Ok((container, record)) => {
                    let state = State::of(&record).await;
                    let spec = crate::store::file::read_json(&container.bundle().join("config.json"))?;
                    found.push(Inspection {
                        state,
                        bundle: container.bundle(),
                        upper: rootfs::upper(&container),
                        spec,
                        record,
                    });
                }
                Err(error) => {
                    eprintln!("kiai: {}", one_line(&error.into()));
                    status = 1;
                }
            }
        }
        format::print_json(&found)?;
        Ok(status)
    }

    fn print_devices(self, context: &Context) -> Result<u8, CommandError> {
        let mut found = Vec::new();
        let mut status = 0;
        for name in &self.containers {
            match context.store.find(name) {
                Ok((container, record)) => {
                    let map = crate::store::file::read_json(&container.bundle().join(DEVICES))?;
                    found.push(ContainerDevices { id: record.id, name: record.name, map });
                }
                Err(error) => {
                    eprintln!("kiai: {}", one_line(&error.into()));
                    status = 1;
                }
            }
        }
        if self.format == Format::Json {
            format::print_json(&found)?;
            return Ok(status);
        }
        let several = self.containers.len() > 1;
        let tables: Vec<String> = found
            .iter()
            .map(|container| {
                let table = match &container.map {
                    Some(map) => device_table::of(map),
                    None => "it was never created\n".to_owned(),
                };
                if several { format!("{}\n{table}", container.name) } else { table }
            })
            .collect();
        format::print(&tables.join("\n"))?;
        Ok(status)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerDevices {
    id: String,
    name: String,
    #[serde(flatten)]
    map: Option<DeviceMap>,
}
