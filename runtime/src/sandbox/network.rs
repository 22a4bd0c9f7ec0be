//! The pod's network across the boundary: taps for the VMM, addresses and routes for the agent.

use std::path::Path;

use kiai_protocol::agent;
use kiai_vmm::DeviceConfig;

use super::Sandbox;
use crate::agent::Agent;
use crate::failure::Failure;
use crate::failure::Outcome;
use crate::host::network;
use crate::host::network::mac_text;

/// What the agent is to be told.
#[derive(Default)]
pub(super) struct Configuration {
    interfaces: Vec<agent::Interface>,
    routes: Vec<agent::Route>,
    neighbours: Vec<agent::Neighbour>,
}

/// Takes over the interfaces of the namespace at `path`: a NIC for each, and what to tell the guest of them.
pub(super) async fn take_over(path: &Path, vcpus: u8) -> Outcome<(Vec<DeviceConfig>, Configuration)> {
    let namespace = path.to_owned();
    let taken = tokio::task::spawn_blocking(move || network::take_over(&namespace, vcpus.into()))
        .await
        .map_err(|e| Failure::host("network", &e))?;
    let taken = taken.map_err(|e| Failure::host(format!("network of {}", path.display()), &e))?;
    let mut configuration = Configuration::default();
    let mut devices = Vec::new();
    for nic in taken.nics {
        configuration.interfaces.push(agent::Interface {
            mac: mac_text(nic.mac),
            name: nic.name,
            mtu: nic.mtu.into(),
            addresses: nic.addresses,
            up: true,
            ..Default::default()
        });
        devices.push(DeviceConfig::Net { taps: nic.taps, mac: nic.mac, mtu: nic.mtu });
    }
    configuration.routes = taken
        .routes
        .into_iter()
        .map(|route| agent::Route {
            destination: route.destination,
            gateway: route.gateway,
            device: route.device,
            source: route.source,
            scope: route.scope.into(),
            metric: route.metric,
            on_link: route.on_link,
            ..Default::default()
        })
        .collect();
    configuration.neighbours = taken
        .neighbours
        .into_iter()
        .map(|neighbour| agent::Neighbour {
            address: neighbour.address,
            mac: neighbour.mac,
            device: neighbour.device,
            ..Default::default()
        })
        .collect();
    Ok((devices, configuration))
}

impl Configuration {
    /// Sets the guest's interfaces, then its routes, then its neighbours.
    pub(super) async fn configure(self, sandbox: &Sandbox) -> Outcome<()> {
        let service = sandbox.agent().service();
        for interface in self.interfaces {
            let request =
                agent::UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
            sandbox.alive(service.update_interface(Agent::call(), &request)).await?;
        }
        if !self.routes.is_empty() {
            let request = agent::UpdateRoutesRequest { routes: self.routes, ..Default::default() };
            sandbox.alive(service.update_routes(Agent::call(), &request)).await?;
        }
        if !self.neighbours.is_empty() {
            let request = agent::AddNeighboursRequest { neighbours: self.neighbours, ..Default::default() };
            sandbox.alive(service.add_neighbours(Agent::call(), &request)).await?;
        }
        Ok(())
    }
}
