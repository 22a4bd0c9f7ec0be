//! The agent's figures as containerd's cgroup v2 metrics.

use containerd_shim_protos::cgroups_v2::metrics::CPUStat;
use containerd_shim_protos::cgroups_v2::metrics::IOEntry;
use containerd_shim_protos::cgroups_v2::metrics::IOStat;
use containerd_shim_protos::cgroups_v2::metrics::MemoryEvents;
use containerd_shim_protos::cgroups_v2::metrics::MemoryStat;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::cgroups_v2::metrics::NetworkStat;
use containerd_shim_protos::cgroups_v2::metrics::PidsStat;
use kiai_protocol::agent::StatsContainerResponse;

/// "No limit" as cgroup v2's `max` is written in these messages.
const NO_LIMIT: u64 = u64::MAX;

pub(super) fn convert(stats: &StatsContainerResponse) -> Metrics {
    let limit = |value: u64| if value == 0 { NO_LIMIT } else { value };
    let pids = PidsStat { current: stats.pids_current, limit: limit(stats.pids_limit), ..Default::default() };
    let cpu = CPUStat {
        usage_usec: stats.cpu_usage_us,
        user_usec: stats.cpu_user_us,
        system_usec: stats.cpu_system_us,
        nr_periods: stats.cpu_periods,
        nr_throttled: stats.cpu_throttled_periods,
        throttled_usec: stats.cpu_throttled_us,
        ..Default::default()
    };
    let memory = MemoryStat {
        usage: stats.memory_usage,
        usage_limit: limit(stats.memory_limit),
        anon: stats.memory_anon,
        file: stats.memory_file,
        kernel_stack: stats.memory_kernel,
        inactive_file: stats.memory_inactive_file,
        pgfault: stats.memory_page_faults,
        pgmajfault: stats.memory_major_page_faults,
        swap_usage: stats.swap_usage,
        ..Default::default()
    };
    let usage = stats.io.iter().map(|io| IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.read_bytes,
        wbytes: io.write_bytes,
        rios: io.read_operations,
        wios: io.write_operations,
        ..Default::default()
    });
    let network = stats.network.iter().map(|n| NetworkStat {
        name: n.name.clone(),
        rx_bytes: n.rx_bytes,
        rx_packets: n.rx_packets,
        rx_errors: n.rx_errors,
        rx_dropped: n.rx_dropped,
        tx_bytes: n.tx_bytes,
        tx_packets: n.tx_packets,
        tx_errors: n.tx_errors,
        tx_dropped: n.tx_dropped,
        ..Default::default()
    });
    let events = MemoryEvents { oom_kill: stats.oom_kills, ..Default::default() };
    Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        io: Some(IOStat { usage: usage.collect(), ..Default::default() }).into(),
        memory_events: Some(events).into(),
        network: network.collect(),
        ..Default::default()
    }
}
