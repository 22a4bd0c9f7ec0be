//! `-info`: what this runtime is and can do, for containerd 2 and through it for the kubelet (`RuntimeHandlerFeatures`).

use std::io;
use std::io::Write;

use containerd_shim_protos::protobuf::well_known_types;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use containerd_shim_protos::types::introspection::RuntimeVersion;
use protobuf::Message;
use serde_json::Value;
use serde_json::json;

use super::bootstrap;
use super::options::ConfigSource;
use super::wire::Any;
use crate::failure::RpcError;
use crate::failure::RpcResult;

/// The runtime's name, as a configuration of containerd has it.
const NAME: &str = "io.containerd.kiai.v2";

/// The type of the OCI runtime-spec's features document, which is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints the answer to the options on standard input.
pub(super) fn info_role() -> RpcResult<()> {
    let options = bootstrap::options(&bootstrap::input()?)?;
    if let Some(options) = &options {
        ConfigSource::of(options)?;
    }
    let bytes = info(options).write_to_bytes().map_err(|e| RpcError::host("encode the answer", &e))?;
    io::stdout().write_all(&bytes).map_err(|e| RpcError::host("print the answer", &e))
}

fn info(options: Option<Any>) -> RuntimeInfo {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let any = |type_url: String, value: Vec<u8>| {
        Some(well_known_types::any::Any { type_url, value, ..Default::default() }).into()
    };
    RuntimeInfo {
        name: NAME.into(),
        version: Some(version).into(),
        options: options.map_or_else(Default::default, |options| any(options.type_url, options.value)),
        features: any(FEATURES.into(), features().to_string().into_bytes()),
        ..Default::default()
    }
}

/// The features document (OCI runtime-spec, features.md). A missing entry says that nothing is known about it, so what
/// is not supported is there with `false`.
///
/// `rro` is what the kubelet asks recursive read-only mounts by; user namespaces of pods need `idmap`, which is not
/// supported.
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": ["prestart", "createRuntime", "startContainer", "poststart", "poststop"],
        "mountOptions": ["bind", "rbind", "ro", "rro", "rw"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
            "netDevices": { "enabled": false },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_reads_name_version_options_and_features() {
        let options = Any { type_url: "t".into(), value: b"v".into(), ..Default::default() };
        let bytes = info(Some(options)).write_to_bytes().unwrap();
        // The fields' numbers are containerd's: api/types/introspection.proto.
        let version = env!("CARGO_PKG_VERSION");
        let mut expected = format!("\x0a\x15{NAME}\x12").into_bytes();
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        expected.extend([length(version) + 2, 0x0a, length(version)]);
        expected.extend(version.as_bytes());
        expected.extend(b"\x1a\x06\x0a\x01t\x12\x01v\x22");
        assert!(bytes.starts_with(&expected), "{bytes:?}");
        let document: Value =
            serde_json::from_slice(&RuntimeInfo::parse_from_bytes(&bytes).unwrap().features.value).unwrap();
        assert_eq!(document, features());
        assert!(info(None).options.is_none());
    }

    #[test]
    fn the_kubelet_is_told_of_recursive_read_only_mounts_and_of_no_user_namespaces() {
        let features = features();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], false);
    }
}
