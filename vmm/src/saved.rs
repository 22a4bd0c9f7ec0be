//! A machine that was saved, as a file: a header, then the state in postcard's format. Memory is a file of its own.
//!
//! ```text
//!   0  magic   8  format   12  CRC-32 of what follows the header   16  its length   24  state
//! ```
//! A format is read by the version that writes it and by no other: what is saved here is there for minutes or days,
//! and a machine that starts in some odd way is worse than one that starts anew.

use kiai_devices::ioapic::IoApicState;
use kiai_devices::serial::SerialState;
use kiai_devices::virtio::transport::state::FunctionState;
use kvm_bindings::kvm_clock_data;
use serde::Deserialize;
use serde::Serialize;

use crate::vcpu::VcpuState;

const MAGIC: [u8; 8] = *b"KIAI-VM\0";
/// Changes whenever anything below does, or anything of the machine that a saved guest knows: addresses, ACPI tables,
/// the devices there are.
const FORMAT: u32 = 1;
const HEADER: usize = 24;

/// All of a machine but its memory.
#[derive(Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// The same in the file of its memory.
    pub(crate) id: [u8; 16],
    pub(crate) memory_mib: u32,
    pub(crate) max_memory_mib: u32,
    pub(crate) max_vcpus: u8,
    pub(crate) clock: kvm_clock_data,
    /// The host's time stamp counter.
    pub(crate) tsc: u64,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) ioapic: IoApicState,
    pub(crate) serial: SerialState,
    /// By slot.
    pub(crate) devices: Vec<(u8, FunctionState)>,
}

/// Why a file is not the state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It begins otherwise.
    #[error("it is not a saved microVM")]
    Magic,
    /// Another version wrote it.
    #[error("it was saved in format {0}; this version reads format {FORMAT}")]
    Format(u32),
    /// It has been cut short, or something was added.
    #[error("it has {found} bytes of {wanted}")]
    Length {
        /// There are.
        found: u64,
        /// There should be.
        wanted: u64,
    },
    /// It is not what was written.
    #[error("it is damaged: its checksum is wrong")]
    Checksum,
    /// The checksum is right and the contents make no sense: whoever wrote it was not this program.
    #[error("its contents make no sense")]
    Contents,
}

pub(crate) fn encode(state: &MachineState) -> Vec<u8> {
    let payload = postcard::to_allocvec(state).expect("plain values have no way to fail");
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(crc32fast::hash(&payload).to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Result<MachineState, StateError> {
    let payload = check(bytes)?;
    postcard::from_bytes(payload).map_err(|_| StateError::Contents)
}

/// What follows the header.
fn check(bytes: &[u8]) -> Result<&[u8], StateError> {
    let found = bytes.len() as u64;
    if !bytes.starts_with(&MAGIC) {
        return Err(StateError::Magic);
    }
    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
        return Err(StateError::Length { found, wanted: HEADER as u64 });
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(8) != FORMAT {
        return Err(StateError::Format(word(8)));
    }
    let wanted = (u64::from(word(20)) << 32 | u64::from(word(16))).saturating_add(HEADER as u64);
    if found != wanted {
        return Err(StateError::Length { found, wanted });
    }
    if crc32fast::hash(payload) != word(12) {
        return Err(StateError::Checksum);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u64;
        let crc = crc32fast::hash(payload).to_le_bytes();
        [&MAGIC[..], &FORMAT.to_le_bytes(), &crc, &length.to_le_bytes(), payload].concat()
    }

    #[test]
    fn a_file_that_is_not_what_was_written_is_refused_with_the_reason() {
        let good = file(&[7; 100]);
        assert_eq!(check(&good), Ok(&[7; 100][..]));
        assert_eq!(check(b"#!/bin/sh\n"), Err(StateError::Magic));
        assert_eq!(check(&good[..20]), Err(StateError::Length { found: 20, wanted: 24 }));
        assert_eq!(check(&good[..123]), Err(StateError::Length { found: 123, wanted: 124 }));
        assert_eq!(check(&[&good[..], &[0]].concat()), Err(StateError::Length { found: 125, wanted: 124 }));
        let mut other = good.clone();
        other[8] += 1;
        assert_eq!(check(&other), Err(StateError::Format(FORMAT + 1)));
        let mut damaged = good;
        damaged[60] ^= 4;
        assert_eq!(check(&damaged), Err(StateError::Checksum));
        assert_eq!(decode(&file(&[0xff; 64])).err(), Some(StateError::Contents));
    }

    proptest! {
        #[test]
        fn any_contents_are_survived(payload in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = decode(&file(&payload));
        }
    }
}
