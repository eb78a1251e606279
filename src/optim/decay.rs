//! Weight decay that f32 does not lose.
//!
//! A decay of lr · weight_decay = 1e-7 takes one to two units in the last place from a weight, and one of 1e-8 a fifth of a unit. Rounded to
//! nearest, the first is up to half too fast or too slow, step after step the same, and the second never happens. So weights with decay are
//! rounded by a threshold that moves: p' is p − x rounded to nearest after φ · ulp(p) was added, where φ runs evenly through (−½, ½) from step
//! to step. Over many steps, each fraction of a unit is then rounded up as often as it should be, and the error stays at a few units in all
//! (docs/design.md has the numbers).

use crate::simd::Simd;

/// φ of step `step`, in (−½, ½): a Weyl sequence, whose multiplier is the golden ratio's fraction in 32 bits (the most even choice: Knuth, The
/// Art of Computer Programming, volume 3, section 6.4). The offset centres it: without it, the first thousands of steps lean to one side by
/// a unit. The 24 bits that are kept make 2 j + 1 − 2²⁴ over 2²⁵, which an f32 holds exactly.
pub(super) fn phase(step: u64) -> f32 {
    let j = (step as u32).wrapping_mul(0x9e37_79b9).wrapping_add(0x6000_0000) >> 8;
    (2 * j as i32 + 1 - (1 << 24)) as f32 / (1 << 25) as f32
}

/// `phase` · ulp(p), with the sign of `p`; 0 for denormals. At a power of two it is the unit below, so that p stays p where nothing is to be
/// taken from it.
///
/// ulp(p) = p − fnma(p, 1.25 · 2⁻²⁴, p): of p in [2ᵉ, 2ᵉ⁺¹), 1.25 · 2⁻²⁴ p is between 5/8 and 10/8 of a unit above 2ᵉ, which rounds to one, and
/// at 2ᵉ itself between 1 and 1½ of the half as large units below.
#[inline(always)]
pub(super) fn spread<S: Simd>(s: S, p: S::V, phase: S::V) -> S::V {
    let below = s.fnma(p, s.splat(1.25 / (1 << 24) as f32), p);
    s.mul(phase, s.sub(p, below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::One;

    #[test]
    fn the_unit_is_that_of_the_next_smaller_magnitude() {
        for bits in [1_u32, 2, 3, 0x7f_ffff, 1 << 22].into_iter().chain((0..1000).map(|i| i * 8388)) {
            for exponent in [40_u32, 100, 126, 127, 200, 254] {
                for p in [f32::from_bits((exponent << 23) | (bits & 0x7f_ffff)), f32::from_bits(exponent << 23)] {
                    let unit = p - p.next_down();
                    assert_eq!(spread(One, [p], [1.0]), [unit], "{p:e}");
                    assert_eq!(spread(One, [-p], [1.0]), [-unit], "{p:e}");
                }
            }
        }
        for p in [0.0, f32::from_bits(1), f32::MIN_POSITIVE] {
            assert_eq!(spread(One, [p], [0.5])[0].abs(), 0.0);
        }
    }

    #[test]
    fn phases_are_even_and_inside_one_unit() {
        let mut counts = [0; 64];
        for step in 0..64_000 {
            let phase = phase(step);
            assert!(phase.abs() < 0.5);
            counts[((phase + 0.5) * 64.0) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (997..=1003).contains(&count)), "{counts:?}");
        assert_eq!(phase(1 << 32), phase(0));
    }
}
