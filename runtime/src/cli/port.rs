//! `kiai port`: prints the published ports of a container.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;

use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::state::State;
use crate::network::PortMapping;

/// Print the ports of the host that lead to ports of a container
#[derive(Debug, clap::Args)]
pub(super) struct Port {
    /// Name or id
    container: String,
    /// Port of the container; without it all are printed
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

impl Port {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let (_, record) = context.store.find(&self.container)?;
        let state = State::of(&record).await;
        let ports: Vec<PortMapping> = match state.is_running() {
            true => record.ports.iter().map(|port| port.parse()).collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        let text = match &self.port {
            None => every(&ports),
            Some(port) => one(&ports, port, &record.name)?,
        };
        format::print(&text)?;
        Ok(0)
    }
}

/// Address and port on the host.
pub(super) fn host(port: &PortMapping) -> SocketAddr {
    SocketAddr::new(port.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port.host_port)
}

fn every(ports: &[PortMapping]) -> String {
    let mut sorted: Vec<&PortMapping> = ports.iter().collect();
    sorted.sort_by_key(|port| (port.container_port, port.host_port));
    let line = |port: &&PortMapping| format!("{}/{} -> {}\n", port.container_port, port.protocol, host(port));
    sorted.iter().map(line).collect()
}

fn one(ports: &[PortMapping], wanted: &str, name: &str) -> anyhow::Result<String> {
    let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let Ok(number) = number.parse::<u16>() else {
        bail!("{wanted:?} is not a port; write for instance 80 or 53/udp");
    };
    let text: String = ports
        .iter()
        .filter(|port| port.container_port == number && port.protocol.to_string() == protocol)
        .map(|port| format!("{}\n", host(port)))
        .collect();
    if text.is_empty() {
        bail!("port {number}/{protocol} of container {name} is not published");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_printed_as_docker_prints_them() {
        let ports: Vec<PortMapping> =
            ["[::1]:53:53/udp", "8080:80", "127.0.0.1:8081:80"].map(|text| text.parse().unwrap()).into();
        let all = "53/udp -> [::1]:53\n80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081\n";
        assert_eq!(every(&ports), all);
        assert_eq!(one(&ports, "80", "web").unwrap(), "0.0.0.0:8080\n127.0.0.1:8081\n");
        assert_eq!(one(&ports, "53/udp", "web").unwrap(), "[::1]:53\n");
        for text in ["53", "81/tcp", "80/udp", "http"] {
            let error = one(&ports, text, "web").unwrap_err().to_string();
            assert!(error.contains(text.split('/').next().unwrap()), "{error}");
        }
    }
}
