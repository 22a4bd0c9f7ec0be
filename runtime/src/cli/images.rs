//! `kiai images`: lists the images in the store.

use serde::Serialize;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::format::Format;
use crate::cli::image;

/// List images
#[derive(Debug, clap::Args)]
pub(super) struct Images {
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    digest: String,
    /// Bytes, as fetched.
    size: u64,
    created: Option<String>,
}

impl Images {
    pub(super) fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let images = image::store(context)?.list().map_err(anyhow::Error::from)?;
        let rows: Vec<Row> = images
            .into_iter()
            .map(|i| Row { name: i.name, digest: i.digest, size: i.size, created: i.created })
            .collect();
        if self.quiet {
            let digests: String = rows.iter().map(|row| format!("{}\n", row.digest)).collect();
            format::print(&digests).map_err(anyhow::Error::from)?;
            return Ok(0);
        }
        match self.format {
            Format::Json => format::print_json(&rows)?,
            Format::Table => {
                let lines: Vec<Vec<String>> = rows
                    .into_iter()
                    .map(|row| {
                        let created = row.created.unwrap_or_default();
                        let digest = row.digest.chars().take(7 + 12).collect();
                        vec![format::shorten(&row.name, 80), digest, created, format::bytes(row.size)]
                    })
                    .collect();
                let text = format::table(&["NAME", "DIGEST", "CREATED", "SIZE"], &lines);
                format::print(&text).map_err(anyhow::Error::from)?;
            }
        }
        Ok(0)
    }
}
