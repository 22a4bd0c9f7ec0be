//! The network of a container started by hand: a namespace of its own, joined to a bridge by the CNI plugins.
//!
//! ```text
//!   attach: write down what will be done -> make the namespace -> ADD, plugin by plugin -> write down the result
//!   detach: DEL, plugins in reverse -> remove the namespace -> forget
//! ```
//! [`plug`] and [`unplug`] do the same for further interfaces of the namespace, one at a time.
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

/// The name of the guest's first interface.
pub const INTERFACE: &str = "eth0";

/// Most interfaces of one container, the first included.
const MOST_INTERFACES: usize = 16;

/// Why a container has no network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
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
    /// Nothing to add a further interface to.
    #[error("the container has no network that could have a further interface")]
    NoNetwork,
    /// As many as there can be.
    #[error("the container has {MOST_INTERFACES} interfaces, and can have no more")]
    Full,
    /// Not one that was plugged in.
    #[error("interface {0}: not plugged in")]
    NoInterface(String),
}

/// What is written down of one container's network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NetworkRecord {
    id: String,
    namespace: PathBuf,
    plugin_path: Vec<PathBuf>,
    plugins: Vec<Value>,
    ports: Vec<PortMapping>,
    result: Option<Value>,
    /// What was plugged in since.
    #[serde(default)]
    further: Vec<AddedInterface>,
}

/// A further interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AddedInterface {
    interface: String,
    result: Option<Value>,
}

/// An interface that was plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniInterface {
    /// Its name in the namespace.
    pub name: String,
    /// Addresses with their prefix length.
    pub addresses: Vec<String>,
}

/// What a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// Namespace with the interface in it.
    pub namespace: PathBuf,
    /// Addresses with their prefix length, as `10.88.0.2/16`.
    pub addresses: Vec<String>,
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
}

/// Makes a container's network. `file` keeps what [`detach`] needs.
///
/// # Errors
/// [`CniError`] names the plugin and what it said. What was done so far is still there: call [`detach`].
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
    let addresses = addresses(Some(&result))?;
    attachment.result = Some(result);
    file::write_json(file, &attachment)?;
    Ok(CniNetwork { namespace: attachment.namespace, addresses })
}

/// Undoes [`attach`] and every [`plug`], however far they came, and forgets them. No file: nothing to do.
///
/// # Errors
/// The first thing that could not be undone; the rest was tried, and the file is kept for the next time.
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

/// Adds a further interface to the network of a container. The caller holds the container's lock.
///
/// # Errors
/// [`CniError`]; what was done so far is undone. What cannot be undone now [`detach`] will.
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

/// Takes away an interface that [`plug`] has added; the addresses it had. The caller holds the container's lock.
///
/// # Errors
/// The first thing that could not be undone; the rest was tried, and it is kept for the next time.
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

/// ADD, plugin by plugin; the last one's result.
fn add(attachment: &NetworkRecord, interface: &str) -> Result<Value, CniError> {
    let _alone = Lock::exclusive(Path::new(LOCK))?;
    let mut previous = None;
    for plugin in &attachment.plugins {
        previous = Some(call(attachment, Command::Add, interface, plugin, previous.as_ref())?);
    }
    Ok(previous.unwrap_or(Value::Null))
}

/// DEL, plugins in reverse. The first error; all were tried.
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
        // To the plugins a container of its own: they keep one set of firewall rules a container, and would take
        // the first interface's away with the further one's.
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
