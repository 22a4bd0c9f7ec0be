//! Layers good and bad, against a real directory. They run as root, as the store does.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

/// A tar archive of (path, type, content or link target).
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o4711 });
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000);
        let link = matches!(kind, EntryType::Link | EntryType::Symlink);
        if link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let data = if link { "" } else { content };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn apply(tree: &Path, bytes: &[u8]) -> Result<u64, ImageError> {
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
    layer(tree, "sha256:layer", bytes, bytes.len() as u64, &diff_id)
}

use EntryType::Block;
use EntryType::Directory;
use EntryType::Link;
use EntryType::Regular;
use EntryType::Symlink;

#[test]
fn owners_modes_links_and_times_are_those_of_the_archive() {
    let tree = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        ("d/", Directory, ""),
        ("d/file", Regular, "content"),
        ("d/again", Link, "d/file"),
        ("link", Symlink, "/d/file"),
        ("made/for/it", Regular, "x"),
    ]);
    apply(tree.path(), &bytes).unwrap();
    let file = std::fs::metadata(tree.path().join("d/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o7777), (1000, 1001, 0o4711));
    assert_eq!((file.nlink(), file.mtime()), (2, 1_000_000));
    assert_eq!(std::fs::metadata(tree.path().join("d")).unwrap().mtime(), 1_000_000);
    assert_eq!(std::fs::read_link(tree.path().join("link")).unwrap(), Path::new("/d/file"));
    assert_eq!(std::fs::read(tree.path().join("made/for/it")).unwrap(), b"x");
}

#[test]
fn whiteouts_take_away_what_is_below_and_only_that() {
    let tree = tempfile::tempdir().unwrap();
    let below = [("a/gone", Regular, ""), ("a/kept", Regular, ""), ("o/old/deep", Regular, "")];
    apply(tree.path(), &archive(&below)).unwrap();
    let above = [
        ("a/.wh.gone", Regular, ""),
        ("o/new", Regular, ""),
        ("o/.wh..wh..opq", Regular, ""),
        ("none/.wh.x", Regular, ""),
    ];
    apply(tree.path(), &archive(&above)).unwrap();
    let names = |directory: &str| {
        let mut names: Vec<_> = std::fs::read_dir(tree.path().join(directory))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!((names("a"), names("o")), (vec!["kept".to_owned()], vec!["new".to_owned()]));
}

#[test]
fn a_link_below_leads_inside_the_tree() {
    let tree = tempfile::tempdir().unwrap();
    apply(tree.path(), &archive(&[("usr/bin/", Directory, ""), ("bin", Symlink, "usr/bin")])).unwrap();
    apply(tree.path(), &archive(&[("bin/tool", Regular, "x"), ("abs", Symlink, "/usr")])).unwrap();
    apply(tree.path(), &archive(&[("abs/bin/other", Regular, "y")])).unwrap();
    assert!(tree.path().join("usr/bin/tool").exists() && tree.path().join("usr/bin/other").exists());
}

#[test]
fn what_means_harm_is_refused_by_name() {
    let outside = tempfile::tempdir().unwrap();
    let tree = outside.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for (entries, name, reason) in [
        (vec![("../escaped", Regular, "x")], "../escaped", "climbs"),
        (vec![("a/../../escaped", Regular, "x")], "a/../../escaped", "climbs"),
        (vec![("up", Symlink, "../../x")], "up", "outside"),
        (vec![("null", Block, "")], "null", "device"),
        (vec![("shadow", Link, "/etc/shadow")], "shadow", "hard link"),
        (vec![("shadow", Link, "../../../etc/shadow")], "shadow", "climbs"),
        (vec![("x/.wh...", Regular, "")], "x/.wh...", "whiteout"),
    ] {
        let error = apply(&tree, &archive(&entries)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
    apply(&tree, &archive(&[("out", Symlink, "/tmp-of-nobody"), ("out/file", Regular, "x")])).unwrap_err();
    let beside: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
}

#[test]
fn a_bomb_ends_at_its_limit() {
    let tree = tempfile::tempdir().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("zeroes").unwrap();
    header.set_size(2 << 30);
    header.set_cksum();
    let head = std::io::Cursor::new(header.as_bytes().to_vec());
    let bomb = std::io::BufReader::new(head.chain(io::repeat(0)));
    let error = layer(tree.path(), "sha256:bomb", bomb, 100, "sha256:x").unwrap_err().to_string();
    assert!(error.contains("sha256:bomb") && error.contains("more than"), "{error}");
}

#[test]
fn a_layer_that_is_not_what_the_image_says_is_damaged() {
    let tree = tempfile::tempdir().unwrap();
    let bytes = archive(&[("a", Regular, "x")]);
    let error = layer(tree.path(), "sha256:l", &bytes[..], 1, "sha256:other").unwrap_err().to_string();
    assert!(error.contains("sha256:l") && error.contains("sha256:other"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_stay_inside(noise in prop::collection::vec(any::<u8>(), 0..2048), at in 0usize..4096) {
        let outside = tempfile::tempdir().unwrap();
        let tree = outside.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut bytes = archive(&[("a/b", Regular, "x"), ("l", Symlink, "/"), ("l/c", Regular, "y")]);
        let at = at.min(bytes.len());
        let end = (at + noise.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&noise[..end - at]);
        let _ = apply(&tree, &bytes);
        prop_assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_name_without_end_is_not_read_to_its_end() {
    let mut builder = tar::Builder::new(Vec::new());
    let name = vec![b'n'; 3 << 20];
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(name.len() as u64);
    header.set_cksum();
    builder.append(&header, &name[..]).unwrap();
    let tree = tempfile::tempdir().unwrap();
    let error = apply(tree.path(), &builder.into_inner().unwrap()).unwrap_err().to_string();
    assert!(error.contains("1048576"), "{error}");
}

#[test]
fn content_that_nobody_wants_is_no_header() {
    let long = "x".repeat(3 << 20);
    // A directory has no content, but the archive says it has.
    let bytes = archive(&[("d", Directory, &long), ("after", Regular, "here")]);
    let tree = tempfile::tempdir().unwrap();
    apply(tree.path(), &bytes).unwrap();
    assert_eq!(std::fs::read(tree.path().join("after")).unwrap(), b"here");
}
