//! Options of `kiai run` beside those that every test uses.

use std::fs;

use kiai_tests::kiai::await_end;
use kiai_tests::kiai::busybox;
use kiai_tests::scenario;
use kiai_tests::terminal::Terminal;

#[test]
fn options_reach_the_process() {
    scenario(|kiai| {
        let script = "df -m /dev/shm | tail -1 | awk '{print $2}'; cat /proc/sys/net/core/somaxconn; \
                      grep -c 'NoNewPrivs:.1' /proc/self/status; grep Seccomp: /proc/self/status; id -G; \
                      cat /sys/fs/cgroup/pids.max; grep db /etc/hosts; cat /etc/resolv.conf; \
                      [ $$ = 1 ] || echo reaped; hostname; mount | grep -c ' /t .*ro,.*tmpfs\\|tmpfs on /t .*size=1024k'";
        let words = [
            "--shm-size",
            "8m",
            "--sysctl",
            "net.core.somaxconn=77",
            "--security-opt",
            "no-new-privileges",
            "--security-opt",
            "seccomp=unconfined",
            "--group-add",
            "77",
            "--pids-limit",
            "50",
            "--add-host",
            "db:10.1.2.3",
            "--dns",
            "10.9.9.9",
            "--dns-search",
            "example.org",
            "--init",
            "-h",
            "box",
            "--mount",
            "type=tmpfs,dst=/t,tmpfs-size=1m",
        ];
        let finished = kiai.busybox(&[]);
        assert!(finished.code.is_some());
        let image = busybox();
        let output = kiai.ok(&[&["run", "--rm"][..], &words, &[&image, "sh", "-c", script]].concat());
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[..3], ["8", "77", "1"], "{output}");
        assert!(lines[3].ends_with('0'), "{output}");
        assert_eq!(lines[4..6], ["0 77", "50"], "{output}");
        assert_eq!(lines[6].split_whitespace().collect::<Vec<_>>(), ["10.1.2.3", "db"], "{output}");
        assert!(
            output.contains("nameserver 10.9.9.9\n") && output.contains("search example.org\n"),
            "{output}"
        );
        assert!(output.contains("reaped\nbox\n1"), "{output}");
    });
}

#[test]
fn ports_are_chosen_when_none_is_named() {
    scenario(|kiai| {
        kiai.keep_running("free", &["-p", "80", "-P", "--expose", "53/udp", "--expose", "80"]);
        let ports = kiai.ok(&["port", "free"]);
        let lines: Vec<&str> = ports.lines().collect();
        assert_eq!(lines.len(), 2, "{ports}");
        assert!(lines[0].starts_with("53/udp -> 0.0.0.0:") && lines[1].starts_with("80/tcp -> 0.0.0.0:"));
        kiai.ok(&["rm", "-f", "free"]);
    });
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason() {
    scenario(|kiai| {
        let image = busybox();
        for (words, reason) in [
            (&["--network", "host"][..], "microVM"),
            (&["--network", "container:web"], "two microVMs"),
            (&["--gpus", "all"], "CDI"),
            (&["--memory-swap", "1g"], "swap"),
            (&["--health-cmd", "true"], "probe"),
            (&["--platform", "linux/arm64"], "linux/amd64"),
            (&["--security-opt", "apparmor=x"], "AppArmor"),
            (&["--restart", "always"], "-d"),
            (&["--rm", "-d", "--restart", "always"], "--restart"),
            (&["--group-add", "nobody-of-that-name"], "nobody-of-that-name"),
        ] {
            let finished = kiai.call(&[&["run"], words, &[&image, "true"]].concat());
            assert_eq!(finished.code, Some(125), "{finished}");
            finished.refused(&[words[0], reason]);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        kiai.call(&["run", "--rm", "--cidfile", path, &image, "true"]).refused(&[path]);
    });
}

#[test]
fn a_policy_starts_a_container_again_until_a_command_stops_it() {
    scenario(|kiai| {
        let script =
            "echo run >> /runs; [ $(wc -l < /runs) -ge 3 ] && { echo third; exec sleep 3600; }; exit 3";
        let words = ["run", "-d", "--name", "stubborn", "--restart", "on-failure", &busybox()];
        kiai.ok(&[&words[..], &["sh", "-c", script]].concat());
        let starts = ["events", "--since", "10m", "-f", "container=stubborn", "-f", "event=start"];
        kiai.start(&[&starts[..], &["--format", "{{.Action}}"]].concat()).until("start\nstart\nstart\n");
        assert_eq!(kiai.ok(&["exec", "stubborn", "sh", "-c", "wc -l < /runs"]), "3");
        let shim = kiai.shim_process();
        kiai.ok(&["stop", "-t", "0", "stubborn"]);
        await_end(&shim);
        assert!(kiai.ok(&["ps", "-a"]).contains("Exited (137)"));
        let told = kiai.ok(&[
            "events",
            "--since",
            "10m",
            "--until",
            "0s",
            "-f",
            "container=stubborn",
            "--format",
            "{{.Action}}{{with .Actor.Attributes.exitCode}} {{.}}{{end}}",
        ]);
        let told: Vec<&str> = told.lines().collect();
        assert_eq!(told[..4], ["create", "start", "die 3", "start"], "{told:?}");
        assert_eq!(told.last(), Some(&"die 137"), "{told:?}");
        kiai.ok(&["rm", "stubborn"]);
    });
}

#[test]
fn a_terminal_is_attached_to_and_detached_from() {
    scenario(|kiai| {
        kiai.ok(&["run", "-dit", "--name", "shell", &busybox(), "sh"]);
        let mut terminal = Terminal::start(kiai, &["attach", "shell"], 10, 40);
        terminal.type_in("echo $((6*7))\r");
        terminal.until("42\r\n");
        terminal.type_in("\x10\x11");
        let (code, _) = terminal.finish();
        assert_eq!(code, Some(0));
        let mut terminal = Terminal::start(kiai, &["attach", "--detach-keys", "x", "shell"], 10, 40);
        terminal.type_in("stty size\r");
        terminal.until("10 40\r\n");
        terminal.type_in("exit 7\r");
        assert_eq!(terminal.finish().0, Some(0), "the x of exit detaches");
        let mut terminal = Terminal::start(kiai, &["start", "-ai", "shell"], 10, 40);
        // Its e is there still.
        terminal.type_in("\rexit 7\r");
        assert_eq!(terminal.finish().0, Some(7));
        kiai.ok(&["rm", "-f", "shell"]);
    });
}

#[test]
fn a_start_shows_the_output_and_passes_input_on() {
    scenario(|kiai| {
        kiai.ok(&[
            "create",
            "-i",
            "--name",
            "filter",
            &busybox(),
            "sh",
            "-c",
            "wc -c; echo done >&2; exit 5",
        ]);
        for bytes in [10, 100_000] {
            let finished = kiai.call_with(&["start", "-ai", "filter"], vec![b'x'; bytes]);
            assert_eq!((finished.code, finished.text()), (Some(5), format!("{bytes}\n")), "{finished}");
            assert_eq!(finished.stderr, "done\n");
        }
        kiai.ok(&["run", "--rm", "-l", "a=b", "--name", "labelled", &busybox(), "true"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        kiai.ok(&["create", "--cidfile", file.to_str().unwrap(), "--name", "written", &busybox()]);
        let id = fs::read_to_string(file).unwrap();
        assert!(kiai.ok(&["inspect", "written"]).contains(id.trim()));
        kiai.ok(&["rm", "filter", "written"]);
    });
}
