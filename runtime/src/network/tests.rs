//! The real plugins against a network namespace that stands for the host. Needs root and Debian's
//! containernetworking-plugins and iptables, as the whole suite does.

use std::process::Command as Program;

use tempfile::TempDir;

use super::*;

/// Runs a test on a thread whose network and mount namespaces are its own, so that the bridge, the iptables
/// rules and /run/netns of the machine stay as they are.
fn on_own_host(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        let flags = nix::sched::CloneFlags::CLONE_NEWNET | nix::sched::CloneFlags::CLONE_NEWNS;
        nix::sched::unshare(flags).expect("this test needs root");
        let private =
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("run", "/run", "tmpfs", none, None).unwrap();
        test();
    })
    .join()
    .unwrap();
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Program::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_container_joins_the_bridge_and_leaves_nothing() {
    on_own_host(|| {
        let temporary = TempDir::new().unwrap();
        let file = temporary.path().join("network.json");
        let settings = Settings::default();
        let ports: Vec<PortMapping> = vec!["8080:80".parse().unwrap()];
        let network = attach("test1", &file, &settings, &ports).unwrap();
        assert_eq!(network.addresses, ["10.88.0.2/16"]);
        assert_eq!(network.address(), Some("10.88.0.2".parse().unwrap()));
        let namespace = format!("--net={}", network.namespace.display());
        let inside = output("nsenter", &[&namespace, "ip", "-brief", "address"]);
        assert!(inside.contains("eth0") && inside.contains("10.88.0.2/16"), "{inside}");
        assert!(inside.contains("lo") && inside.contains("127.0.0.1/8"), "{inside}");
        let routes = output("nsenter", &[&namespace, "ip", "route"]);
        assert!(routes.contains("default via 10.88.0.1"), "{routes}");
        assert!(output("iptables-save", &[]).contains("--dport 8080"));

        let second = temporary.path().join("second.json");
        let other = attach("test2", &second, &settings, &[]).unwrap();
        assert_eq!(other.addresses, ["10.88.0.3/16"]);

        detach(&file).unwrap();
        detach(&file).unwrap();
        detach(&second).unwrap();
        assert!(!file.exists() && !network.namespace.exists());
        let links = output("ip", &["-brief", "link"]);
        assert!(!links.contains("veth"), "{links}");
        let rules = output("iptables-save", &[]);
        assert!(!rules.contains("8080") && !rules.contains("10.88.0.2"), "{rules}");
        let leases: Vec<String> = std::fs::read_dir("/run/kiai-networks/kiai")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("10."))
            .collect();
        assert!(leases.is_empty(), "{leases:?}");
    });
}

#[test]
fn a_further_interface_comes_and_goes_and_the_first_stays_whole() {
    on_own_host(|| {
        let temporary = TempDir::new().unwrap();
        let file = temporary.path().join("network.json");
        let ports: Vec<PortMapping> = vec!["8082:80".parse().unwrap()];
        assert!(matches!(plug(&file), Err(CniError::NoNetwork)));
        let network = attach("more", &file, &Settings::default(), &ports).unwrap();
        let rules = || {
            let saved = output("iptables-save", &[]);
            let mut rules: Vec<_> =
                saved.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect();
            rules.sort();
            rules
        };
        let before = rules();
        let further = plug(&file).unwrap();
        let expected = CniInterface { name: "eth1".into(), addresses: vec!["10.88.0.3/16".into()] };
        assert_eq!(further, expected);
        let namespace = format!("--net={}", network.namespace.display());
        let inside = |what: &str| output("nsenter", &[&namespace, "ip", "-brief", what]);
        assert!(inside("address").contains("10.88.0.3/16"));
        let routes = output("nsenter", &[&namespace, "ip", "route"]);
        assert_eq!(routes.matches("default").count(), 1, "{routes}");
        assert_eq!(plug(&file).unwrap().name, "eth2");
        assert!(rules().len() > before.len());

        assert_eq!(unplug(&file, "eth1").unwrap(), ["10.88.0.3/16"]);
        assert!(matches!(unplug(&file, "eth1"), Err(CniError::NoInterface(name)) if name == "eth1"));
        assert_eq!(plug(&file).unwrap().name, "eth1", "the first that is free");
        unplug(&file, "eth1").unwrap();
        unplug(&file, "eth2").unwrap();
        assert!(!inside("link").contains("eth1") && inside("link").contains("eth0"));
        assert_eq!(rules(), before);

        plug(&file).unwrap();
        detach(&file).unwrap();
        assert!(!file.exists() && !output("ip", &["-brief", "link"]).contains("veth"));
        assert!(!output("iptables-save", &[]).contains("10.88.0."));
    });
}

#[test]
fn half_done_work_is_undone() {
    on_own_host(|| {
        let temporary = TempDir::new().unwrap();
        let file = temporary.path().join("network.json");
        // The bridge cannot be made: the name is too long for an interface.
        let settings = Settings { bridge: "a-name-too-long-for-linux".into(), ..Settings::default() };
        let error = attach("half", &file, &settings, &[]).unwrap_err().to_string();
        assert!(error.starts_with("CNI plugin bridge failed: "), "{error}");
        assert!(file.exists() && namespace::path("half").exists());
        detach(&file).unwrap();
        assert!(!file.exists() && !namespace::path("half").exists());
    });
}

#[test]
fn a_namespace_that_vanished_is_no_error() {
    on_own_host(|| {
        let temporary = TempDir::new().unwrap();
        let file = temporary.path().join("network.json");
        let ports: Vec<PortMapping> = vec!["8081:80".parse().unwrap()];
        let network = attach("gone", &file, &Settings::default(), &ports).unwrap();
        namespace::remove(&network.namespace).unwrap();
        detach(&file).unwrap();
        assert!(!output("iptables-save", &[]).contains("8081"));
    });
}
