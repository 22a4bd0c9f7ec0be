//! `start`: launches a shim for the bundle in the working directory, and prints its address for containerd.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::ADDRESS_FILE;
use super::arguments::Arguments;
use super::bootstrap::Bootstrap;
use super::launch;
use super::launch::LaunchOptions;
use super::options::ConfigSource;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::failure::chain;
use crate::plan::Annotations;
use crate::plan::Role;
use crate::plan::check_id;

pub(super) fn start(arguments: &Arguments) -> RpcResult<()> {
    let bundle = arguments.bundle()?;
    let bootstrap = Bootstrap::read(&arguments.id, &arguments.namespace, arguments.caller.as_deref())?;
    let address = match sandbox_of(&bundle)? {
        // Another container of a pod: its shim runs, and containerd has the bundles in one directory.
        Some(sandbox) => {
            let address = address_of(&sandbox, &bundle, arguments)?;
            let ours = bundle.join(ADDRESS_FILE);
            fs::write(&ours, &address).map_err(|e| RpcError::host(ours.display(), &e))?;
            address
        }
        None => {
            let config = bootstrap.options.as_ref().map(ConfigSource::of).transpose()?.flatten();
            let socket = launch::launch(&LaunchOptions {
                id: arguments.id.clone(),
                namespace: arguments.namespace.clone(),
                address: Some(arguments.address.clone().into()),
                events: bootstrap.events.clone(),
                debug: arguments.debug || bootstrap.debug,
                config: config.map(|config| config.into_file(&bundle)).transpose()?,
                bundle,
                ..LaunchOptions::default()
            })?;
            launch::address(&socket)
        }
    };
    io::stdout().write_all(&bootstrap.answer(&address)).map_err(|e| RpcError::host("print the address", &e))
}

/// The address of a sandbox's shim. Its bundle is beside that of its containers, unless the Sandbox service made it:
/// then the socket is where `launch` puts it.
fn address_of(sandbox: &str, bundle: &Path, arguments: &Arguments) -> RpcResult<String> {
    let beside = bundle.with_file_name(sandbox).join(ADDRESS_FILE);
    fs::read_to_string(&beside).or_else(|e| {
        let options = LaunchOptions {
            id: sandbox.into(),
            namespace: arguments.namespace.clone(),
            address: Some(arguments.address.clone().into()),
            ..LaunchOptions::default()
        };
        let socket = launch::socket_path(&options);
        if socket.exists() {
            return Ok(launch::address(&socket));
        }
        let message = format!("sandbox {sandbox} is not running: {}: {e}", beside.display());
        Err(RpcError::precondition(message))
    })
}

/// The sandbox that a bundle's container belongs to, if it is not its own. A bundle without a spec is that of a sandbox.
fn sandbox_of(bundle: &Path) -> RpcResult<Option<String>> {
    let path = bundle.join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    let spec =
        Spec::load(&path).map_err(|e| RpcError::invalid(format!("{}: {}", path.display(), chain(&e))))?;
    let all = spec.annotations().clone().unwrap_or_default();
    // Only the role is read here; Kiai's own annotations are checked when the container is created.
    let role = all.into_iter().filter(|(name, _)| !name.starts_with("io.kiai.")).collect();
    match Annotations::parse(&role, &[])?.role {
        Role::Container { sandbox_id } => {
            check_id(&sandbox_id)?;
            Ok(Some(sandbox_id))
        }
        Role::Single | Role::Sandbox => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_a_pod_names_its_sandbox() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |annotations: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations}}}"#);
            fs::write(bundle.path().join("config.json"), text).unwrap();
        };
        assert_eq!(sandbox_of(bundle.path()).unwrap(), None, "a sandbox of the Sandbox service");
        write("{}");
        assert_eq!(sandbox_of(bundle.path()).unwrap(), None);
        write(r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod1"}"#);
        assert_eq!(sandbox_of(bundle.path()).unwrap(), Some("pod1".into()));
        write(r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"../x"}"#);
        assert!(sandbox_of(bundle.path()).is_err());
    }
}
