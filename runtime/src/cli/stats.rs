//! `kiai stats`: shows the resource usage of containers.

use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::exec::running_task;
use crate::cli::format;
use crate::cli::format::Format;
use crate::cli::state::State;
use crate::cli::task::Task;

/// Time between two samples, from whose difference CPU usage is computed.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show the resource usage of running containers
#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    /// Print once and end
    #[arg(long)]
    no_stream: bool,
    /// How to print; json prints once
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Name or id [default: all running containers]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

struct Watched {
    id: String,
    name: String,
    task: Task,
    before: Option<(Instant, u64)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    name: String,
    cpu_percent: f64,
    cpu_usage_us: u64,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    network_received_bytes: u64,
    network_sent_bytes: u64,
    disk_read_bytes: u64,
    disk_written_bytes: u64,
    pids: u64,
}

impl Stats {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let mut watched = self.watched(context).await?;
        let once = self.no_stream || self.format == Format::Json;
        look(&mut watched).await;
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let rows = look(&mut watched).await;
            match self.format {
                Format::Json => format::print_json(&rows)?,
                Format::Table => {
                    let table = table(&rows);
                    // Move home, then clear below, so that the screen does not flicker.
                    let text = if once { table } else { format!("\x1b[H\x1b[J{table}") };
                    format::print(&text)?;
                }
            }
            if once || watched.is_empty() {
                return Ok(0);
            }
        }
    }

    async fn watched(&self, context: &Context) -> anyhow::Result<Vec<Watched>> {
        let mut records = Vec::new();
        if self.containers.is_empty() {
            for (_, record) in context.store.list()? {
                if State::of(&record).await.is_running() {
                    records.push(record);
                }
            }
        } else {
            for name in &self.containers {
                records.push(context.store.find(name)?.1);
            }
        }
        let mut watched = Vec::new();
        for record in records {
            let task = running_task(&record).await?;
            watched.push(Watched { id: record.id, name: record.name, task, before: None });
        }
        if watched.is_empty() && self.format == Format::Table {
            bail!("no container is running");
        }
        Ok(watched)
    }
}

/// Samples the containers that still run, and drops the others.
async fn look(watched: &mut Vec<Watched>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut still = Vec::new();
    for mut one in watched.drain(..) {
        let Ok(metrics) = one.task.stats().await else { continue };
        let row = row(&one, &metrics);
        one.before = Some((Instant::now(), row.cpu_usage_us));
        rows.push(row);
        still.push(one);
    }
    *watched = still;
    rows
}

fn row(one: &Watched, metrics: &Metrics) -> Row {
    let usage = metrics.cpu.usage_usec;
    let cpu_percent = one.before.map_or(0.0, |(at, before)| {
        let elapsed = at.elapsed().as_micros().max(1) as f64;
        usage.saturating_sub(before) as f64 / elapsed * 100.0
    });
    let network = |figure: fn(&containerd_shim_protos::cgroups_v2::metrics::NetworkStat) -> u64| {
        metrics.network.iter().filter(|interface| interface.name != "lo").map(figure).sum()
    };
    let disk = |figure: fn(&containerd_shim_protos::cgroups_v2::metrics::IOEntry) -> u64| {
        metrics.io.usage.iter().map(figure).sum()
    };
    Row {
        id: one.id.clone(),
        name: one.name.clone(),
        cpu_percent,
        cpu_usage_us: usage,
        // As docker does, inactive file cache does not count as used.
        memory_bytes: metrics.memory.usage.saturating_sub(metrics.memory.inactive_file),
        memory_limit_bytes: Some(metrics.memory.usage_limit)
            .filter(|limit| *limit != u64::MAX && *limit != 0),
        network_received_bytes: network(|interface| interface.rx_bytes),
        network_sent_bytes: network(|interface| interface.tx_bytes),
        disk_read_bytes: disk(|entry| entry.rbytes),
        disk_written_bytes: disk(|entry| entry.wbytes),
        pids: metrics.pids.current,
    }
}

fn table(rows: &[Row]) -> String {
    let heading = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "NET I/O", "BLOCK I/O", "PIDS"];
    let line = |row: &Row| {
        let limit = row.memory_limit_bytes.map_or_else(|| "none".to_owned(), format::bytes);
        vec![
            row.id.clone(),
            row.name.clone(),
            format!("{:.2}%", row.cpu_percent),
            format!("{} / {limit}", format::bytes(row.memory_bytes)),
            format!(
                "{} / {}",
                format::bytes(row.network_received_bytes),
                format::bytes(row.network_sent_bytes)
            ),
            format!("{} / {}", format::bytes(row.disk_read_bytes), format::bytes(row.disk_written_bytes)),
            row.pids.to_string(),
        ]
    };
    format::table(&heading, &rows.iter().map(line).collect::<Vec<_>>())
}
