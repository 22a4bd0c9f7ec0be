//! `kiai cp`: files to and from containers, running or not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;

use kiai_tests::kiai::busybox;
use kiai_tests::kiai::scratch;
use kiai_tests::scenario;

#[test]
fn files_go_both_ways_whether_the_container_runs_or_not() {
    scenario(|kiai| {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir_all(folder.path().join("tree/sub")).unwrap();
        fs::write(path("tree/sub/file"), "from the host").unwrap();
        symlink("file", path("tree/sub/link")).unwrap();
        let volume = format!("{}:/vol", folder.path().join("tree").display());
        let script = "mkdir -p /made/sub; echo guest > /made/sub/file; ln -s /made/sub/file /made/link; \
                      chown -R 12:34 /made; trap 'exit 0' TERM; echo up; while :; do sleep 3600 & wait; done";
        let words = ["run", "-d", "--name", "box", "-v", &volume, &busybox(), "sh", "-c", script];
        kiai.ok(&words);
        kiai.start(&["logs", "-f", "box"]).until("up\n");
        let both_ways = |round: &str| {
            kiai.ok(&["cp", &path("tree"), &format!("box:/tree-{round}")]);
            kiai.ok(&["cp", &format!("{}/.", path("tree")), "box:/made"]);
            kiai.ok(&["cp", "box:/made", &path(round)]);
            let copy = |name: &str| folder.path().join(round).join(name);
            assert_eq!(fs::read_to_string(copy("sub/file")).unwrap(), "from the host");
            assert_eq!(fs::read_link(copy("link")).unwrap().to_str(), Some("/made/sub/file"));
            kiai.ok(&["cp", "-L", "box:/made/link", &path("followed")]);
            assert_eq!(fs::read_to_string(path("followed")).unwrap(), "from the host");
            kiai.ok(&["cp", "box:/vol/sub/link", &path(&format!("link-{round}"))]);
            assert_eq!(fs::read_link(path(&format!("link-{round}"))).unwrap().to_str(), Some("file"));
            assert_eq!(fs::metadata(copy("")).unwrap().uid(), 0);
            kiai.ok(&["cp", "-a", "box:/made", &path(&format!("owned-{round}"))]);
            assert_eq!(fs::metadata(path(&format!("owned-{round}"))).unwrap().gid(), 34);
            let archive = kiai.call(&["cp", "box:/made/sub", "-"]).stdout;
            let mut archive = tar::Archive::new(&archive[..]);
            let names: Vec<_> = archive
                .entries()
                .unwrap()
                .map(|e| e.unwrap().path().unwrap().display().to_string())
                .collect();
            assert!(names.contains(&"sub/file".to_owned()), "{names:?}");
        };
        both_ways("running");
        let seen =
            kiai.ok(&["exec", "box", "sh", "-c", "cat /tree-running/sub/link; stat -c %u /tree-running"]);
        assert_eq!(seen, "from the host0");
        kiai.ok(&["stop", "box"]);
        both_ways("stopped");
        let archive = kiai.call(&["cp", "box:/tree-stopped", "-"]).stdout;
        kiai.ok(&["start", "box"]);
        kiai.call_with(&["cp", "-", "box:/root"], archive.clone()).success();
        let seen = kiai.ok(&["exec", "box", "cat", "/root/tree-stopped/sub/file", "/tree-stopped/sub/file"]);
        assert_eq!(seen, "from the hostfrom the host");
        kiai.call_with(&["cp", "-", "box:/none"], archive).refused(&["/none"]);
        kiai.ok(&["rm", "-f", "box"]);
    });
}

#[test]
fn no_link_leads_out_of_the_container() {
    scenario(|kiai| {
        let outside = tempfile::tempdir_in(scratch()).unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "the host's").unwrap();
        let script = "ln -s $0 /folder; ln -s $0/secret /file; ln -s ../../../../../..$0 /up; \
                      trap 'exit 0' TERM; echo up; while :; do sleep 3600 & wait; done";
        let words = ["run", "-d", "--name", "sly", &busybox(), "sh", "-c", script];
        kiai.ok(&[&words[..], &[outside.path().to_str().unwrap()]].concat());
        kiai.start(&["logs", "-f", "sly"]).until("up\n");
        let mine = outside.path().join("mine");
        fs::write(&mine, "mine").unwrap();
        let mine = mine.to_str().unwrap();
        let never = || {
            for from in ["sly:/folder/secret", "sly:/up/secret"] {
                kiai.call(&["cp", from, "-"]).refused(&[from]);
            }
            kiai.call(&["cp", "-L", "sly:/file", "-"]).refused(&["sly:/file"]);
            for to in ["sly:/folder/secret", "sly:/up/new"] {
                kiai.call(&["cp", mine, to]).refused(&[to]);
            }
            // The link itself is replaced, as docker does it, and nothing behind it.
            assert_eq!(fs::read_to_string(&secret).unwrap(), "the host's");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
        };
        never();
        kiai.ok(&["stop", "sly"]);
        never();
        kiai.ok(&["rm", "sly"]);
    });
}

#[test]
fn what_cannot_be_copied_is_named() {
    scenario(|kiai| {
        let words = ["--read-only", "--tmpfs", "/t"];
        kiai.keep_running("shut", &words);
        kiai.call(&["cp", "/etc/hostname", "shut:/x"]).refused(&["shut", "read-only"]);
        kiai.call(&["cp", "shut:/t", "-"]).refused(&["shut:/t", "memory"]);
        kiai.call(&["cp", "shut:/proc/version", "-"]).refused(&["/proc", "memory"]);
        kiai.call(&["cp", "shut:/none", "-"]).refused(&["/none"]);
        kiai.call(&["cp", "nobody:/x", "-"]).refused(&["nobody"]);
        kiai.call(&["cp", "shut:/etc", "shut:/x"]).refused(&["one container to another"]);
        kiai.call(&["cp", "/etc/hostname", "/tmp/x"]).refused(&["CONTAINER:PATH"]);
        kiai.ok(&["rm", "-f", "shut"]);
    });
}
