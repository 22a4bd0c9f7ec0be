//! Every chore of the project, as `cargo xtask CHORE`.

mod apt;
mod arrows;
mod bench;
mod build;
mod cache;
mod check;
mod containerd;
mod cpio;
mod dependencies;
mod e2e;
mod fuzz;
mod image;
mod kernel;
mod lab;
mod metadata;
mod registry;
mod rootfs;
mod run;
mod sanitize;
mod setup;
mod spdx;
mod step;
mod store;
mod test;
mod tidy;
mod venue;
mod workspace;

use std::path::PathBuf;
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
    Setup(setup::Arguments),
    /// Show it: a program of a real image in a microVM
    Run,
    /// Run all checks and tests, with real microVMs
    Test(test::Arguments),
    /// Check format, lints, documentation and house rules, and run unit tests; needs no microVM
    Check(check::Arguments),
    /// Build the guest kernel and print where it is
    Kernel,
    /// Build the guest image with the agent and print where it is
    Rootfs,
    /// Run a command in the lab: an emulated machine with nested KVM
    Lab(lab::Arguments),
    /// Measure every figure the documents give, on the lab's deterministic clock, as one table
    Bench(bench::Arguments),
    /// One group of `bench`, in the lab
    #[command(hide = true)]
    BenchHere { group: bench::Group, runs: u32 },
    /// The steps of `run`, where microVMs can run
    #[command(hide = true)]
    RunHere,
    /// The end-to-end tests of `test`, one at a time as standard input orders them, where microVMs can run
    #[command(hide = true)]
    TestHere { program: PathBuf },
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
    match chore {
        Chore::Setup(setup::Arguments { dry_run: true }) => {}
        Chore::BenchHere { .. } | Chore::RunHere | Chore::TestHere { .. } => {}
        _ => setup::packages()?,
    }
    match chore {
        Chore::Setup(setup::Arguments { dry_run: true }) => setup::dry_run()?,
        Chore::Setup(_) => setup::artifacts()?,
        Chore::Run => return run::show(),
        Chore::RunHere => run::here()?,
        Chore::TestHere { program } => e2e::inside::serve(&program)?,
        Chore::Test(arguments) => return test::run(&arguments),
        Chore::Check(arguments) => check::run(&arguments)?,
        Chore::Kernel => println!("{}", kernel::artifact()?.join("vmlinux").display()),
        Chore::Rootfs => println!("{}", rootfs::artifact()?.display()),
        Chore::Lab(arguments) => return lab::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments)?,
        Chore::BenchHere { group, runs } => bench::inside::measure(group, runs)?,
    }
    Ok(ExitCode::SUCCESS)
}
