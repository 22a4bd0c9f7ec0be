//! The network of a container that `kiai run` starts: its own network namespace, which the CNI plugins connect to a
//! bridge.
//!
//! ```text
//!   attach: write the record -> make the namespace -> ADD, plugin by plugin -> write the result into the record
//!   detach: DEL, plugins in reverse -> remove the namespace -> remove the record
//! ```
//! [`plug`] and [`unplug`] do the same for additional interfaces of the namespace, one at a time.
//!
//! The record is written first, so that [`detach`] can undo the work of a command that was killed. [`detach`] can be
//! called repeatedly.
//!
//! Under containerd this module is not used: the CRI plugin calls CNI. It must not know: containers, sandboxes, taps.
//! Implements: CNI specification 1.0.0, sections 2 to 5.

pub mod conflist;
pub mod held;
pub mod namespace;
pub mod plugin;
pub mod port;
pub mod publish;

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
pub use publish::Publish;

use crate::network::plugin::Call;
use crate::network::plugin::Command;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::Lock;

/// The lock file held while plugins run. They all change one firewall, and some fail when run concurrently: two
/// `firewall` plugins that both find the chain missing both make it, and one fails.
const LOCK: &str = "/run/kiai-network.lock";

/// The name of the guest's first interface.
pub const INTERFACE: &str = "eth0";

/// Most interfaces of one container, the first included.
const MOST_INTERFACES: usize = 16;

/// The network of a container cannot be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The network namespace cannot be made or removed.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The file of the network's record cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The result of the plugins is invalid.
    #[error("the answer of the CNI plugins is not a result of version {}", conflist::VERSION)]
    Result(#[source] serde_json::Error),
    /// The container has no network to which an interface can be added.
    #[error("the container has no network to which an interface can be added; see kiai run --network")]
    NoNetwork,
    /// The container has the maximum number of interfaces.
    #[error("the container has {MOST_INTERFACES} interfaces, the maximum; remove one first")]
    Full,
    /// The interface is not one that was plugged in.
    #[error("interface {0}: not plugged in")]
    NoInterface(String),
}

/// The record of one container's network, kept in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NetworkRecord {
    id: String,
    namespace: PathBuf,
    plugin_path: Vec<PathBuf>,
    plugins: Vec<Value>,
    ports: Vec<PortMapping>,
    result: Option<Value>,
    /// The interfaces that were plugged in later.
    #[serde(default)]
    further: Vec<AddedInterface>,
}

/// The record of an additional interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AddedInterface {
    interface: String,
    result: Option<Value>,
}

/// An interface that was plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniInterface {
    /// Name of the interface in the namespace.
    pub name: String,
    /// Addresses with their prefix length.
    pub addresses: Vec<String>,
}

/// The network of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// Path of the network namespace with the interface.
    pub namespace: PathBuf,
    /// Addresses with their prefix length, as `10.88.0.2/16`.
    pub addresses: Vec<String>,
    /// The host's address in the network.
    pub gateway: Option<IpAddr>,
}

impl CniNetwork {
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
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// Makes a container's network. `file` keeps what [`detach`] needs.
///
/// # Errors
/// [`CniError`] names the plugin and its message. The work done so far is not undone: call [`detach`].
pub fn attach(
    id: &str,
    file: &Path,
    settings: &Settings,
    ports: &[PortMapping],
) -> Result<CniNetwork, CniError> {
    let mut attachment = NetworkRecord {
        id: id.to_owned(),
        namespace: namespace::path(id),
        plugin_path: settings.plugin_path.clone(),
        plugins: conflist::plugins(settings)?,
        ports: ports.to_vec(),
        result: None,
        further: Vec::new(),
    };
    file::write_json(file, &attachment)?;
    namespace::create(&attachment.namespace)?;
    let result = add(&attachment, INTERFACE)?;
    let parsed: AddResult = serde_json::from_value(result.clone()).map_err(CniError::Result)?;
    attachment.result = Some(result);
    file::write_json(file, &attachment)?;
    let gateway = parsed.ips.iter().find_map(|ip| ip.gateway);
    let addresses = parsed.ips.into_iter().map(|ip| ip.address).collect();
    Ok(CniNetwork { namespace: attachment.namespace, addresses, gateway })
}

/// Undoes [`attach`] and every [`plug`], complete or not, and removes the record. Does nothing if there is no record.
///
/// # Errors
/// The first step that failed. All other steps were tried, and the record is kept for the next call.
pub fn detach(file: &Path) -> Result<(), CniError> {
    let Some(attachment) = file::read_json::<NetworkRecord>(file)? else { return Ok(()) };
    let mut deleted = Ok(());
    for further in attachment.further.iter().rev() {
        deleted = deleted.and(delete(&attachment, &further.interface, further.result.as_ref()));
    }
    deleted = deleted.and(delete(&attachment, INTERFACE, attachment.result.as_ref()));
    namespace::remove(&attachment.namespace)?;
    deleted?;
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file::io_error("remove", file)(error).into())
        }
        _ => Ok(()),
    }
}

/// Adds an interface to the network of a container. The caller holds the container's lock.
///
/// # Errors
/// [`CniError`]; the work done so far is undone. [`detach`] undoes the rest, if that fails.
pub fn plug(file: &Path) -> Result<CniInterface, CniError> {
    let mut attachment = file::read_json::<NetworkRecord>(file)?.ok_or(CniError::NoNetwork)?;
    let taken = |name: &String| attachment.further.iter().any(|further| further.interface == *name);
    let free = (1..MOST_INTERFACES).map(|number| format!("eth{number}")).find(|name| !taken(name));
    let name = free.ok_or(CniError::Full)?;
    attachment.further.push(AddedInterface { interface: name.clone(), result: None });
    file::write_json(file, &attachment)?;
    let added = add(&attachment, &name).and_then(|result| {
        let addresses = addresses(Some(&result))?;
        if let Some(further) = attachment.further.last_mut() {
            further.result = Some(result);
        }
        file::write_json(file, &attachment)?;
        Ok(addresses)
    });
    match added {
        Ok(addresses) => Ok(CniInterface { name, addresses }),
        Err(error) => {
            let _ = unplug(file, &name);
            Err(error)
        }
    }
}

/// Removes an interface that [`plug`] added and returns its addresses. The caller holds the container's lock.
///
/// # Errors
/// The first step that failed. All other steps were tried, and the interface's record is kept for the next call.
pub fn unplug(file: &Path, name: &str) -> Result<Vec<String>, CniError> {
    let mut attachment = file::read_json::<NetworkRecord>(file)?.ok_or(CniError::NoNetwork)?;
    let Some(index) = attachment.further.iter().position(|further| further.interface == name) else {
        return Err(CniError::NoInterface(name.to_owned()));
    };
    let result = attachment.further[index].result.clone();
    delete(&attachment, name, result.as_ref())?;
    attachment.further.remove(index);
    file::write_json(file, &attachment)?;
    addresses(result.as_ref())
}

fn addresses(result: Option<&Value>) -> Result<Vec<String>, CniError> {
    let Some(result) = result else { return Ok(Vec::new()) };
    let parsed: AddResult = serde_json::from_value(result.clone()).map_err(CniError::Result)?;
    Ok(parsed.ips.into_iter().map(|ip| ip.address).collect())
}

/// Calls ADD of each plugin and returns the result of the last one.
fn add(attachment: &NetworkRecord, interface: &str) -> Result<Value, CniError> {
    let _alone = Lock::exclusive(Path::new(LOCK))?;
    let mut previous = None;
    for plugin in &attachment.plugins {
        previous = Some(call(attachment, Command::Add, interface, plugin, previous.as_ref())?);
    }
    Ok(previous.unwrap_or(Value::Null))
}

/// Calls DEL of each plugin, in reverse order. Returns the first error; all plugins are called.
fn delete(attachment: &NetworkRecord, interface: &str, result: Option<&Value>) -> Result<(), CniError> {
    let _alone = Lock::exclusive(Path::new(LOCK))?;
    let mut deleted = Ok(());
    for plugin in attachment.plugins.iter().rev() {
        deleted = deleted.and(call(attachment, Command::Del, interface, plugin, result).map(drop));
    }
    Ok(deleted?)
}

fn call(
    attachment: &NetworkRecord,
    command: Command,
    interface: &str,
    configuration: &Value,
    previous: Option<&Value>,
) -> Result<Value, PluginError> {
    let (container, configuration) = if interface == INTERFACE {
        (attachment.id.clone(), conflist::for_call(configuration, &attachment.ports, previous))
    } else {
        // For the plugins this is another container: they keep one set of firewall rules per container, and DEL
        // of this interface would remove the rules of the first one.
        let configuration = conflist::without_routes(configuration);
        (format!("{}-{interface}", attachment.id), conflist::for_call(&configuration, &[], previous))
    };
    plugin::call(&Call {
        command,
        configuration,
        plugin_path: &attachment.plugin_path,
        container: &container,
        namespace: attachment.namespace.exists().then_some(&attachment.namespace),
        interface,
    })
}

#[cfg(test)]
mod tests;
