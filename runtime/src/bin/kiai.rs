//! One binary: called `containerd-shim-kiai-v2` it is the shim of a pod, else the command line. A shim calls it by a third
//! name to start a logging program.

use std::path::Path;
use std::process::ExitCode;

use kiai_runtime::cli;
use kiai_runtime::container::io::LOGGER_NAME;
use kiai_runtime::container::io::become_logger;
use kiai_runtime::shim;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name == LOGGER_NAME {
        let arguments: Vec<_> = arguments.collect();
        become_logger(&arguments);
        return ExitCode::FAILURE;
    }
    if Path::new(&name).file_name().is_some_and(|name| name == shim::SHIM_NAME) {
        let arguments: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
        return shim::main(&arguments);
    }
    cli::main()
}
