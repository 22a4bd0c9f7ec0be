//! Containers that are made, started, stopped and started again.

use kiai_tests::kiai::await_end;
use kiai_tests::kiai::busybox;
use kiai_tests::scenario;

/// Says that it is up, and ends at once when it is told to stop.
const WAIT: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 3600 & wait; done";

#[test]
fn a_container_is_made_and_started_as_often_as_one_likes() {
    scenario(|kiai| {
        let script = format!("echo run >> /runs; wc -l < /runs; {WAIT}");
        let words = ["create", "--name", "often", "--hostname", "earth", "-p", "18082:80"];
        let id = kiai.ok(&[&words[..], &[&busybox(), "sh", "-c", &script]].concat());
        assert_eq!(id.len(), 12, "{id}");
        assert!(kiai.ok(&["ps", "-a"]).contains("Created") && !kiai.ok(&["ps"]).contains("often"));
        kiai.call(&["exec", "often", "true"]).refused(&["often", "created"]);
        kiai.call(&["wait", "often"]).refused(&["often"]);
        assert_eq!(kiai.ok(&["start", "often"]), "often");
        kiai.start(&["logs", "-f", "often"]).until("1\nup\n");
        assert_eq!(kiai.ok(&["exec", "often", "sh", "-c", "hostname; grep -c earth /etc/hosts"]), "earth\n1");
        kiai.ok(&["stop", "often"]);
        assert_eq!(kiai.ok(&["start", &id[..4]]), &id[..4]);
        kiai.start(&["logs", "-f", "often"]).until("1\nup\n2\nup\n");
        assert_eq!(kiai.ok(&["start", "often"]), "often", "a container that runs is left alone");
        assert_eq!(kiai.ok(&["restart", "-t", "5", "often"]), "often");
        kiai.start(&["logs", "-f", "often"]).until("3\nup\n");
        kiai.ok(&["rm", "-f", "often"]);
    });
}

#[test]
fn a_container_that_removes_itself_survives_a_restart() {
    scenario(|kiai| {
        kiai.keep_running("brief", &["--rm"]);
        kiai.start(&["logs", "-f", "brief"]).until("up\n");
        kiai.ok(&["restart", "brief"]);
        kiai.start(&["logs", "-f", "brief"]).until("up\nup\n");
        let shim = kiai.shim_process();
        kiai.ok(&["stop", "brief"]);
        await_end(&shim);
        kiai.call(&["wait", "brief"]);
        kiai.call(&["start", "brief"]).refused(&["brief"]);
    });
}

#[test]
fn a_start_that_fails_leaves_the_container_as_it_was() {
    scenario(|kiai| {
        kiai.ok(&["create", "--name", "wrong", &busybox(), "no-such-program"]);
        let finished = kiai.call(&["start", "wrong"]);
        finished.refused(&["no-such-program"]);
        assert!(kiai.ok(&["ps", "-a"]).contains("Created"));
        kiai.call(&["start", "nobody"]).refused(&["nobody"]);
        kiai.ok(&["rm", "wrong"]);
    });
}

#[test]
fn a_container_whose_shim_was_killed_is_started_again() {
    scenario(|kiai| {
        kiai.keep_running("struck", &["-p", "18083:80"]);
        kiai.kill_shim();
        kiai.ok(&["start", "struck"]);
        assert_eq!(kiai.ok(&["exec", "struck", "echo", "again"]), "again");
        kiai.ok(&["rm", "-f", "struck"]);
    });
}
