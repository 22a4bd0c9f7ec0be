//! Files on disk, and specs before and after.

use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;
use proptest::prelude::*;

use super::apply::NodeFacts;
use super::apply::apply;
use super::*;

const VENDOR: &str = r#"{
    "cdiVersion": "0.6.0", "kind": "vendor.com/disk",
    "containerEdits": {"env": ["VENDOR=1", "PATH=/vendor"]},
    "devices": [
        {"name": "0", "containerEdits": {
            "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/loop0", "permissions": "r"}],
            "mounts": [{"hostPath": "/opt/vendor", "containerPath": "/usr/lib/vendor", "options": ["ro", "nosuid"]}],
            "env": ["DISK=0"], "additionalGids": [44, 0, 44]
        }},
        {"name": "1", "containerEdits": {"deviceNodes": [
            {"path": "/dev/vendor1", "type": "b", "major": 7, "minor": 1, "fileMode": 432, "uid": 5, "gid": 6}
        ]}},
        {"name": "hooked", "containerEdits": {"hooks": [
            {"hookName": "createContainer", "path": "/usr/bin/vendor-hook", "args": ["vendor-hook", "x"]}
        ]}},
        {"name": "net", "containerEdits": {"netDevices": [{"hostInterfaceName": "eth7", "name": "eth0"}]}},
        {"name": "rdt", "containerEdits": {"intelRdt": {"closID": "x"}}}
    ]
}"#;

fn registry(files: &[(&str, &str)]) -> Registry {
    let top = tempfile::tempdir().unwrap();
    let (etc, run) = (top.path().join("etc"), top.path().join("run"));
    fs::create_dir_all(&etc).unwrap();
    fs::create_dir_all(&run).unwrap();
    for (path, text) in files {
        fs::write(top.path().join(path), text).unwrap();
    }
    Registry::read_from(&[&etc, &run])
}

fn spec(annotations: &[(&str, &str)]) -> Spec {
    let annotations: serde_json::Map<_, _> =
        annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    serde_json::from_value(serde_json::json!({
        "ociVersion": "1.1.0",
        "process": {"cwd": "/", "args": ["x"], "user": {"uid": 7, "gid": 8}, "env": ["PATH=/bin", "A=b"]},
        "mounts": [{"destination": "/usr", "type": "tmpfs", "source": "tmpfs"}],
        "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}},
        "annotations": annotations,
    }))
    .unwrap()
}

fn look(path: &Path) -> Option<NodeFacts> {
    (path == Path::new("/dev/loop0")).then_some(NodeFacts {
        typ: LinuxDeviceType::B,
        major: 7,
        minor: 0,
        mode: 0o660,
    })
}

fn applied(spec: &Spec, names: &[&str]) -> Result<Spec, CdiError> {
    let registry = registry(&[("etc/vendor.json", VENDOR)]);
    let names: Vec<DeviceName> = names.iter().map(|name| name.parse().unwrap()).collect();
    Ok(apply(spec, &registry.edits(&names)?, &look)?)
}

#[test]
fn what_a_device_needs_goes_into_the_spec() {
    let after = applied(&spec(&[]), &["vendor.com/disk=0", "vendor.com/disk=1"]).unwrap();
    let json = serde_json::to_value(&after).unwrap();
    assert_eq!(json["process"]["env"], serde_json::json!(["A=b", "VENDOR=1", "PATH=/vendor", "DISK=0"]));
    assert_eq!(json["process"]["user"]["additionalGids"], serde_json::json!([44]));
    let devices = &json["linux"]["devices"];
    let expected = serde_json::json!([
        {"path": "/dev/vendor0", "type": "b", "major": 7, "minor": 0, "fileMode": 0o660, "uid": 7, "gid": 8},
        {"path": "/dev/vendor1", "type": "b", "major": 7, "minor": 1, "fileMode": 0o660, "uid": 5, "gid": 6},
    ]);
    assert_eq!(*devices, expected);
    let rules = after.linux().clone().unwrap().resources().clone().unwrap().devices().clone().unwrap();
    let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["a *:* rwm", "b 7:0 r", "b 7:1 rwm"]);
    let mount = &json["mounts"][1];
    assert_eq!(mount["destination"], "/usr/lib/vendor");
    assert_eq!(mount["options"], serde_json::json!(["ro", "nosuid", "rbind"]));
}

#[test]
fn applying_it_again_changes_nothing() {
    let once = applied(&spec(&[]), &["vendor.com/disk=0"]).unwrap();
    assert_eq!(applied(&once, &["vendor.com/disk=0"]).unwrap(), once);
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    for (device, words) in [
        ("hooked", vec!["vendor.com/disk=hooked", "createContainer", "/usr/bin/vendor-hook"]),
        ("net", vec!["vendor.com/disk=net", "eth7"]),
        ("rdt", vec!["vendor.com/disk=rdt", "intelRdt"]),
        ("2", vec!["vendor.com/disk=2", "/etc/cdi"]),
    ] {
        let before = spec(&[]);
        let error = applied(&before, &[&format!("vendor.com/disk={device}")]).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let registry = registry(&[("etc/vendor.json", VENDOR)]);
    let names = ["vendor.com/disk=0".parse().unwrap()];
    let error = apply(&spec(&[]), &registry.edits(&names).unwrap(), &|_| None).unwrap_err();
    assert!(error.to_string().contains("/dev/loop0"), "{error}");
}

fn for_a_running(process: serde_json::Value, edits: serde_json::Value) -> Result<Needed, String> {
    let file = serde_json::json!({"cdiVersion": "0.6.0", "kind": "vendor.com/disk",
        "devices": [{"name": "0", "containerEdits": edits}]});
    let registry = registry(&[("etc/vendor.json", &file.to_string())]);
    let name: DeviceName = "vendor.com/disk=0".parse().unwrap();
    let edits = registry.edits(std::slice::from_ref(&name)).unwrap();
    let process = serde_json::from_value(process).unwrap();
    super::apply::needed(&name, &process, &edits, &look).map_err(|error| error.to_string())
}

fn process() -> serde_json::Value {
    serde_json::json!({"cwd": "/", "args": ["x"], "env": ["A=b", "VENDOR=1"],
        "user": {"uid": 7, "gid": 8, "additionalGids": [44]}})
}

#[test]
fn a_running_container_gets_nodes_and_mounts_and_what_it_has_already() {
    let edits = serde_json::json!({
        "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/loop0", "permissions": "r"}],
        "mounts": [{"hostPath": "/opt/vendor", "containerPath": "/usr/lib/vendor",
            "options": ["ro", "nosuid", "rbind", "rprivate"]}],
        "env": ["VENDOR=1"], "additionalGids": [0, 8, 44]
    });
    let needed = for_a_running(process(), edits).unwrap();
    let devices = serde_json::to_value(&needed.devices).unwrap();
    let node = serde_json::json!([
        {"path": "/dev/vendor0", "type": "b", "major": 7, "minor": 0, "fileMode": 0o660, "uid": 7, "gid": 8},
    ]);
    assert_eq!(devices, node);
    assert_eq!(needed.rules.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b 7:0 r"]);
    let mount = NeededMount {
        source: "/opt/vendor".into(),
        destination: "/usr/lib/vendor".into(),
        read_only: true,
        options: vec!["nosuid".into()],
    };
    assert_eq!(needed.mounts, [mount]);
}

#[test]
fn what_a_file_says_for_all_its_devices_each_of_them_needs() {
    let file = serde_json::json!({"cdiVersion": "0.6.0", "kind": "vendor.com/disk",
        "containerEdits": {"mounts": [{"hostPath": "/opt/all", "containerPath": "/all"}]},
        "devices": [{"name": "0", "containerEdits": {"mounts": [{"hostPath": "/opt/0", "containerPath": "/0"}]}},
            {"name": "1", "containerEdits": {"mounts": [{"hostPath": "/opt/1", "containerPath": "/1"}]}}]});
    let registry = registry(&[("etc/vendor.json", &file.to_string())]);
    let names = ["vendor.com/disk=0", "vendor.com/disk=1"].map(|name| name.parse().unwrap());
    let process = serde_json::from_value(process()).unwrap();
    let needed = super::for_running(&names, &process, &registry).unwrap();
    let mounts = |needed: &Needed| -> Vec<_> {
        needed.mounts.iter().map(|mount| mount.destination.display().to_string()).collect()
    };
    assert_eq!(needed.iter().map(mounts).collect::<Vec<_>>(), [["/all", "/0"], ["/all", "/1"]]);
}

#[test]
fn what_a_running_container_cannot_be_given_is_refused_by_name() {
    for (edits, word) in [
        (serde_json::json!({"env": ["VENDOR=2"]}), "variable VENDOR"),
        (serde_json::json!({"env": ["VENDOR=1", "OTHER=1"]}), "variable OTHER"),
        (serde_json::json!({"additionalGids": [45]}), "group 45"),
        (
            serde_json::json!({"hooks": [{"hookName": "poststop", "path": "/bin/hook"}]}),
            "poststop hook /bin/hook",
        ),
        (serde_json::json!({"netDevices": [{"hostInterfaceName": "eth7", "name": "eth0"}]}), "eth7"),
        (serde_json::json!({"intelRdt": {"closID": "x"}}), "intelRdt"),
        (
            serde_json::json!({"mounts": [{"hostPath": "/t", "containerPath": "/tmp", "type": "tmpfs"}]}),
            "mount /tmp of type tmpfs",
        ),
        (
            serde_json::json!({"mounts": [{"hostPath": "/t", "containerPath": "/t", "options": ["rshared"]}]}),
            "mount /t with option rshared",
        ),
    ] {
        let error = for_a_running(process(), edits).unwrap_err();
        assert!(error.contains("vendor.com/disk=0") && error.contains(word), "{error}");
    }
}

#[test]
fn annotations_name_devices() {
    let all = [
        ("cdi.k8s.io/b", "vendor.com/disk=1,vendor.com/disk=0"),
        ("cdi.k8s.io/a", "vendor.com/disk=1"),
        ("other", "vendor.com/disk=7"),
    ];
    let names: Vec<_> = wanted(&spec(&all)).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["vendor.com/disk=1", "vendor.com/disk=0"]);
    let plain = spec(&[("other", "x")]);
    let untouched = apply_annotations(plain.clone(), || panic!("nobody asks for a file")).unwrap();
    assert_eq!(untouched, plain);
    let error = wanted(&spec(&[("cdi.k8s.io/x", "vendor.com/disk=1, nonsense")])).unwrap_err();
    assert!(matches!(error, CdiError::Annotation { annotation, .. } if annotation == "cdi.k8s.io/x"));
}

#[test]
fn yaml_is_read_as_well_and_a_later_directory_wins() {
    let yaml = "cdiVersion: \"1.0.0\"\nkind: vendor.com/disk\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [\"FROM=run\"]\n";
    let registry = registry(&[
        ("etc/vendor.json", VENDOR),
        ("run/vendor.yaml", yaml),
        ("run/README", "no file of ours"),
    ]);
    let name: DeviceName = "vendor.com/disk=0".parse().unwrap();
    let edits = registry.edits(std::slice::from_ref(&name)).unwrap();
    assert_eq!(edits.last().unwrap().1.env, ["FROM=run"]);
    assert!(registry.edits(&["vendor.com/disk=1".parse().unwrap()]).is_ok());
}

#[test]
fn a_device_that_two_files_of_a_directory_have_is_refused() {
    let name = ["vendor.com/disk=0".parse().unwrap()];
    let twice = registry(&[("etc/a.json", VENDOR), ("etc/b.json", VENDOR)]);
    let error = twice.edits(&name).unwrap_err().to_string();
    assert!(error.contains("a.json") && error.contains("b.json"), "{error}");
    let decided = registry(&[("etc/a.json", VENDOR), ("etc/b.json", VENDOR), ("run/c.json", VENDOR)]);
    assert!(decided.edits(&name).is_ok());
}

#[test]
fn a_file_that_cannot_be_read_costs_the_others_nothing_and_is_named() {
    for (broken, word) in [
        ("{", "EOF"),
        (r#"{"cdiVersion":"0.6.0","kind":"x","devices":[{"name":"0","containerEdits":{}}]}"#, "kind"),
        (r#"{"cdiVersion":"9","kind":"v.com/c","devices":[{"name":"0","containerEdits":{}}]}"#, "cdiVersion"),
        (r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[]}"#, "no devices"),
        (r#"{"cdiVersion":"0.6.0","kind":"v.com/c","surprise":1,"devices":[]}"#, "surprise"),
        (r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"-","containerEdits":{}}]}"#, "name"),
        (
            r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"0","containerEdits":{"env":["=x"]}}]}"#,
            "env",
        ),
        (
            r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"0","containerEdits":
                {"deviceNodes":[{"path":"dev/x"}]}}]}"#,
            "absolute",
        ),
    ] {
        let registry = registry(&[("etc/broken.json", broken), ("etc/vendor.json", VENDOR)]);
        assert!(registry.edits(&["vendor.com/disk=0".parse().unwrap()]).is_ok());
        let error = registry.edits(&["v.com/c=0".parse().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("broken.json") && error.contains(word), "{error}");
    }
}

#[test]
fn names_have_a_form() {
    for name in ["vendor.com/class=name", "v/c=0", "a-b.c_d/e-f=0:1.2", "nvidia.com/gpu=all"] {
        assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
    }
    for name in
        ["", "x", "/dev/null", "v/c", "v/c=", "v/=x", "/c=x", "1v/c=x", "v/c=x y", "v/c=x-", "v.com/c.d=x"]
    {
        assert!(name.parse::<DeviceName>().is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn no_text_is_worse_than_an_error(text in "\\PC{0,200}", extension in "json|yaml") {
        let registry = registry(&[(&format!("etc/x.{extension}"), &text)]);
        let name: DeviceName = "vendor.com/disk=0".parse().unwrap();
        prop_assert!(registry.edits(&[name]).is_err());
    }
}
