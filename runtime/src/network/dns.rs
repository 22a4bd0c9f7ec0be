//! The files in a container's `/etc` with which names resolve: resolv.conf(5), hosts(5), hostname(5).
//! Pure: texts in, texts out.

use std::fmt::Write;
use std::net::IpAddr;

/// The name servers if the host has none that a sandbox can reach; docker uses the same.
const FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The host's resolv.conf for a sandbox: without the servers on loopback addresses, which cannot be reached from
/// another network namespace. All else is kept.
pub fn resolv_conf(host: &str) -> String {
    let mut text = String::new();
    let mut servers = 0;
    for line in host.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) => {
                // A scope (fe80::1%eth0) names an interface of the host.
                let reachable = server.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback());
                if reachable {
                    servers += 1;
                    let _ = writeln!(text, "nameserver {server}");
                }
            }
            (Some("search" | "domain" | "options" | "sortlist"), Some(_)) => {
                let _ = writeln!(text, "{}", line.trim());
            }
            _ => {}
        }
    }
    if servers == 0 {
        for server in FALLBACK {
            let _ = writeln!(text, "nameserver {server}");
        }
    }
    text
}

/// Whether a resolv.conf is that of systemd-resolved's stub, which stands for another file.
pub fn is_stub(host: &str) -> bool {
    host.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some("127.0.0.53")
    })
}

/// A hosts file with the container's own name.
pub fn hosts(hostname: &str, address: Option<IpAddr>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let own = address.map_or_else(|| "127.0.1.1".to_owned(), |address| address.to_string());
    let _ = writeln!(text, "{own}\t{hostname}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_loopback_are_dropped() {
        let host = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\n\
                    search example.org\noptions edns0\n; end\n";
        assert_eq!(resolv_conf(host), "nameserver 10.0.0.1\nsearch example.org\noptions edns0\n");
        assert!(is_stub(host));
    }

    #[test]
    fn without_a_server_there_is_a_fallback() {
        for host in ["", "nameserver 127.0.0.1\n", "nameserver\n", "nameserver fe80::1%eth0\n"] {
            assert_eq!(resolv_conf(host), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "{host:?}");
        }
    }

    #[test]
    fn the_container_finds_itself() {
        let text = hosts("box", Some("10.88.0.2".parse().unwrap()));
        assert!(text.ends_with("10.88.0.2\tbox\n") && text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts("box", None).ends_with("127.0.1.1\tbox\n"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_server(host in ".*") {
            assert!(resolv_conf(&host).contains("nameserver "));
        }
    }
}
