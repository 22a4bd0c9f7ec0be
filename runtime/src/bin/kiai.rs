//! One binary, two names: called `containerd-shim-kiai-v2` it is the shim of a pod, else the command line.

use std::path::Path;
use std::process::ExitCode;

use kiai_runtime::cli;
use kiai_runtime::shim;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == shim::SHIM_NAME) {
        let arguments: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
        return shim::main(&arguments);
    }
    cli::main()
}
