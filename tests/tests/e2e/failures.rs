//! When something breaks: what the user is told, and what is left.

use std::fs;
use std::time::Duration;
use std::time::Instant;

use kiai_tests::kiai::busybox;
use kiai_tests::scenario;

#[test]
fn a_killed_shim_leaves_nothing_once_its_container_is_removed() {
    scenario(|kiai| {
        let folder = tempfile::tempdir().unwrap();
        let volume = format!("{}:/data", folder.path().display());
        kiai.keep_running("orphan", &["-p", "18080:80", "-v", &volume]);
        kiai.kill_shim();
        assert!(!kiai.ok(&["ps"]).contains("orphan"), "it does not run any more");
        assert!(kiai.ok(&["ps", "-a"]).contains("orphan"));
        kiai.call(&["exec", "orphan", "true"]).refused(&["orphan"]);
        kiai.ok(&["rm", "orphan"]);
    });
}

#[test]
fn a_command_waiting_for_a_killed_shim_ends() {
    scenario(|kiai| {
        let waiting = kiai.start(&["run", "--name", "gone", &busybox(), "sh", "-c", "echo up; sleep 3600"]);
        waiting.until("up\n");
        kiai.kill_shim();
        waiting.finish().refused(&["gone"]);
        kiai.ok(&["rm", "gone"]);
    });
}

#[test]
fn a_panic_of_the_guests_kernel_is_told_with_the_end_of_its_console() {
    scenario(|kiai| {
        let script = "mkdir /mnt && mount -t proc proc /mnt && echo c > /mnt/sysrq-trigger; sleep 60";
        let words = ["run", "--rm", "--cap-add", "SYS_ADMIN", &busybox(), "sh", "-c", script];
        let finished = kiai.call(&words);
        let message = finished.failure(255);
        assert!(message.contains("Kernel panic"), "the console's end: {finished}");
    });
}

#[test]
fn a_container_of_a_dead_guest_can_be_killed() {
    // Two seconds, and what the commands cost on an emulated machine: a third of what an answer is waited for.
    const BOUND: Duration = Duration::from_secs(20);
    // A kernel that panics and is not to reset the machine stays where it is, and answers nothing.
    let script = "mkdir /mnt && mount -t proc proc /mnt && echo 0 > /mnt/sys/kernel/panic \
                  && echo c > /mnt/sysrq-trigger; sleep 60";
    for end in [&["rm", "-f", "dead"][..], &["stop", "-t", "1", "dead"], &["kill", "dead"]] {
        scenario(|kiai| {
            let image = busybox();
            let options = ["--console", "--name", "dead", "--cap-add", "SYS_ADMIN"];
            let waiting = kiai.start(&[&["run"], &options[..], &[&image, "sh", "-c", script]].concat());
            waiting.until_error("end Kernel panic");
            let begun = Instant::now();
            kiai.ok(end);
            let took = begun.elapsed();
            println!("{end:?} of a container of a dead guest took {took:?}");
            assert!(took < BOUND, "{end:?} took {took:?}");
            assert_eq!(waiting.finish().code, Some(137));
            kiai.ok(&["rm", "-f", "dead"]);
        });
    }
}

#[test]
fn a_kernel_that_is_missing_or_damaged_is_named() {
    scenario(|kiai| {
        let folder = tempfile::tempdir().unwrap();
        let damaged = folder.path().join("damaged-vmlinux");
        fs::write(&damaged, b"\x7fELF and then nothing of use").unwrap();
        for kernel in ["/no/such/vmlinux", damaged.to_str().unwrap()] {
            kiai.call(&["run", "--rm", "--kernel", kernel, &busybox(), "true"]).refused(&[kernel]);
        }
    });
}

#[test]
fn check_finds_this_machine_fit() {
    scenario(|kiai| {
        kiai.ok(&["check"]);
        assert!(kiai.ok(&["version"]).contains(env!("CARGO_PKG_VERSION")));
    });
}
