//! The last steps of a container's process before `execve`.
//!
//! Runs in the container, after libcontainer has entered its namespaces and root. Two steps libcontainer 0.7 does not
//! do. It gives a process of `exec` no seccomp filter: the filter is loaded here, and because that can need
//! CAP_SYS_ADMIN the capabilities are dropped here too, after it (the order runc has). And it reports a program that
//! cannot be executed only by the exit status: the reason is written to the start pipe here.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use crate::sys;

/// The path in which a program is looked for if the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The executor that libcontainer calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Payload {
    /// The start pipe: takes the reason if the program cannot be executed; a successful `execve` closes it.
    pub(super) started: Option<Arc<OwnedFd>>,
    /// The filter to load, for processes of `exec`.
    pub(super) seccomp: Option<LinuxSeccomp>,
    /// The capabilities to keep, for processes of `exec`.
    pub(super) capabilities: Option<LinuxCapabilities>,
}

impl Payload {
    fn confine(&self) -> Result<(), String> {
        if let Some(seccomp) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(seccomp).map_err(|e| format!("seccomp: {e}"))?;
        }
        if let Some(capabilities) = &self.capabilities {
            libcontainer::capabilities::drop_privileges(capabilities, &*create_syscall())
                .map_err(|e| format!("capabilities: {e}"))?;
        }
        Ok(())
    }

    fn execute(&self, spec: &Spec) -> String {
        let (program, arguments) = match program(spec) {
            Ok(found) => found,
            Err(reason) => return reason,
        };
        if let Err(reason) = self.confine() {
            return reason;
        }
        let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| String::from("an argument has a NUL"));
        let path = c_string(program.as_os_str().as_bytes());
        let arguments =
            arguments.iter().map(|argument| c_string(argument.as_bytes())).collect::<Result<Vec<_>, _>>();
        let (path, arguments) = match (path, arguments) {
            (Ok(path), Ok(arguments)) => (path, arguments),
            (Err(reason), _) | (_, Err(reason)) => return reason,
        };
        sys::restore_sigpipe();
        // Not execvp, which runs a file without an interpreter as a shell script.
        let Err(error) = nix::unistd::execv(&path, &arguments);
        format!("exec: {:?}: {}", program.display().to_string(), error.desc())
    }
}

impl Executor for Payload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        program(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let reason = self.execute(spec);
        if let Some(started) = &self.started
            && let Ok(pipe) = started.try_clone()
        {
            let _ = std::fs::File::from(pipe).write_all(reason.as_bytes());
        }
        Err(ExecutorError::Other(reason))
    }
}

/// The program's path in the container, and its arguments with the program's name first.
fn program(spec: &Spec) -> Result<(PathBuf, Vec<String>), String> {
    let process = spec.process().as_ref().ok_or("the specification has no process")?;
    let arguments = process.args().clone().filter(|args| !args.is_empty()).ok_or("process.args is empty")?;
    let environment = process.env().iter().flatten();
    let path = environment.rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let found = find(&arguments[0], path)?;
    Ok((found, arguments))
}

/// Looks a program up in `path` as a shell does; containerd's clients know these messages.
fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    let quoted = format!("exec: {name:?}");
    if name.is_empty() {
        return Err(format!("{quoted}: executable file not found in $PATH"));
    }
    if name.contains('/') {
        return match runnable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(error) => Err(format!("{quoted}: {error}")),
        };
    }
    let mut denied = false;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        match runnable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => denied |= error == "permission denied",
        }
    }
    let reason = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("{quoted}: {reason}"))
}

fn runnable(path: &Path) -> Result<(), &'static str> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err("is a directory"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Err("permission denied"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err("permission denied"),
        Err(_) => Err("no such file or directory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let good = make("good", 0o755);
        make("plain", 0o644);
        let path = format!("/nowhere:{}", directory.path().display());

        assert_eq!(find("good", &path).unwrap(), good);
        assert_eq!(find(good.to_str().unwrap(), "").unwrap(), good);
        assert_eq!(
            find("absent", &path).unwrap_err(),
            "exec: \"absent\": executable file not found in $PATH"
        );
        assert_eq!(find("plain", &path).unwrap_err(), "exec: \"plain\": permission denied");
        assert_eq!(find("/no/such", &path).unwrap_err(), "exec: \"/no/such\": no such file or directory");
        assert_eq!(find("", &path).unwrap_err(), "exec: \"\": executable file not found in $PATH");
    }
}
