//! Random masks from counters: which elements a dropout leaves, told from where they are, and stored nowhere.
//!
//! **Generator**: Philox4x32 of 7 rounds (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011; Crush-resistant
//! from 7 rounds on). Key: the two halves of the seed. Counter: column, row / 8, step, and the *site*: which mask of which part of the network.
//! Its four words are eight numbers of 16 bits, one for each of eight rows that follow each other: that of row r is in word (r mod 8) / 2, the
//! low half where r is even. An element is dropped if its number is below p · 65536, rounded; what is left is multiplied by
//! 1 / (1 - p), p being that rounded one.

use crate::error::Error;

/// What the random masks of a recorded pass are drawn from: [`crate::Context::with_draw`].
///
/// The same draw gives the same masks whatever threads, block sizes and instruction set are. A batch in pieces has the masks of the
/// whole if each piece says which row of the batch is its first. Masks of different rows, columns, layers, steps and seeds are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Draw {
    /// The seed of the run.
    pub seed: u64,
    /// The step of the run: another number, other masks.
    pub step: u32,
    /// The first row of the batch that the call has, below 2³⁵.
    pub first_row: u64,
}

/// Rows whose numbers come from one counter.
pub(crate) const ROWS: usize = 8;

/// A mask: where it is in a network, and how many elements it drops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mask {
    /// The part of the network, and which of its masks.
    site: u32,
    /// Elements are dropped whose number is below this, and what is left is multiplied by that.
    threshold: u32,
    scale: f32,
    /// Whether a row is dropped whole.
    pub(crate) of_rows: bool,
}

/// A mask with what it is drawn from, on a matrix whose first row and column are these of the batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    mask: Mask,
    draw: Draw,
    row: u64,
    column: u32,
}

impl Mask {
    /// A mask that drops with probability `p`; None if it drops nothing.
    pub(crate) fn new(p: f32, site: u32, of_rows: bool) -> Option<Self> {
        let threshold = libm::round(f64::from(p) * 65536.0) as u32;
        let scale = (65536.0 / (65536.0 - f64::from(threshold))) as f32;
        let mask = Self { site, threshold, scale, of_rows };
        (threshold > 0).then_some(mask)
    }

    /// From a draw, on a matrix that begins at this row and column of the call.
    pub(crate) fn drawn(self, draw: Draw, row: usize, column: usize) -> Drawn {
        Drawn { mask: self, draw, row: draw.first_row.wrapping_add(row as u64), column: column as u32 }
    }
}

impl Drawn {
    /// The factors of 16 columns, from a column of the matrix on, in the [`ROWS`] rows of the batch that row number `row` of the matrix is
    /// among; and which of them that row is.
    #[inline(always)]
    pub(crate) fn factors(&self, row: usize, column: usize, factors: &mut [[f32; 16]; ROWS]) -> usize {
        let row = self.row + row as u64;
        let first = self.column.wrapping_add(column as u32);
        let mut columns = [0; 16];
        if !self.mask.of_rows {
            for (lane, column) in columns.iter_mut().enumerate() {
                *column = first.wrapping_add(lane as u32);
            }
        }
        let words = philox(columns, [(row / ROWS as u64) as u32, self.draw.step, self.mask.site], self.draw.seed);
        for (pair, word) in factors.chunks_exact_mut(2).zip(&words) {
            for lane in 0..16 {
                pair[0][lane] = if word[lane] & 0xffff < self.mask.threshold { 0.0 } else { self.mask.scale };
                pair[1][lane] = if word[lane] >> 16 < self.mask.threshold { 0.0 } else { self.mask.scale };
            }
        }
        (row % ROWS as u64) as usize
    }

    /// The factor of one element, for the specification.
    pub(crate) fn factor(&self, row: usize, column: usize) -> f32 {
        let mut factors = [[0.0; 16]; ROWS];
        let at = self.factors(row, column, &mut factors);
        factors[at][0]
    }
}

/// Philox4x32-7 of 16 counters that differ in their first words alone: the four words of each.
#[inline(always)]
fn philox(first: [u32; 16], [second, third, fourth]: [u32; 3], seed: u64) -> [[u32; 16]; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    const ROUNDS: usize = 7;
    // In lanes of 64 bits, of which the lower half counts: products of two such are one instruction, and none is needed to clear what is
    // above. In lanes of 32 bits the compiler widens and narrows for each product, which takes twice the time.
    let mut words = [[0; 16], [u64::from(second); 16], [u64::from(third); 16], [u64::from(fourth); 16]];
    for lane in 0..16 {
        words[0][lane] = u64::from(first[lane]);
    }
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..ROUNDS {
        let [a, b, c, d] = words;
        for lane in 0..16 {
            let one = u64::from(a[lane] as u32) * u64::from(MULTIPLIERS[0]);
            let two = u64::from(c[lane] as u32) * u64::from(MULTIPLIERS[1]);
            words[0][lane] = (two >> 32) ^ b[lane] ^ u64::from(key[0]);
            words[1][lane] = two;
            words[2][lane] = (one >> 32) ^ d[lane] ^ u64::from(key[1]);
            words[3][lane] = one;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    // By loops: an array's `map` is a call.
    let mut low = [[0; 16]; 4];
    for (low, word) in low.iter_mut().zip(&words) {
        for lane in 0..16 {
            low[lane] = word[lane] as u32;
        }
    }
    low
}

/// That a probability to drop is in [0, 1), and leaves something.
pub(crate) fn check(operand: &'static str, p: f32) -> Result<(), Error> {
    if (0.0..1.0).contains(&p) && f64::from(p) < 1.0 - 0.5 / 65536.0 {
        return Ok(());
    }
    Err(Error::Setting { operand, reason: "a probability to drop must be at least 0 and less than 1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Philox4x32 is checked with the ten rounds of Random123's known answers, of which the first seven are ours: the same loop.
    #[test]
    fn philox_is_that_of_the_paper() {
        let ten = |counter: [u32; 4], key: [u32; 2]| {
            let (mut c, mut k) = (counter, key);
            for _ in 0..10 {
                let (one, two) = (u64::from(c[0]) * 0xd251_1f53, u64::from(c[2]) * 0xcd9e_8d57);
                c = [(two >> 32) as u32 ^ c[1] ^ k[0], two as u32, (one >> 32) as u32 ^ c[3] ^ k[1], one as u32];
                k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
            }
            c
        };
        // Random123, tests/kat_vectors: philox4x32 10.
        assert_eq!(ten([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(ten([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        // philox4x32 7, of the same file.
        let seven = |first, rest, seed| philox([first; 16], rest, seed).map(|word| word[15]);
        assert_eq!(seven(0, [0; 3], 0), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
        assert_eq!(seven(u32::MAX, [u32::MAX; 3], u64::MAX), [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
    }

    #[test]
    fn masks_drop_as_many_as_they_should_and_keep_the_mean() {
        for (p, of_rows) in [(0.1, false), (0.5, false), (0.9, false), (0.3, true)] {
            let mask = Mask::new(p, 7, of_rows).expect("a mask").drawn(Draw::default(), 0, 0);
            let (mut dropped, mut sum, n) = (0.0, 0.0, 400 * 160);
            for row in 0..if of_rows { 64_000 } else { 400 } {
                for column in 0..if of_rows { 1 } else { 160 } {
                    let factor = mask.factor(row, column);
                    dropped += f64::from(u8::from(factor == 0.0)) / f64::from(n);
                    sum += f64::from(factor) / f64::from(n);
                }
            }
            assert!((dropped - f64::from(p)).abs() < 0.01, "{p}: {dropped}");
            assert!((sum - 1.0).abs() < 0.04, "{p}: {sum}");
        }
        assert_eq!(Mask::new(0.0, 0, false), None);
    }
}
