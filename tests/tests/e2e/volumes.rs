//! Host directories and files in the container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;

use kiai_tests::kiai::busybox;
use kiai_tests::kiai::scratch;
use kiai_tests::scenario;

#[test]
fn a_volume_is_read_and_written_by_both_sides() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let path = folder.path();
        fs::write(path.join("from-host"), "hello\n").unwrap();
        let volume = format!("{}:/data", path.display());
        let script = "cat /data/from-host; echo answer > /data/from-guest; \
                      mkdir /data/d; ln -s from-host /data/link; ln /data/from-host /data/hard; \
                      chmod 640 /data/from-guest; chown 1234:5678 /data/from-guest; \
                      mkfifo /data/fifo; dd if=/dev/zero of=/data/big bs=1M count=8 2>/dev/null; \
                      mv /data/big /data/moved; cat /data/link";
        let output = kiai.ok(&["run", "--rm", "-v", &volume, &busybox(), "sh", "-c", script]);
        assert_eq!(output, "hello\nhello");
        assert_eq!(fs::read_to_string(path.join("from-guest")).unwrap(), "answer\n");
        let file = fs::metadata(path.join("from-guest")).unwrap();
        assert_eq!((file.mode() & 0o777, file.uid(), file.gid()), (0o640, 1234, 5678));
        assert_eq!(fs::metadata(path.join("hard")).unwrap().nlink(), 2);
        assert_eq!(fs::read_link(path.join("link")).unwrap().to_str(), Some("from-host"));
        assert_eq!(fs::metadata(path.join("moved")).unwrap().len(), 8 << 20);
        assert!(path.join("d").is_dir());
    });
}

#[test]
fn a_users_files_are_the_users() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(1000), Some(1000)).unwrap();
        let volume = format!("{}:/data", folder.path().display());
        let script = "echo mine > /data/file; id > /root-only 2>/dev/null || echo refused";
        let output =
            kiai.ok(&["run", "--rm", "-u", "1000:1000", "-v", &volume, &busybox(), "sh", "-c", script]);
        assert_eq!(output, "refused");
        assert_eq!(fs::metadata(folder.path().join("file")).unwrap().uid(), 1000);
    });
}

#[test]
fn a_read_only_volume_is_read_only() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        fs::write(folder.path().join("file"), "kept").unwrap();
        let volume = format!("{}:/data:ro", folder.path().display());
        // Whatever the guest does to its own mount, the host's is read-only as well.
        let script = "cat /data/file; echo x > /data/file; mount -o remount,rw,bind /data; \
                      echo x > /data/file; echo x > /data/new; rm /data/file";
        let words = ["run", "--rm", "--cap-add", "SYS_ADMIN", "-v", &volume, &busybox(), "sh", "-c", script];
        let finished = kiai.call(&words);
        assert_eq!(finished.text(), "kept");
        assert!(finished.stderr.matches("Read-only file system").count() >= 3, "{finished}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "kept");
    });
}

#[test]
fn a_single_file_is_a_volume_too() {
    scenario(|kiai| {
        let file = tempfile::NamedTempFile::new_in(scratch()).unwrap();
        fs::write(&file, "before\n").unwrap();
        let volume = format!("{}:/etc/setting", file.path().display());
        let script = "cat /etc/setting; echo after > /etc/setting";
        let words = ["run", "--rm", "-v", &volume, &busybox(), "sh", "-c", script];
        assert_eq!(kiai.ok(&words), "before");
        assert_eq!(fs::read_to_string(&file).unwrap(), "after\n");
    });
}

#[test]
fn a_link_in_a_volume_leads_nowhere_on_the_host() {
    scenario(|kiai| {
        let outside = tempfile::tempdir_in(scratch()).unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        symlink(outside.path().join("secret"), folder.path().join("file")).unwrap();
        symlink(outside.path(), folder.path().join("folder")).unwrap();
        let volume = format!("{}:/data", folder.path().display());
        let script =
            "cat /data/file; cat /data/folder/secret; echo x > /data/file; ls /data/../../..; echo ran";
        let finished = kiai.call(&["run", "--rm", "-v", &volume, &busybox(), "sh", "-c", script]);
        assert!(!finished.text().contains("secret"), "{finished}");
        assert!(finished.text().ends_with("ran\n"), "{finished}");
        assert!(
            finished.stderr.matches("/data/f").count() >= 3,
            "each of the three ways is refused: {finished}"
        );
        assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    });
}

#[test]
fn what_cannot_be_mounted_is_named() {
    scenario(|kiai| {
        let image = busybox();
        for volume in ["tmp", "/tmp:relative", "/tmp:/data:sideways", ":/data", "/proc/none:/data"] {
            kiai.call(&["run", "--rm", "-v", volume, &image, "true"])
                .refused(&[volume.trim_end_matches(":/data")]);
        }
    });
}

#[test]
fn a_source_that_is_not_there_becomes_a_directory() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let source = folder.path().join("made/for/it");
        let volume = format!("{}:/data", source.display());
        kiai.ok(&["run", "--rm", "-v", &volume, &busybox(), "touch", "/data/file"]);
        assert!(source.join("file").is_file());
    });
}
