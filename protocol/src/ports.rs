//! vsock ports and identifiers that both sides use (virtio 1.2 §5.10).

/// Context identifier of the guest. There is one guest per vsock device, so one number serves all.
pub const GUEST_CID: u64 = 3;

/// Context identifier of the host (VMADDR_CID_HOST).
pub const HOST_CID: u32 = 2;

/// The guest's port on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;

/// The host's port to which the agent connects once it serves [`AGENT_PORT`]; it writes [`READY_MAGIC`] and closes.
pub const READY_PORT: u32 = 1024;

/// What the agent writes to [`READY_PORT`]: the name and the version of the contract.
pub const READY_MAGIC: &[u8; 8] = b"KIAI\x00\x00\x00\x02";

/// The agent listens here, in the guest, for the connections of standard streams ([`crate::stream`]).
pub const STREAM_PORT: u32 = 1025;

/// The guest's mount point of the sandbox's shared directory, a virtio-fs device with the tag [`SHARED_TAG`].
pub const SHARED_MOUNT: &str = "/run/kiai/shared";

/// Tag of the virtio-fs device that carries root file systems and volumes.
pub const SHARED_TAG: &str = "kiai";
