//! The network configuration list (CNI specification 1.0.0, section 1) and the configuration of each plugin
//! (section 4). Pure, except that it looks whether the firewall plugin is installed.

use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use crate::network::plugin::PluginError;
use crate::network::plugin::find;
use crate::network::port::PortMapping;

/// The version of the specification the configuration asks for. Debian 12's plugins (1.1.1) know it.
pub const VERSION: &str = "1.0.0";

/// Name of the only network; host-local keeps its addresses in a folder of this name.
pub const NAME: &str = "kiai";

/// The directory in which host-local keeps the allocated addresses. All state directories share it, as they share the
/// bridge.
const ADDRESSES: &str = "/run/kiai-networks";

/// The options of the default network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the bridge on the host, which is made at first use.
    pub bridge: String,
    /// Subnet of the sandboxes; the bridge has the first address.
    pub subnet: String,
    /// Folders in which plugins are looked for; the first match is used.
    pub plugin_path: Vec<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bridge: "kiai0".to_owned(),
            subnet: "10.88.0.0/16".to_owned(),
            plugin_path: plugin_path(std::env::var("CNI_PATH").ok().as_deref()),
        }
    }
}

/// The folders of `CNI_PATH`, else those of Debian's package and of the plugins' releases.
pub fn plugin_path(variable: Option<&str>) -> Vec<PathBuf> {
    match variable {
        Some(list) if !list.is_empty() => {
            list.split(':').filter(|f| !f.is_empty()).map(PathBuf::from).collect()
        }
        _ => ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"].map(PathBuf::from).into(),
    }
}

/// The plugins in the order in which they are added.
///
/// # Errors
/// A required plugin is not installed.
pub(super) fn plugins(settings: &Settings) -> Result<Vec<Value>, PluginError> {
    for needed in ["bridge", "host-local", "portmap"] {
        find(&settings.plugin_path, needed)?;
    }
    let mut plugins = vec![bridge(settings, Path::new(ADDRESSES)), portmap()];
    // Lets traffic pass on hosts whose FORWARD chain drops packets. A host without the plugin has no such
    // chain for containers either.
    if find(&settings.plugin_path, "firewall").is_ok() {
        plugins.push(json!({ "cniVersion": VERSION, "name": NAME, "type": "firewall" }));
    }
    Ok(plugins)
}

fn bridge(settings: &Settings, addresses: &Path) -> Value {
    json!({
        "cniVersion": VERSION,
        "name": NAME,
        "type": "bridge",
        "bridge": settings.bridge,
        "isGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "dataDir": addresses,
            "ranges": [[{ "subnet": settings.subnet }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    })
}

fn portmap() -> Value {
    json!({
        "cniVersion": VERSION,
        "name": NAME,
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "snat": true,
    })
}

/// The standard input of one plugin: its configuration, the run-time values of the capabilities it declares, and the
/// result of the plugin before it.
pub(super) fn for_call(plugin: &Value, ports: &[PortMapping], previous: Option<&Value>) -> Value {
    let mut configuration = plugin.clone();
    let Some(object) = configuration.as_object_mut() else { return configuration };
    let wants_ports = plugin["capabilities"]["portMappings"] == Value::Bool(true);
    object.remove("capabilities");
    if wants_ports {
        object.insert("runtimeConfig".to_owned(), json!({ "portMappings": ports }));
    }
    if let Some(previous) = previous {
        object.insert("prevResult".to_owned(), previous.clone());
    }
    configuration
}

/// A plugin's configuration for an additional interface, without a default route: the first interface has it.
pub(super) fn without_routes(plugin: &Value) -> Value {
    let mut configuration = plugin.clone();
    if let Some(ipam) = configuration.get_mut("ipam").and_then(Value::as_object_mut) {
        ipam.remove("routes");
    }
    configuration
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_only_what_it_declares() {
        let ports: Vec<PortMapping> = vec!["80:80".parse().unwrap()];
        let previous = json!({ "cniVersion": VERSION });
        let bridge = for_call(&bridge(&Settings::default(), Path::new("/d")), &ports, None);
        assert!(bridge.get("runtimeConfig").is_none() && bridge.get("prevResult").is_none());
        let portmap = for_call(&portmap(), &ports, Some(&previous));
        assert!(portmap.get("capabilities").is_none());
        assert_eq!(portmap["prevResult"], previous);
        assert_eq!(portmap["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
    }

    #[test]
    fn a_missing_plugin_is_named_with_what_to_do() {
        let settings = Settings { plugin_path: vec!["/nonexistent".into()], ..Settings::default() };
        let text = plugins(&settings).unwrap_err().to_string();
        assert!(text.contains("bridge") && text.contains("/nonexistent"), "{text}");
        assert!(text.contains("containernetworking-plugins"), "{text}");
    }

    #[test]
    fn the_plugin_path_comes_from_the_environment() {
        assert_eq!(plugin_path(Some("/a::/b")), [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(plugin_path(Some(""))[0], PathBuf::from("/usr/lib/cni"));
    }
}
