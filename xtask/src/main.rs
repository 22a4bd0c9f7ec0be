//! Every chore of the project, as `cargo xtask CHORE`.

mod apt;
mod build;
mod cache;
mod cpio;
mod kernel;
mod lab;
mod rootfs;
mod setup;
mod step;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Every chore of the project. Each sets up what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install missing Debian packages and make all artifacts
    Setup,
    /// Build the guest kernel and print where it is
    Kernel,
    /// Build the guest image with the agent and print where it is
    Rootfs,
    /// Run a command in the lab: an emulated machine with nested KVM
    Lab(lab::Arguments),
    /// Measure start-up cost (comes with a later issue)
    Bench,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(chore: Chore) -> Result<ExitCode> {
    if !matches!(chore, Chore::Bench) {
        setup::packages()?;
    }
    match chore {
        Chore::Setup => {
            kernel::artifact()?;
        }
        Chore::Kernel => println!("{}", kernel::artifact()?.join("vmlinux").display()),
        Chore::Rootfs => println!("{}", rootfs::artifact()?.display()),
        Chore::Lab(arguments) => return lab::run(&arguments),
        Chore::Bench => {
            step::say("the benchmark suite comes with a later issue");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}
