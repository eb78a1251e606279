//! AdamW.

use super::decay::{phase, spread};
use super::group::Group;
use super::state::{self, Elements, Slot, State, StripMemory};
use super::{Optimizer, flush, require, require_below_one, require_not_negative};
use crate::context::Context;
use crate::error::{Error, expect_len};
use crate::gemm::panels::PANEL;
use crate::layers::Layer;
use crate::params::gradients::Gradients;
use crate::params::network::Parameters;
use crate::simd::{Isa, Kernel, Simd};

/// AdamW (Loshchilov and Hutter 2019): m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g²,
/// p = p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). Decay is for weights only, and lr the same for
/// all, unless [`AdamW::groups`] say otherwise: then lr is lr lr_factor. t counts the steps that this
/// parameter has taken: one that was declined at first starts with the same correction, and the same step, as any other.
///
/// # Rounding
///
/// With rate = lr / (1 - b1^t) and root = 1 / sqrt(1 - b2^t), computed in f64 and rounded to f32, as is decay = lr weight_decay (the
/// product lr lr_factor is not rounded):
///
/// ```text
/// m = flush(fma(b1, m, (1 - b1) g))               the product is 0 where |g| < 2⁻¹²⁶ / (1 - b1)
/// v = flush(fma(b2, v, (1 - b2) (g g)))           the product is 0 where |g| < 2⁻⁶³ / sqrt(1 - b2)
/// u = m / fma(sqrt(v), root, eps)                 u = 0 / 0 does not arise, see below
/// p = fma(-rate, u, p)                            for biases, and where decay is 0
/// p = p - fma(rate, u, fma(decay, p, -φ(t) ulp(p)))   for weights with decay
/// ```
///
/// flush(a) is +0 where |a| < 2⁻¹²⁶. It and the two limits (quotients rounded to f32) keep denormals, which many CPUs are slow with, out of
/// moments and products: a parameter without gradients, or with tiny ones, takes no longer than another. They are all left out where they
/// could be seen, where eps < 2⁻³⁷ / sqrt(1 - b2): otherwise they change the divisor by less than a rounding.
///
/// ulp(p) = p - fma(-p, 1.25·2⁻²⁴, p) is a unit in the last place, and φ(t) = (2j + 1 - 2²⁴) / 2²⁵ for j = ((2654435769 t + 1610612736) mod
/// 2³²) / 2⁸, rounded down: a threshold of rounding that moves evenly through (-½, ½). So decay is right, in the mean, however small it is:
/// after 200 000 steps, what it has taken from a weight is right to a few units in the last place.
///
/// # Large and small gradients
///
/// In f32 the square of a gradient above 1.8e19 ([`AdamW::LARGEST_GRADIENT`]) is infinite. Such a gradient, though finite, makes v infinite
/// and every later step of that element 0: it never moves again, but for its decay. NaN and ±∞ make the element NaN for ever. Nothing of
/// this is an error in [`Optimizer::step`]; [`Optimizer::step_checked`] refuses such gradients before anything changes, for the price of
/// the pass that their norm takes.
///
/// The square of one below about 1e-19 / sqrt(1 - b2) is lost, so that the step is m / eps: right, as long as eps is large beside the
/// gradient. With an eps so small (below 2⁻⁷⁵ / sqrt(1 - b2), 8e-22 for the usual b2) that it would not be, and with eps = 0, a step is
/// refused if the second moment of an element would be 0, so that u would be without meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Learning rate, finite and not negative; lr / (1 - b1) must be finite, too. May change from step to step.
    pub lr: f32,
    /// Decay rates of the first and second moment, (b1, b2): at least 0, below 1.
    pub betas: (f32, f32),
    /// Added to the root of the second moment; finite and not negative. 0 is allowed as long as no second moment is 0.
    pub eps: f32,
    /// Decoupled decay of weights (not biases), finite and not negative, as lr weight_decay must be.
    pub weight_decay: f32,
    /// Parameters that are treated otherwise; none at first. The limits of `lr` and `weight_decay` hold for what they get.
    pub groups: Vec<Group>,
    pub(crate) steps: u64,
    pub(crate) state: State,
    memory: StripMemory<Factors>,
}

/// What the step of one parameter multiplies by.
#[derive(Debug, Clone, Copy)]
struct Factors {
    b1: f32,
    b2: f32,
    eps: f32,
    /// 1 - b1^t
    correction: f64,
    /// lr / (1 - b1^t)
    rate: f32,
    /// 1 / sqrt(1 - b2^t)
    root: f32,
    /// lr weight_decay
    decay: f32,
    /// φ(t)
    phase: f32,
    /// Smallest magnitude of a moment.
    least: f32,
    /// Smallest gradients that count in the first and in the second moment.
    smallest: [f32; 2],
}

impl AdamW {
    /// The largest magnitude of a gradient that [`Optimizer::step_checked`] accepts: its square, 3.24e38, is below the largest f32, 3.40e38, by
    /// enough for the roundings of a moving mean.
    pub const LARGEST_GRADIENT: f32 = 1.8e19;

    /// With the usual betas (0.9, 0.999), eps 1e-8 and decay 0.01.
    pub fn new(lr: f32) -> Self {
        Self {
            lr,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            groups: Vec::new(),
            steps: 0,
            state: State::default(),
            memory: StripMemory::default(),
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Step `step` (from 1 on) of one tensor of the caller's, who keeps its moments: `m` and `v`, zeros before the first step. Lists of the same length, the
    /// elements in any order that is the same in all four. For hosts that have parameters, gradients and moments of their own: bits and rounding are those
    /// of [`Optimizer::step`]. `weight_decay` is that of all; groups are left alone.
    ///
    /// ```
    /// # use resblock::{AdamW, Context};
    /// let (mut p, g, mut m, mut v) = ([1.0; 3], [0.5; 3], [0.0; 3], [0.0; 3]);
    /// AdamW::new(0.1).update(&Context::new()?, 1, &mut p, &g, &mut m, &mut v)?;
    /// assert!((p[0] - 0.899).abs() < 1e-6);
    /// # Ok::<(), resblock::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`] naming `p`, `m` or `v`; [`Error::Setting`] if a setting is outside its range, if `step` is 0, or if eps is so small (below 2⁻⁷⁵ /
    /// sqrt(1 - b2)) that a divisor might be 0. Nothing is changed then.
    pub fn update(
        &self,
        ctx: &Context,
        step: u64,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) -> Result<(), Error> {
        self.check_settings()?;
        require("step", step > 0, "counts from 1 on")?;
        require("eps", self.has_divisors(), "is too small for a step that does not look at its gradients first")?;
        for (operand, len) in [("p", p.len()), ("m", m.len()), ("v", v.len())] {
            expect_len(operand, g.len(), len)?;
        }
        let factors = self.factors(step);
        let (rate, decay) = self.rates(factors.correction, 1.0, self.weight_decay);
        let what = Factors { rate, decay, ..factors };
        // Whole lines in place, and what is left beyond the last of them through a line of its own.
        let whole = g.len() / PANEL * PANEL;
        let ([p, p_end], [m, m_end], [v, v_end]) = (split(p, whole), split(m, whole), split(v, whole));
        let isa = ctx.isa();
        let work = |Elements { write: [p, m, v], read: g, what }: Elements<'_, Factors>| {
            AdamWStep { p, g, m, v, factors: *what }.take(isa);
        };
        let mut lines = [[0.0; PANEL]; 4];
        let ends = [&*p_end, &g[whole..], m_end, v_end];
        lines.iter_mut().zip(ends).for_each(|(line, end)| line[..end.len()].copy_from_slice(end));
        let [line_p, line_g, line_m, line_v] = &mut lines;
        work(Elements { write: [line_p, line_m, line_v], read: line_g, what: &what });
        state::in_pieces(ctx, [p, m, v], &g[..whole], what, work);
        let [line_p, _, line_m, line_v] = &lines;
        for (end, line) in [(p_end, line_p), (m_end, line_m), (v_end, line_v)] {
            end.copy_from_slice(&line[..end.len()]);
        }
        Ok(())
    }

    /// Whether eps alone keeps divisors from 0: below the smallest normal f32, squares are rounded to multiples of 2⁻¹⁴⁹, and lost where
    /// `smallest_square` is divided by 2¹².
    fn has_divisors(&self) -> bool {
        f64::from(self.eps) * f64::from(1 << 12) >= self.smallest_square()
    }

    fn check_settings(&self) -> Result<(), Error> {
        let (b1, b2) = self.betas;
        require_not_negative("lr", self.lr)?;
        require_below_one("betas", b1)?;
        require_below_one("betas", b2)?;
        require_not_negative("eps", self.eps)?;
        require_not_negative("weight_decay", self.weight_decay)?;
        let limits = |[lr, decayed]: [&'static str; 2], lr_factor, weight_decay| {
            let (rate, decay) = self.rates(correction(b1, 1), lr_factor, weight_decay);
            require(lr, rate.is_finite(), "lr / (1 - beta1) must be finite")?;
            require(decayed, decay.is_finite(), "lr * weight_decay must be finite")
        };
        limits(["lr", "weight_decay"], 1.0, self.weight_decay)?;
        self.groups.iter().try_for_each(|group| {
            group.check()?;
            let weight_decay = group.weight_decay.unwrap_or(self.weight_decay);
            limits(["groups.lr_factor", "groups.weight_decay"], group.lr_factor, weight_decay)
        })
    }

    /// lr / (1 - b1^t) and lr weight_decay, where `correction` is 1 - b1^t.
    fn rates(&self, correction: f64, lr_factor: f32, weight_decay: f32) -> (f32, f32) {
        let lr = f64::from(self.lr) * f64::from(lr_factor); // exact
        ((lr / correction) as f32, (lr * f64::from(weight_decay)) as f32)
    }

    /// The gradient whose part in the second moment, (1 - b2) g², is the smallest normal f32.
    fn smallest_square(&self) -> f64 {
        libm::sqrt(f64::from(f32::MIN_POSITIVE) / f64::from(1.0 - self.betas.1))
    }

    /// Step `t` of a parameter; the rates of its group are still to come.
    fn factors(&self, t: u64) -> Factors {
        let (b1, b2) = self.betas;
        let smallest = [f64::from(f32::MIN_POSITIVE) / f64::from(1.0 - b1), self.smallest_square()];
        // What is left out of the root of the second moment is below `smallest[1]`: less than half a unit in the last place of eps.
        let flushes = f64::from(self.eps) >= smallest[1] * f64::from(1 << 26);
        let (least, smallest) = if flushes { (f32::MIN_POSITIVE, smallest.map(|x| x as f32)) } else { (0.0, [0.0; 2]) };
        Factors {
            b1,
            b2,
            eps: self.eps,
            correction: correction(b1, t),
            rate: 0.0,
            root: (1.0 / libm::sqrt(correction(b2, t))) as f32,
            decay: 0.0,
            phase: phase(t),
            least,
            smallest,
        }
    }

    /// That no divisor is 0, and none without meaning, where eps is so small that this can be.
    fn check_divisors(&self, isa: Isa, state: &State, grads: &Gradients) -> Result<(), Error> {
        if self.has_divisors() {
            return Ok(());
        }
        let factors = self.factors(1);
        let fits = state.all_lines(grads, |g, m, v| isa.run(Divisors { g, m, v, factors }));
        require(
            "eps",
            fits,
            "must be larger than 0, and than gradients whose square vanishes, where a second moment is 0",
        )
    }

    fn advance(&mut self, ctx: &Context, layer: &mut dyn Parameters, grads: &Gradients) -> Result<(), Error> {
        let isa = ctx.isa();
        self.check_settings()?;
        let made = self.state.made_for(layer, grads, 2)?;
        self.check_divisors(isa, made.as_ref().unwrap_or(&self.state), grads)?;
        let mut state = made.unwrap_or_else(|| std::mem::take(&mut self.state));
        // Counts are mostly the same for all parameters, and corrections take longer than small parameters.
        let mut last = (1, self.factors(1));
        let mut memory = std::mem::take(&mut self.memory);
        let rule = |Slot { step, name }| {
            if step != last.0 {
                last = (step, self.factors(step));
            }
            let (lr_factor, weight_decay) = Group::settings(&self.groups, name, self.weight_decay);
            let (rate, decay) = self.rates(last.1.correction, lr_factor, weight_decay);
            Factors { rate, decay, ..last.1 }
        };
        let done =
            state.update(ctx, &mut memory, layer, grads, rule, |Elements { write: [p, m, v], read: g, what }| {
                AdamWStep { p, g, m, v, factors: *what }.take(isa);
            });
        self.memory = memory;
        self.state = state;
        done?;
        self.steps = self.steps.saturating_add(1);
        Ok(())
    }
}

/// The first `whole` elements, and the others.
fn split(values: &mut [f32], whole: usize) -> [&mut [f32]; 2] {
    values.split_at_mut(whole).into()
}

/// 1 - b^t. In f64 and by libm: the same on every platform, and no loss in the difference.
fn correction(b: f32, t: u64) -> f64 {
    1.0 - libm::pow(f64::from(b), t as f64)
}

impl Optimizer for AdamW {
    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error> {
        self.advance(ctx, layer, grads)
    }

    fn check_gradients(&self, ctx: &Context, grads: &Gradients) -> Result<f64, Error> {
        grads.norm_within(ctx, Self::LARGEST_GRADIENT)
    }
}

/// [`Factors`] of both moments in vectors.
#[derive(Clone, Copy)]
struct Means<S: Simd> {
    keep: [S::V; 2],
    add: [S::V; 2],
    smallest: [S::V; 2],
    least: S::V,
}

impl<S: Simd> Means<S> {
    #[inline(always)]
    fn new(s: S, Factors { b1, b2, least, smallest: [first, second], .. }: Factors) -> Self {
        Self {
            keep: [s.splat(b1), s.splat(b2)],
            add: [s.splat(1.0 - b1), s.splat(1.0 - b2)],
            smallest: [s.splat(first), s.splat(second)],
            least: s.splat(least),
        }
    }

    /// The moments after gradient `g`.
    #[inline(always)]
    fn advance(&self, s: S, g: S::V, m: S::V, v: S::V) -> (S::V, S::V) {
        // Not by `map`: its closure would not be sure to be inlined into code of the instruction set (src/simd/mod.rs, rule 1).
        let (g1, g2) = (flush(s, g, self.smallest[0]), flush(s, g, self.smallest[1]));
        let first = s.fma(self.keep[0], m, s.mul(self.add[0], g1));
        let second = s.fma(self.keep[1], v, s.mul(self.add[1], s.mul(g2, g2)));
        (flush(s, first, self.least), flush(s, second, self.least))
    }
}

struct AdamWStep<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    factors: Factors,
}

struct Plain<'a>(AdamWStep<'a>);
struct Decayed<'a>(AdamWStep<'a>);

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

impl AdamWStep<'_> {
    fn take(self, isa: Isa) {
        if self.factors.decay != 0.0 { isa.run(Decayed(self)) } else { isa.run(Plain(self)) }
    }

    #[inline(always)]
    fn run<S: Simd, const DECAYED: bool>(self, s: S) {
        let Factors { eps, rate, root, decay, phase, .. } = self.factors;
        let means = Means::new(s, self.factors);
        let (eps, rate, root) = (s.splat(eps), s.splat(rate), s.splat(root));
        let (decay, phase) = (s.splat(decay), s.splat(phase));
        // With eps = 0, the padding of a matrix would become 0 / 0. The root of the smallest second moment is 3.7e-23, so a smaller divisor is
        // eps alone, and divides 0. Not the smallest denormal: a comparison with one takes an assist, a hundred cycles, on Intel CPUs.
        let tiny = s.splat(f32::MIN_POSITIVE);
        let moments = self.m.chunks_mut(S::LANES).zip(self.v.chunks_mut(S::LANES));
        for ((p, g), (m, v)) in self.p.chunks_mut(S::LANES).zip(self.g.chunks(S::LANES)).zip(moments) {
            let (first, second) = means.advance(s, s.load(g), s.load(m), s.load(v));
            s.store(m, first);
            s.store(v, second);
            let step = s.div(first, s.max(tiny, s.fma(s.sqrt(second), root, eps)));
            let old = s.load(p);
            let new = if DECAYED {
                s.sub(old, s.fma(rate, step, s.fms(decay, old, spread(s, old, phase))))
            } else {
                s.fnma(rate, step, old)
            };
            s.store(p, new);
        }
    }
}

/// Whether each element of up to 16 has a second moment after gradient `g`, or needs none, its first being 0 beside an eps that is not.
struct Divisors<'a> {
    g: &'a [f32],
    m: &'a [f32],
    v: &'a [f32],
    factors: Factors,
}

impl Kernel for Divisors<'_> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let means = Means::new(s, self.factors);
        let moments = self.m.chunks(S::LANES).zip(self.v.chunks(S::LANES));
        self.g.chunks(S::LANES).zip(moments).all(|(g, (m, v))| {
            let (mut first, mut second) = ([0.0; PANEL], [0.0; PANEL]);
            let (m, v) = means.advance(s, s.load(g), s.load(m), s.load(v));
            s.store(&mut first, m);
            s.store(&mut second, v);
            let mut elements = first.iter().zip(&second).take(g.len());
            elements.all(|(&m, &v)| v != 0.0 || (m == 0.0 && self.factors.eps != 0.0))
        })
    }
}
