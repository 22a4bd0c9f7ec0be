//! `-p` as users write it: with a port of the host, a range of them, or a port that is free at the start. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::network::port::PortMapping;
use crate::network::port::Protocol;

/// A port of the container to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Address of the host to which the port is limited.
    pub host_ip: Option<IpAddr>,
    /// Port on the host; `None` for one that is free.
    pub host_port: Option<u16>,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// The value of one `-p`: several ports, if it is a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishOption(pub Vec<Publish>);

/// The text does not name ports.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadPublish {
    /// Wrong form.
    #[error(
        "{0:?} is not a port mapping; write CONTAINER, HOST:CONTAINER, IP:HOST:CONTAINER or IP::CONTAINER, \
         with /udp if it is not TCP; each port may be a range, as 8000-8010"
    )]
    Form(String),
    /// The ranges have different lengths.
    #[error("{0:?}: the range of the host and that of the container have different lengths")]
    Lengths(String),
    /// Not TCP or UDP.
    #[error("{0:?}: only tcp and udp ports can be published")]
    Protocol(String),
}

impl Publish {
    /// The mapping, with `free` as the port of the host if none was asked for.
    pub fn mapping(&self, free: u16) -> PortMapping {
        PortMapping {
            host_port: self.host_port.unwrap_or(free),
            container_port: self.container_port,
            protocol: self.protocol,
            host_ip: self.host_ip,
        }
    }
}

/// First and last port.
type Range = (u16, u16);

fn range(text: &str) -> Option<Range> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    match text.split_once('-') {
        None => port(text).map(|port| (port, port)),
        Some((first, last)) => Some((port(first)?, port(last)?)).filter(|(first, last)| first <= last),
    }
}

/// Parses an exposed port of an image's configuration or `--expose`: `80`, `80/tcp`, `8000-8010/udp`.
///
/// # Errors
/// [`BadPublish`] names the text.
pub fn exposed(text: &str) -> Result<PublishOption, BadPublish> {
    if text.contains(':') {
        return Err(BadPublish::Form(text.to_owned()));
    }
    text.parse()
}

impl FromStr for PublishOption {
    type Err = BadPublish;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || BadPublish::Form(text.to_owned());
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(BadPublish::Protocol(text.to_owned())),
        };
        let (host, container) = match ports.rsplit_once(':') {
            Some((host, container)) => (Some(host), container),
            None => (None, ports),
        };
        let (address, host) = match host.and_then(|host| host.rsplit_once(':')) {
            Some((address, host)) => {
                let inner = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
                let address: IpAddr = inner.unwrap_or(address).parse().map_err(|_| form())?;
                (Some(address), Some(host).filter(|host| !host.is_empty()))
            }
            None => (None, host),
        };
        let (first, last) = range(container).ok_or_else(form)?;
        let host = host.map(|host| range(host).ok_or_else(form)).transpose()?;
        if host.is_some_and(|(from, to)| to - from != last - first) {
            return Err(BadPublish::Lengths(text.to_owned()));
        }
        let publish = |port: u16| Publish {
            host_ip: address,
            // The lengths are equal, so the sum is at most the last port of the range.
            host_port: host.map(|(from, _)| from + (port - first)),
            container_port: port,
            protocol,
        };
        Ok(Self((first..=last).map(publish).collect()))
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(port) = self.host_port {
            return write!(out, "{}", self.mapping(port));
        }
        match self.host_ip {
            Some(IpAddr::V6(address)) => write!(out, "[{address}]::")?,
            Some(IpAddr::V4(address)) => write!(out, "{address}::")?,
            None => {}
        }
        write!(out, "{}/{}", self.container_port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, BadPublish> {
        Ok(text.parse::<PublishOption>()?.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_form_is_read() {
        let table: [(&str, &[&str]); 9] = [
            ("80", &["80/tcp"]),
            ("53/udp", &["53/udp"]),
            ("8080:80", &["8080:80/tcp"]),
            ("8080:80/tcp", &["8080:80/tcp"]),
            ("127.0.0.1:8080:80", &["127.0.0.1:8080:80/tcp"]),
            ("127.0.0.1::80", &["127.0.0.1::80/tcp"]),
            ("[::1]::80/udp", &["[::1]::80/udp"]),
            ("8000-8001:80-81/udp", &["8000:80/udp", "8001:81/udp"]),
            ("80-81", &["80/tcp", "81/tcp"]),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
            for one in expected {
                assert_eq!(parse(one).unwrap(), [*one]);
            }
        }
    }

    #[test]
    fn what_names_no_port_is_refused() {
        for text in ["", "0", "0:80", "80:0", "80:65536", "a:80", "x:80:80", ":80", "81-80", "80-", "1:2:3:4"]
        {
            assert_eq!(parse(text), Err(BadPublish::Form(text.into())), "{text}");
        }
        assert_eq!(parse("80:80/sctp"), Err(BadPublish::Protocol("80:80/sctp".into())));
        assert_eq!(parse("80/tcp/tcp"), Err(BadPublish::Protocol("80/tcp/tcp".into())));
        assert_eq!(parse("80-82:80-81"), Err(BadPublish::Lengths("80-82:80-81".into())));
        assert!(exposed("80/udp").is_ok() && exposed("80:80").is_err());
    }
}
