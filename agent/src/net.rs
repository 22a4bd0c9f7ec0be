//! The sandbox's network: interfaces, routes, neighbours (rtnetlink(7)).
//!
//! All containers share the guest's own network namespace. The host decides the configuration; the calls here apply it,
//! each item whole, and can be repeated.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures::TryStreamExt;
use kiai_protocol::agent::{Interface, InterfaceStats, Neighbour, Route};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::net::{AddressFamily, SocketType};

use crate::fault::{Fault, Result};
use crate::sys;
use crate::uevent::Uevents;

/// How long an interface may take to appear. The host has attached it before it calls.
const INTERFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// The scope of a destination on the link (rtnetlink(7)).
const SCOPE_LINK: u8 = 253;

fn connect() -> anyhow::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open rtnetlink")?;
    // The task ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

/// Brings `lo` up.
pub async fn raise_loopback() -> Result<()> {
    let up = LinkUnspec::new_with_name("lo").up().build();
    Ok(connect()?.link().set(up).execute().await.context("bring lo up")?)
}

/// Finds the interface by its MAC address and configures it as `wanted`. Returns its configuration afterwards.
pub async fn update_interface(uevents: &Uevents, wanted: &Interface) -> Result<Interface> {
    let mac = parse_mac(&wanted.mac)?;
    check_name(&wanted.name)?;
    let addresses = wanted.addresses.iter().map(|text| parse_prefix(text)).collect::<Result<Vec<_>>>()?;
    let found = uevents.wait_until(INTERFACE_TIMEOUT, || interface_with_mac(Path::new("/sys"), &mac)).await;
    let index = found
        .context("wait for an interface")?
        .ok_or_else(|| Fault::NotFound(format!("no interface with MAC address {}", wanted.mac)))?;

    let handle = connect()?;
    make_way(&handle, &wanted.name, index).await?;
    let mut message = LinkUnspec::new_with_index(index).name(wanted.name.clone());
    if wanted.mtu > 0 {
        message = message.mtu(wanted.mtu);
    }
    let named = |step: &str| format!("{step} interface {}", wanted.name);
    handle.link().set(message.build()).execute().await.with_context(|| named("set up"))?;
    keep_to_own_addresses(&wanted.name);
    set_addresses(&handle, index, &addresses).await.with_context(|| named("set the addresses of"))?;
    let state = LinkUnspec::new_with_index(index);
    let state = if wanted.up { state.up() } else { state.down() };
    handle.link().set(state.build()).execute().await.with_context(|| named("set the state of"))?;
    let all = list_interfaces().await?;
    let now = all.into_iter().find(|interface| interface.name == wanted.name);
    now.ok_or_else(|| Fault::NotFound(format!("interface {} is gone", wanted.name)))
}

/// Has an interface answer ARP requests for its own addresses only. Several interfaces may be in one network, and
/// entries of neighbours for one that is unplugged must not divert another's traffic. A kernel without IPv4 has no such
/// settings.
fn keep_to_own_addresses(name: &str) {
    let settings = Path::new("/proc/sys/net/ipv4/conf").join(name);
    for (setting, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
        if let Err(error) = fs::write(settings.join(setting), value) {
            tracing::debug!("{setting} of {name}: {error}");
        }
    }
}

/// Renames another interface that has the wanted name.
async fn make_way(handle: &Handle, name: &str, index: u32) -> anyhow::Result<()> {
    let file = Path::new("/sys/class/net").join(name).join("ifindex");
    let Some(other) = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    if other == index {
        return Ok(());
    }
    let aside = LinkUnspec::new_with_index(other).name(format!("aside{other}")).build();
    handle.link().set(aside).execute().await.with_context(|| format!("rename the interface that is {name}"))
}

async fn set_addresses(handle: &Handle, index: u32, wanted: &[(IpAddr, u8)]) -> anyhow::Result<()> {
    let kept: HashSet<_> = wanted.iter().copied().collect();
    let mut present = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = present.try_next().await? {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        let Some(address) = address else { continue };
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local && !kept.contains(&(address, message.header.prefix_len)) {
            handle.address().del(message).execute().await?;
        }
    }
    for &(address, prefix) in wanted {
        let mut request = handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            // No other host is on a pod's link, and duplicate address detection would take a second.
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.with_context(|| format!("add {address}/{prefix}"))?;
    }
    Ok(())
}

/// Lists every interface except `lo`.
pub async fn list_interfaces() -> Result<Vec<Interface>> {
    let handle = connect()?;
    let mut interfaces = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("list interfaces")? {
        if !link.header.flags.contains(LinkFlags::Loopback) {
            interfaces.push((link.header.index, describe(&link)));
        }
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("list addresses")? {
        let owner = interfaces.iter_mut().find(|(index, _)| *index == message.header.index);
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(address),
            _ => None,
        });
        if let (Some((_, interface)), Some(address)) = (owner, address) {
            interface.addresses.push(format!("{address}/{}", message.header.prefix_len));
        }
    }
    Ok(interfaces.into_iter().map(|(_, interface)| interface).collect())
}

fn describe(link: &LinkMessage) -> Interface {
    let mut interface = Interface { up: link.header.flags.contains(LinkFlags::Up), ..Interface::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name.clone(),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                interface.mac = bytes.join(":");
            }
            _ => {}
        }
    }
    interface
}

/// Sets routes, those on a link first, because a gateway must be reachable when its route is added.
pub async fn update_routes(routes: &[Route]) -> Result<()> {
    let mut messages = routes.iter().map(route_message).collect::<Result<Vec<_>>>()?;
    messages.sort_by_key(|(through_gateway, ..)| *through_gateway);
    let handle = connect()?;
    for (_, message, route) in messages {
        handle
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .with_context(|| format!("route to {} through {}", route.destination, route.device))?;
    }
    Ok(())
}

type RouteMessage = netlink_packet_route::route::RouteMessage;

fn route_message(route: &Route) -> Result<(bool, RouteMessage, &Route)> {
    let wrong = |error: &dyn std::fmt::Display| {
        Fault::InvalidArgument(format!("route to {}: {error}", route.destination))
    };
    let (destination, prefix) = parse_prefix(&route.destination)?;
    let scope = u8::try_from(route.scope).map_err(|error| wrong(&error))?;
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination, prefix)
        .map_err(|error| wrong(&error))?
        .output_interface(index_of(&route.device)?);
    if route.gateway.is_empty() {
        let scope = if scope == 0 && destination.is_ipv4() { SCOPE_LINK } else { scope };
        builder = builder.scope(RouteScope::from(scope));
    } else {
        builder = builder
            .gateway(parse_address(&route.gateway)?)
            .map_err(|error| wrong(&error))?
            .scope(RouteScope::from(scope));
    }
    if !route.source.is_empty() {
        builder = builder.pref_source(parse_address(&route.source)?).map_err(|error| wrong(&error))?;
    }
    if route.metric > 0 {
        builder = builder.priority(route.metric);
    }
    if route.on_link {
        builder = builder.onlink();
    }
    Ok((!route.gateway.is_empty(), builder.build(), route))
}

/// Adds permanent neighbours.
pub async fn add_neighbours(neighbours: &[Neighbour]) -> Result<()> {
    let mut checked = Vec::with_capacity(neighbours.len());
    for neighbour in neighbours {
        let (address, mac) = (parse_address(&neighbour.address)?, parse_mac(&neighbour.mac)?);
        checked.push((index_of(&neighbour.device)?, address, mac));
    }
    let handle = connect()?;
    for (index, address, mac) in checked {
        handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .with_context(|| format!("add neighbour {address}"))?;
    }
    Ok(())
}

/// Has every interface use a queue pair for each of so many CPUs, as far as it has them; blocks. The kernel sees to
/// that when it finds a device, and not again when CPUs go online or offline.
pub fn use_queue_pairs(cpus: u32) {
    let socket = match rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!("a socket for the queues of interfaces: {error}"),
    };
    for interface in interfaces() {
        let name = interface.file_name().to_string_lossy().into_owned();
        match sys::use_queue_pairs(socket.as_fd(), &name, cpus) {
            // It has no pairs, or is gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) => {}
            Err(error) => tracing::warn!("{name} does not use queues for {cpus} CPUs: {error}"),
            Ok(()) => {}
        }
    }
}

/// All interfaces except `lo`.
fn interfaces() -> impl Iterator<Item = fs::DirEntry> {
    let all = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name() != "lo")
}

/// The counters of every interface except `lo`.
pub fn statistics() -> Vec<InterfaceStats> {
    let mut all: Vec<_> = interfaces()
        .map(|entry| {
            let directory = entry.path().join("statistics");
            let read = |name: &str| {
                fs::read_to_string(directory.join(name)).ok().and_then(|text| text.trim().parse().ok())
            };
            let counter = |name| read(name).unwrap_or(0);
            InterfaceStats {
                name: entry.file_name().to_string_lossy().into_owned(),
                rx_bytes: counter("rx_bytes"),
                rx_packets: counter("rx_packets"),
                rx_errors: counter("rx_errors"),
                rx_dropped: counter("rx_dropped"),
                tx_bytes: counter("tx_bytes"),
                tx_packets: counter("tx_packets"),
                tx_errors: counter("tx_errors"),
                tx_dropped: counter("tx_dropped"),
                ..Default::default()
            }
        })
        .collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

fn interface_with_mac(sys: &Path, mac: &[u8; 6]) -> Option<u32> {
    let has_it = |directory: &PathBuf| {
        let text = fs::read_to_string(directory.join("address")).unwrap_or_default();
        parse_mac(text.trim()).is_ok_and(|found| found == *mac)
    };
    let directory =
        fs::read_dir(sys.join("class/net")).ok()?.flatten().map(|entry| entry.path()).find(has_it)?;
    fs::read_to_string(directory.join("ifindex")).ok()?.trim().parse().ok()
}

fn index_of(name: &str) -> Result<u32> {
    check_name(name)?;
    let text = fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifindex"));
    let index = text.ok().and_then(|text| text.trim().parse().ok());
    index.ok_or_else(|| Fault::NotFound(format!("no interface {name}")))
}

/// Refuses a name that the kernel would refuse for an interface (IFNAMSIZ; no slash, colon or space).
fn check_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || !plain {
        return Err(Fault::InvalidArgument(format!("{name:?} is not the name of an interface")));
    }
    Ok(())
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| Fault::InvalidArgument(format!("{text:?} is not a MAC address")))?;
    }
    match parts.next() {
        None => Ok(mac),
        Some(_) => Err(Fault::InvalidArgument(format!("{text:?} is not a MAC address"))),
    }
}

fn parse_address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Fault::InvalidArgument(format!("{text:?} is not an IP address")))
}

/// Parses `address/prefix`.
fn parse_prefix(text: &str) -> Result<(IpAddr, u8)> {
    let wrong = || Fault::InvalidArgument(format!("{text:?} is not an IP address with a prefix length"));
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let (address, prefix): (IpAddr, u8) =
        (address.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if prefix > longest { Err(wrong()) } else { Ok((address, prefix)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_whole_or_refused() {
        assert_eq!(parse_mac("02:00:00:00:00:0f").unwrap(), [2, 0, 0, 0, 0, 15]);
        assert_eq!(parse_prefix("fd00::2/64").unwrap(), ("fd00::2".parse().unwrap(), 64));
        for wrong in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "2:0:0:0:0:0", "gg:00:00:00:00:00"] {
            assert!(parse_mac(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["10.0.0.1", "10.0.0.1/33", "::/129", "x/8", "10.0.0.1/-1", "/"] {
            assert!(parse_prefix(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_the_kernel_would_refuse_are_refused() {
        assert!(check_name("eth0").is_ok());
        for wrong in ["", "..", "a/b", "a b", "sixteen-letters!", "eth%d", "a:1"] {
            assert!(check_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_interface_is_found_by_its_mac_address() {
        let sys = tempfile::tempdir().unwrap();
        for (name, mac, index) in [("lo", "00:00:00:00:00:00", 1), ("eth7", "02:00:00:00:00:01", 5)] {
            let directory = sys.path().join("class/net").join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("address"), format!("{mac}\n")).unwrap();
            fs::write(directory.join("ifindex"), format!("{index}\n")).unwrap();
        }
        assert_eq!(interface_with_mac(sys.path(), &[2, 0, 0, 0, 0, 1]), Some(5));
        assert_eq!(interface_with_mac(sys.path(), &[2, 0, 0, 0, 0, 2]), None);
    }
}
