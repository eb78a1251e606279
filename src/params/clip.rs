//! Gradients clipped by their norm.

use super::gradients::Gradients;
use crate::context::Context;
use crate::error::Error;

impl Gradients {
    /// Scales all gradients by one factor, so that their Euclidean norm is `max`, if it is larger. Returns the norm before.
    ///
    /// The norm is that of [`Gradients::norm`], of all gradients together, in f64 and in a fixed order. Where norm > max, each gradient g
    /// becomes g · (max / norm): the quotient and the product are rounded to f64, and the product then to f32. So the new norm exceeds `max`
    /// by a relative 2⁻²⁴ at most, denormals aside, and the same gradients give the same bits everywhere. Where norm ≤ max (a norm of 0
    /// is, whatever `max`), no bit changes. `max` may be ∞, which clips nothing, or 0, which leaves zeros with their signs.
    ///
    /// It is `torch.nn.utils.clip_grad_norm_` with `error_if_nonfinite=True`, but for the 1e-6 that PyTorch adds to the divisor.
    ///
    /// ```
    /// # use resblock::*;
    /// # fn main() -> Result<(), Error> {
    /// # let mut layer = Linear::with_init(2, 3, Activation::Relu, &mut Init::he(1))?;
    /// # let (ctx, mut grads, mut adam, mut skipped) = (Context::new()?, Gradients::new(&layer)?, AdamW::new(1e-3), 0);
    /// match grads.clip_norm(&ctx, 1.0) {
    ///     Ok(_norm) => adam.step(&ctx, &mut layer, &grads)?,
    ///     Err(Error::Gradient { .. }) => skipped += 1, // or stop: the error names the first parameter and element
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if `max` is NaN or negative; [`Error::Gradient`] if a gradient is NaN or infinite, with the first of them. Nothing
    /// is changed then.
    pub fn clip_norm(&mut self, ctx: &Context, max: f64) -> Result<f64, Error> {
        if max.is_nan() || max < 0.0 {
            return Err(Error::Setting { operand: "max", reason: "must not be NaN nor negative" });
        }
        let norm = self.norm_within(ctx, f32::MAX)?;
        if norm > max {
            let factor = max / norm;
            self.change(ctx, |piece| piece.iter_mut().for_each(|g| *g = (f64::from(*g) * factor) as f32));
        }
        Ok(norm)
    }
}
