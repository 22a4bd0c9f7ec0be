//! `delete`: cleaning up after a shim that has ended.
//!
//! Its mounts, microVM and taps end with its process; a socket, a cgroup and a few files are left.

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use oci_spec::runtime::Spec;

use super::ADDRESS_FILE;
use super::PID_FILE;
use super::arguments::Arguments;
use super::events::timestamp;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::host::cgroup;
use crate::plan::check_id;

/// Exit status of a task whose shim died: that of a killed process.
const KILLED: u32 = 137;

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
        if let Ok(spec) = Spec::load(bundle.join("config.json"))
            && let Some(path) = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref())
        {
            cgroup::remove(&cgroup::relative_path(path));
        }
    }
    for name in [ADDRESS_FILE, PID_FILE] {
        let _ = fs::remove_file(bundle.join(name));
    }
    Ok(())
}

pub(super) fn delete_role(arguments: &Arguments) -> RpcResult<()> {
    delete(&arguments.bundle()?, &arguments.id)?;
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(|e| RpcError::host("encode the answer", &e))?;
    io::stdout().write_all(&bytes).map_err(|e| RpcError::host("print the answer", &e))
}
