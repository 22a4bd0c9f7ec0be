//! Images: their sources, their store, and the unpacking of their layers into a directory.
//!
//! ```text
//!     KIAI_ROOT/blobs/sha256/<digest>   fetched and verified blobs
//!     KIAI_ROOT/trees/<chain>/fs        the layers of an image, applied one over the other
//!     KIAI_ROOT/images/<name>.json      the records of names
//!     KIAI_ROOT/tmp/, KIAI_ROOT/locks/  unfinished files, and lock files
//! ```
//!
//! Every file is made in `tmp` and renamed when it is complete and verified, so that an incomplete file is never used
//! and several processes can work on one store. Reading order: [`ImageSource`], `pull` and `layout` fetch into `blobs`,
//! `tree` and `unpack` make directories, [`ImageStore`] keeps the names.

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
