//! Memory and CPUs that come and go while a container runs.

use std::time::Duration;
use std::time::Instant;

use kiai_tests::kiai::Kiai;
use kiai_tests::kiai::debian;
use kiai_tests::scenario;

const MIB: u64 = 1 << 20;

/// Allocates and writes to so many MiB, says so, and gives them back when it is told to.
const HOLDER: &str = "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
held = b'x' * (int(sys.argv[1]) << 20); print('held', flush=True)
signal.sigwait([signal.SIGUSR1]); del held; print('freed', flush=True)
signal.sigwait([signal.SIGUSR1])";

fn inside(kiai: &Kiai, name: &str, words: &[&str]) -> String {
    kiai.ok(&[&["exec", name], words].concat())
}

/// What the guest's kernel calls its memory, MiB.
fn guest_memory(kiai: &Kiai, name: &str) -> u64 {
    let meminfo = inside(kiai, name, &["cat", "/proc/meminfo"]);
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    total.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() / 1024
}

fn sleeper(kiai: &Kiai, name: &str, options: &[&str]) {
    kiai.ok(&[&["run", "-d", "--name", name], options, &[&debian(), "sleep", "infinity"]].concat());
}

#[test]
fn memory_follows_the_limit_up_and_down() {
    scenario(|kiai| {
        sleeper(kiai, "tide", &["-m", "128m"]);
        let before = guest_memory(kiai, "tide");
        let allocate = "b = b'x' * (300 << 20); print(len(b))";
        let killed = kiai.call(&["exec", "tide", "python3", "-c", allocate]);
        assert_ne!(killed.code, Some(0), "300 MiB do not fit into 128: {killed}");

        kiai.ok(&["update", "-m", "512m", "tide"]);
        let grown = guest_memory(kiai, "tide");
        assert_eq!(grown, before + 384, "the machine has as much more as the container may use");
        assert_eq!(inside(kiai, "tide", &["cat", "/sys/fs/cgroup/memory.max"]), (512 * MIB).to_string());
        assert_eq!(inside(kiai, "tide", &["python3", "-c", allocate]), (300 * MIB).to_string());
        assert!(kiai.ok(&["inspect", "tide"]).contains(&(512 * MIB).to_string()));

        kiai.ok(&["update", "-m", "128m", "tide"]);
        let shrunk = guest_memory(kiai, "tide");
        println!("MemTotal: {before} MiB, grown {grown} MiB, shrunk {shrunk} MiB");
        assert!(shrunk <= before + 32, "{shrunk} MiB: the guest gave back what it could spare");
        assert_eq!(inside(kiai, "tide", &["cat", "/sys/fs/cgroup/memory.max"]), (128 * MIB).to_string());
        kiai.ok(&["rm", "-f", "tide"]);
    });
}

#[test]
fn cpus_come_and_go() {
    scenario(|kiai| {
        sleeper(kiai, "cores", &["--cpus", "1"]);
        let seen = || {
            let script = "nproc; cat /sys/devices/system/cpu/present /sys/fs/cgroup/cpu.max";
            inside(kiai, "cores", &["sh", "-c", script])
        };
        assert_eq!(seen(), "1\n0-1\n100000 100000");
        kiai.ok(&["update", "--cpus", "1.5", "cores"]);
        assert_eq!(seen(), "2\n0-1\n150000 100000");
        assert_eq!(inside(kiai, "cores", &["taskset", "-c", "1", "echo", "on the second"]), "on the second");
        kiai.ok(&["update", "--cpus", "0.5", "cores"]);
        assert_eq!(seen(), "1\n0-1\n50000 100000");
        kiai.ok(&["rm", "-f", "cores"]);
    });
}

#[test]
fn what_cannot_be_had_is_refused_and_nothing_changes() {
    scenario(|kiai| {
        sleeper(kiai, "stuck", &["-m", "256m", "--cpus", "1"]);
        let holder = kiai.start(&["exec", "stuck", "python3", "-c", HOLDER, "100"]);
        holder.until("held\n");
        let state = || {
            let files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
            (
                guest_memory(kiai, "stuck"),
                inside(kiai, "stuck", &["sh", "-c", &format!("nproc; cat {files}")]),
            )
        };
        let before = state();
        kiai.call(&["update", "--cpus", "3", "stuck"]).refused(&["3 vCPUs", "max-vcpus"]);
        kiai.call(&["update", "--cpus", "2", "-m", "64m", "stuck"]).refused(&["67108864", "reclaimed"]);
        kiai.call(&["update", "--cpus", "1000", "stuck"]).refused(&["1000"]);
        kiai.call(&["update", "stuck"]).refused(&["--memory"]);
        kiai.call(&["update", "-m", "1g", "nobody"]).refused(&["nobody"]);
        assert_eq!(state(), before);
        drop(holder);
        kiai.ok(&["rm", "-f", "stuck"]);
    });
}

/// Bytes of host memory behind the guest's RAM: what its process asked huge pages for.
fn held_by_the_host(kiai: &Kiai) -> u64 {
    let mappings = std::fs::read_to_string(format!("/proc/{}/smaps", kiai.shim())).unwrap();
    let (mut bytes, mut all) = (0, 0);
    for line in mappings.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            bytes = size.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024;
        } else if line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg") {
            all += bytes;
        }
    }
    all
}

#[test]
fn memory_the_guest_does_not_use_goes_back_to_the_host() {
    scenario(|kiai| {
        // A guest's kernel alone, which reports free pages in small rounds, needs more than eight seconds. Giving back
        // takes a thousand interrupts, of which an emulated machine loses one now and then: then the kernel's reports
        // are what is left, and the next guest has its turn.
        let fast = (0..3).any(|_| time_to_give_back(kiai) < Duration::from_secs(6));
        assert!(fast, "not faster than the guest's kernel");
    });
}

/// Until 90 % of what a container has freed is with the host.
fn time_to_give_back(kiai: &Kiai) -> Duration {
    let words = ["run", "-d", "--name", "tidy", "-m", "640m", &debian(), "python3", "-c", HOLDER, "512"];
    kiai.ok(&words);
    let logs = kiai.start(&["logs", "-f", "tidy"]);
    logs.until("held\n");
    let full = held_by_the_host(kiai);
    assert!(full >= 512 * MIB, "{full} bytes");
    kiai.ok(&["kill", "-s", "USR1", "tidy"]);
    logs.until("freed\n");
    let since = Instant::now();
    // The size of a mapping has no event for other processes, so this polls.
    let back = || full.saturating_sub(held_by_the_host(kiai));
    while back() * 10 < 512 * MIB * 9 {
        assert!(since.elapsed() < Duration::from_secs(120), "{} bytes of 512 MiB came back", back());
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = since.elapsed();
    println!("90 % of 512 MiB were back after {took:?}");
    drop(logs);
    kiai.ok(&["rm", "-f", "tidy"]);
    took
}
