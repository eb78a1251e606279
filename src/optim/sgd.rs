//! Stochastic gradient descent.

use super::decay::{phase, spread};
use super::group::Group;
use super::state::{Elements, Slot, State, StripMemory};
use super::{Optimizer, flush, require, require_below_one, require_not_negative};
use crate::context::Context;
use crate::error::Error;
use crate::layers::Layer;
use crate::params::gradients::Gradients;
use crate::params::network::Parameters;
use crate::simd::{Kernel, Simd};

/// Stochastic gradient descent with momentum: v = momentum v + (g + weight_decay p), p = p - lr v. Decay is for weights only,
/// and lr the same for all, unless [`Sgd::groups`] say otherwise: then lr is lr lr_factor, rounded to f32.
///
/// Each step, for an element of a parameter that has taken k steps with this one, is rounded as
///
/// ```text
/// v = flush(fma(momentum, v, flush(fma(weight_decay, p, flush(g)))))
/// p = fma(-lr, v, p)                              for biases, and where weight_decay is 0
/// p = p - fma(lr, v, -φ(k) ulp(p))                for weights with decay
/// ```
///
/// where flush(a) is +0 where |a| < 2⁻¹²⁶, so that no denormal, which many CPUs are slow with, stays in v; ulp(p) = p - fma(-p, 1.25·2⁻²⁴, p),
/// a unit in the last place; and φ(k) = (2j + 1 - 2²⁴) / 2²⁵ for j = ((2654435769 k + 1610612736) mod 2³²) / 2⁸, rounded down: a threshold of
/// rounding that moves evenly through (-½, ½), so that a decay of less than a unit is not lost.
///
/// A gradient that is NaN or infinite goes to v and p, and stays in them: [`Optimizer::step_checked`] refuses it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sgd {
    /// Learning rate, finite and not negative; may change from step to step.
    pub lr: f32,
    /// 0 for plain descent, often 0.9; below 1.
    pub momentum: f32,
    /// L2 penalty on weights (not biases), finite and not negative.
    pub weight_decay: f32,
    /// Parameters that are treated otherwise; none at first.
    pub groups: Vec<Group>,
    pub(crate) state: State,
    memory: StripMemory<Rates>,
}

/// What the step of one parameter multiplies by.
#[derive(Debug, Clone, Copy)]
struct Rates {
    lr: f32,
    decay: f32,
    phase: f32,
}

impl Sgd {
    /// With momentum and no decay.
    pub fn new(lr: f32, momentum: f32) -> Self {
        Self {
            lr,
            momentum,
            weight_decay: 0.0,
            groups: Vec::new(),
            state: State::default(),
            memory: StripMemory::default(),
        }
    }

    fn advance(&mut self, ctx: &Context, layer: &mut dyn Parameters, grads: &Gradients) -> Result<(), Error> {
        let isa = ctx.isa();
        let Self { lr, momentum, weight_decay, .. } = *self;
        require_not_negative("lr", lr)?;
        require_below_one("momentum", momentum)?;
        require_not_negative("weight_decay", weight_decay)?;
        for group in &self.groups {
            group.check()?;
            require("groups.lr_factor", (lr * group.lr_factor).is_finite(), "lr * lr_factor must be finite")?;
        }
        if let Some(state) = self.state.made_for(layer, grads, 1)? {
            self.state = state;
        }
        let rule = |Slot { step, name }| {
            let (factor, decay) = Group::settings(&self.groups, name, weight_decay);
            Rates { lr: lr * factor, decay, phase: phase(step) }
        };
        let work = |Elements { write: [p, v, _], read: g, what: &Rates { lr, decay, phase } }: Elements<'_, _>| {
            let step = SgdStep { p, g, v, lr, momentum, decay, phase };
            if decay == 0.0 { isa.run(Plain(step)) } else { isa.run(Decayed(step)) }
        };
        self.state.update(ctx, &mut self.memory, layer, grads, rule, work)
    }
}

impl Optimizer for Sgd {
    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error> {
        self.advance(ctx, layer, grads)
    }
}

struct SgdStep<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    v: &'a mut [f32],
    lr: f32,
    momentum: f32,
    decay: f32,
    phase: f32,
}

struct Plain<'a>(SgdStep<'a>);
struct Decayed<'a>(SgdStep<'a>);

impl Kernel for Plain<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run::<S, false>(s);
    }
}

impl Kernel for Decayed<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run::<S, true>(s);
    }
}

impl SgdStep<'_> {
    #[inline(always)]
    fn run<S: Simd, const DECAYED: bool>(self, s: S) {
        let (lr, momentum, decay) = (s.splat(self.lr), s.splat(self.momentum), s.splat(self.decay));
        let (phase, least) = (s.splat(self.phase), s.splat(f32::MIN_POSITIVE));
        let chunks = self.p.chunks_mut(S::LANES).zip(self.g.chunks(S::LANES)).zip(self.v.chunks_mut(S::LANES));
        for ((p, g), v) in chunks {
            let old = s.load(p);
            let force = flush(s, s.fma(decay, old, flush(s, s.load(g), least)), least);
            let velocity = flush(s, s.fma(momentum, s.load(v), force), least);
            s.store(v, velocity);
            let new = if DECAYED {
                s.sub(old, s.fms(lr, velocity, spread(s, old, phase)))
            } else {
                s.fnma(lr, velocity, old)
            };
            s.store(p, new);
        }
    }
}
