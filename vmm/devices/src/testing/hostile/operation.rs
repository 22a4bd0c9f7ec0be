//! What a hostile driver does, as values. Each is something a guest can do with plain loads and stores.

use arbitrary::Arbitrary;

/// How far a driver gets by the rules, and what it does then.
#[derive(Debug, Arbitrary)]
pub struct Session {
    /// What comes first.
    pub start: Start,
    /// What follows.
    pub operations: Vec<Operation>,
}

/// How a driver begins.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Start {
    /// With the function as the firmware left it.
    Fresh,
    /// Features are agreed on.
    Negotiated,
    /// All queues are set up and the device is live.
    Ready,
}

/// One thing a guest can do.
#[derive(Debug, Arbitrary)]
pub enum Operation {
    /// A load from a BAR.
    Load(Register, Width),
    /// A store to a BAR.
    Store(Register, Width, Value),
    /// A load from configuration space.
    LoadConfig(u16, Width),
    /// A store to configuration space.
    StoreConfig(u16, Width, Value),
    /// An access through the configuration access capability (virtio 1.2 §4.1.4.9).
    Window {
        /// From the start of the BAR.
        offset: Register,
        /// The capability's length field.
        width: Width,
        /// Stored; or else loaded.
        value: Option<u32>,
    },
    /// The BAR goes somewhere else.
    MoveBar(Place),
    /// Memory space is turned on or off.
    Decode(bool),
    /// Device status 0.
    Reset,
    /// Reset, then the handshake up to FEATURES_OK, with those of the features offered that the mask has.
    Negotiate(u64),
    /// A queue is set up by the rules but for what is said here, and enabled.
    SetUp {
        /// Which.
        queue: u8,
        /// Instead of the device's maximum.
        size: Option<u16>,
        /// One of its three areas, elsewhere.
        moved: Option<(Area, Place)>,
    },
    /// DRIVER_OK.
    Ready,
    /// Writes a descriptor.
    Describe {
        /// In which queue's table.
        queue: u8,
        /// Which.
        index: u16,
        /// Its address.
        at: Place,
        /// Its length.
        length: Length,
        /// Its flags: NEXT 1, WRITE 2, INDIRECT 4.
        flags: u8,
        /// Its next.
        next: u16,
    },
    /// Makes a head available.
    Offer {
        /// In which queue.
        queue: u8,
        /// Any head.
        head: u16,
    },
    /// The available index is something else now.
    Jump {
        /// In which queue.
        queue: u8,
        /// The index.
        index: u16,
    },
    /// A chain made by the rules, of any content.
    Request {
        /// In which queue.
        queue: u8,
        /// Its buffers.
        parts: Vec<Part>,
        /// In a table of its own.
        indirect: bool,
    },
    /// Notifies a queue.
    Notify(u8),
    /// Writes to RAM, rings included.
    Fill(Place, [u8; 8]),
    /// Another guest's device does its work meanwhile.
    Neighbour,
}

/// A buffer of a chain.
#[derive(Debug, Arbitrary)]
pub struct Part {
    /// For the device to write; otherwise to read.
    pub writable: bool,
    /// Somewhere else than where a good driver would have it.
    pub elsewhere: Option<Place>,
    /// Of another length than its content.
    pub length: Option<Length>,
    /// What is in it.
    pub content: Vec<u8>,
}

/// A register: a structure of the BAR, and an offset into it.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Register {
    /// Common configuration.
    Common(u8),
    /// ISR status.
    Isr(u8),
    /// Device configuration.
    Device(u16),
    /// Notifications.
    Notify(u16),
    /// The MSI-X table.
    Table(u16),
    /// The pending bits.
    Pending(u8),
    /// Anywhere in the BAR, or beyond.
    Anywhere(u16),
}

/// Bytes of an access.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Width {
    /// A byte.
    One,
    /// A word.
    Two,
    /// A double word.
    Four,
    /// A quad word.
    Eight,
    /// A far pointer in memory: what an emulated instruction reads of it.
    Six,
}

impl Width {
    /// As a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
            Self::Six => 6,
        }
    }
}

/// What is stored.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Value {
    /// A small number.
    Small(u8),
    /// All ones.
    Ones,
    /// An address.
    Address(Place),
    /// Anything.
    Any(u64),
}

/// One of a queue's areas.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// How long a buffer says it is.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Length {
    /// Nothing.
    Zero,
    /// 2^32 - 1.
    Most,
    /// Little.
    Small(u8),
    /// A table of so many descriptors.
    Descriptors(u16),
    /// Anything.
    Any(u32),
}

impl Length {
    /// As a number.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Zero => 0,
            Self::Most => u32::MAX,
            Self::Small(bytes) => bytes.into(),
            Self::Descriptors(count) => u32::from(count) * 16,
            Self::Any(bytes) => bytes,
        }
    }
}

/// A guest-physical address.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Place {
    /// In RAM below the hole, in units of 16 bytes.
    Ram(u16),
    /// In a queue's rings.
    Rings(u8, u16),
    /// So many bytes before the hole, or in it.
    Hole(i8),
    /// So many bytes before the end of RAM, or past it.
    End(i8),
    /// Over configuration space.
    Ecam(u16),
    /// Over the device's own BAR.
    Own(u16),
    /// Over the other guest's BAR.
    Neighbour(u16),
    /// In the window of 64-bit BARs, in units of a page.
    Window(u16),
    /// So many bytes before the end of the address space.
    Top(u8),
    /// Anywhere.
    Any(u64),
}
