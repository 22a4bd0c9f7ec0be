//! Takes over the pod's interfaces for the guest: each gets a tap, and every frame is redirected between the two.
//!
//! A network namespace belongs to a thread, so this runs on a thread of its own, which returns open taps and plain
//! configuration. rtnetlink(7).

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourAddress;
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteAddress;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::route::RouteFlags;
use netlink_packet_route::route::RouteHeader;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::route::RouteType;
use rtnetlink::RouteMessageBuilder;

use super::namespaces;
use super::redirect::redirect;
use super::tap;

/// The most queue pairs of an interface, whatever the number of vCPUs.
const MOST_QUEUES: usize = 16;

/// The network of a pod, which the guest takes over.
#[derive(Debug, Default)]
pub struct Network {
    /// The interfaces, in the order of their indices.
    pub nics: Vec<Nic>,
    /// The routes that no address implies, those on a link first.
    pub routes: Vec<Route>,
    /// The permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// An interface of the pod.
#[derive(Debug)]
pub struct Nic {
    /// Its name in the pod.
    pub name: String,
    /// Its MAC address, which the guest's interface gets.
    pub mac: [u8; 6],
    /// Its MTU, bytes.
    pub mtu: u16,
    /// Its addresses: "10.88.0.2/16".
    pub addresses: Vec<String>,
    /// The queues of its tap.
    pub taps: Vec<OwnedFd>,
}

/// A route; the fields are those of the agent protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// "0.0.0.0/0" for the default route.
    pub destination: String,
    /// Empty: on link.
    pub gateway: String,
    /// The interface's name.
    pub device: String,
    /// Preferred source address, may be empty.
    pub source: String,
    /// rtnetlink scope.
    pub scope: u8,
    /// Priority.
    pub metric: u32,
    /// The gateway is reachable although no route leads to it.
    pub on_link: bool,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// IP address.
    pub address: String,
    /// MAC address.
    pub mac: String,
    /// The interface's name.
    pub device: String,
}

/// Why the pod's network cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be opened or entered.
    #[error("enter network namespace {path}")]
    Namespace {
        /// The namespace's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The namespace is the host's own.
    #[error(
        "network namespace {0} is the host's own, which a microVM cannot share; give the pod a network namespace"
    )]
    Host(PathBuf),
    /// A netlink socket cannot be opened.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused a netlink request.
    #[error("{step} {interface}")]
    Netlink {
        /// The request, as a verb.
        step: &'static str,
        /// The interface; empty for all interfaces.
        interface: String,
        /// The kernel's reason.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// A tap cannot be made.
    #[error("create tap device {name}")]
    Tap {
        /// The tap's name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An interface does not exist, or cannot be taken over.
    #[error("interface {name} {reason}")]
    Interface {
        /// The interface's name.
        name: String,
        /// The reason, as a verb phrase.
        reason: &'static str,
    },
}

/// Takes over the interfaces of the namespace at `path`, or only the named ones, with `queues` queue pairs each. An
/// interface that is taken over already is refused. Blocks for a few milliseconds. The taps are removed when their
/// files are closed; after that the interfaces drop incoming frames until they are taken over again.
pub fn take_over(path: &Path, queues: usize, named: Option<&[String]>) -> Result<Network, NetworkError> {
    let failed = |source| NetworkError::Namespace { path: path.into(), source };
    let namespace = File::open(path).map_err(failed)?;
    let wanted = namespace.metadata().map_err(failed)?;
    if namespaces::is_hosts_network(&wanted).map_err(failed)? {
        return Err(NetworkError::Host(path.into()));
    }
    let work = move || {
        let net = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), net)
            .map_err(|e| NetworkError::Namespace { path: path.into(), source: e.into() })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        runtime.block_on(inside(queues.clamp(1, MOST_QUEUES), named))
    };
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new().name("network".into()).spawn_scoped(scope, work);
        let joined = spawned.map_err(failed)?.join();
        joined.unwrap_or_else(|_| Err(failed(io::Error::other("the network thread panicked"))))
    })
}

pub(super) fn netlink(step: &'static str, interface: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { step, interface: interface.into(), source: Box::new(source) }
}

/// Takes the interfaces over, on the namespace's thread.
async fn inside(queues: usize, named: Option<&[String]>) -> Result<Network, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
    tokio::spawn(connection);

    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(netlink("list interfaces", ""))?;
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.map_err(netlink("list addresses", ""))?;

    let mut network = Network::default();
    let mut names: Vec<(u32, String)> = Vec::new();
    for link in links.iter().filter(|link| is_pods(link)) {
        let index = link.header.index;
        let (name, mac, mtu) = describe(link)?;
        if named.is_some_and(|named| !named.contains(&name)) {
            continue;
        }
        let tap = format!("kiai{index}");
        let taps =
            tap::create(&tap, queues).map_err(|source| NetworkError::Tap { name: tap.clone(), source })?;
        redirect(&handle, (index, &name), &tap, mtu).await?;
        let addresses = addresses.iter().filter(|a| a.header.index == index).filter_map(address).collect();
        names.push((index, name.clone()));
        network.nics.push(Nic { name, mac, mtu, addresses, taps });
    }
    let missing = |name: &&String| !names.iter().any(|(_, found)| found == *name);
    if let Some(name) = named.and_then(|named| named.iter().find(missing)) {
        return Err(NetworkError::Interface { name: name.clone(), reason: "does not exist" });
    }
    if names.is_empty() {
        return Ok(network);
    }
    let device = |index: u32| names.iter().find(|(i, _)| *i == index).map(|(_, name)| name.clone());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessageBuilder::<IpAddr>::new().build();
        request.header.address_family = family;
        let routes: Vec<RouteMessage> =
            handle.route().get(request).execute().try_collect().await.map_err(netlink("list routes", ""))?;
        network.routes.extend(routes.iter().filter_map(|message| route(message, device)));
    }
    // A gateway has to be reachable before its route is added.
    network.routes.sort_by_key(|route| !route.gateway.is_empty());
    let neighbours: Vec<NeighbourMessage> =
        handle.neighbours().get().execute().try_collect().await.map_err(netlink("list neighbours", ""))?;
    network.neighbours = neighbours.iter().filter_map(|message| neighbour(message, device)).collect();
    Ok(network)
}

/// Whether an interface is taken over: not the loopback, and of a kind whose frames can be redirected.
fn is_pods(link: &LinkMessage) -> bool {
    if link.header.flags.contains(LinkFlags::Loopback) {
        return false;
    }
    let kind = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    });
    // The kernel's fallback tunnels in every namespace (tunl0, sit0, ...) are not taken over.
    matches!(
        kind,
        Some(InfoKind::Veth | InfoKind::MacVlan | InfoKind::IpVlan | InfoKind::Vlan | InfoKind::Netkit)
    )
}

fn describe(link: &LinkMessage) -> Result<(String, [u8; 6], u16), NetworkError> {
    let (mut name, mut mac, mut mtu) = (format!("#{}", link.header.index), None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = u16::try_from(*bytes).ok(),
            _ => {}
        }
    }
    match (mac, mtu) {
        (Some(mac), Some(mtu)) => Ok((name, mac, mtu)),
        (None, _) => Err(NetworkError::Interface { name, reason: "has no Ethernet address" }),
        (_, None) => Err(NetworkError::Interface { name, reason: "has an MTU above 65535" }),
    }
}

/// An address as "10.88.0.2/16"; none for a link-local one, because the guest makes its own.
fn address(message: &AddressMessage) -> Option<String> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point link the attribute `Address` is the peer's.
    let address = find(true).or_else(|| find(false))?;
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return None;
    }
    Some(format!("{address}/{}", message.header.prefix_len))
}

fn route(message: &RouteMessage, device: impl Fn(u32) -> Option<String>) -> Option<Route> {
    let header = &message.header;
    // The guest's kernel adds connected routes itself when it gets its addresses.
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::Kernel
    {
        return None;
    }
    let text = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => v4.to_string(),
        RouteAddress::Inet6(v6) => v6.to_string(),
        _ => String::new(),
    };
    let any = if header.address_family == AddressFamily::Inet6 { "::" } else { "0.0.0.0" };
    let mut route = Route {
        destination: any.into(),
        gateway: String::new(),
        device: String::new(),
        source: String::new(),
        scope: header.scope.into(),
        metric: 0,
        on_link: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = text(address),
            RouteAttribute::Gateway(address) => route.gateway = text(address),
            RouteAttribute::PrefSource(address) => route.source = text(address),
            RouteAttribute::Oif(index) => route.device = device(*index)?,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    route.destination = format!("{}/{}", route.destination, header.destination_prefix_length);
    (!route.device.is_empty()).then_some(route)
}

fn neighbour(message: &NeighbourMessage, device: impl Fn(u32) -> Option<String>) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let device = device(message.header.ifindex)?;
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) if !v4.is_multicast() => {
                address = Some(v4.to_string());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) if !v6.is_multicast() => {
                address = Some(v6.to_string());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac_text(mac?), device })
}

/// A MAC address as text: "02:00:00:00:00:01".
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests;
