//! Credentials for registries from the `config.json` of `docker login`. Credential helpers are not supported: they are
//! programs of the user, and pulls run as root.

use std::path::PathBuf;

use oci_client::secrets::RegistryAuth;
use serde_json::Value;

/// Path of the file: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
fn file() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    folder.or_else(home).map(|folder| folder.join("config.json"))
}

/// The credentials for `registry`; anonymous if the file has none for it.
pub(super) fn of(registry: &str) -> RegistryAuth {
    file()
        .and_then(|file| std::fs::read(file).ok())
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .and_then(|config| find(&config, registry))
        .unwrap_or(RegistryAuth::Anonymous)
}

fn find(config: &Value, registry: &str) -> Option<RegistryAuth> {
    let auths = config.get("auths")?;
    let keys = [registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/v1/")];
    let entry = keys.iter().find_map(|key| auths.get(key))?;
    let decoded = decode(entry.get("auth")?.as_str()?)?;
    let (user, password) = decoded.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// Base64 (RFC 4648 §4) of a short ASCII text.
fn decode(text: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for byte in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|&letter| letter == byte)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count).to_le_bytes()[0]);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_its_registry() {
        let config = serde_json::json!({ "auths": { "reg.example:5000": { "auth": "dXNlcjpwYTpzcw==" } } });
        match find(&config, "reg.example:5000") {
            Some(RegistryAuth::Basic(user, password)) => {
                assert_eq!((user.as_str(), password.as_str()), ("user", "pa:ss"));
            }
            _ => panic!("not found"),
        }
        assert!(find(&config, "other").is_none());
        assert!(decode("!").is_none());
    }
}
