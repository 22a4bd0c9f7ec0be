//! Pages in the balloon that go back to the host together with the rest of their 2 MiB.
//!
//! Guest RAM is in huge pages of that size. One of which a part is given back is split, and what the guest touches
//! there afterwards comes back in small pages. A driver names few pages at a time; Linux half a block's.

use std::collections::VecDeque;
use std::ops::Range;

/// Pages of a block.
const PAGES: u32 = 512;

/// A block of which so many pages are there and the others do not come goes back in parts: then a huge page is split
/// for more than it is worth to keep it.
const WORTH_IT: u32 = PAGES / 2;

/// Most blocks that are waited for. The driver goes through free memory in order, a few blocks at a time.
const MOST: usize = 64;

/// Blocks of which some pages are there.
#[derive(Default)]
pub(super) struct Blocks(VecDeque<Block>);

struct Block {
    number: u32,
    pages: [u64; PAGES as usize / 64],
}

/// Page numbers that follow each other, to be given back. The end may be one more than a `u32` holds.
pub(super) type Run = Range<u64>;

impl Blocks {
    /// Adds pages by their numbers, in order; returns what can go back now.
    pub(super) fn add(&mut self, pages: &[u32]) -> Vec<Run> {
        let mut back = Vec::new();
        for of_block in pages.chunk_by(|a, b| a / PAGES == b / PAGES) {
            let number = of_block[0] / PAGES;
            let found = self.0.iter().position(|block| block.number == number);
            let known = found.and_then(|at| self.0.remove(at));
            let mut block = known.unwrap_or(Block { number, pages: Default::default() });
            for page in of_block.iter().map(|page| page % PAGES) {
                block.pages[page as usize / 64] |= 1 << (page % 64);
            }
            if block.count() == PAGES {
                back.extend(block.runs());
                continue;
            }
            if self.0.len() == MOST {
                back.extend(self.0.pop_front().iter().flat_map(Block::rest));
            }
            self.0.push_back(block);
        }
        back
    }

    /// What can go back of the blocks that are not whole. They are forgotten.
    pub(super) fn rest(&mut self) -> Vec<Run> {
        std::mem::take(&mut self.0).iter().flat_map(Block::rest).collect()
    }
}

impl Block {
    fn count(&self) -> u32 {
        self.pages.iter().map(|word| word.count_ones()).sum()
    }

    /// The pages that are there, if that is worth it.
    fn rest(&self) -> Vec<Run> {
        if self.count() < WORTH_IT { Vec::new() } else { self.runs() }
    }

    fn runs(&self) -> Vec<Run> {
        let is_there = |page: &u32| self.pages[*page as usize / 64] & 1 << (page % 64) != 0;
        let there: Vec<u32> = (0..PAGES).filter(is_there).collect();
        let first = u64::from(self.number) * u64::from(PAGES);
        let run = |run: &[u32]| first + u64::from(run[0])..first + u64::from(run[run.len() - 1]) + 1;
        there.chunk_by(|page, next| page + 1 == *next).map(run).collect()
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "it is a list of one run")]
mod tests {
    use super::*;

    const NONE: [Run; 0] = [];

    fn pages(numbers: Range<u32>) -> Vec<u32> {
        numbers.collect()
    }

    #[test]
    fn a_block_is_whole_when_its_last_page_comes_in_whatever_order() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(1280..1536)), NONE);
        assert_eq!(blocks.add(&[7, 1000]), NONE);
        assert_eq!(blocks.add(&pages(1025..1280)), NONE);
        assert_eq!(blocks.add(&[1024, 1024]), [1024..1536]);
        assert_eq!(blocks.add(&pages(0..512)), [0..512]);
        assert_eq!(blocks.add(&[1024]), NONE, "it begins anew");
    }

    #[test]
    fn one_request_can_have_several() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(100..2000)), [512..1024, 1024..1536]);
        assert_eq!(blocks.add(&pages(2000..2048)), [1536..2048]);
        let last = u64::from(u32::MAX) + 1;
        let numbers: Vec<_> = (u32::MAX - (PAGES - 1)..=u32::MAX).collect();
        assert_eq!(blocks.add(&numbers), [last - u64::from(PAGES)..last]);
    }

    #[test]
    fn of_the_rest_goes_what_is_worth_it_and_all_is_forgotten() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(0..255)), NONE);
        assert_eq!(blocks.add(&[pages(600..800), pages(900..956)].concat()), NONE);
        assert_eq!(blocks.rest(), [600..800, 900..956]);
        assert_eq!(blocks.add(&pages(255..512)), NONE);
        assert_eq!(blocks.rest(), [255..512]);
        assert_eq!(blocks.rest(), NONE);
    }

    #[test]
    fn a_driver_cannot_make_it_grow() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.add(&pages(0..511)), NONE);
        let most = u32::try_from(MOST).unwrap();
        for block in 1..most {
            assert_eq!(blocks.add(&[block * PAGES]), NONE);
        }
        assert_eq!(blocks.add(&[most * PAGES]), [0..511], "the oldest");
        assert_eq!(blocks.add(&[most * PAGES + PAGES]), NONE, "the next is not worth it");
        assert_eq!(blocks.0.len(), MOST);
    }
}
