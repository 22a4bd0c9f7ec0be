//! `kiai inspect`: all that is known of containers, as JSON.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::failure::one_line;
use crate::cli::format;
use crate::cli::state::State;
use crate::store::Record;
use crate::store::rootfs;

/// Print all that is known of containers
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
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
    pub(super) async fn perform(self, context: &Context) -> Result<u8, Failure> {
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
}
