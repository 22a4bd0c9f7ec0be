//! How containerd tells a new shim what it is to be, and in which form it reads the answer.
//!
//! | containerd | standard input of `start` | `MAX_SHIM_VERSION` | answer |
//! |---|---|---|---|
//! | 1.6 | runtime options, or nothing | – | the address |
//! | 1.7 | the same | 2 | JSON, version 2 |
//! | 2.0 to 2.2 | the same | 2 | JSON, version 3 if its program is known (`caller`), else 2 |
//! | from 2.3 | `BootstrapParams` | 2 | `BootstrapResult`, version 3 |
//!
//! The version is that of the Task service; this shim serves 2 and 3. containerd's `docs/runtime-v2.md`.

use std::io;
use std::io::Read;
use std::path::Path;

use protobuf::Message;

use super::caller;
use super::wire::Any;
use super::wire::BootstrapParams;
use super::wire::BootstrapResult;
use crate::failure::RpcError;
use crate::failure::RpcResult;

/// More bytes than any containerd writes.
const MOST_INPUT: u64 = 10 << 20;

/// The most verbose level that is not for debugging, as `BootstrapParams` counts them.
const LEVEL_INFO: i32 = 0;

/// The newest version of the Task service that this shim serves.
const NEWEST: u32 = 3;

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Address,
    Json(u32),
    Protobuf,
}

/// What containerd told a new shim, besides its command line.
#[derive(Debug, PartialEq)]
pub(super) struct Bootstrap {
    form: Form,
    /// The options of the runtime class.
    pub(super) options: Option<Any>,
    /// The shim logs debug messages.
    pub(super) debug: bool,
    /// containerd's socket for events.
    pub(super) events: Option<String>,
}

impl Bootstrap {
    /// Reads standard input to its end; the version is that of the environment, or of the caller's program.
    pub(super) fn read(id: &str, namespace: &str, caller: Option<&Path>) -> RpcResult<Self> {
        let input = input()?;
        let newest: Option<u32> =
            std::env::var("MAX_SHIM_VERSION").ok().and_then(|version| version.parse().ok());
        // All say 2; what they use is another matter.
        let newest = newest.map(|version| match caller {
            Some(program) if caller::is_containerd_2(program) => version.max(NEWEST),
            _ => version,
        });
        Self::parse(&input, id, namespace, newest)
    }

    fn parse(input: &[u8], id: &str, namespace: &str, newest: Option<u32>) -> RpcResult<Self> {
        // Options can be read as `BootstrapParams` too, but then their id is a type URL.
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && (params.instance_id.as_str(), params.namespace.as_str()) == (id, namespace)
        {
            return Ok(Self::of(params));
        }
        let form = match newest {
            None | Some(0 | 1) => Form::Address,
            Some(newest) => Form::Json(newest.min(NEWEST)),
        };
        Ok(Self { form, options: options(input)?, debug: false, events: None })
    }

    fn of(params: BootstrapParams) -> Self {
        Self {
            form: Form::Protobuf,
            options: params.extensions.into_iter().find_map(|extension| extension.value.into_option()),
            debug: params.log_level < LEVEL_INFO,
            events: Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty()),
        }
    }

    /// The answer for a shim that listens on `address`.
    pub(super) fn answer(&self, address: &str) -> Vec<u8> {
        const PROTOCOL: &str = "ttrpc";
        match self.form {
            Form::Address => address.as_bytes().to_vec(),
            Form::Json(version) => {
                serde_json::json!({ "version": version, "address": address, "protocol": PROTOCOL })
                    .to_string()
                    .into_bytes()
            }
            Form::Protobuf => {
                let result = BootstrapResult {
                    version: NEWEST.cast_signed(),
                    address: address.into(),
                    protocol: PROTOCOL.into(),
                    ..Default::default()
                };
                result.write_to_bytes().expect("a message without required fields always encodes")
            }
        }
    }
}

/// Standard input of this program, to its end. A terminal is not read: somebody tries the shim by hand.
pub(super) fn input() -> RpcResult<Vec<u8>> {
    let mut input = Vec::new();
    if !rustix::termios::isatty(rustix::stdio::stdin()) {
        let read = io::stdin().lock().take(MOST_INPUT + 1).read_to_end(&mut input);
        read.map_err(|e| RpcError::host("read standard input", &e))?;
    }
    if input.len() as u64 > MOST_INPUT {
        return Err(RpcError::invalid(format!("standard input: more than {MOST_INPUT} bytes")));
    }
    Ok(input)
}

/// Options as containerd writes them before 2.3; no byte is no options.
pub(super) fn options(input: &[u8]) -> RpcResult<Option<Any>> {
    if input.is_empty() {
        return Ok(None);
    }
    let any = Any::parse_from_bytes(input)
        .map_err(|e| RpcError::invalid(format!("standard input: no options of a runtime: {e}")))?;
    Ok(Some(any))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options with the path `/k.toml`, as containerd marshals them.
    const OPTIONS: &[u8] = b"\x0a\x19runtimeoptions.v1.Options\x12\x09\x12\x07/k.toml";

    /// Parameters of containerd 2.3 with those options.
    fn params() -> Vec<u8> {
        let mut bytes = b"\x0a\x04pod1\x12\x06k8s.io".to_vec();
        // log_level: -4, of ten bytes because it is negative.
        bytes.extend(b"\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        bytes.extend(b"\x22\x052.3.4\x2a\x0c/run/c.ttrpc\x32\x0b/run/c.sock\x3a\x0b/containerd");
        bytes.extend(b"\x42\x28\x0a\x26");
        bytes.extend(OPTIONS);
        // socket_dir
        bytes.extend(b"\x4a\x11/run/containerd/s");
        bytes
    }

    fn parse(input: &[u8], newest: Option<u32>) -> RpcResult<Bootstrap> {
        Bootstrap::parse(input, "pod1", "k8s.io", newest)
    }

    #[test]
    fn containerd_1_6_reads_the_address() {
        let bootstrap = parse(b"", None).unwrap();
        assert_eq!(bootstrap.answer("unix:///s"), b"unix:///s");
        assert_eq!(parse(OPTIONS, None).unwrap().options.unwrap().value, b"\x12\x07/k.toml");
    }

    #[test]
    fn containerd_1_7_to_2_2_reads_json() {
        let bootstrap = parse(OPTIONS, Some(2)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bootstrap.answer("unix:///s")).unwrap();
        let expected = serde_json::json!({ "version": 2, "address": "unix:///s", "protocol": "ttrpc" });
        assert_eq!(json, expected);
        assert_eq!(bootstrap.options.unwrap().type_url, "runtimeoptions.v1.Options");
        assert_eq!(parse(b"", Some(9)).unwrap().form, Form::Json(3));
    }

    #[test]
    fn containerd_2_3_reads_protobuf() {
        let bootstrap = parse(&params(), Some(2)).unwrap();
        assert_eq!(bootstrap.answer("unix:///s"), b"\x08\x03\x12\x09unix:///s\x1a\x05ttrpc");
        assert_eq!((bootstrap.debug, bootstrap.events.as_deref()), (true, Some("/run/c.ttrpc")));
        assert_eq!(bootstrap.options.unwrap().value, b"\x12\x07/k.toml");
        let plain = parse(b"\x0a\x04pod1\x12\x06k8s.io", None).unwrap();
        assert_eq!(plain, Bootstrap { form: Form::Protobuf, options: None, debug: false, events: None });
    }

    #[test]
    fn parameters_of_another_shim_are_no_options() {
        let other = Bootstrap::parse(&params(), "pod2", "k8s.io", Some(2)).unwrap();
        // What they are taken for is refused by its type, which is the other's id.
        assert_eq!((other.form, other.options.unwrap().type_url), (Form::Json(2), "pod1".into()));
    }

    #[test]
    fn any_bytes_are_read_or_refused_by_name() {
        let error = parse(b"\xff\xff\xff", Some(2)).unwrap_err().to_string();
        assert!(error.starts_with("standard input: "), "{error}");
        for length in 0..params().len() {
            let _ = parse(&params()[..length], Some(2));
        }
    }
}
