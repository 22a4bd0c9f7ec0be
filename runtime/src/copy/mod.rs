//! Copies of file trees as tar archives: what `kiai cp` and `kiai export` write and read, and how a named volume gets
//! the image's content.
//!
//! Symbolic links are archived as links. Nothing here keeps a path inside a container's tree: the caller works in
//! [`crate::host::inside`], or on a directory of its own.

mod pack;
mod target;
mod unpack;

pub use pack::pack;
pub use target::Found;
pub use target::Kind;
pub use target::Refused;
pub use target::Source;
pub use target::Target;
pub use target::target;
pub use unpack::Unpacked;
pub use unpack::unpack;
