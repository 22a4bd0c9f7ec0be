//! The network of a container started by hand: a namespace of its own, joined to a bridge by the CNI plugins.
//!
//! ```text
//!   attach: write down what will be done -> make the namespace -> ADD, plugin by plugin -> write down the result
//!   detach: DEL, plugins in reverse -> remove the namespace -> forget
//! ```
//!
//! What is written down comes first, so that [`detach`] can undo the work of a command that died half-way. It
//! can be called any number of times.
//!
//! Under containerd none of this runs: there the CRI plugin calls CNI. It must not know: containers, sandboxes,
//! taps. Implements: CNI specification 1.0.0, sections 2 to 5.

pub mod conflist;
pub mod dns;
pub mod held;
pub mod namespace;
pub mod plugin;
pub mod port;

use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

pub use conflist::Settings;
pub use namespace::NamespaceError;
pub use plugin::PluginError;
pub use port::PortMapping;

use crate::network::plugin::Call;
use crate::network::plugin::Command;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::Lock;

/// Held while plugins work: they all change one firewall, and not all of them bear company (two `firewall` plugins
/// that both find its chain missing both make it, and one fails).
const LOCK: &str = "/run/kiai-network.lock";

/// The name of the guest's interface.
pub const INTERFACE: &str = "eth0";

/// Why a container has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The file in which the work is written down.
    #[error(transparent)]
    File(#[from] FileError),
    /// The result of the plugins cannot be understood.
    #[error("the answer of the CNI plugins is no result of version {}", conflist::VERSION)]
    Result(#[source] serde_json::Error),
}

/// What is written down of one container's network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Attachment {
    id: String,
    namespace: PathBuf,
    plugin_path: Vec<PathBuf>,
    plugins: Vec<Value>,
    ports: Vec<PortMapping>,
    result: Option<Value>,
}

/// What a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Namespace with the interface in it.
    pub namespace: PathBuf,
    /// Addresses with their prefix length, as `10.88.0.2/16`.
    pub addresses: Vec<String>,
}

impl Network {
    /// The first address, without its prefix length.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.first()?.split('/').next()?.parse().ok()
    }
}

/// The part of a CNI result that is read here (section 5, "ADD Success").
#[derive(Deserialize)]
struct AddResult {
    #[serde(default)]
    ips: Vec<AddResultIp>,
}

#[derive(Deserialize)]
struct AddResultIp {
    address: String,
}

/// Makes a container's network. `file` keeps what [`detach`] needs.
///
/// # Errors
/// [`NetworkError`] names the plugin and what it said. What was done so far is still there: call [`detach`].
pub fn attach(
    id: &str,
    file: &Path,
    settings: &Settings,
    ports: &[PortMapping],
) -> Result<Network, NetworkError> {
    let mut attachment = Attachment {
        id: id.to_owned(),
        namespace: namespace::path(id),
        plugin_path: settings.plugin_path.clone(),
        plugins: conflist::plugins(settings)?,
        ports: ports.to_vec(),
        result: None,
    };
    file::write_json(file, &attachment)?;
    namespace::create(&attachment.namespace)?;
    let alone = Lock::exclusive(Path::new(LOCK))?;
    let mut previous = None;
    for plugin in &attachment.plugins {
        previous = Some(call(&attachment, Command::Add, plugin, previous.as_ref())?);
    }
    drop(alone);
    let result = previous.unwrap_or(Value::Null);
    let parsed: AddResult = serde_json::from_value(result.clone()).map_err(NetworkError::Result)?;
    attachment.result = Some(result);
    file::write_json(file, &attachment)?;
    Ok(Network {
        namespace: attachment.namespace,
        addresses: parsed.ips.into_iter().map(|ip| ip.address).collect(),
    })
}

/// Undoes [`attach`], however far it came, and forgets it. No file: nothing to do.
///
/// # Errors
/// The first thing that could not be undone; the rest was tried, and the file is kept for the next time.
pub fn detach(file: &Path) -> Result<(), NetworkError> {
    let Some(attachment) = file::read_json::<Attachment>(file)? else { return Ok(()) };
    let alone = Lock::exclusive(Path::new(LOCK))?;
    let mut first_error = None;
    for plugin in attachment.plugins.iter().rev() {
        if let Err(error) = call(&attachment, Command::Del, plugin, attachment.result.as_ref()) {
            first_error.get_or_insert(error);
        }
    }
    drop(alone);
    namespace::remove(&attachment.namespace)?;
    if let Some(error) = first_error {
        return Err(error.into());
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file::io_error("remove", file)(error).into())
        }
        _ => Ok(()),
    }
}

fn call(
    attachment: &Attachment,
    command: Command,
    configuration: &Value,
    previous: Option<&Value>,
) -> Result<Value, PluginError> {
    plugin::call(&Call {
        command,
        configuration: conflist::for_call(configuration, &attachment.ports, previous),
        plugin_path: &attachment.plugin_path,
        container: &attachment.id,
        namespace: attachment.namespace.exists().then_some(&attachment.namespace),
        interface: INTERFACE,
    })
}

#[cfg(test)]
mod tests;
