//! `delete`: cleaning up after a shim that has ended.
//!
//! Its mounts, microVM and taps end with its process; a socket, a cgroup and a few files are left.

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use oci_spec::runtime::Spec;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;

use super::ADDRESS_FILE;
use super::CGROUP_FILE;
use super::ENDING_FILE;
use super::PID_FILE;
use super::SHIM_NAME;
use super::arguments::Arguments;
use super::events::timestamp;
use crate::container::Hooks;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::host::cgroup;
use crate::plan;
use crate::plan::HostHooks;
use crate::plan::check_id;

/// Exit status of a task whose shim died: that of a killed process.
const KILLED: u32 = 137;

/// How long the end of a shim that is ending is waited for: containerd gives this program 5 s.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Cleans up after the shim of `bundle`; an error if that shim still answers. The bundle itself is left to its maker.
pub fn delete(bundle: &Path, id: &str) -> RpcResult<()> {
    check_id(id)?;
    // Another container of a pod has its sandbox's address and no shim of its own.
    if bundle.join(PID_FILE).exists() {
        if let Ok(address) = fs::read_to_string(bundle.join(ADDRESS_FILE))
            && let Some(socket) = address.trim().strip_prefix("unix://")
        {
            if UnixStream::connect(socket).is_ok() {
                return Err(RpcError::precondition(format!("the shim of {id} is running")));
            }
            // Gone already, or never made.
            let _ = fs::remove_file(socket);
        }
        let spec = Spec::load(bundle.join("config.json")).ok();
        if let Some(spec) = &spec {
            poststop(bundle, id, spec);
        }
        let path = spec.and_then(|spec| spec.linux().as_ref()?.cgroups_path().clone());
        let path = path.or_else(|| fs::read_to_string(bundle.join(CGROUP_FILE)).ok().map(PathBuf::from));
        if let Some(path) = path {
            cgroup::remove(&cgroup::relative_path(&path));
        }
    }
    for name in [ADDRESS_FILE, PID_FILE, CGROUP_FILE] {
        let _ = fs::remove_file(bundle.join(name));
    }
    Ok(())
}

/// Runs the hooks that a killed shim did not run.
fn poststop(bundle: &Path, id: &str, spec: &Spec) {
    let all = HostHooks { poststop: plan::poststop(spec), ..HostHooks::default() };
    let annotations = spec.annotations().clone().unwrap_or_default();
    let (version, id, bundle) = (spec.version().clone(), id.into(), bundle.into());
    Hooks { all, version, id, bundle, annotations }.stop();
}

/// containerd calls this whenever its connection to a shim is closed, so at each normal end as well, while the shim is
/// still busy with its end.
pub(super) fn delete_role(arguments: &Arguments) -> RpcResult<()> {
    let bundle = arguments.bundle()?;
    let pid = fs::read_to_string(bundle.join(PID_FILE)).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid
        && bundle.join(ENDING_FILE).exists()
        && is_shim(pid, &arguments.id)
    {
        await_end(pid)
            .map_err(|e| RpcError::host(format!("wait for the end of {}'s shim {pid}", arguments.id), &e))?;
    }
    delete(&bundle, &arguments.id)?;
    let response = DeleteResponse {
        pid: pid.unwrap_or_default(),
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(|e| RpcError::host("encode the answer", &e))?;
    io::stdout().write_all(&bytes).map_err(|e| RpcError::host("print the answer", &e))
}

/// Whether the process is the shim that was started for `id`, and not a later process with its number.
fn is_shim(pid: u32, id: &str) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
    let named = words.windows(2).any(|pair| pair == [&b"-id"[..], id.as_bytes()]);
    named && words.first().is_some_and(|name| *name == SHIM_NAME.as_bytes())
}

/// Waits for the end of a process that is no child of this one.
fn await_end(pid: u32) -> io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    let patience = rustix::event::Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    match rustix::event::poll(&mut ended, Some(&patience))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("it takes longer than {PATIENCE:?}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_shim_is_known_by_its_name_and_id_and_its_end_is_waited_for() {
        let mut shim = Command::new("sh");
        // It reads its script from standard input, so it ends when that is closed.
        shim.arg0(SHIM_NAME).args(["-s", "--", "-id", "pod1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shim = shim.spawn().unwrap();
        let (pid, mut script) = (shim.id(), shim.stdin.take().unwrap());
        // Its arguments are to be seen once it runs.
        script.write_all(b"echo\n").unwrap();
        shim.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert!(is_shim(pid, "pod1"));
        assert!(!is_shim(pid, "pod"));
        assert!(!is_shim(std::process::id(), "pod1"));
        let waiting = std::thread::spawn(move || await_end(pid));
        drop(script);
        waiting.join().unwrap().unwrap();
        shim.wait().unwrap();
        await_end(pid).unwrap();
    }
}
