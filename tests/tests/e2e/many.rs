//! Many containers, one after the other. The scenario's count is the point.

use kiai_tests::scenario;

#[test]
fn twenty_one_after_the_other() {
    scenario(|kiai| {
        for number in 0..20 {
            let word = number.to_string();
            assert_eq!(kiai.busybox(&["echo", &word]).success(), word);
        }
    });
}
