//! Generates the ttrpc service and its messages from `proto/agent.proto`, in pure Rust.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("proto/agent.proto compiles");
    // `include!` takes no inner attributes or inner docs; the generated files open with both.
    for name in ["agent.rs", "agent_ttrpc.rs"] {
        let path = std::path::Path::new(&out).join(name);
        let text = std::fs::read_to_string(&path).expect("the generator wrote its output");
        let kept: Vec<&str> =
            text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
        std::fs::write(&path, kept.join("\n")).expect("OUT_DIR is writable");
    }
}
