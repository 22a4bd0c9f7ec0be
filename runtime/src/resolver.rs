//! The files in a container's `/etc` with which names resolve: resolv.conf(5), hosts(5), hostname(5).
//! Pure: texts in, texts out.

use std::fmt::Write;
use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

/// The name servers if the host has none that a sandbox can reach; docker uses the same.
const FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The options of a container that replace the host's: `--dns`, `--dns-search`, `--dns-option`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsOptions {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Search domains; one `.` means none.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl DnsOptions {
    /// Whether the options replace this line of the host's.
    fn replaces(&self, word: &str) -> bool {
        match word {
            "search" | "domain" => !self.search.is_empty(),
            "options" => !self.options.is_empty(),
            _ => false,
        }
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        let search: Vec<&str> = self.search.iter().map(String::as_str).filter(|name| *name != ".").collect();
        if !search.is_empty() {
            let _ = writeln!(text, "search {}", search.join(" "));
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

/// The host's resolv.conf for a sandbox: without the servers on loopback addresses, which cannot be reached from
/// another network namespace. All else is kept that `options` do not replace.
pub fn resolv_conf(host: &str, options: &DnsOptions) -> String {
    let mut text = String::new();
    let mut servers = options.servers.len();
    for server in &options.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for line in host.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) if options.servers.is_empty() => {
                // A scope (fe80::1%eth0) names an interface of the host.
                let reachable = server.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback());
                if reachable {
                    servers += 1;
                    let _ = writeln!(text, "nameserver {server}");
                }
            }
            (Some(word @ ("search" | "domain" | "options" | "sortlist")), Some(_))
                if !options.replaces(word) =>
            {
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
    text + &options.lines()
}

/// Whether a resolv.conf is that of systemd-resolved's stub, which stands for another file.
pub fn is_stub(host: &str) -> bool {
    host.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some("127.0.0.53")
    })
}

/// A hosts file with the container's own name, and those of `further`.
pub fn hosts(hostname: &str, address: Option<IpAddr>, further: &[(IpAddr, String)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let own = address.map_or_else(|| "127.0.1.1".to_owned(), |address| address.to_string());
    for (address, name) in further {
        let _ = writeln!(text, "{address}\t{name}");
    }
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
        assert_eq!(
            resolv_conf(host, &DnsOptions::default()),
            "nameserver 10.0.0.1\nsearch example.org\noptions edns0\n"
        );
        assert!(is_stub(host));
    }

    #[test]
    fn options_replace_the_hosts() {
        let host = "nameserver 10.0.0.1\nsearch example.org\noptions edns0\nsortlist 10.0.0.0\n";
        let options = DnsOptions {
            servers: vec!["1.1.1.1".parse().unwrap()],
            search: vec!["a.org".into(), "b.org".into()],
            options: Vec::new(),
        };
        let expected = "nameserver 1.1.1.1\noptions edns0\nsortlist 10.0.0.0\nsearch a.org b.org\n";
        assert_eq!(resolv_conf(host, &options), expected);
        let options =
            DnsOptions { search: vec![".".into()], options: vec!["ndots:2".into()], ..DnsOptions::default() };
        assert_eq!(resolv_conf(host, &options), "nameserver 10.0.0.1\nsortlist 10.0.0.0\noptions ndots:2\n");
    }

    #[test]
    fn without_a_server_there_is_a_fallback() {
        for host in ["", "nameserver 127.0.0.1\n", "nameserver\n", "nameserver fe80::1%eth0\n"] {
            assert_eq!(
                resolv_conf(host, &DnsOptions::default()),
                "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
                "{host:?}"
            );
        }
    }

    #[test]
    fn the_container_finds_itself() {
        let further = [("10.0.0.7".parse().unwrap(), "db".to_owned())];
        let text = hosts("box", Some("10.88.0.2".parse().unwrap()), &further);
        assert!(text.contains("\n10.0.0.7\tdb\n"), "{text}");
        assert!(text.ends_with("10.88.0.2\tbox\n") && text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts("box", None, &[]).ends_with("127.0.1.1\tbox\n"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_server(host in ".*") {
            assert!(resolv_conf(&host, &DnsOptions::default()).contains("nameserver "));
        }
    }
}
