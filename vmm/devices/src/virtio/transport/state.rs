//! A function as a plain value: what its driver has set, and what its device knows.

use serde::Deserialize;
use serde::Serialize;

use crate::pci::msix::MsixState;
use crate::virtio::device::DeviceState;

/// All of it. Only a function of the same device, made in the same way, can take it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// Device id (virtio 1.2 §5).
    pub device_id: u16,
    pub(super) config: Vec<u8>,
    pub(super) common: CommonState,
    pub(super) interrupt: InterruptState,
    pub(super) msix: MsixState,
    pub(super) device: DeviceState,
}

/// Registers of the common configuration (§4.1.4.3), but those about interrupts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommonState {
    pub(super) status: u8,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueState>,
}

/// Registers of one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueState {
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// Registers about interrupts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InterruptState {
    pub(super) queue_vectors: Vec<u16>,
    pub(super) config_vector: u16,
    pub(super) isr: u8,
    pub(super) generation: u8,
    pub(super) needs_reset: bool,
}

/// Why a function cannot be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// It holds something of the host's that no other machine can have.
    #[error("{0}")]
    Unsaved(&'static str),
    /// A thread of its device hangs in a reset the driver has asked for.
    #[error("its reset has not come to its end")]
    Resetting,
}

/// Why a state cannot be taken over; the function is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It is of another device, or of one that was made otherwise.
    #[error("the state is of another device, or of one that was made otherwise")]
    Other,
    /// No such function writes such a state.
    #[error("the state contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The device could not be activated, of which the log has more.
    #[error("the device does not start")]
    Activate,
}
