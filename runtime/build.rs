//! Generates the messages of `proto/containerd.proto`, in pure Rust.

use ttrpc_codegen::Codegen;
use ttrpc_codegen::ProtobufCustomize;

fn main() {
    println!("cargo:rerun-if-changed=proto/containerd.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/containerd.proto"])
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("proto/containerd.proto compiles");
    // `include!` takes no inner attributes or inner docs; the generated file opens with both.
    let path = std::path::Path::new(&out).join("containerd.rs");
    let text = std::fs::read_to_string(&path).expect("the generator wrote its output");
    let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
    std::fs::write(&path, kept.join("\n")).expect("OUT_DIR is writable");
}
