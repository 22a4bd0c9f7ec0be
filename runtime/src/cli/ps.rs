//! `kiai ps`: lists containers, and releases those whose shims have died.

use serde::Serialize;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::command_error::one_line;
use crate::cli::format;
use crate::cli::format::Format;
use crate::cli::release;
use crate::cli::state::State;
use crate::store::Record;

/// List containers
#[derive(Debug, clap::Args)]
pub(super) struct Ps {
    /// List containers that have ended, too
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    name: String,
    image: String,
    command: String,
    created: String,
    #[serde(flatten)]
    state: State,
    status: String,
    ports: Vec<String>,
    addresses: Vec<String>,
}

impl Row {
    fn of(record: Record, state: State) -> Self {
        Self {
            id: record.id,
            name: record.name,
            image: record.image.name,
            command: record.command.join(" "),
            created: record.created.to_string(),
            status: state.to_string(),
            ports: record.ports,
            addresses: record.addresses,
            state,
        }
    }
}

impl Ps {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        // The list is printed even if a container could not be released.
        if let Err(error) = release::tidy(context).await {
            eprintln!("kiai: {}", one_line(&error));
        }
        let mut rows = Vec::new();
        for (_, record) in context.store.list()? {
            let state = State::of(&record).await;
            if self.all || state.is_running() {
                let created = record.created;
                rows.push((created, Row::of(record, state)));
            }
        }
        // The newest first, as docker has it.
        rows.reverse();
        let text = match (self.format, self.quiet) {
            (Format::Json, _) => {
                let rows: Vec<&Row> = rows.iter().map(|(_, row)| row).collect();
                format::print_json(&rows)?;
                return Ok(0);
            }
            (Format::Table, true) => rows.iter().map(|(_, row)| format!("{}\n", row.id)).collect(),
            (Format::Table, false) => {
                let heading = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
                let line = |(created, row): &(crate::store::timestamp::Timestamp, Row)| {
                    vec![
                        row.id.clone(),
                        format::shorten(&row.image, 40),
                        format::shorten(&row.command, 30),
                        format!("{} ago", format::span(created.elapsed())),
                        row.status.clone(),
                        row.ports.join(", "),
                        row.name.clone(),
                    ]
                };
                format::table(&heading, &rows.iter().map(line).collect::<Vec<_>>())
            }
        };
        format::print(&text)?;
        Ok(0)
    }
}
