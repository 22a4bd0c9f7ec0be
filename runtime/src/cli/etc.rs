//! The files that replace those of the image in `/etc`; they depend on the network, so each start writes them anew.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::cli::container_options::HOST_GATEWAY;
use crate::network::CniNetwork;
use crate::resolver;
use crate::spec::mounts::EtcFiles;
use crate::store::record::StartupRecord;

/// Writes the files into the bundle; without `network` those of a container whose address is not known yet.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write(
    bundle: &Path,
    startup: &StartupRecord,
    network: Option<&CniNetwork>,
) -> anyhow::Result<EtcFiles> {
    let directory = bundle.join("etc");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let write = |name: &str, text: String| -> anyhow::Result<Option<PathBuf>> {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(path))
    };
    let address: Option<IpAddr> = network.and_then(CniNetwork::address);
    let hostname = &startup.hostname;
    Ok(EtcFiles {
        hostname: write("hostname", format!("{hostname}\n"))?,
        hosts: write("hosts", resolver::hosts(hostname, address, &further(startup, network)))?,
        // Without a network no server can be reached.
        resolv_conf: write(
            "resolv.conf",
            startup
                .network
                .as_ref()
                .map_or_else(String::new, |_| resolver::resolv_conf(&host_resolv_conf(), &startup.dns)),
        )?,
    })
}

/// The names of `--add-host`. That of the host is left out as long as its address is not known.
fn further(startup: &StartupRecord, network: Option<&CniNetwork>) -> Vec<(IpAddr, String)> {
    let gateway = network.and_then(|network| network.gateway);
    let entry = |text: &String| {
        let (name, address) = text.split_once(':')?;
        let address = if address == HOST_GATEWAY { gateway } else { address.parse().ok() };
        Some((address?, name.to_owned()))
    };
    startup.hosts.iter().filter_map(entry).collect()
}

/// The host's resolv.conf; with systemd-resolved's stub, the file that it stands for.
fn host_resolv_conf() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let text = read("/etc/resolv.conf");
    if resolver::is_stub(&text) {
        let behind = read("/run/systemd/resolve/resolv.conf");
        if !behind.is_empty() {
            return behind;
        }
    }
    text
}
