//! What is missing, damaged or makes no sense is refused, and named.

use kiai_tests::kiai::busybox;
use kiai_tests::scenario;
use std::fs;

#[test]
fn an_initramfs_that_is_missing_or_damaged_is_named() {
    scenario(|kiai| {
        let folder = tempfile::tempdir().unwrap();
        let damaged = folder.path().join("damaged-initramfs");
        fs::write(&damaged, vec![0x5a; 100_000]).unwrap();
        for initramfs in ["/no/such/initramfs", damaged.to_str().unwrap()] {
            let mut command = kiai.command(&["run", "--rm", &busybox(), "true"]);
            command.env("KIAI_INITRD", initramfs);
            kiai_tests::Running::start(command, None).finish().refused(&[initramfs]);
        }
    });
}

#[test]
fn an_image_that_is_missing_or_makes_no_sense_is_named() {
    scenario(|kiai| {
        for image in
            ["oci:/no/such/layout", "docker-archive:/no/such.tar", "UPPER/case", "127.0.0.1:9/none:1"]
        {
            kiai.call(&["run", "--rm", image, "true"]).refused(&[image]);
        }
        kiai.call(&["run", "--rm", "--rootfs", "/no/such/folder", "true"]).refused(&["/no/such/folder"]);
    });
}

#[test]
fn words_that_make_no_sense_are_named() {
    scenario(|kiai| {
        let image = busybox();
        let wrong = [
            ("-p", "99999:1"),
            ("-p", "a:b"),
            ("--ulimit", "files=1"),
            ("--cap-add", "FLYING"),
            ("--tmpfs", "relative"),
            ("--network", "no-such-network"),
            ("--env-file", "/no/such/file"),
            ("-u", "nobody-of-that-name"),
            ("--device", "/dev/no-such-device"),
        ];
        for (option, value) in wrong {
            kiai.call(&["run", "--rm", option, value, &image, "true"]).refused(&[value]);
        }
        kiai.call(&["run", "--no-such-option", &image]).refused(&["--no-such-option"]);
        for verb in ["stop", "kill", "rm", "logs", "wait", "stats", "inspect"] {
            kiai.call(&[verb, "nobody"]).refused(&["nobody"]);
        }
    });
}
