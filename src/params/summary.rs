//! What one pass over values tells: their norm, and how large they are.

use super::gradients::{Gradients, VALUES_PER_THREAD};
use crate::context::Context;
use crate::error::Error;
use crate::team::Team;
use crate::team::pieces::{Chunks, Pieces};

/// Tensors whose sums are taken side by side.
const AT_A_TIME: usize = 32;

/// How large gradients are, in one pass over them: [`Gradients::summary`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct GradientSummary {
    /// Euclidean norm, in f64. No square overflows there, so it is finite exactly if every gradient is.
    pub norm: f64,
    /// Largest magnitude, ∞ included; NaN is left out.
    pub largest: f32,
    /// How many are NaN or ±∞.
    pub not_finite: usize,
}

impl Gradients {
    /// Euclidean norm, largest magnitude and number of NaN and ±∞ of all gradients, in one pass: what a trainer logs, clips by and looks
    /// out for. (The number takes a second pass, where it is not 0.)
    pub fn summary(&self, ctx: &Context) -> GradientSummary {
        let all = self.values().flatten().map(|g| g.as_slice().len()).fold(0, usize::saturating_add);
        let threads = ctx.par().threads_for(all / VALUES_PER_THREAD);
        let (mut team, mut crew) = (Team::new(threads, ctx.linger()), vec![(); threads]); // which takes no memory
        let (mut squares, mut largest) = (0.0, 0.0_f32);
        // The chains of a tensor are one thread's; those of several go side by side, and are added in order.
        let mut tensors = self.iter();
        loop {
            let mut some = [None; AT_A_TIME];
            let mut count = 0;
            for (slot, tensor) in some.iter_mut().zip(&mut tensors) {
                (*slot, count) = (Some(tensor), count + 1);
            }
            let mut sums = [(0.0, 0.0_f32); AT_A_TIME];
            team.each(count, Chunks::new(&mut sums, 1).map(|i, sums| (i, sums)), &mut crew, |(i, sums), ()| {
                if let (Some(tensor), [sums]) = (&some[i], sums) {
                    let of = tensor.sums();
                    *sums = (of.squares(), of.largest());
                }
            });
            for (of, most) in &sums[..count] {
                squares += of;
                largest = largest.max(*most);
            }
            if count < AT_A_TIME {
                break;
            }
        }
        let norm = libm::sqrt(squares);
        let finite = |value: f32| value.is_finite();
        let not_finite = if norm.is_finite() { 0 } else { self.iter().map(|g| g.outside(finite).count()).sum() };
        GradientSummary { norm, largest, not_finite }
    }

    /// Euclidean norm over all gradients, in f64.
    pub fn norm(&self, ctx: &Context) -> f64 {
        self.summary(ctx).norm
    }

    /// The norm, if no gradient is NaN or larger than `limit`.
    pub(crate) fn norm_within(&self, ctx: &Context, limit: f32) -> Result<f64, Error> {
        let GradientSummary { norm, largest, .. } = self.summary(ctx);
        if norm.is_finite() && largest <= limit {
            return Ok(norm);
        }
        let within = |value: f32| value.abs() <= limit;
        let mut count = 0;
        let mut first = None;
        for gradient in self.iter() {
            let mut outside = gradient.outside(within).peekable();
            if let (None, Some(&(index, value))) = (&first, outside.peek()) {
                first = Some((gradient.to_string(), index, value));
            }
            count += outside.count();
        }
        // There is one: the sums have seen it.
        let Some((parameter, index, found)) = first else { return Ok(norm) };
        Err(Error::Gradient { parameter, index, limit: format!("{limit:e}"), found: format!("{found:e}"), count })
    }
}
