//! `cargo xtask bench`: every figure the documents give, measured on the lab's deterministic clock, as one table.
//!
//! The clock counts instructions, one nanosecond each, of everything in the lab: the command, the shim, the lab's kernel
//! and the guest. VM exits stand beside each time, because the clock does not charge for them. `inside` measures.

pub(crate) mod inside;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::lab::{Lab, LabEvent, Machine};
use crate::step;
use table::Sample;

/// How long one lab may take: a deterministic one runs on one thread of the emulator.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Samples of each figure
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Only figures of these groups
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
}

/// Figures that are measured in one lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// From the command to a container's first byte, and what the pod then holds
    Start,
    /// Devices, volumes and interfaces of a running container
    Plug,
    /// Memory that a container has freed
    Memory,
    /// Block I/O of a container
    Io,
    /// PCI functions through VFIO's groups
    Vfio,
    /// PCI functions through iommufd
    Iommufd,
}

impl Group {
    const ALL: [Self; 6] = [Self::Start, Self::Plug, Self::Memory, Self::Io, Self::Vfio, Self::Iommufd];

    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Measures and prints the table. A figure that could not be had is an error.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let groups = if arguments.only.is_empty() { &Group::ALL[..] } else { &arguments.only };
    let mut samples = Vec::new();
    for group in groups {
        step::say(&format!("measuring: {}", group.name()));
        samples.extend(in_the_lab(*group, arguments.runs)?);
    }
    print!("{}", table::render(&samples));
    Ok(())
}

fn in_the_lab(group: Group, runs: u32) -> Result<Vec<Sample>> {
    let mut lab =
        Lab::new(["xtask", "bench-here", &group.name(), &runs.to_string()].map(str::to_owned).to_vec());
    lab.place(std::env::current_exe()?, "bin/xtask");
    lab.put_project()?;
    lab.put_store()?;
    let machine = Machine {
        cpus: 1,
        deterministic: true,
        vfio: matches!(group, Group::Vfio | Group::Iommufd),
        iommufd: group == Group::Iommufd,
        timeout: LIMIT,
        ..Machine::default()
    };
    let mut session = match lab.start(&machine)? {
        Ok(session) => session,
        Err(gone) => bail!("{gone}"),
    };
    let deadline = Instant::now() + LIMIT;
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        match session.next(deadline)? {
            LabEvent::Stdout(bytes) => output.extend(bytes),
            LabEvent::Stderr(bytes) => errors.extend(bytes),
            LabEvent::Exit(status) => {
                ensure!(status == 0, "measuring {group:?}: {}", String::from_utf8_lossy(&errors));
                break;
            }
            LabEvent::Nothing => bail!("{}", session.stop(&format!("no end after {} s", LIMIT.as_secs()))),
            LabEvent::Gone(gone) => bail!("{gone}"),
        }
    }
    let samples: Vec<Sample> = String::from_utf8(output)?
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect::<Result<_>>()?;
    ensure!(!samples.is_empty(), "measuring {group:?} gave no figure");
    Ok(samples)
}
