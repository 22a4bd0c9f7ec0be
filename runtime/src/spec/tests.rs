//! Whole specifications against what docker would make.

use oci_spec::image::ConfigBuilder;

use super::*;
use crate::spec::user::resolve_user;

fn input<'a>(image: &'a Config, options: &'a Options) -> SpecInput<'a> {
    SpecInput {
        image,
        options,
        environment: Environment::from_image(image.env().as_deref().unwrap_or_default()),
        user: resolve_user(&Default::default(), "", "").unwrap(),
        hostname: "box",
        volumes: Vec::new(),
        devices: Vec::new(),
        etc: EtcFiles::default(),
        network_namespace: None,
    }
}

fn image() -> Config {
    ConfigBuilder::default()
        .env(vec!["PATH=/bin".to_owned(), "LANG=C".to_owned()])
        .cmd(vec!["sh".to_owned()])
        .working_dir("/srv")
        .build()
        .unwrap()
}

#[test]
fn the_image_alone_makes_a_process() {
    let (image, options) = (image(), Options::default());
    let spec = plan_spec(input(&image, &options)).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
    assert_eq!(process.cwd(), &PathBuf::from("/srv"));
    assert_eq!(process.env().as_ref().unwrap(), &["PATH=/bin", "LANG=C", "HOSTNAME=box", "HOME=/root"]);
    assert_eq!(process.terminal(), Some(false));
    assert_eq!(spec.hostname().as_deref(), Some("box"));
    assert_eq!(spec.annotations().as_ref().unwrap().len(), 0);
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
}

#[test]
fn limits_size_container_and_sandbox() {
    let image = image();
    let options = Options {
        cpus: Some("1.5".parse().unwrap()),
        memory: Some("64m".parse().unwrap()),
        kernel: Some("/boot/vmlinux".into()),
        ..Options::default()
    };
    let spec = plan_spec(input(&image, &options)).unwrap();
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().clone();
    assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(150_000));
    assert_eq!(resources.cpu().as_ref().unwrap().period(), Some(100_000));
    assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
    let annotations = spec.annotations().as_ref().unwrap();
    assert!(!annotations.contains_key("io.kiai.vcpus"), "the quota says it, and may change");
    assert_eq!(annotations["io.kiai.kernel"], "/boot/vmlinux");
}

#[test]
fn a_network_namespace_is_named_in_the_specification() {
    let (image, options) = (image(), Options::default());
    let mut input = input(&image, &options);
    input.network_namespace = Some("/run/netns/kiai-x".into());
    let spec = plan_spec(input).unwrap();
    let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    let network = namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::Network).unwrap();
    assert_eq!(network.path().as_deref(), Some(std::path::Path::new("/run/netns/kiai-x")));
}

#[test]
fn nothing_to_run_is_an_error() {
    let (image, options) = (Config::default(), Options::default());
    assert_eq!(plan_spec(input(&image, &options)), Err(SpecError::NoCommand));
}

#[test]
fn a_specification_survives_json() {
    let (image, options) = (image(), Options { terminal: true, ..Options::default() });
    let spec = plan_spec(input(&image, &options)).unwrap();
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}
