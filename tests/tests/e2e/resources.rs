//! Limits: what a container may use, and what is said when it wants more.

use kiai_tests::Running;
use kiai_tests::kiai::busybox;
use kiai_tests::scenario;

#[test]
fn a_container_that_exceeds_its_memory_is_killed_and_it_is_said() {
    scenario(|kiai| {
        let words = ["run", "--name", "greedy", "-m", "32m", &busybox(), "tail", "/dev/zero"];
        let finished = kiai.call(&words);
        let message = finished.failure(137).to_lowercase();
        assert!(message.contains("memory"), "{finished}");
        assert!(kiai.ok(&["inspect", "greedy"]).to_lowercase().contains("oom"));
        kiai.ok(&["rm", "greedy"]);
    });
}

#[test]
fn limits_are_set_in_the_guest() {
    scenario(|kiai| {
        let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; nproc";
        let words = ["run", "--rm", "-m", "96m", "--cpus", "1.5", &busybox(), "sh", "-c", script];
        assert_eq!(kiai.ok(&words), format!("{}\n150000 100000\n2", 96 << 20));
    });
}

#[test]
fn the_first_process_finds_all_cpus_and_a_queue_of_the_network_for_each() {
    scenario(|kiai| {
        // The ceiling is what is asked for, unlike that of other scenarios.
        let configuration = tempfile::NamedTempFile::new().unwrap();
        let script = "nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online; \
                      ls -d /sys/class/net/eth0/queues/tx-* | wc -l";
        let mut command = kiai.command(&["run", "--rm", "--cpus", "4", &busybox(), "sh", "-c", script]);
        command.env("KIAI_CONFIG", configuration.path());
        assert_eq!(Running::start(command, None).finish().success(), "4\n4\n0-3\n4");
    });
}

#[test]
fn what_is_used_can_be_seen() {
    scenario(|kiai| {
        kiai.keep_running("busy", &[]);
        let stats = kiai.ok(&["stats", "--no-stream", "--format", "json", "busy"]);
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        let text = stats.to_string();
        assert!(text.contains("memory") && text.contains("cpu"), "{text}");
        kiai.ok(&["rm", "-f", "busy"]);
    });
}

#[test]
fn impossible_limits_are_refused() {
    scenario(|kiai| {
        for (option, value) in
            [("-m", "lots"), ("-m", "1k"), ("--cpus", "0"), ("--cpus", "-1"), ("--cpus", "1000")]
        {
            kiai.call(&["run", "--rm", &format!("{option}={value}"), &busybox(), "true"]).refused(&[value]);
        }
    });
}
