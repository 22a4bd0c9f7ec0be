//! Which processors a container finds, and how its kernel guards against their flaws.

use kiai_tests::kiai::Kiai;
use kiai_tests::kiai::debian;
use kiai_tests::scenario;

/// What the kernel may call vulnerable, word for word, and why no kernel does better there. Debian's says the same of an
/// emulated EPYC-Milan (older ones call the second one mitigated).
const BEYOND_THE_KERNEL: [(&str, &str, &str); 3] = [
    ("spec_store_bypass", "Vulnerable", "the processor has no SSBD"),
    (
        "spec_rstack_overflow",
        "Vulnerable: Safe RET, no microcode",
        "returns are safe; forgetting predictions of branch types takes microcode of the host",
    ),
    (
        "tsa",
        "Vulnerable: Clear CPU buffers attempted, no microcode",
        "VERW clears these buffers with microcode of the host",
    ),
];

#[test]
fn cpus_are_one_socket_of_cores_with_a_thread_each() {
    scenario(|kiai| {
        let output = kiai.ok(&["run", "--rm", "--cpus", "2", &debian(), "lscpu"]);
        let value = |field: &str| {
            let of_field = output.lines().find_map(|line| line.trim().strip_prefix(field));
            let value = of_field.unwrap_or_else(|| panic!("no {field} in {output}"));
            value.trim_start_matches(':').trim().to_owned()
        };
        assert_eq!(value("CPU(s)"), "2", "{output}");
        assert_eq!(value("Socket(s)"), "1", "{output}");
        assert_eq!(value("Core(s) per socket"), "2", "{output}");
        assert_eq!(value("Thread(s) per core"), "1", "{output}");
        assert_eq!(value("Hypervisor vendor"), "KVM", "{output}");
        assert_ne!(value("Model name"), "", "{output}");
    });
}

#[test]
fn cores_share_the_last_cache_and_no_other() {
    scenario(|kiai| {
        let script = "cd /sys/devices/system/cpu/cpu1/cache && for i in index*; do \
                      echo $(cat $i/level) $(cat $i/shared_cpu_list); done";
        let output = kiai.ok(&["run", "--rm", "--cpus", "2", &debian(), "sh", "-c", script]);
        assert!(output.lines().count() > 2, "{output}");
        for line in output.lines() {
            let (level, sharers) = line.split_once(' ').unwrap();
            assert_eq!(sharers, if level == "3" { "0-1" } else { "1" }, "{output}");
        }
    });
}

#[test]
fn neither_nested_virtualisation_nor_counters_are_offered() {
    scenario(|kiai| {
        let output = kiai.busybox(&["grep", "-m", "1", "^flags", "/proc/cpuinfo"]).success();
        let flags: Vec<&str> = output.split_whitespace().collect();
        assert!(flags.contains(&"hypervisor"), "{output}");
        for flag in ["svm", "vmx", "perfctr_core", "arch_perfmon"] {
            assert!(!flags.contains(&flag), "{flag} in {output}");
        }
    });
}

#[test]
fn the_kernel_guards_against_every_flaw_it_can() {
    scenario(|kiai| {
        let found = vulnerabilities(kiai);
        assert!(found.iter().any(|(name, _)| name == "spectre_v1"), "{found:?}");
        let unexpected: Vec<_> = found
            .iter()
            .filter(|(_, state)| state.starts_with("Vulnerable"))
            .filter(|(name, state)| {
                !BEYOND_THE_KERNEL.iter().any(|(of, word, _)| name == of && state == word)
            })
            .collect();
        assert!(unexpected.is_empty(), "{unexpected:?} of {found:?}");
    });
}

/// Flaws that the kernel knows, and how it stands with each.
fn vulnerabilities(kiai: &Kiai) -> Vec<(String, String)> {
    let script = "cd /sys/devices/system/cpu/vulnerabilities && grep . *";
    let output = kiai.busybox(&["sh", "-c", script]).success();
    output
        .lines()
        .map(|line| line.split_once(':').unwrap_or_else(|| panic!("{line}")))
        .map(|(name, state)| (name.to_owned(), state.to_owned()))
        .collect()
}
