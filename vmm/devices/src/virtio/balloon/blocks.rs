//! Pages in the balloon that go back to the host when the rest of their 2 MiB is there too.
//!
//! Guest RAM is in huge pages of that size. One of which a part is given back is split, and what the guest touches
//! there afterwards comes back in small pages. A driver names few pages at a time; Linux half a block's.

use std::collections::VecDeque;

/// Pages of a block.
pub(super) const PAGES: u32 = 512;

/// Most blocks that are waited for. The driver goes through free memory in order, a few blocks at a time.
const MOST: usize = 64;

/// Blocks of which some pages are there.
#[derive(Default)]
pub(super) struct Blocks(VecDeque<Block>);

struct Block {
    number: u32,
    pages: [u64; PAGES as usize / 64],
}

impl Blocks {
    /// Adds pages by their numbers; returns the first pages of the blocks that are whole by now. Of too many blocks
    /// the oldest is forgotten.
    pub(super) fn add(&mut self, pages: &[u32]) -> Vec<u32> {
        let mut whole = Vec::new();
        for of_block in pages.chunk_by(|a, b| a / PAGES == b / PAGES) {
            let number = of_block[0] / PAGES;
            let found = self.0.iter().position(|block| block.number == number);
            let known = found.and_then(|at| self.0.remove(at));
            let mut block = known.unwrap_or(Block { number, pages: Default::default() });
            for page in of_block.iter().map(|page| page % PAGES) {
                block.pages[page as usize / 64] |= 1 << (page % 64);
            }
            if block.pages.iter().all(|&word| word == u64::MAX) {
                whole.push(number * PAGES);
                continue;
            }
            if self.0.len() == MOST {
                self.0.pop_front();
            }
            self.0.push_back(block);
        }
        whole
    }

    /// Some pages may not be in the balloon any more.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u32; 0] = [];

    fn pages(numbers: std::ops::Range<u32>) -> Vec<u32> {
        numbers.collect()
    }

    #[test]
    fn a_block_is_whole_when_its_last_page_comes_in_whatever_order() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(1280..1536)), NONE);
        assert_eq!(blocks.add(&[7, 1000]), NONE);
        assert_eq!(blocks.add(&pages(1025..1280)), NONE);
        assert_eq!(blocks.add(&[1024, 1024]), [1024]);
        assert_eq!(blocks.add(&pages(0..512)), [0]);
        assert_eq!(blocks.add(&[1024]), NONE, "it begins anew");
    }

    #[test]
    fn one_request_can_have_several() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(100..2000)), [512, 1024]);
        assert_eq!(blocks.add(&pages(2000..2048)), [1536]);
        let last = u32::MAX - (PAGES - 1);
        assert_eq!(blocks.add(&(last..=u32::MAX).collect::<Vec<_>>()), [last]);
    }

    #[test]
    fn what_was_forgotten_is_not_counted() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(0..511)), NONE);
        blocks.forget();
        assert_eq!(blocks.add(&[511]), NONE);
    }

    #[test]
    fn a_driver_cannot_make_it_grow() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(0..511)), NONE);
        for block in 1..=u32::try_from(MOST).unwrap() {
            assert_eq!(blocks.add(&[block * PAGES]), NONE);
        }
        assert_eq!(blocks.0.len(), MOST);
        assert_eq!(blocks.add(&[511]), NONE, "the oldest is forgotten");
    }
}
