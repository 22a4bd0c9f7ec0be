//! Takes over interfaces of a namespace of the test's own. Needs root, as the whole suite does.

use std::process::Command;

use super::*;

/// Set in the process that runs one test.
const ALONE: &str = "KIAI_TEST_ALONE";

/// Runs the test called `name` on a thread whose network namespace is its own, with its path, in a process of
/// its own: programs that other tests start hold the descriptors of this one's taps from their fork to their exec.
fn in_own_namespace(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    if std::env::var_os(ALONE).is_none() {
        let name = format!("host::network::tests::{name}");
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let thread = rustix::thread::gettid().as_raw_nonzero();
        test(Path::new(&format!("/proc/self/task/{thread}/ns/net")));
    })
    .join()
    .unwrap();
}

fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_interface_can_be_taken_over_again_only_after_its_taps_are_closed() {
    in_own_namespace("an_interface_can_be_taken_over_again_only_after_its_taps_are_closed", |namespace| {
        run("ip", "link add eth1 type veth peer name peer1");
        let named = ["eth1".to_owned()];
        let take = || take_over(namespace, 1, Some(&named));
        let taken = take().unwrap();
        assert_eq!((taken.nics.len(), taken.nics[0].taps.len()), (1, 1));
        let again = take().unwrap_err();
        assert!(matches!(again, NetworkError::Tap { .. }), "{again}");
        drop(taken);
        let taken = take().unwrap();
        let tap = run("ip", "-o link").lines().find(|link| link.contains("kiai")).unwrap().to_owned();
        let filters = run("tc", "filter show dev eth1 ingress");
        let tap = tap.split([' ', ':']).find(|word| word.starts_with("kiai")).unwrap();
        assert!(filters.contains(&format!("Redirect to device {tap}")), "{filters}");
        assert_eq!(filters.matches("mirred").count(), 1, "{filters}");
        drop(taken);
    });
}

#[test]
fn filters_of_another_program_stay() {
    in_own_namespace("filters_of_another_program_stay", |namespace| {
        run("ip", "link add eth1 type veth peer name peer1");
        let named = ["eth1".to_owned()];
        run("tc", "qdisc add dev eth1 ingress");
        let elsewhere = "filter add dev eth1 ingress protocol all u32 match u32 0 0 \
                         action mirred egress redirect dev peer1";
        for filter in [None, Some(elsewhere)] {
            filter.map(|filter| run("tc", filter));
            let before = run("tc", "filter show dev eth1 ingress");
            let error = take_over(namespace, 1, Some(&named)).unwrap_err();
            assert!(error.to_string().contains("eth1"), "{error}");
            assert_eq!(run("tc", "filter show dev eth1 ingress"), before);
        }
    });
}
