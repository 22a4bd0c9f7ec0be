//! The shim's command line, as containerd and Go's flag package write it: one dash or two, the value apart or
//! after `=`.

use std::path::PathBuf;

use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::network::PortMapping;

/// The action the shim is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a shim for a bundle, or find the pod's, and print its address.
    Start,
    /// Clear up after a shim that is gone, and print how its task ended.
    Delete,
    /// Say what this runtime can do.
    Info,
    /// Say which version this is.
    Version,
    /// Serve the Task service. Not part of containerd's interface: `launch` runs it.
    Serve,
}

/// The shim's arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) namespace: String,
    pub(super) id: String,
    /// containerd's socket; empty for the CLI.
    pub(super) address: String,
    /// The bundle; without the flag, the working directory.
    bundle: Option<PathBuf>,
    pub(super) debug: bool,
    /// The configuration of the pod's runtime class.
    pub(super) config: Option<PathBuf>,
    /// containerd's program.
    pub(super) caller: Option<PathBuf>,
    /// Ports of the host to hold. Only the CLI sets them.
    pub(super) ports: Vec<PortMapping>,
    pub(super) action: Action,
    /// Arguments after `--`, with which this program is run once the container has ended. Only the CLI sets them.
    pub(super) afterwards: Vec<String>,
}

impl Arguments {
    pub(super) fn parse(words: &[String]) -> RpcResult<Self> {
        let mut parsed = Self {
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
            config: None,
            caller: None,
            ports: Vec::new(),
            action: Action::Start,
            afterwards: Vec::new(),
        };
        let (mut action, mut asked) = (None, None);
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if word == "--" {
                parsed.afterwards = rest.cloned().collect();
                break;
            }
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                action = Some(word.as_str());
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if name == "debug" {
                parsed.debug = value.as_deref() != Some("false");
                continue;
            }
            match name {
                "info" => asked = Some(Action::Info),
                "v" | "version" => asked = Some(Action::Version),
                _ => {}
            }
            if matches!(name, "info" | "v" | "version") {
                continue;
            }
            let mut value = || {
                let value = value.clone().or_else(|| rest.next().cloned());
                value.ok_or_else(|| RpcError::invalid(format!("flag -{name} has no value")))
            };
            match name {
                "namespace" => parsed.namespace = value()?,
                "id" => parsed.id = value()?,
                "address" => parsed.address = value()?,
                "config" => parsed.config = Some(value()?.into()),
                "bundle" => parsed.bundle = Some(value()?.into()),
                "hold" => {
                    let port = value()?.parse().map_err(|e| RpcError::invalid(format!("flag -hold: {e}")))?;
                    parsed.ports.push(port);
                }
                // It is not run: events go over ttrpc.
                "publish-binary" => parsed.caller = Some(value()?.into()),
                // Ignored: the shim chooses the socket's path.
                "socket" | "debug-socket" => drop(value()?),
                _ => return Err(RpcError::invalid(format!("unknown flag -{name}"))),
            }
        }
        parsed.action = match (asked, action) {
            (Some(asked), _) => asked,
            (None, Some("start")) => Action::Start,
            (None, Some("delete")) => Action::Delete,
            (None, Some("serve")) => Action::Serve,
            (None, Some(other)) => return Err(RpcError::invalid(format!("unknown action {other:?}"))),
            (None, None) => return Err(RpcError::invalid("no action: start or delete")),
        };
        Ok(parsed)
    }

    /// The bundle: the flag's, or the working directory.
    pub(super) fn bundle(&self) -> RpcResult<PathBuf> {
        match &self.bundle {
            Some(bundle) => Ok(bundle.clone()),
            None => std::env::current_dir().map_err(|e| RpcError::host("working directory", &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> RpcResult<Arguments> {
        Arguments::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_as_go_writes_them() {
        let words = "-namespace k8s.io --id=abc -address /run/c.sock -publish-binary /bin/c -debug start";
        let expected = Arguments {
            namespace: "k8s.io".into(),
            id: "abc".into(),
            address: "/run/c.sock".into(),
            bundle: None,
            debug: true,
            config: None,
            caller: Some("/bin/c".into()),
            ports: Vec::new(),
            action: Action::Start,
            afterwards: Vec::new(),
        };
        assert_eq!(parse(words).unwrap(), expected);
        let serve = parse("-id x -hold 8080:80/tcp serve -- release --debug x").unwrap();
        assert_eq!((serve.action, serve.afterwards.join(" ")), (Action::Serve, "release --debug x".into()));
        assert_eq!(serve.ports, ["8080:80".parse().unwrap()]);
        assert!(!serve.debug, "those words are not the shim's");
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("--version").unwrap().action, Action::Version);
        assert_eq!(parse("-config /k.toml -id x serve").unwrap().config, Some("/k.toml".into()));
        let delete = parse("-namespace n -id x -bundle /b delete").unwrap();
        assert_eq!((delete.action, delete.bundle().unwrap()), (Action::Delete, "/b".into()));
    }

    #[test]
    fn what_is_unknown_or_incomplete_is_named() {
        for (words, named) in [
            ("-frobnicate x start", "-frobnicate"),
            ("start -id", "-id"),
            ("-id x stop", "stop"),
            ("-id x", "start"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
