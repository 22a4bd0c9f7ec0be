//! The runner of the tests counts a test that cannot run.

use std::path::Path;
use std::process::Command;

/// Says to a child of this test that it is the one that skips.
const CHILD: &str = "KIAI_TEST_SKIPS";

#[test]
fn each_skip_is_a_line_of_the_file_and_one_on_standard_error() {
    let name = "each_skip_is_a_line_of_the_file_and_one_on_standard_error";
    if std::env::var_os(CHILD).is_some() {
        kiai_skip::skip("no \"such\" device");
        return;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("skips-{}", std::process::id()));
    for _ in 0..2 {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name, "--nocapture", "--test-threads=2"]);
        let done = again.env(CHILD, "1").env(kiai_skip::SKIPS, &path).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        assert!(said.contains(&format!("skipped: {name}: no \"such\" device\n")), "{said}");
    }
    let lines = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let expected = format!("{{\"reason\":\"no \\\"such\\\" device\",\"test\":\"{name}\"}}\n");
    assert_eq!(lines, expected.repeat(2));
}

#[test]
fn a_skip_that_cannot_be_counted_fails_the_test() {
    let name = "a_skip_that_cannot_be_counted_fails_the_test";
    if std::env::var_os(CHILD).is_some() {
        kiai_skip::skip("not said");
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", name]).env(CHILD, "1").env(kiai_skip::SKIPS, "/proc/none/skips");
    assert!(!again.output().unwrap().status.success());
}
