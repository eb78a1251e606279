//! Optimisers, in place on parameters as they are stored: elementwise, so layout does not matter. The same
//! bits on every instruction set (fma, IEEE division and square root).

use crate::context::Context;
use crate::error::Error;
use crate::gemm::buffers::zeros;
use crate::layers::Layer;
use crate::layers::gradients::Gradients;
use crate::simd::{Isa, Kernel, Simd};

/// Changes the parameters of a network by its gradients.
pub trait Optimizer {
    /// One step. Parameters whose gradient was declined stay as they are. State is made at the first step; later ones allocate
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if gradients or the optimiser's state belong to another network, [`Error::Memory`] if there is no
    /// memory for the state. Nothing is changed then.
    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error>;
}

/// Stochastic gradient descent with momentum: v = momentum v + (g + weight_decay p), p = p - lr v. Decay is for weights only.
#[derive(Debug, Clone, PartialEq)]
pub struct Sgd {
    /// Learning rate; may change from step to step.
    pub lr: f32,
    /// 0 for plain descent, often 0.9.
    pub momentum: f32,
    /// L2 penalty on weights (not biases).
    pub weight_decay: f32,
    pub(crate) state: State,
}

impl Sgd {
    /// With momentum and no decay.
    pub fn new(lr: f32, momentum: f32) -> Self {
        Self { lr, momentum, weight_decay: 0.0, state: State::default() }
    }
}

impl Optimizer for Sgd {
    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error> {
        let Self { lr, momentum, weight_decay, ref mut state } = *self;
        state.update(ctx, layer, grads, 1, |isa, p, g, v, is_weights| {
            let decay = if is_weights { weight_decay } else { 0.0 };
            isa.run(SgdStep { p, g, v, lr, momentum, decay });
        })
    }
}

/// AdamW (Loshchilov and Hutter 2019): m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g²,
/// p = p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). Decay is for weights only.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Learning rate; may change from step to step.
    pub lr: f32,
    /// Decay rates of the first and second moment.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay of weights (not biases).
    pub weight_decay: f32,
    pub(crate) steps: u64,
    pub(crate) state: State,
}

impl AdamW {
    /// With the usual betas (0.9, 0.999), eps 1e-8 and decay 0.01.
    pub fn new(lr: f32) -> Self {
        Self { lr, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01, steps: 0, state: State::default() }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

impl Optimizer for AdamW {
    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error> {
        let t = self.steps.saturating_add(1);
        let (b1, b2) = self.betas;
        // In f64 and by libm: the same on every platform, and no loss in 1 - b^t.
        let correction = |b: f32| 1.0 - libm::pow(f64::from(b), t as f64);
        let rate = (f64::from(self.lr) / correction(b1)) as f32;
        let root = (1.0 / libm::sqrt(correction(b2))) as f32;
        let Self { lr, eps, weight_decay, ref mut state, .. } = *self;
        state.update(ctx, layer, grads, 2, |isa, p, g, moments, is_weights| {
            let (m, v) = moments.split_at_mut(p.len());
            let keep = if is_weights { 1.0 - lr * weight_decay } else { 1.0 };
            isa.run(AdamWStep { p, g, m, v, b1, b2, eps, rate, root, keep });
        })?;
        self.steps = t;
        Ok(())
    }
}

/// Moments of every parameter, stored as the parameter is: for each affine map those of the weights and those of the bias.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(unreachable_pub, reason = "part of what seals `SavedOptimizer`: nameable by nobody outside")]
pub struct State {
    affines: Vec<Moments>,
}

/// Moments of one affine map.
#[derive(Debug, Clone, PartialEq)]
struct Moments {
    /// (inputs, outputs) of the map. Lengths would not tell: panels of 5 and of 7 columns are as long.
    shape: (usize, usize),
    /// Those of the weights and those of the bias.
    values: [Vec<f32>; 2],
}

impl State {
    /// (inputs, outputs) of affine map `index`.
    fn shape<L: Layer>(layer: &L, index: usize) -> (usize, usize) {
        layer.affine(index).map_or((0, 0), |a| (a.inputs(), a.outputs()))
    }

    /// Floats of the moments of weights and bias of affine map `index`.
    fn lens<L: Layer>(layer: &L, index: usize, count: usize) -> [usize; 2] {
        layer
            .affine(index)
            .map_or([0, 0], |a| [count * a.weights().as_slice().len(), count * a.bias().map_or(0, <[f32]>::len)])
    }

    /// `count` moments of zero for each parameter.
    pub(crate) fn zeros<L: Layer>(layer: &L, count: usize) -> Result<Self, Error> {
        let affines = (0..layer.affine_count()).map(|i| {
            let [weights, bias] = Self::lens(layer, i, count);
            Ok(Moments { shape: Self::shape(layer, i), values: [zeros(weights)?, zeros(bias)?] })
        });
        Ok(Self { affines: affines.collect::<Result<_, Error>>()? })
    }

    /// That these moments belong to a network of `layer`'s shape, or have not been made yet.
    pub(crate) fn check<L: Layer>(&self, layer: &L, count: usize) -> Result<(), Error> {
        if self.affines.is_empty() {
            return Ok(());
        }
        let n = layer.affine_count();
        let fits = |i: usize| {
            self.affines.get(i).is_some_and(|Moments { shape, values: [weights, bias] }| {
                *shape == Self::shape(layer, i) && [weights.len(), bias.len()] == Self::lens(layer, i, count)
            })
        };
        match (0..n.max(self.affines.len())).find(|&i| i >= n || !fits(i)) {
            Some(index) => Err(Error::Mismatch { operand: "optimiser state", index }),
            None => Ok(()),
        }
    }

    /// Runs `rule(isa, p, g, moments, is weights)` on every parameter with a gradient; `moments` has `count * p.len()` floats.
    fn update<L: Layer>(
        &mut self,
        ctx: &Context,
        layer: &mut L,
        grads: &Gradients,
        count: usize,
        rule: impl Fn(Isa, &mut [f32], &[f32], &mut [f32], bool),
    ) -> Result<(), Error> {
        grads.check("grads", layer)?;
        if self.affines.is_empty() {
            *self = Self::zeros(layer, count)?;
        }
        self.check(layer, count)?;
        for ((i, grad), moments) in grads.affines.iter().enumerate().zip(&mut self.affines) {
            let [weights, bias] = &mut moments.values;
            let Some(affine) = layer.affine_mut(i) else { continue };
            if let Some(dw) = &grad.dw {
                rule(ctx.isa(), affine.weights_mut().as_mut_slice(), dw.as_slice(), weights, true);
            }
            if let (Some(db), Some(p)) = (&grad.db, affine.bias_mut()) {
                rule(ctx.isa(), p, db, bias, false);
            }
        }
        Ok(())
    }
}

#[cfg(feature = "safetensors")]
impl State {
    /// Moment `at` of `count` of a parameter, laid out as the parameter is. None before they are made.
    pub(crate) fn moment(&self, affine: usize, is_bias: bool, at: usize, count: usize) -> Option<&[f32]> {
        let moments = &self.affines.get(affine)?.values[usize::from(is_bias)];
        let len = moments.len() / count;
        Some(&moments[at * len..][..len])
    }

    /// As [`State::moment`], to be changed.
    pub(crate) fn moment_mut(&mut self, affine: usize, is_bias: bool, at: usize, count: usize) -> Option<&mut [f32]> {
        let moments = &mut self.affines.get_mut(affine)?.values[usize::from(is_bias)];
        let len = moments.len() / count;
        Some(&mut moments[at * len..][..len])
    }
}

struct SgdStep<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    v: &'a mut [f32],
    lr: f32,
    momentum: f32,
    decay: f32,
}

impl Kernel for SgdStep<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lr, momentum, decay) = (s.splat(self.lr), s.splat(self.momentum), s.splat(self.decay));
        let chunks = self.p.chunks_mut(S::LANES).zip(self.g.chunks(S::LANES)).zip(self.v.chunks_mut(S::LANES));
        for ((p, g), v) in chunks {
            let old = s.load(p);
            let velocity = s.fma(momentum, s.load(v), s.fma(decay, old, s.load(g)));
            s.store(v, velocity);
            s.store(p, s.fnma(lr, velocity, old));
        }
    }
}

struct AdamWStep<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    b1: f32,
    b2: f32,
    eps: f32,
    /// lr / (1 - b1^t)
    rate: f32,
    /// 1 / sqrt(1 - b2^t)
    root: f32,
    /// 1 - lr weight_decay
    keep: f32,
}

impl Kernel for AdamWStep<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (b1, b2, rest1, rest2) =
            (s.splat(self.b1), s.splat(self.b2), s.splat(1.0 - self.b1), s.splat(1.0 - self.b2));
        let (eps, rate, root, keep) = (s.splat(self.eps), s.splat(self.rate), s.splat(self.root), s.splat(self.keep));
        let moments = self.m.chunks_mut(S::LANES).zip(self.v.chunks_mut(S::LANES));
        for ((p, g), (m, v)) in self.p.chunks_mut(S::LANES).zip(self.g.chunks(S::LANES)).zip(moments) {
            let g = s.load(g);
            let first = s.fma(b1, s.load(m), s.mul(rest1, g));
            let second = s.fma(b2, s.load(v), s.mul(rest2, s.mul(g, g)));
            s.store(m, first);
            s.store(v, second);
            let step = s.div(first, s.fma(s.sqrt(second), root, eps));
            s.store(p, s.fnma(rate, step, s.mul(keep, s.load(p))));
        }
    }
}
