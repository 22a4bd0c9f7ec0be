//! The `kiai` command: one verb a file, each a client of the Task service of a container's shim.
//!
//! This module parses the command line and determines the exit status: a verb returns `Ok(status)` or a
//! [`CommandError`], which is printed as one line at the end of [`main`]. The statuses are docker's: the container's
//! own, 125 if kiai failed, 126 and 127 if the program in the container could not be started.
//!
//! Reading order: [`run`] runs a container from start to end; [`creation`] makes one and [`making`] starts it; [`task`] is the client of a shim, [`streams`] copies the
//! standard streams, [`release`] frees a container's resources.

mod attach;
mod check;
mod command_error;
mod completions;
mod container_options;
mod cp;
mod create;
mod creation;
mod device_table;
mod devices;
mod dry_run;
mod each;
mod etc;
mod events;
mod exec;
mod filter;
mod follow;
mod format;
mod image;
mod images;
mod import;
mod inspect;
mod kill;
mod logs;
mod making;
mod mounts;
mod names;
mod options;
mod pause;
mod plug;
mod port;
mod prepare;
mod ps;
mod pull;
mod refused;
mod release;
mod rename;
mod restart;
mod revive;
mod rm;
mod rmi;
mod run;
mod session;
mod signals;
mod start;
mod state;
mod stats;
mod stop;
mod streams;
mod task;
mod template;
mod templates;
mod terminal;
mod top;
mod tree;
mod unplug;
mod update;
mod version;
mod volumes;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

use crate::cli::command_error::CommandError;
use crate::network::Settings;
use crate::store::Paths;
use crate::store::Store;

/// Runs containers, each pod in a microVM of its own.
#[derive(Debug, Parser)]
#[command(name = "kiai", version, disable_help_subcommand = true, subcommand_required = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Debug, clap::Args)]
struct Global {
    /// Folder of images, volumes and data of containers [default: $KIAI_ROOT or /var/lib/kiai]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder of state that does not survive a reboot [default: $KIAI_STATE or /run/kiai]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Namespace of containers; those of other namespaces are not visible [default: $KIAI_NAMESPACE or default]
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Make the shim log debug messages (shim.log in the bundle)
    #[arg(long, global = true)]
    debug: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Run>),
    Create(Box<create::Create>),
    Start(start::Start),
    Exec(exec::Exec),
    Attach(attach::Attach),
    Cp(cp::Cp),
    Ps(ps::Ps),
    Logs(logs::Logs),
    Events(events::Events),
    Stop(stop::Stop),
    Restart(restart::Restart),
    Kill(kill::Kill),
    Pause(pause::Pause),
    Unpause(pause::Unpause),
    Rm(rm::Rm),
    Inspect(inspect::Inspect),
    Wait(wait::Wait),
    Top(top::Top),
    Port(port::Port),
    Rename(rename::Rename),
    Stats(stats::Stats),
    Update(update::Update),
    Plug(plug::Plug),
    Unplug(unplug::Unplug),
    Pull(pull::Pull),
    Import(import::Import),
    Images(images::Images),
    Rmi(rmi::Rmi),
    Devices(devices::Devices),
    Template(templates::Template),
    Check(check::Check),
    Version(version::Version),
    Completions(completions::Completions),
    Release(release::Release),
}

/// The context of every verb.
#[derive(Debug)]
struct Context {
    store: Store,
    debug: bool,
}

/// Parses the command line, runs the verb and returns the exit status.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = perform(cli);
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.status())
        }
    }
}

/// Prints the error of a wrong command line as one line, with status 125; help and version are no errors.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe is no error.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let message: Vec<&str> = text
        .lines()
        // After the first blank line come advice and usage.
        .take_while(|line| !line.trim().is_empty())
        .flat_map(str::split_whitespace)
        .collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    eprintln!("kiai: {message} (see kiai --help)");
    ExitCode::from(command_error::OWN)
}

fn perform(cli: Cli) -> Result<u8, CommandError> {
    let context = Context { store: Store::new(paths(&cli.global)?), debug: cli.global.debug };
    // One thread is enough for a client, and none is started before it is needed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        CommandError::own(anyhow::Error::new(error).context("cannot start the tokio runtime"))
    })?;
    let status = runtime.block_on(dispatch(cli.verb, &context));
    // A thread that waits for a terminal or a fifo ends with the process.
    runtime.shutdown_background();
    status
}

async fn dispatch(verb: Verb, context: &Context) -> Result<u8, CommandError> {
    match verb {
        Verb::Run(run) => run.perform(context).await,
        Verb::Create(create) => create.perform(context).await,
        Verb::Start(start) => start.perform(context).await,
        Verb::Exec(exec) => exec.perform(context).await,
        Verb::Attach(attach) => attach.perform(context).await,
        Verb::Events(events) => events.perform(context).await,
        Verb::Cp(cp) => cp.perform(context).await,
        Verb::Ps(ps) => ps.perform(context).await,
        Verb::Logs(logs) => logs.perform(context).await,
        Verb::Stop(stop) => stop.perform(context).await,
        Verb::Restart(restart) => restart.perform(context).await,
        Verb::Kill(kill) => kill.perform(context).await,
        Verb::Pause(pause) => pause.perform(context).await,
        Verb::Unpause(unpause) => unpause.perform(context).await,
        Verb::Rm(rm) => rm.perform(context).await,
        Verb::Inspect(inspect) => inspect.perform(context).await,
        Verb::Wait(wait) => wait.perform(context).await,
        Verb::Top(top) => top.perform(context).await,
        Verb::Port(port) => port.perform(context).await,
        Verb::Rename(rename) => rename.perform(context).await,
        Verb::Stats(stats) => stats.perform(context).await,
        Verb::Update(update) => update.perform(context).await,
        Verb::Plug(plug) => plug.perform(context).await,
        Verb::Unplug(unplug) => unplug.perform(context).await,
        Verb::Pull(pull) => pull.perform(context).await,
        Verb::Import(import) => import.perform(context).await,
        Verb::Images(images) => images.perform(context),
        Verb::Rmi(rmi) => rmi.perform(context).await,
        Verb::Devices(devices) => devices.perform(),
        Verb::Template(template) => template.perform(context).await,
        Verb::Check(check) => check.perform(context),
        Verb::Version(version) => version.perform(),
        Verb::Completions(completions) => completions.perform(),
        Verb::Release(release) => release.perform(context).await,
    }
}

fn paths(global: &Global) -> Result<Paths, CommandError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = |option: &Option<PathBuf>, name, otherwise: &str| {
        let path =
            option.clone().or_else(|| variable(name).map(PathBuf::from)).unwrap_or_else(|| otherwise.into());
        std::path::absolute(&path)
            .map_err(|error| CommandError::own(anyhow::Error::new(error).context(path.display().to_string())))
    };
    let namespace = global
        .namespace
        .clone()
        .or_else(|| variable("KIAI_NAMESPACE").map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "default".to_owned());
    if !crate::spec::volume::is_name(&namespace) {
        return Err(CommandError::own(anyhow::anyhow!(
            "{namespace:?} is not a namespace; use letters, digits, '.', '_' and '-'"
        )));
    }
    Ok(Paths {
        root: folder(&global.root, "KIAI_ROOT", "/var/lib/kiai")?,
        state: folder(&global.state, "KIAI_STATE", "/run/kiai")?,
        namespace,
    })
}

/// The settings of the default network, from the environment.
fn network_settings() -> anyhow::Result<Settings> {
    Ok(Settings::default())
}

#[cfg(test)]
mod tests;
