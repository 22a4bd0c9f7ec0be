//! Converts the runtime's types to the protocol's, and the protocol's statistics to containerd's.

use containerd_shim_protos::cgroups_v2::metrics;
use kiai_protocol::agent;

use crate::host::network;

pub(super) fn interface(nic: &network::Nic) -> agent::Interface {
    let mut interface = agent::Interface::new();
    interface.mac = network::mac_text(nic.mac);
    interface.name.clone_from(&nic.name);
    interface.mtu = nic.mtu.into();
    interface.addresses.clone_from(&nic.addresses);
    interface.up = true;
    interface
}

pub(super) fn route(from: &network::Route) -> agent::Route {
    let mut route = agent::Route::new();
    route.destination.clone_from(&from.destination);
    route.gateway.clone_from(&from.gateway);
    route.device.clone_from(&from.device);
    route.source.clone_from(&from.source);
    route.scope = from.scope.into();
    route.metric = from.metric;
    route.on_link = from.on_link;
    route
}

pub(super) fn neighbour(from: &network::Neighbour) -> agent::Neighbour {
    let mut neighbour = agent::Neighbour::new();
    neighbour.address.clone_from(&from.address);
    neighbour.mac.clone_from(&from.mac);
    neighbour.device.clone_from(&from.device);
    neighbour
}

/// A container's statistics as containerd's message (`io.containerd.cgroups.v2.Metrics`).
pub fn stats(from: &agent::StatsContainerResponse) -> metrics::Metrics {
    let mut pids = metrics::PidsStat::new();
    pids.current = from.pids_current;
    pids.limit = from.pids_limit;

    let mut cpu = metrics::CPUStat::new();
    cpu.usage_usec = from.cpu_usage_us;
    cpu.user_usec = from.cpu_user_us;
    cpu.system_usec = from.cpu_system_us;
    cpu.nr_periods = from.cpu_periods;
    cpu.nr_throttled = from.cpu_throttled_periods;
    cpu.throttled_usec = from.cpu_throttled_us;

    let mut memory = metrics::MemoryStat::new();
    memory.usage = from.memory_usage;
    memory.usage_limit = from.memory_limit;
    memory.anon = from.memory_anon;
    memory.file = from.memory_file;
    memory.slab = from.memory_kernel;
    memory.inactive_file = from.memory_inactive_file;
    memory.pgfault = from.memory_page_faults;
    memory.pgmajfault = from.memory_major_page_faults;
    memory.swap_usage = from.swap_usage;

    let mut events = metrics::MemoryEvents::new();
    events.oom_kill = from.oom_kills;

    let mut io = metrics::IOStat::new();
    io.usage = from.io.iter().map(disk).collect();

    let mut all = metrics::Metrics::new();
    all.pids = Some(pids).into();
    all.cpu = Some(cpu).into();
    all.memory = Some(memory).into();
    all.memory_events = Some(events).into();
    all.io = Some(io).into();
    all.network = from.network.iter().map(interface_stats).collect();
    all
}

fn disk(from: &agent::IoStats) -> metrics::IOEntry {
    let mut entry = metrics::IOEntry::new();
    entry.major = from.major;
    entry.minor = from.minor;
    entry.rbytes = from.read_bytes;
    entry.wbytes = from.write_bytes;
    entry.rios = from.read_operations;
    entry.wios = from.write_operations;
    entry
}

fn interface_stats(from: &agent::InterfaceStats) -> metrics::NetworkStat {
    let mut stat = metrics::NetworkStat::new();
    stat.name.clone_from(&from.name);
    stat.rx_bytes = from.rx_bytes;
    stat.rx_packets = from.rx_packets;
    stat.rx_errors = from.rx_errors;
    stat.rx_dropped = from.rx_dropped;
    stat.tx_bytes = from.tx_bytes;
    stat.tx_packets = from.tx_packets;
    stat.tx_errors = from.tx_errors;
    stat.tx_dropped = from.tx_dropped;
    stat
}
