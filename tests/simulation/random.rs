//! Numbers that follow from a seed, on every machine the same.

use oorandom::Rand32;

/// The one source of everything that is left to chance.
pub(crate) struct Random(Rand32);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rand32::new(seed))
    }

    /// A number below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.rand_range(0..end as u32) as usize
    }

    /// A number from `least` to `most`, more often a small one where there is much between them.
    pub(crate) fn between(&mut self, least: usize, most: usize) -> usize {
        let span = most - least + 1;
        let span = if span > 64 && self.percent(60) { span / 16 } else { span };
        least + self.below(span)
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Four bytes, such as a masking key.
    pub(crate) fn four_bytes(&mut self) -> [u8; 4] {
        self.0.rand_u32().to_be_bytes()
    }
}
