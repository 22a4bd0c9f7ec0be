//! The store against itself: names, ids, locks, damage.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::store::record::ImageRecord;
use crate::store::record::Status;
use crate::store::timestamp::Timestamp;

fn store() -> (TempDir, Store) {
    let temporary = TempDir::new().unwrap();
    let paths = Paths {
        root: temporary.path().join("root"),
        state: temporary.path().join("state"),
        namespace: "default".into(),
    };
    (temporary, Store::new(paths))
}

fn record(id: &str, name: &str) -> Record {
    Record {
        version: record::VERSION,
        id: id.to_owned(),
        name: name.to_owned(),
        image: ImageRecord { name: "debian".into(), digest: None },
        command: vec!["sh".into()],
        created: Timestamp::now(),
        layers: vec![PathBuf::from("/layer")],
        terminal: false,
        auto_remove: false,
        log: None,
        stop_signal: "SIGTERM".into(),
        ports: Vec::new(),
        volumes: Vec::new(),
        addresses: Vec::new(),
        status: Status::Creating,
        startup: None,
        labels: Default::default(),
        stop_timeout: None,
        restart: Default::default(),
        restarts: 0,
        stopped: false,
        anonymous_volumes: Vec::new(),
    }
}

fn make(store: &Store, name: &str) -> ContainerDirectory {
    let (container, _lock) = store.create(name).unwrap();
    container.write_record(&record(container.id(), name)).unwrap();
    container
}

#[test]
fn a_name_belongs_to_one_container() {
    let (_keep, store) = store();
    let first = make(&store, "web");
    match store.create("web") {
        Err(StoreError::NameTaken { name, id }) => {
            assert_eq!((name.as_str(), id.as_str()), ("web", first.id()))
        }
        other => panic!("{other:?}"),
    }
    store.remove(&first, "web").unwrap();
    store.remove(&first, "web").unwrap();
    make(&store, "web");
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn containers_are_found_by_name_id_and_prefix() {
    let (_keep, store) = store();
    let container = make(&store, "web");
    for text in ["web", container.id(), &container.id()[..4]] {
        assert_eq!(store.find(text).unwrap().1.name, "web", "{text}");
    }
    for text in ["nope", "", "../web", "."] {
        assert!(matches!(store.find(text), Err(StoreError::NoContainer(_))), "{text}");
    }
}

#[test]
fn a_container_has_the_name_of_its_record() {
    let (_keep, store) = store();
    let container = make(&store, "old");
    make(&store, "taken");
    let mut record = container.record().unwrap().unwrap();
    assert!(matches!(store.rename(&container, &mut record, "taken"), Err(StoreError::NameTaken { .. })));
    store.rename(&container, &mut record, "new").unwrap();
    assert_eq!(store.find("new").unwrap().0.id(), container.id());
    assert!(matches!(store.find("old"), Err(StoreError::NoContainer(_))));
    // A command that is killed between its steps leaves a second link.
    std::os::unix::fs::symlink(container.id(), store.paths().names().join("old")).unwrap();
    assert!(matches!(store.find("old"), Err(StoreError::NoContainer(_))));
    make(&store, "old");
    assert_eq!(store.find("new").unwrap().0.id(), container.id());
}

/// Set in the process that runs one test.
const ALONE: &str = "KIAI_TEST_ALONE";

/// Runs the test called `name` in a process of its own: programs that other tests start hold this one's locks from their
/// fork to their exec.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let name = format!("store::tests::{name}");
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_container_without_a_record_is_seen_only_when_its_maker_died() {
    alone("a_container_without_a_record_is_seen_only_when_its_maker_died", || {
        let (_keep, store) = store();
        let (container, lock) = store.create("web").unwrap();
        assert!(store.list().unwrap().is_empty());
        assert!(store.abandoned().unwrap().is_empty());
        drop(lock);
        let abandoned = store.abandoned().unwrap();
        assert_eq!(abandoned.len(), 1);
        assert_eq!(abandoned[0].0.id(), container.id());
    });
}

#[test]
fn only_one_of_many_gets_a_name() {
    let (_keep, store) = store();
    let winners: usize = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| usize::from(store.create("web").is_ok()))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(winners, 1);
}

#[test]
fn a_lock_waits_for_the_other() {
    let (_keep, store) = store();
    let container = make(&store, "web");
    let held = container.lock().unwrap().unwrap();
    assert!(container.try_lock().unwrap().is_none());
    let waiting = std::thread::spawn({
        let container = container.clone();
        move || container.lock().unwrap().is_some()
    });
    store.remove(&container, "web").unwrap();
    drop(held);
    // It waited for a container that is gone.
    assert!(!waiting.join().unwrap());
}

#[test]
fn damage_is_named() {
    let (_keep, store) = store();
    let container = make(&store, "web");
    let path = container.directory().join("record.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (content, expected) in [
        (text.replace("\"version\": 1", "\"version\": 99"), "has version 99, this kiai reads version 1"),
        (text[..40].to_owned(), "is damaged"),
        (text.replace("\"name\"", "\"nom\""), "is damaged"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = container.record().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("record.json"), "{error}");
    }
}

#[test]
fn orphans_go_and_other_peoples_data_stays() {
    let (_keep, store) = store();
    let layer = store.paths().root.join("layer");
    file::create_directories(&layer).unwrap();
    let kept = make(&store, "kept");
    rootfs::create_upper(store.paths(), &kept, std::slice::from_ref(&layer)).unwrap();
    let lost = make(&store, "lost");
    rootfs::create_upper(store.paths(), &lost, std::slice::from_ref(&layer)).unwrap();
    std::fs::remove_dir_all(lost.directory()).unwrap();
    let foreign = store.paths().root.join("containers/ffffffffffff");
    file::create_directories(&foreign).unwrap();
    std::fs::write(foreign.join(rootfs::OWNER), "/elsewhere\ndefault\n").unwrap();
    store.remove_orphans().unwrap();
    assert!(kept.data().exists() && foreign.exists() && !lost.data().exists());
}

#[test]
fn many_layers_are_named_by_short_links() {
    let (_keep, store) = store();
    let container = make(&store, "web");
    let few: Vec<PathBuf> = vec!["/layers/a".into(), "/layers/b".into()];
    let options = rootfs::overlay_options(&container, &few).unwrap();
    assert_eq!(options[0], "lowerdir=/layers/a:/layers/b");
    let odd: Vec<PathBuf> = vec!["/layers/a:b".into()];
    rootfs::overlay_options(&container, &odd).unwrap();
    // A container is started more than once.
    let options = rootfs::overlay_options(&container, &odd).unwrap();
    assert_eq!(options[0], format!("lowerdir={}/0", container.links().display()));
    assert_eq!(std::fs::read_link(container.links().join("0")).unwrap(), odd[0]);
}
