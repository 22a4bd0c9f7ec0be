//! Standard input, output and terminals: everything arrives, whole and in order, and ends when it should.

use kiai_tests::fixture::digest;
use kiai_tests::kiai::busybox;
use kiai_tests::kiai::debian;
use kiai_tests::scenario;
use kiai_tests::terminal::Terminal;

/// 64 MiB that do not repeat.
fn data() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..8 << 20).flat_map(|_| next().to_le_bytes()).collect()
}

#[test]
fn sixty_four_mebibytes_arrive_whole_both_ways() {
    scenario(|kiai| {
        let data = data();
        let expected = digest(&data);
        let image = busybox();
        let sum = kiai.call_with(&["run", "-i", "--rm", &image, "sh", "-c", "cat | sha256sum"], data.clone());
        assert_eq!(format!("sha256:{}", sum.success()), format!("{expected}  -"));
        let echoed = kiai.call_with(&["run", "-i", "--rm", &image, "cat"], data);
        assert_eq!(echoed.code, Some(0), "{echoed}");
        assert_eq!((echoed.stdout.len(), digest(&echoed.stdout)), (64 << 20, expected));
    });
}

/// Tries what a container could do with vsock: one line for each attempt, and how it ended.
const VSOCK: &str = "
import errno, socket
def attempt(name, work):
    try:
        vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        work(vsock)
        print(name, 'OPEN')
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, error))
attempt('socket', lambda vsock: None)
for port in 1024, 1025:
    for cid in 1, 3, socket.VMADDR_CID_ANY:
        attempt(f'bind {cid} {port}', lambda vsock: vsock.bind((cid, port)))
    for cid in 1, 3:
        attempt(f'connect {cid} {port}', lambda vsock: vsock.connect((cid, port)))
for port in 1024, 1025, *range(0x10000, 0x10010):
    attempt(f'connect 2 {port}', lambda vsock: vsock.connect((2, port)))
";

#[test]
fn a_container_with_vsock_reaches_neither_the_agent_nor_a_stream() {
    scenario(|kiai| {
        let image = debian();
        let program = ["python3", "-c", VSOCK];
        // Its streams are open while the other process tries to get at them.
        let script = "mkfifo /go && echo up && read -r line < /go && echo $line";
        let words = ["run", "--name", "neighbour", "--privileged", &image, "sh", "-c", script];
        let neighbour = kiai.start(&words);
        neighbour.until("up\n");
        let attempts = kiai.ok(&[&["exec", "neighbour"][..], &program].concat());
        let attempts: Vec<&str> = attempts.lines().collect();
        assert_eq!(attempts[0], "socket OPEN", "without seccomp there is vsock");
        assert_eq!(attempts.len(), 1 + 2 * 5 + 18, "{attempts:?}");
        for attempt in &attempts[1..] {
            assert!(!attempt.ends_with("OPEN"), "{attempts:?}");
        }
        let host = attempts.iter().filter(|attempt| attempt.starts_with("connect 2 "));
        assert!(host.clone().all(|attempt| attempt.ends_with("ECONNRESET")), "{attempts:?}");
        kiai.ok(&["exec", "neighbour", "sh", "-c", "echo done > /go"]);
        assert_eq!(neighbour.finish().success(), "up\ndone");
        kiai.ok(&["rm", "neighbour"]);

        let closed = kiai.ok(&[&["run", "--rm", &image][..], &program].concat());
        assert!(closed.lines().all(|attempt| attempt.ends_with("EPERM")), "{closed}");
    });
}

#[test]
fn the_two_outputs_are_kept_apart() {
    scenario(|kiai| {
        let finished = kiai.busybox(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!(finished.failure(3), "err\n");
        assert_eq!(finished.text(), "out\n");
    });
}

#[test]
fn input_ends_where_it_ends() {
    scenario(|kiai| {
        let image = busybox();
        let words = ["run", "-i", "--rm", &image, "sh", "-c", "cat; echo end"];
        assert_eq!(kiai.call_with(&words, b"line\n".to_vec()).success(), "line\nend");
        assert_eq!(kiai.call_with(&words, Vec::new()).success(), "end");
        let without =
            kiai.call_with(&["run", "--rm", &image, "sh", "-c", "cat; echo end"], b"unread".to_vec());
        assert_eq!(without.success(), "end", "without -i there is nothing to read");
        // The container does not read: the writer is not to wait for it.
        let ignored = kiai.call_with(&["run", "-i", "--rm", &image, "true"], vec![0; 4 << 20]);
        ignored.success();
    });
}

#[test]
fn a_terminal_has_a_size_and_can_change_it() {
    scenario(|kiai| {
        let script = "trap 'echo now $(stty size)' WINCH; test -t 0 && echo is $(stty size); \
                      until read -r line; do :; done; echo got $line; exit 5";
        let image = busybox();
        let words = ["run", "-it", "--rm", &image, "sh", "-c", script];
        let mut terminal = Terminal::start(kiai, &words, 30, 100);
        terminal.until("is 30 100");
        terminal.resize(42, 123);
        terminal.until("now 42 123");
        terminal.type_in("words\r");
        let (code, screen) = terminal.finish();
        assert!(screen.contains("got words\r\n"), "{screen:?}");
        assert_eq!(code, Some(5));
    });
}

#[test]
fn a_terminal_passes_control_c_to_the_container() {
    scenario(|kiai| {
        let image = busybox();
        let words =
            ["run", "-it", "--rm", &image, "sh", "-c", "trap 'exit 9' INT; echo up; sleep 3600 & wait"];
        let mut terminal = Terminal::start(kiai, &words, 24, 80);
        terminal.until("up");
        terminal.type_in("\x03");
        assert_eq!(terminal.finish().0, Some(9));
    });
}

#[test]
fn a_terminal_without_one_is_refused() {
    scenario(|kiai| kiai.call(&["run", "-it", "--rm", &busybox(), "true"]).refused(&["terminal"]));
}
