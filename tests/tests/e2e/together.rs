//! Containers side by side. A module of its own: this is what emulated hardware virtualisation bears worst.

use kiai_tests::kiai::busybox;
use kiai_tests::scenario;

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
