//! `kiai run`: output, exit status, and what the options do.

use kiai_tests::kiai::await_end;
use kiai_tests::kiai::busybox;
use kiai_tests::kiai::debian;
use kiai_tests::kiai::debian_archive;
use kiai_tests::kiai::image;
use kiai_tests::process;
use kiai_tests::scenario;
use rustix::process::Signal;

#[test]
fn prints_output_and_passes_the_exit_status_on() {
    scenario(|kiai| {
        assert_eq!(kiai.busybox(&["echo", "hello"]).success(), "hello");
        kiai.busybox(&["false"]).failure(1);
        kiai.busybox(&["sh", "-c", "exit 137"]).failure(137);
    });
}

#[test]
fn a_program_that_is_not_there_is_named() {
    scenario(|kiai| {
        let finished = kiai.busybox(&["no-such-program"]);
        assert!(finished.failure(127).contains("no-such-program"), "{finished}");
    });
}

#[test]
fn runs_a_real_userland_on_a_kernel_of_its_own() {
    scenario(|kiai| {
        let script = "uname -r; . /etc/os-release; echo $ID; python3 -c 'print(6*7)'";
        let output = kiai.ok(&["run", "--rm", &debian(), "sh", "-c", script]);
        let lines: Vec<_> = output.lines().collect();
        assert_ne!(lines[0], process::run("uname", &["-r"]), "the host's kernel");
        assert_eq!(lines[1..], ["debian", "42"]);
    });
}

#[test]
fn runs_a_plain_directory_and_a_docker_archive() {
    scenario(|kiai| {
        let rootfs = image("busybox-rootfs");
        let rootfs = rootfs.to_str().unwrap();
        assert_eq!(kiai.ok(&["run", "--rm", "--rootfs", rootfs, "echo", "plain"]), "plain");
        assert_eq!(kiai.ok(&["run", "--rm", &debian_archive(), "cat", "/etc/hostname"]).lines().count(), 1);
    });
}

#[test]
fn options_shape_the_container() {
    scenario(|kiai| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "FROM_FILE=f\nBOTH=file\n").unwrap();
        let script = "echo $FROM_FILE $BOTH; pwd; id -u; id -g; hostname; ulimit -n; \
                      touch /new 2>&1; touch /tmp/new && echo writable; \
                      grep CapEff /proc/self/status";
        let output = kiai.ok(&[
            "run",
            "--rm",
            "-e",
            "BOTH=option",
            "--env-file",
            file.path().to_str().unwrap(),
            "-w",
            "/var",
            "-u",
            "1000:2000",
            "--hostname",
            "earth",
            "--ulimit",
            "nofile=100:100",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--entrypoint",
            "sh",
            &busybox(),
            "-c",
            script,
        ]);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[..6], ["f option", "/var", "1000", "2000", "earth", "100"], "{output}");
        assert!(lines[6].contains("Read-only file system"), "{output}");
        assert_eq!(lines[7], "writable");
        assert!(lines[8].ends_with("0000000000000000"), "a plain user has no capabilities: {output}");
    });
}

#[test]
fn capabilities_are_dockers_and_can_be_changed() {
    scenario(|kiai| {
        let effective = |options: &[&str]| {
            let image = busybox();
            let words = ["run", "--rm"];
            let command = [&image, "grep", "CapEff", "/proc/self/status"];
            let line = kiai.ok(&[&words, options, &command].concat());
            u64::from_str_radix(line.rsplit(char::is_whitespace).next().unwrap(), 16).unwrap()
        };
        let (chown, net_raw, sys_time) = (1 << 0, 1 << 13, 1 << 25);
        let usual = effective(&[]);
        assert_eq!(usual, 0xa804_25fb);
        let changed = effective(&["--cap-drop", "CHOWN", "--cap-add", "SYS_TIME"]);
        assert_eq!(changed, usual & !chown | sys_time);
        assert_eq!(effective(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"]), net_raw);
    });
}

#[test]
fn a_signal_to_the_command_reaches_the_container() {
    scenario(|kiai| {
        let script = "trap 'echo caught; exit 42' TERM; echo ready; while :; do sleep 3600 & wait; done";
        let running = kiai.start(&["run", "--rm", &busybox(), "sh", "-c", script]);
        running.until("ready\n");
        running.signal(Signal::TERM);
        let finished = running.finish();
        assert_eq!((finished.code, finished.text()), (Some(42), "ready\ncaught\n".into()), "{finished}");
    });
}

#[test]
fn a_container_has_a_life_of_its_own() {
    scenario(|kiai| {
        let script = "echo out; echo err >&2; exec sleep 3600";
        let id = kiai.ok(&["run", "-d", "--name", "life", &busybox(), "sh", "-c", script]);
        assert!(!id.is_empty() && !id.contains('\n'), "the container's id: {id:?}");
        let logs = kiai.start(&["logs", "-f", "life"]);
        logs.until("out\n");
        assert!(kiai.ok(&["ps"]).contains("life"));
        let twice = kiai.call(&["run", "-d", "--name", "life", &busybox(), "true"]);
        twice.refused(&["life"]);
        kiai.call(&["rm", "life"]).refused(&["life", "running"]);
        kiai.ok(&["kill", "life"]);
        assert_eq!(kiai.ok(&["wait", "life"]), "137");
        let logs = logs.finish();
        assert_eq!((logs.text().as_str(), logs.stderr.as_str()), ("out\n", "err\n"), "{logs}");
        assert!(!kiai.ok(&["ps"]).contains("life"), "ps lists what runs");
        assert!(kiai.ok(&["ps", "-a"]).contains("life"), "ps -a lists everything");
        assert!(kiai.ok(&["inspect", "life"]).contains("137"));
        kiai.ok(&["rm", "life"]);
        kiai.call(&["inspect", "life"]).refused(&["life"]);
    });
}

#[test]
fn a_container_in_the_background_gives_everything_back_when_it_ends() {
    scenario(|kiai| {
        kiai.keep_running("brief", &["-p", "18081:80"]);
        kiai.start(&["logs", "-f", "brief"]).until("up\n");
        let shim = kiai.shim_process();
        kiai.ok(&["kill", "-s", "TERM", "brief"]);
        // It is not requested before its microVM has ended.
        await_end(&shim);
        assert_eq!(kiai.ok(&["wait", "brief"]), "0");
        assert_eq!(kiai.ok(&["logs", "brief"]), "up");
        kiai.ok(&["rm", "brief"]);

        kiai.keep_running("briefer", &["--rm"]);
        let shim = kiai.shim_process();
        kiai.ok(&["kill", "briefer"]);
        await_end(&shim);
        // The command that releases its resources holds it until that is done, and then it does not exist any more.
        kiai.call(&["wait", "briefer"]);
        kiai.call(&["inspect", "briefer"]).refused(&["briefer"]);
    });
}

#[test]
fn stop_asks_first() {
    scenario(|kiai| {
        kiai.keep_running("polite", &[]);
        kiai.start(&["logs", "-f", "polite"]).until("up\n");
        kiai.ok(&["stop", "polite"]);
        assert_eq!(kiai.ok(&["wait", "polite"]), "0", "it had the time to say goodbye");
        kiai.ok(&["rm", "polite"]);
    });
}
