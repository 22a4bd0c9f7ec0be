//! Pods that go on from a template instead of booting: as good as any other, and nobody's twin.

use std::fs;
use std::path::PathBuf;

use kiai_tests::kiai::Kiai;
use kiai_tests::kiai::busybox;
use kiai_tests::scenario;

/// What a pod takes for its own, one a line.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; hostname";

/// Runs `script` in a pod with a shim that logs everything; whether it went on from a template, and the output.
fn pod(kiai: &Kiai, name: &str, options: &[&str], script: &str) -> (bool, String) {
    let run = ["--debug", "run", "--name", name];
    let output = kiai.ok(&[&run, options, &[&busybox(), "sh", "-c", script]].concat());
    let log = kiai.shim_logs();
    kiai.ok(&["rm", "-f", name]);
    (log.contains("goes on from template"), output)
}

/// The folder of the one template there is.
fn folder(kiai: &Kiai) -> PathBuf {
    let key = kiai.ok(&["template", "create"]);
    kiai.state().join("templates").join(key)
}

#[test]
fn pods_of_one_template_share_no_identity_and_have_all_that_others_have() {
    scenario(|kiai| {
        let (template, cold) = pod(kiai, "cold", &[], IDENTITY);
        assert!(!template, "there is none yet");
        let key = kiai.ok(&["template", "create"]);
        assert_eq!(kiai.ok(&["template", "create"]), key, "it is made once");
        assert!(kiai.ok(&["template", "ls"]).contains("current"));

        let mut seen: Vec<String> = cold.lines().map(str::to_owned).collect();
        for name in ["first", "second"] {
            let (template, identity) = pod(kiai, name, &[], IDENTITY);
            assert!(template, "{name} has booted");
            assert_eq!(identity.lines().count(), 3, "{identity}");
            for line in identity.lines() {
                assert!(!seen.iter().any(|other| other == line), "{name} has what another had: {line}");
                seen.push(line.to_owned());
            }
        }

        let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let script = "date +%s; ip -4 -o addr show eth0 | wc -l; ping -c 1 -W 5 $(ip route | awk '/default/ {print $3}') \
                      > /dev/null && echo reached; cat /sys/fs/cgroup/memory.max; cat /proc/uptime | cut -d. -f1";
        let before = now();
        let (template, all) = pod(kiai, "all", &["-m", "512m"], script);
        assert!(template, "a limit is no other template");
        let lines: Vec<&str> = all.lines().collect();
        let [time, address, "reached", limit, uptime] = lines[..] else { panic!("{all}") };
        let time: u64 = time.parse().unwrap();
        assert!((before..=now()).contains(&time), "{before} {time} {}", now());
        assert_eq!((address, limit), ("1", "536870912"));
        assert!(uptime.parse::<u64>().unwrap() < 60, "{uptime}");

        kiai.ok(&["template", "rm", &key]);
        assert_eq!(pod(kiai, "without", &[], "echo booted"), (false, "booted".to_owned()));
    });
}

#[test]
fn a_template_that_is_of_no_use_is_told_and_the_pod_boots() {
    scenario(|kiai| {
        let folder = folder(kiai);
        let (state, memory) = (folder.join("state"), folder.join("memory"));
        let good = fs::read(&state).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        let mut other = good.clone();
        other[8] ^= 0xff;
        for (bad, reason) in [
            (&flipped[..], "checksum"),
            (&good[..good.len() - 1], "bytes"),
            (&other[..], "format"),
            (b"#!/bin/sh".as_slice(), "not a saved microVM"),
        ] {
            fs::write(&state, bad).unwrap();
            kiai.ok(&["run", "--name", "booted", &busybox(), "true"]);
            let log = kiai.shim_logs();
            assert!(log.contains("of no use") && log.contains(reason), "{reason}: {log}");
            kiai.ok(&["rm", "booted"]);
        }
        fs::write(&state, &good).unwrap();
        fs::OpenOptions::new().write(true).open(&memory).unwrap().set_len(1 << 20).unwrap();
        kiai.ok(&["run", "--name", "booted", &busybox(), "true"]);
        assert!(kiai.shim_logs().contains("does not belong to the state"), "{}", kiai.shim_logs());
        kiai.ok(&["rm", "booted"]);
        let refused = kiai.call(&["template", "rm", "../containers"]);
        refused.failure(125);
        assert!(refused.stderr.contains("no such template"), "{refused}");
        kiai.ok(&["template", "prune"]);
        assert_eq!(kiai.ok(&["template", "ls", "--format", "json"]).matches("current").count(), 1);
    });
}

#[test]
fn a_pod_of_a_template_grows_and_is_called_like_any_other() {
    scenario(|kiai| {
        kiai.ok(&["template", "create"]);
        kiai.keep_running("grown", &["-m", "128m", "--cpus", "1"]);
        assert_eq!(kiai.ok(&["exec", "grown", "nproc"]), "1");
        kiai.ok(&["update", "-m", "600m", "--cpus", "2", "grown"]);
        assert_eq!(kiai.ok(&["exec", "grown", "nproc"]), "2");
        let total = kiai.ok(&["exec", "grown", "awk", "/MemTotal/ {print int($2 / 1024)}", "/proc/meminfo"]);
        assert!(total.parse::<u32>().unwrap() > 600, "{total} MiB");
        // Another of the same template at the same time.
        assert_eq!(kiai.busybox(&["echo", "beside"]).success(), "beside");
        kiai.ok(&["stop", "grown"]);
        kiai.ok(&["rm", "grown"]);
    });
}
