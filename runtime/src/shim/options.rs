//! The options of a runtime class, which name the configuration of its pods.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use protobuf::Message;

use super::wire::Any;
use super::wire::RuntimeOptions;
use super::wire::is_type;
use crate::failure::RpcError;
use crate::failure::RpcResult;

/// The file in the bundle with a configuration that is part of containerd's.
const CONFIG_FILE: &str = "kiai.toml";

/// Keys of the options that are containerd's own.
const CONTAINERDS_KEYS: [&str; 2] = ["TypeUrl", "ConfigPath"];

/// Where the configuration of a runtime class is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConfigSource {
    /// In a file of the administrator.
    File(PathBuf),
    /// In containerd's configuration: TOML, as `kiai.toml` has it.
    Text(String),
}

impl ConfigSource {
    /// Reads options; none of them means the default configuration.
    pub(super) fn of(options: &Any) -> RpcResult<Option<Self>> {
        // Clients that have nothing to say send the first; the second they send to any runtime, to say how to call runc.
        if ["google.protobuf.Empty", "containerd.runc.v1.Options"]
            .iter()
            .any(|n| is_type(&options.type_url, n))
        {
            return Ok(None);
        }
        if !is_type(&options.type_url, "runtimeoptions.v1.Options") {
            return Err(RpcError::invalid(format!(
                "runtime options of type {:?}: expected runtimeoptions.v1.Options",
                options.type_url
            )));
        }
        let refuse = |what: &str, why: String| RpcError::invalid(format!("runtime options: {what}: {why}"));
        let read = RuntimeOptions::parse_from_bytes(&options.value);
        let RuntimeOptions { config_path, config_body, .. } =
            read.map_err(|e| refuse("runtimeoptions.v1.Options", e.to_string()))?;
        if !config_path.is_empty() {
            let path = PathBuf::from(&config_path);
            let absolute = path.is_absolute().then_some(Self::File(path));
            return match absolute {
                Some(file) => Ok(Some(file)),
                None => Err(refuse("ConfigPath", format!("{config_path:?} is not an absolute path"))),
            };
        }
        let body = String::from_utf8(config_body).map_err(|e| refuse("configuration", e.to_string()))?;
        let mut table: toml::Table =
            body.parse().map_err(|e: toml::de::Error| refuse("configuration", e.to_string()))?;
        table.retain(|key, _| !CONTAINERDS_KEYS.contains(&key));
        Ok((!table.is_empty()).then(|| Self::Text(table.to_string())))
    }

    /// The file with the configuration; a text becomes a file of the bundle.
    pub(super) fn into_file(self, bundle: &Path) -> RpcResult<PathBuf> {
        match self {
            Self::File(path) => Ok(path),
            Self::Text(text) => {
                let path = bundle.join(CONFIG_FILE);
                fs::write(&path, text).map_err(|e| RpcError::host(path.display(), &e))?;
                Ok(path)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(type_url: &str, value: &[u8]) -> RpcResult<Option<ConfigSource>> {
        ConfigSource::of(&Any { type_url: type_url.into(), value: value.into(), ..Default::default() })
    }

    const TYPE: &str = "runtimeoptions.v1.Options";

    fn body(text: &str) -> Vec<u8> {
        [&[0x1a, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    }

    #[test]
    fn a_path_wins_over_a_text() {
        let both = [b"\x12\x02/k".to_vec(), body("[sandbox]")].concat();
        assert_eq!(source(TYPE, &both).unwrap(), Some(ConfigSource::File("/k".into())));
        assert_eq!(source(TYPE, b"").unwrap(), None);
    }

    #[test]
    fn a_text_is_the_configuration_without_containerds_keys() {
        let toml = body("TypeUrl = \"t\"\nConfigPath = \"\"\n[sandbox]\nvcpus = 2\n");
        let expected = ConfigSource::Text("[sandbox]\nvcpus = 2\n".into());
        assert_eq!(source(&format!("example.com/{TYPE}"), &toml).unwrap(), Some(expected));
        assert_eq!(source(TYPE, &body("TypeUrl = \"t\"")).unwrap(), None);
        let bundle = tempfile::tempdir().unwrap();
        let file = ConfigSource::Text("x".into()).into_file(bundle.path()).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "x");
    }

    #[test]
    fn other_options_are_refused_by_name() {
        for (type_url, value, named) in [
            ("example.Options", &b""[..], "example.Options"),
            (TYPE, b"\xff", TYPE),
            (TYPE, b"\x12\x01k", "ConfigPath"),
            (TYPE, &body("sandbox"), "configuration"),
            (TYPE, b"\x1a\x01\xff", "configuration"),
        ] {
            let error = source(type_url, value).unwrap_err().to_string();
            assert!(error.contains(named) && error.starts_with("runtime options"), "{error}");
        }
        assert_eq!(source("containerd.runc.v1.Options", b"\xff").unwrap(), None, "for another runtime");
        assert_eq!(source("google.protobuf.Empty", b"").unwrap(), None);
    }
}
