//! Verbs for a container that runs: pause, unpause, rename, port, top.

use kiai_tests::kiai::busybox;
use kiai_tests::scenario;

#[test]
fn a_paused_container_does_nothing_until_it_goes_on() {
    scenario(|kiai| {
        let count = "i=0; while :; do i=$((i+1)); echo $i > /count; done";
        kiai.ok(&["run", "-d", "--name", "still", &busybox(), "sh", "-c", count]);
        kiai.ok(&["exec", "still", "sh", "-c", "until [ -s /count ]; do :; done"]);
        assert_eq!(kiai.ok(&["pause", "still"]), "still");
        assert!(kiai.ok(&["ps"]).contains("(Paused)"));
        kiai.call(&["exec", "still", "true"]).refused(&["still", "paused", "unpause"]);
        kiai.call(&["pause", "still"]).refused(&["still", "paused"]);
        let read = || kiai.ok(&["cp", "still:/count", "-"]);
        assert_eq!(read(), read(), "nothing is written");
        assert_eq!(kiai.ok(&["unpause", "still"]), "still");
        kiai.call(&["unpause", "still"]).refused(&["still", "not paused"]);
        kiai.ok(&[
            "exec",
            "still",
            "sh",
            "-c",
            "c=$(cat /count); until [ \"$c\" != \"$(cat /count)\" ]; do :; done",
        ]);
        kiai.ok(&["pause", "still"]);
        kiai.ok(&["stop", "-t", "1", "still"]);
        kiai.ok(&["rm", "still"]);
    });
}

#[test]
fn a_container_has_another_name_and_ports() {
    scenario(|kiai| {
        kiai.keep_running("old", &["-p", "18084:80", "-p", "127.0.0.1:18085:53/udp"]);
        kiai.keep_running("other", &["--network", "none"]);
        kiai.call(&["rename", "old", "other"]).refused(&["other"]);
        kiai.ok(&["rename", "old", "new"]);
        kiai.call(&["inspect", "old"]).refused(&["old"]);
        assert_eq!(kiai.ok(&["port", "new"]), "53/udp -> 127.0.0.1:18085\n80/tcp -> 0.0.0.0:18084");
        assert_eq!(kiai.ok(&["port", "new", "80"]), "0.0.0.0:18084");
        kiai.call(&["port", "new", "81"]).refused(&["81", "new"]);
        kiai.ok(&["run", "--rm", "--name", "old", "--network", "none", &busybox(), "true"]);
        let shown = kiai.ok(&["top", "new"]);
        assert!(shown.lines().next().unwrap().contains("PID") && shown.contains("sleep 3600"), "{shown}");
        kiai.ok(&["rm", "-f", "new", "other"]);
    });
}
