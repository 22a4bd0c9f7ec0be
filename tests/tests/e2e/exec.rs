//! `kiai exec`: another process in a container that is running.

use std::time::Duration;
use std::time::Instant;

use kiai_tests::kiai::busybox;
use kiai_tests::scenario;
use kiai_tests::terminal::Terminal;

#[test]
fn a_process_joins_a_running_container() {
    scenario(|kiai| {
        kiai.keep_running("host", &["-e", "COLOUR=green", "--hostname", "pod"]);
        assert_eq!(kiai.ok(&["exec", "host", "hostname"]), "pod");
        let script = "echo $COLOUR $SHAPE; pwd; cat /proc/1/comm";
        let words = ["exec", "-e", "SHAPE=round", "-w", "/etc", "host", "sh", "-c", script];
        assert_eq!(kiai.ok(&words), "green round\n/etc\nsh");
        assert_eq!(kiai.ok(&["exec", "-u", "12:34", "host", "sh", "-c", "id -u; id -g"]), "12\n34");
        kiai.call(&["exec", "host", "sh", "-c", "exit 7"]).failure(7);
        let finished = kiai.call(&["exec", "host", "no-such-program"]);
        assert!(finished.failure(127).contains("no-such-program"), "{finished}");
        let piped = kiai.call_with(&["exec", "-i", "host", "wc", "-c"], vec![b'x'; 3 << 20]);
        assert_eq!(piped.success(), (3 << 20).to_string());
        kiai.ok(&["rm", "-f", "host"]);
    });
}

#[test]
fn a_process_that_leaves_a_child_behind_ends_when_it_ends() {
    scenario(|kiai| {
        kiai.keep_running("host", &[]);
        let timed = |words: &[&str]| {
            let begun = Instant::now();
            let finished = kiai.call(&[&["exec"], words].concat());
            (finished, begun.elapsed())
        };
        let (_, alone) = timed(&["host", "sh", "-c", "exit 4"]);
        // The child has the outputs open for as long as the container lives.
        let script = "sleep 3600 & head -c 1000000 /dev/zero; echo error >&2; exit 4";
        let (piped, with_child) = timed(&["host", "sh", "-c", script]);
        assert_eq!(piped.failure(4), "error\n");
        assert_eq!(piped.stdout.len(), 1_000_000);
        let (shown, on_terminal) = timed(&["-t", "host", "sh", "-c", "sleep 3600 & seq 10000; exit 4"]);
        assert_eq!(shown.code, Some(4), "{shown}");
        assert!(shown.text().ends_with("\r\n10000\r\n"), "{shown}");
        println!("alone {alone:?}, with a child {with_child:?}, on a terminal {on_terminal:?}");
        // Half of what a reader that takes nothing is waited for.
        for took in [with_child, on_terminal] {
            assert!(took < alone + Duration::from_secs(5), "{took:?}, and {alone:?} alone");
        }
        kiai.ok(&["rm", "-f", "host"]);
    });
}

#[test]
fn a_process_has_a_terminal_of_its_own() {
    scenario(|kiai| {
        kiai.keep_running("host", &[]);
        let script = "trap 'echo now $(stty size)' WINCH; echo is $(stty size); until read -r line; do :; done; echo $line";
        let words = ["exec", "-it", "host", "sh", "-c", script];
        let mut terminal = Terminal::start(kiai, &words, 10, 20);
        terminal.until("is 10 20");
        terminal.resize(50, 60);
        terminal.until("now 50 60");
        terminal.type_in("bye\r");
        let (code, screen) = terminal.finish();
        assert!(screen.ends_with("bye\r\nbye\r\n"), "typed, then printed: {screen:?}");
        assert_eq!(code, Some(0));
        kiai.ok(&["rm", "-f", "host"]);
    });
}

#[test]
fn a_container_that_ends_takes_its_processes_with_it() {
    scenario(|kiai| {
        kiai.keep_running("host", &[]);
        let inside = kiai.start(&["exec", "host", "sh", "-c", "echo in; exec sleep 3600"]);
        inside.until("in\n");
        kiai.ok(&["stop", "host"]);
        assert_eq!(inside.finish().code, Some(137));
        kiai.call(&["exec", "host", "true"]).refused(&["host", "not running"]);
        kiai.ok(&["rm", "host"]);
        kiai.call(&["exec", "host", "true"]).refused(&["host"]);
        kiai.call(&["run", "--rm", "--name", "a/b", &busybox(), "true"]).refused(&["a/b"]);
    });
}
