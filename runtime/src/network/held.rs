//! Reserves published ports with sockets on the host: two containers cannot publish one port, nor one on which a
//! program of the host listens. Traffic never reaches these sockets; the firewall forwards it before.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use super::port::PortMapping;
use super::port::Protocol;

/// The port cannot be reserved; another socket has it.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {port}: port {} of the host", port.host_port)]
pub struct HoldError {
    /// The port mapping.
    pub port: PortMapping,
    /// The reason.
    #[source]
    pub source: std::io::Error,
}

/// The sockets that reserve ports, until dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "open is all they are")] Vec<OwnedFd>);

/// Reserves all ports, or none.
pub fn hold(ports: &[PortMapping]) -> Result<Held, HoldError> {
    let held = ports.iter().map(|port| {
        let refused = |errno: Errno| HoldError { port: port.clone(), source: errno.into() };
        bind(port).map_err(refused)
    });
    Ok(Held(held.collect::<Result<_, _>>()?))
}

/// A port of the host that is free now.
///
/// # Errors
/// The kernel has none for this address.
pub fn free_port(ip: Option<IpAddr>, protocol: Protocol) -> std::io::Result<u16> {
    let mapping = PortMapping { host_port: 0, container_port: 0, protocol, host_ip: ip };
    let socket = bind(&mapping)?;
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok(address.port())
}

fn bind(port: &PortMapping) -> Result<OwnedFd, Errno> {
    let address = SocketAddr::new(port.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port.host_port);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match port.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if port.protocol == Protocol::Tcp {
        // With this option closed connections do not block the port; another listening socket does, as this one
        // listens.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if port.protocol == Protocol::Tcp {
        rustix::net::listen(&socket, 0)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_by_one() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let wanted = |text: String| -> Vec<PortMapping> { vec![text.parse().unwrap()] };
        let tcp = wanted(format!("127.0.0.1:{port}:80"));
        let error = hold(&tcp).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        drop(free);
        let held = hold(&tcp).unwrap();
        assert!(hold(&tcp).is_err() && std::net::TcpListener::bind(("127.0.0.1", port)).is_err());
        let udp = wanted(format!("127.0.0.1:{port}:80/udp"));
        let other = hold(&udp).unwrap();
        assert!(hold(&udp).is_err(), "the same number of another protocol is another port");
        drop((held, other));
        hold(&tcp).unwrap();
    }

    #[test]
    fn a_free_port_can_be_held() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ip = Some("127.0.0.1".parse().unwrap());
            let port = free_port(ip, protocol).unwrap();
            let mapping = PortMapping { host_port: port, container_port: 80, protocol, host_ip: ip };
            hold(&[mapping]).unwrap();
        }
    }
}
