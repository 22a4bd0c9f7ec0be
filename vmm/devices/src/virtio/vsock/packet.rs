//! The header every packet starts with (virtio 1.2 §5.10.6).

/// Bytes of a header.
pub(super) const HEADER_SIZE: usize = 44;

/// Socket type of a stream, the only one offered (§5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;

/// The guest will not receive any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The guest will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    ReadWrite,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// A header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    /// Bytes of data that follow.
    pub(super) length: u32,
    pub(super) kind: u16,
    /// `None`: one the specification does not define.
    pub(super) operation: Option<Operation>,
    pub(super) flags: u32,
    pub(super) buffer_size: u32,
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            source_cid: u64_at(0),
            destination_cid: u64_at(8),
            source_port: u32_at(16),
            destination_port: u32_at(20),
            length: u32_at(24),
            kind: u16_at(28),
            operation: Operation::from_number(u16_at(30)),
            flags: u32_at(32),
            buffer_size: u32_at(36),
            forwarded: u32_at(40),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.destination_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.destination_port.to_le_bytes());
        put(24, &self.length.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.operation.map_or(0, Operation::number).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buffer_size.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_undoes_encoding(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
            let mut raw = [0; HEADER_SIZE];
            raw[..32].copy_from_slice(&bytes);
            raw[32..].copy_from_slice(&tail);
            let header = Header::decode(&raw);
            if header.operation.is_some() {
                prop_assert_eq!(header.encode(), raw);
            }
        }
    }
}
