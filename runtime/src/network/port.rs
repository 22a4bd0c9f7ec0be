//! `-p [IP:]HOST:CONTAINER[/PROTOCOL]`. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// `/tcp`, the default.
    Tcp,
    /// `/udp`.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A mapping of a host port to a container port. Its JSON is the `portMappings` entry of the CNI conventions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the host to which the port is limited.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// The text is no port mapping.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a port mapping; write HOST:CONTAINER, IP:HOST:CONTAINER, with /udp if it is not TCP")]
pub struct BadPort(String);

impl FromStr for PortMapping {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| BadPort(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PortMapping> {
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let (host, container) = ports.rsplit_once(':')?;
    let (address, host) = match host.rsplit_once(':') {
        Some((address, host)) => {
            let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
            (Some(bare.parse().ok()?), host)
        }
        None => (None, host),
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    Some(PortMapping { host_port: port(host)?, container_port: port(container)?, protocol, host_ip: address })
}

impl fmt::Display for PortMapping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(address)) => write!(out, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(out, "{address}:")?,
            None => {}
        }
        write!(out, "{}:{}/{}", self.host_port, self.container_port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_in_every_form() {
        let table = [
            ("8080:80", "8080:80/tcp"),
            ("8080:80/tcp", "8080:80/tcp"),
            ("53:53/udp", "53:53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
        ];
        for (text, canonical) in table {
            let mapping: PortMapping = text.parse().unwrap();
            assert_eq!(mapping.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(mapping));
        }
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for text in
            ["", "80", "0:80", "80:0", "80:65536", "a:80", "80:80/sctp", "x:80:80", "80:80/tcp/tcp", ":80"]
        {
            assert_eq!(text.parse::<PortMapping>(), Err(BadPort(text.into())), "{text}");
        }
    }

    #[test]
    fn json_is_what_portmap_reads() {
        let mapping: PortMapping = "127.0.0.1:8080:80".parse().unwrap();
        let json = serde_json::to_value(&mapping).unwrap();
        let expected = serde_json::json!({
            "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1",
        });
        assert_eq!(json, expected);
    }
}
