//! The virtio-fs island.
