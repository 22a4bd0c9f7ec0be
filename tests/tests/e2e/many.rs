//! Many containers, one after the other and side by side. The scenario's count is the point.

use kiai_tests::kiai::busybox;
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

#[test]
fn five_at_once() {
    scenario(|kiai| {
        let image = busybox();
        let start = |number: usize| {
            let script = format!("echo {number}; cat /proc/sys/kernel/random/boot_id; exit {number}");
            kiai.start(&["run", "--rm", &image, "sh", "-c", &script])
        };
        let running: Vec<_> = (0..5).map(start).collect();
        let mut kernels = std::collections::BTreeSet::new();
        for (number, running) in running.into_iter().enumerate() {
            let finished = running.finish();
            assert_eq!(finished.code, i32::try_from(number).ok(), "{finished}");
            let text = finished.text();
            let (first, boot_id) = text.trim_end().split_once('\n').unwrap();
            assert_eq!(first, number.to_string());
            kernels.insert(boot_id.to_owned());
        }
        assert_eq!(kernels.len(), 5, "each has a kernel of its own");
    });
}
