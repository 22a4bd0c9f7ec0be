//! End-to-end tests: `kiai` as a person or containerd calls it, with real microVMs behind it.
//!
//! One module per behaviour, one binary for all of them. The rules are in the harness's own documentation
//! (`kiai_tests`); above all, a scenario leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "in a test, what goes wrong is a panic")]

// A filter of libtest is any part of a name: no module's name may be the end of another's.
mod containerd;
mod copying;
mod cpu;
mod devices;
mod exec;
mod failures;
mod images;
mod lifecycle;
mod many;
mod network;
mod options;
mod plug;
mod refusals;
mod resize;
mod resources;
mod run;
mod sandboxes;
mod streams;
mod templates;
mod together;
mod verbs;
mod vfio;
mod volumes;
