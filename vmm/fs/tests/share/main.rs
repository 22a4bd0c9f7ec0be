//! The device, driven with raw FUSE messages: what a guest can do in its share, and what it cannot.

#![expect(clippy::unwrap_used, reason = "a test")]

mod calls;
mod confinement;
mod driver;
mod files;
mod malformed;
