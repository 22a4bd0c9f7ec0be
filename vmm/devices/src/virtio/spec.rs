//! Names of the virtio 1.2 specification used by every device and transport.

/// Device status bits (§2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// It is ready to drive it.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device has met an error from which it cannot recover.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up on the device.
    pub const FAILED: u8 = 128;
}

/// Feature bits reserved for queues and negotiation (§6).
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// PCI vendor id of virtio devices (§4.1.2).
pub const PCI_VENDOR: u16 = 0x1af4;
/// PCI device id of a modern device, less its device id (§4.1.2).
pub const PCI_DEVICE_BASE: u16 = 0x1040;
/// No MSI-X vector (§4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// Registers of the common configuration structure (§4.1.4.3), by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommonRegister {
    /// device_feature_select.
    DeviceFeatureSelect,
    /// device_feature.
    DeviceFeature,
    /// driver_feature_select.
    DriverFeatureSelect,
    /// driver_feature.
    DriverFeature,
    /// config_msix_vector.
    ConfigMsixVector,
    /// num_queues.
    NumQueues,
    /// device_status.
    DeviceStatus,
    /// config_generation.
    ConfigGeneration,
    /// queue_select.
    QueueSelect,
    /// queue_size.
    QueueSize,
    /// queue_msix_vector.
    QueueMsixVector,
    /// queue_enable.
    QueueEnable,
    /// queue_notify_off.
    QueueNotifyOff,
    /// queue_desc, low or high half or both.
    QueueDesc(Half),
    /// queue_driver.
    QueueDriver(Half),
    /// queue_device.
    QueueDevice(Half),
}

/// Which part of a 64-bit register an access reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
    /// All.
    Both,
}

impl CommonRegister {
    /// The register at `offset`, if an access of `width` bytes there is one the structure allows (§4.1.3.1:
    /// fields are accessed in their own width, 64-bit ones also in halves).
    pub fn at(offset: u64, width: usize) -> Option<Self> {
        Some(match (offset, width) {
            (0x00, 4) => Self::DeviceFeatureSelect,
            (0x04, 4) => Self::DeviceFeature,
            (0x08, 4) => Self::DriverFeatureSelect,
            (0x0c, 4) => Self::DriverFeature,
            (0x10, 2) => Self::ConfigMsixVector,
            (0x12, 2) => Self::NumQueues,
            (0x14, 1) => Self::DeviceStatus,
            (0x15, 1) => Self::ConfigGeneration,
            (0x16, 2) => Self::QueueSelect,
            (0x18, 2) => Self::QueueSize,
            (0x1a, 2) => Self::QueueMsixVector,
            (0x1c, 2) => Self::QueueEnable,
            (0x1e, 2) => Self::QueueNotifyOff,
            (0x20, 4) => Self::QueueDesc(Half::Low),
            (0x20, 8) => Self::QueueDesc(Half::Both),
            (0x24, 4) => Self::QueueDesc(Half::High),
            (0x28, 4) => Self::QueueDriver(Half::Low),
            (0x28, 8) => Self::QueueDriver(Half::Both),
            (0x2c, 4) => Self::QueueDriver(Half::High),
            (0x30, 4) => Self::QueueDevice(Half::Low),
            (0x30, 8) => Self::QueueDevice(Half::Both),
            (0x34, 4) => Self::QueueDevice(Half::High),
            _ => return None,
        })
    }
}

/// Bytes of the common configuration structure that are defined.
pub const COMMON_SIZE: u32 = 0x38;
