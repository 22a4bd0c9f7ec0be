//! Which blocks of the region are plugged. Plain bookkeeping; moves no memory.

use std::ops::Range;

/// One bit a block.
pub(super) struct Blocks {
    plugged: Vec<u64>,
    count: usize,
}

/// What a range of blocks is (§5.15.6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeState {
    Plugged,
    Unplugged,
    Mixed,
}

impl Blocks {
    /// `count` blocks, none of them plugged.
    pub(super) fn new(count: usize) -> Self {
        Self { plugged: vec![0; count.div_ceil(64)], count }
    }

    fn is_plugged(&self, block: usize) -> bool {
        self.plugged[block / 64] >> (block % 64) & 1 == 1
    }

    /// What `range` is; it is within the region and not empty.
    pub(super) fn state(&self, range: Range<usize>) -> RangeState {
        let length = range.len();
        match range.filter(|&block| self.is_plugged(block)).count() {
            0 => RangeState::Unplugged,
            plugged if plugged == length => RangeState::Plugged,
            _ => RangeState::Mixed,
        }
    }

    /// Makes all of `range` plugged, or unplugged.
    pub(super) fn set(&mut self, range: Range<usize>, plugged: bool) {
        for block in range {
            let bit = 1 << (block % 64);
            if plugged {
                self.plugged[block / 64] |= bit;
            } else {
                self.plugged[block / 64] &= !bit;
            }
        }
    }

    pub(super) fn bits(&self) -> &[u64] {
        &self.plugged
    }

    /// Takes over what [`Blocks::bits`] gave; false, and nothing changed, if that was of other blocks.
    pub(super) fn set_bits(&mut self, bits: &[u64]) -> bool {
        let beyond =
            bits.last().is_some_and(|last| !self.count.is_multiple_of(64) && last >> (self.count % 64) != 0);
        let fits = bits.len() == self.plugged.len() && !beyond;
        if fits {
            self.plugged.copy_from_slice(bits);
        }
        fits
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plugged.iter().all(|&bits| bits == 0)
    }

    /// Every run of plugged blocks.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(move || self.next_run(from).inspect(|run| from = run.end))
    }

    /// The first run of plugged blocks at or after `from`.
    pub(super) fn next_run(&self, from: usize) -> Option<Range<usize>> {
        let start = (from..self.count).find(|&block| self.is_plugged(block))?;
        let end = (start..self.count).find(|&block| !self.is_plugged(block)).unwrap_or(self.count);
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_states_follow_what_is_set() {
        let mut blocks = Blocks::new(130);
        assert_eq!(blocks.next_run(0), None);
        blocks.set(62..66, true);
        blocks.set(128..130, true);
        assert_eq!(blocks.next_run(0), Some(62..66));
        assert_eq!(blocks.next_run(66), Some(128..130));
        assert_eq!(blocks.state(62..66), RangeState::Plugged);
        assert_eq!(blocks.state(61..66), RangeState::Mixed);
        assert_eq!(blocks.state(66..128), RangeState::Unplugged);
        blocks.set(63..64, false);
        assert_eq!(blocks.next_run(0), Some(62..63));
    }
}
