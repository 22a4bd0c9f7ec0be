//! `kiai devices`: lists which PCI functions of the host can be assigned to a pod, and binds them to VFIO or to the
//! host's drivers.

use std::path::Path;

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::format::Format;
use crate::host::pci;
use crate::plan::PciAddress;
use crate::plan::PciFunctionFacts;
use crate::plan::VfioInterface;

/// List the PCI devices of this machine that can be assigned to a pod, or bind one to another driver
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Devices {
    /// List bridges, too
    #[arg(short, long)]
    all: bool,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bind a device to VFIO, so that it can be assigned to a pod
    Bind {
        /// Such as 0000:00:03.0
        #[arg(value_name = "ADDRESS")]
        address: PciAddress,
    },
    /// Bind a device to the host's driver again
    Unbind {
        /// Such as 0000:00:03.0
        #[arg(value_name = "ADDRESS")]
        address: PciAddress,
    },
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Row {
    address: String,
    name: String,
    /// Vendor and device id.
    id: String,
    class: String,
    driver: Option<String>,
    /// The interface by which it is opened, once it is bound to vfio-pci.
    vfio: Option<VfioInterface>,
    group: Option<u32>,
    /// The other functions of its group.
    group_members: Vec<String>,
    resets: bool,
    ready: bool,
    /// Why it is not ready and the remedy, or how to use it.
    advice: String,
}

impl Devices {
    pub(super) fn perform(self) -> Result<u8, CommandError> {
        let sys = Path::new(pci::SYS);
        let told = match self.action {
            None => return self.list(sys),
            Some(Action::Bind { address }) => {
                let moved = pci::bind(sys, address).map_err(anyhow::Error::from)?;
                let functions = functions(sys)?;
                format!("{address} is on vfio-pci: {}", advice(&moved, &functions))
            }
            Some(Action::Unbind { address }) => {
                let moved = pci::unbind(sys, address).map_err(anyhow::Error::from)?;
                match moved.driver {
                    Some(driver) => format!("{address} is on {driver} again"),
                    None => format!("{address} has no driver: the host has no driver for it"),
                }
            }
        };
        format::print(&format!("{told}\n")).map_err(anyhow::Error::from)?;
        Ok(0)
    }

    fn list(self, sys: &Path) -> Result<u8, CommandError> {
        let functions = functions(sys)?;
        let names = pci::names(&functions);
        let rows: Vec<Row> = functions
            .iter()
            .zip(names)
            .filter(|(function, _)| self.all || !function.is_bridge())
            .map(|(function, name)| row(function, name, &functions))
            .collect();
        match self.format {
            Format::Json => format::print_json(&rows)?,
            Format::Table => format::print(&table(&rows)).map_err(anyhow::Error::from)?,
        }
        Ok(0)
    }
}

fn functions(sys: &Path) -> Result<Vec<PciFunctionFacts>, CommandError> {
    Ok(pci::functions(sys).context("read the PCI devices of this machine")?)
}

fn table(rows: &[Row]) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let or_dash = |word: Option<String>| word.unwrap_or_else(|| "-".to_owned());
            vec![
                row.address.clone(),
                format::shorten(&row.name, 44),
                or_dash(row.driver.as_ref().map(|driver| match &row.vfio {
                    Some(VfioInterface::Cdev(_)) => format!("{driver} (cdev)"),
                    Some(VfioInterface::Group(_)) | None => driver.clone(),
                })),
                or_dash(row.group.map(|group| group.to_string())),
                or_dash((!row.group_members.is_empty()).then(|| row.group_members.join(" "))),
                if row.resets { "yes" } else { "no" }.to_owned(),
                format!("{}{}", if row.ready { "ready: " } else { "" }, row.advice),
            ]
        })
        .collect();
    format::table(&["ADDRESS", "NAME", "DRIVER", "GROUP", "WITH", "RESETS", "TO USE IT"], &lines)
}

fn row(function: &PciFunctionFacts, name: Option<String>, all: &[PciFunctionFacts]) -> Row {
    let id = format!("{:04x}:{:04x}", function.vendor, function.device);
    let others = others(function, all);
    Row {
        address: function.address.to_string(),
        name: name.unwrap_or_else(|| id.clone()),
        id,
        class: format!("{:06x}", function.class),
        driver: function.driver.clone(),
        vfio: function.interface(),
        group: function.group,
        group_members: others.iter().map(|other| other.address.to_string()).collect(),
        resets: function.resets,
        ready: !function.is_bridge() && function.is_vfio() && others.iter().all(|o| o.leaves_group_alone()),
        advice: advice(function, all),
    }
}

fn others<'a>(function: &PciFunctionFacts, all: &'a [PciFunctionFacts]) -> Vec<&'a PciFunctionFacts> {
    let address = function.address;
    let in_group = |other: &&PciFunctionFacts| other.group == function.group && other.address != address;
    all.iter().filter(in_group).filter(|other| other.group.is_some()).collect()
}

fn advice(function: &PciFunctionFacts, all: &[PciFunctionFacts]) -> String {
    if function.is_bridge() {
        return "a bridge, which stays with the host".to_owned();
    }
    if function.group.is_none() {
        return "no IOMMU: turn it on in the firmware, and intel_iommu=on for the kernel".to_owned();
    }
    let in_the_way: Vec<String> = others(function, all)
        .iter()
        .filter(|other| !other.leaves_group_alone())
        .map(|other| format!("{} ({})", other.address, other.driver.as_deref().unwrap_or("no driver")))
        .collect();
    if !in_the_way.is_empty() {
        return format!("drivers of the host have its group: {}", in_the_way.join(", "));
    }
    if function.is_vfio() {
        return format!("kiai run --device pci:{}", function.address);
    }
    format!("kiai devices bind {}", function.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(address: &str, driver: Option<&str>, group: Option<u32>) -> PciFunctionFacts {
        PciFunctionFacts {
            address: address.parse().unwrap(),
            vendor: 0x1b36,
            device: 0x10,
            class: 0x01_08_02,
            driver: driver.map(str::to_owned),
            group,
            resets: true,
            cdev: None,
        }
    }

    #[test]
    fn each_function_says_what_to_do_with_it() {
        let bridge = PciFunctionFacts { class: 0x06_01_00, ..function("00:1f.0", Some("lpc_ich"), Some(7)) };
        let all = [
            function("00:03.0", Some("nvme"), Some(3)),
            function("00:04.0", Some("vfio-pci"), Some(4)),
            function("00:05.0", Some("nvme"), None),
            function("00:1f.2", Some("vfio-pci"), Some(7)),
            bridge,
        ];
        let told: Vec<_> = all.iter().map(|function| advice(function, &all)).collect();
        assert_eq!(told[0], "kiai devices bind 0000:00:03.0");
        assert_eq!(told[1], "kiai run --device pci:0000:00:04.0");
        assert!(told[2].contains("no IOMMU"));
        assert!(told[3].contains("0000:00:1f.0 (lpc_ich)"));
        assert!(told[4].contains("bridge"));
        let ready: Vec<_> = all.iter().map(|function| row(function, None, &all).ready).collect();
        assert_eq!(ready, [false, true, false, false, false]);
        assert_eq!(row(&all[3], None, &all).group_members, ["0000:00:1f.0"]);
        assert!(row(&all[2], None, &all).group_members.is_empty(), "no group is no company");
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let all = [function("00:04.0", Some("vfio-pci"), Some(4))];
        let text = table(&[row(&all[0], Some("Red Hat, Inc. NVMe".into()), &all)]);
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("0000:00:04.0   Red Hat, Inc. NVMe   vfio-pci   4"), "{line}");
        assert!(line.ends_with("yes      ready: kiai run --device pci:0000:00:04.0"), "{line}");
    }
}
