//! Optimisers in the formulas of their documentation, for one parameter in plain f32, each fused multiply-add as it rounds.

use resblock::{AdamW, Sgd};

/// What a parameter's group gives it: a factor on the learning rate, and its weight decay.
pub(crate) type Settings = (f32, f32);

/// Step `t` of a parameter `p` with gradient `g`, without groups; `moments` are its velocity, and one that is not used.
pub(crate) fn sgd_step(sgd: &Sgd, t: u64, p: &mut f32, g: f32, moments: &mut [f32; 2], is_weight: bool) {
    sgd_step_in(sgd, (1.0, if is_weight { sgd.weight_decay } else { 0.0 }), t, p, g, moments);
}

/// Step `t` of a parameter `p` with gradient `g`, without groups; `moments` are its first and second.
pub(crate) fn adamw_step(adam: &AdamW, t: u64, p: &mut f32, g: f32, moments: &mut [f32; 2], is_weight: bool) {
    adamw_step_in(adam, (1.0, if is_weight { adam.weight_decay } else { 0.0 }), t, p, g, moments);
}

pub(crate) fn sgd_step_in(sgd: &Sgd, (factor, decay): Settings, t: u64, p: &mut f32, g: f32, [v, _]: &mut [f32; 2]) {
    let (lr, least) = (sgd.lr * factor, f32::MIN_POSITIVE);
    let force = flush(decay.mul_add(*p, flush(g, least)), least);
    *v = flush(sgd.momentum.mul_add(*v, force), least);
    *p = if decay == 0.0 { (-lr).mul_add(*v, *p) } else { *p - lr.mul_add(*v, -spread(t, *p)) };
}

pub(crate) fn adamw_step_in(
    adam: &AdamW,
    (factor, weight_decay): Settings,
    t: u64,
    p: &mut f32,
    g: f32,
    [m, v]: &mut [f32; 2],
) {
    let AdamW { lr, betas: (b1, b2), eps, .. } = *adam;
    let lr = f64::from(lr) * f64::from(factor);
    let correction = |b: f32| 1.0 - libm::pow(f64::from(b), t as f64);
    let (rate, root) = ((lr / correction(b1)) as f32, (1.0 / libm::sqrt(correction(b2))) as f32);
    let decay = (lr * f64::from(weight_decay)) as f32;

    let smallest = f64::from(f32::MIN_POSITIVE);
    let (of_m, of_v) = (smallest / f64::from(1.0 - b1), libm::sqrt(smallest / f64::from(1.0 - b2)));
    let flushes = f64::from(eps) >= of_v * f64::from(1 << 26);
    let (of_m, of_v, least) = if flushes { (of_m as f32, of_v as f32, f32::MIN_POSITIVE) } else { (0.0, 0.0, 0.0) };
    let (g1, g2) = (flush(g, of_m), flush(g, of_v));
    *m = flush(b1.mul_add(*m, (1.0 - b1) * g1), least);
    *v = flush(b2.mul_add(*v, (1.0 - b2) * (g2 * g2)), least);
    let u = *m / v.sqrt().mul_add(root, eps);
    *p = if decay == 0.0 { (-rate).mul_add(u, *p) } else { *p - rate.mul_add(u, decay.mul_add(*p, -spread(t, *p))) };
}

/// +0 below `least` in magnitude; NaN stays.
fn flush(value: f32, least: f32) -> f32 {
    if value.abs() < least { 0.0 } else { value }
}

/// φ(t) ulp(p), with the unit below where p is a power of two.
fn spread(t: u64, p: f32) -> f32 {
    let j = (2_654_435_769 * u128::from(t) + 1_610_612_736) % (1 << 32) / 256;
    let phase = (2.0 * j as f64 + 1.0 - 16_777_216.0) / 33_554_432.0;
    let unit = p - (-p).mul_add(1.25 / 16_777_216.0, p);
    phase as f32 * unit
}
