//! The `kiai` command.
fn main() {}
