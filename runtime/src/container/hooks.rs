//! Hooks of an OCI spec that are programs of the host (config.md#posix-platform-hooks): they run in the namespaces in
//! which the shim was started, and get the container's state on standard input.
//!
//! `prestart` and `createRuntime` run before the pod's interfaces are taken over, so what they put into its network
//! namespace reaches the guest.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::fs::MemfdFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;

use crate::host::namespaces;
use crate::plan::HostHooks;

/// File in the bundle that marks that the poststop hooks ran.
const RAN: &str = "poststop";

/// Bytes of a failed hook's output that are part of its error.
const SHOWN: u64 = 2048;

/// A hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be started, or waited for.
    #[error("{kind} hook {path}")]
    Run {
        /// Which of the spec's lists it is in.
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It ended with another status than 0.
    #[error("{kind} hook {path}: {status}: {output}")]
    Failed {
        /// Which of the spec's lists it is in.
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it wrote to standard output and error.
        output: String,
    },
    /// It did not end in time, and was killed.
    #[error("{kind} hook {path}: did not end within {seconds} s")]
    Slow {
        /// Which of the spec's lists it is in.
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// The spec's time-out.
        seconds: u64,
    },
}

/// The hooks of one container.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// The programs, by kind.
    pub all: HostHooks,
    /// The spec's version.
    pub version: String,
    /// The container's id.
    pub id: String,
    /// The directory of its bundle.
    pub bundle: PathBuf,
    /// Its annotations.
    pub annotations: std::collections::HashMap<String, String>,
}

impl Hooks {
    /// Runs the hooks of a container that is being created; the first that fails is the last that runs.
    pub async fn create(&self) -> Result<(), HookError> {
        self.run("prestart", &self.all.prestart, "creating").await?;
        self.run("createRuntime", &self.all.create_runtime, "creating").await
    }

    /// Runs the hooks of a container that was started; the first that fails is the last that runs.
    pub(super) async fn started(&self) -> Result<(), HookError> {
        self.run("poststart", &self.all.poststart, "running").await
    }

    /// Runs the hooks of a container that was removed, or could not be created. A failure is logged.
    pub async fn stopped(&self) {
        let hooks = self.clone();
        if !hooks.all.poststop.is_empty() && tokio::task::spawn_blocking(move || hooks.stop()).await.is_err()
        {
            tracing::error!(container = self.id, "running the poststop hooks panicked");
        }
    }

    /// The same on this thread, once: also for a container whose shim was killed before it could run them.
    pub fn stop(&self) {
        let ran = self.bundle.join(RAN);
        if self.all.poststop.is_empty() || ran.exists() {
            return;
        }
        if let Err(error) = std::fs::write(&ran, "") {
            tracing::warn!(path = %ran.display(), %error, "cannot be written");
        }
        let state = self.state("stopped");
        for hook in &self.all.poststop {
            if let Err(error) = run("poststop", hook, &state, self.bundle.clone()) {
                tracing::warn!(container = self.id, "{}", crate::failure::chain(&error));
            }
        }
    }

    async fn run(&self, kind: &'static str, hooks: &[Hook], status: &str) -> Result<(), HookError> {
        for hook in hooks {
            let (program, state, bundle) = (hook.clone(), self.state(status), self.bundle.clone());
            let running = tokio::task::spawn_blocking(move || run(kind, &program, &state, bundle)).await;
            running.unwrap_or_else(|panic| {
                let source = io::Error::other(panic.to_string());
                Err(HookError::Run { kind, path: hook.path().clone(), source })
            })?;
        }
        Ok(())
    }

    /// The container's state (runtime.md#state). Its process on the host is this one.
    fn state(&self, status: &str) -> Vec<u8> {
        let mut state = serde_json::json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        if status != "stopped" {
            state["pid"] = std::process::id().into();
        }
        state.to_string().into_bytes()
    }
}

/// Runs a hook to its end; kills it when its time is out.
fn run(kind: &'static str, hook: &Hook, state: &[u8], bundle: PathBuf) -> Result<(), HookError> {
    let path = hook.path().clone();
    let failed = |source| HookError::Run { kind, path: path.clone(), source };
    // Files and no pipes: a hook that does not read, and a child of it that lives on, hold up nothing.
    let mut output = file("hook-output").map_err(failed)?;
    let mut child = start(hook, state, bundle, &output).map_err(failed)?;
    let seconds =
        hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|&seconds| seconds > 0);
    let in_time = ends_within(&child, seconds.map(Duration::from_secs)).map_err(failed)?;
    if !in_time {
        child.kill().map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    match seconds {
        Some(seconds) if !in_time => Err(HookError::Slow { kind, path, seconds }),
        _ if status.success() => Ok(()),
        _ => {
            let mut text = Vec::new();
            output.rewind().and_then(|()| (&output).take(SHOWN).read_to_end(&mut text)).map_err(failed)?;
            let output = String::from_utf8_lossy(&text).trim_end().to_owned();
            Err(HookError::Failed { kind, path, status, output })
        }
    }
}

fn start(hook: &Hook, state: &[u8], bundle: PathBuf, output: &File) -> io::Result<Child> {
    let mut input = file("hook-state")?;
    input.write_all(state)?;
    input.rewind()?;
    let mut command = Command::new(hook.path());
    let mut arguments = hook.args().iter().flatten();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).current_dir(bundle).env_clear();
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    command.stdin(Stdio::from(input)).stdout(Stdio::from(output.try_clone()?));
    command.stderr(Stdio::from(output.try_clone()?));
    namespaces::spawn(&mut command)
}

fn file(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

/// Waits for a child's end; false if it takes longer.
fn ends_within(child: &Child, time: Option<Duration>) -> io::Result<bool> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return Ok(true) };
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let time = time.map(rustix::event::Timespec::try_from).transpose().map_err(io::Error::other)?;
    Ok(rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], time.as_ref())? > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn shell(script: &str, timeout: i64) -> Hook {
        let args = ["name", "-c", script].map(String::from).to_vec();
        let env = vec!["WORD=from the spec".to_owned()];
        HookBuilder::default().path("/bin/sh").args(args).env(env).timeout(timeout).build().unwrap()
    }

    fn hooks(bundle: &Path, all: HostHooks) -> Hooks {
        let annotations = [("a".to_owned(), "b".to_owned())].into();
        Hooks { all, version: "1.0.2".into(), id: "c".into(), bundle: bundle.into(), annotations }
    }

    #[tokio::test]
    async fn a_hook_gets_the_state_and_nothing_of_our_environment() {
        let bundle = tempfile::tempdir().unwrap();
        let script = "read -r state; echo \"$state\" > state; echo \"$WORD $HOME $0\" > words";
        let create_runtime = vec![shell(script, 10)];
        let hooks = hooks(bundle.path(), HostHooks { create_runtime, ..HostHooks::default() });
        hooks.create().await.unwrap();
        let text = |name| fs::read_to_string(bundle.path().join(name)).unwrap();
        assert_eq!(text("words"), "from the spec  name\n");
        let state: serde_json::Value = serde_json::from_str(&text("state")).unwrap();
        let expected = serde_json::json!({
            "ociVersion": "1.0.2", "id": "c", "status": "creating", "pid": std::process::id(),
            "bundle": bundle.path(), "annotations": { "a": "b" },
        });
        assert_eq!(state, expected);
    }

    #[tokio::test]
    async fn the_first_hook_that_fails_is_the_last_and_is_named_with_its_output() {
        let bundle = tempfile::tempdir().unwrap();
        let prestart = vec![shell("echo why >&2; exit 3", 10)];
        let create_runtime = vec![shell("touch ran", 10)];
        let hooks = hooks(bundle.path(), HostHooks { prestart, create_runtime, ..HostHooks::default() });
        let error = hooks.create().await.unwrap_err().to_string();
        assert_eq!(error, "prestart hook /bin/sh: exit status: 3: why");
        assert!(!bundle.path().join("ran").exists());
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_killed() {
        let bundle = tempfile::tempdir().unwrap();
        let poststart = vec![shell("exec sleep 60", 1)];
        let hooks = hooks(bundle.path(), HostHooks { poststart, ..HostHooks::default() });
        let error = hooks.started().await.unwrap_err().to_string();
        assert_eq!(error, "poststart hook /bin/sh: did not end within 1 s");
    }

    #[tokio::test]
    async fn every_hook_of_a_removed_container_runs_whatever_the_others_do() {
        let bundle = tempfile::tempdir().unwrap();
        let missing = HookBuilder::default().path("/does/not/exist").build().unwrap();
        let poststop = vec![missing, shell("cat > state", 10)];
        let hooks = hooks(bundle.path(), HostHooks { poststop, ..HostHooks::default() });
        hooks.stopped().await;
        let state = bundle.path().join("state");
        let text = fs::read_to_string(&state).unwrap();
        assert!(text.contains("\"stopped\"") && !text.contains("pid"), "{text}");
        fs::remove_file(&state).unwrap();
        hooks.stop();
        assert!(!state.exists(), "they run once");
    }
}
