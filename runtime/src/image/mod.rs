//! Images: where they come from, how they are kept, how their layers become a directory.
//!
//! ```text
//!     KIAI_ROOT/blobs/sha256/<digest>   what was fetched, verified
//!     KIAI_ROOT/trees/<chain>/fs        the layers of an image, applied one over the other
//!     KIAI_ROOT/images/<name>.json      what is called what
//!     KIAI_ROOT/tmp/                    being made; KIAI_ROOT/locks/
//! ```
//!
//! Everything is made in `tmp` and renamed into place when it is whole and verified, so that nothing
//! half-made is ever used and two processes can work on one store. Reading order: [`ImageSource`], `pull` and
//! `layout` fetch into `blobs`, `tree` and `unpack` make directories, [`ImageStore`] keeps the names.

mod archive;
mod blobs;
mod credentials;
mod layout;
mod manifest;
mod progress;
mod pull;
mod source;
mod store;
mod tree;
mod unpack;

pub use progress::Progress;
pub use progress::Quiet;
pub use progress::Terminal;
pub use pull::PullOptions;
pub use source::ImageSource;
pub use store::Image;
pub use store::ImageError;
pub use store::ImageStore;
