//! The formulas of the losses in arbitrary precision.

use dashu_float::{FBig, round::mode::HalfEven};

type Big = FBig<HalfEven, 2>;

/// Bits. The exponents of two f32 are 277 apart at most.
const PRECISION: usize = 500;

fn big(x: f64) -> Big {
    Big::try_from(x).expect("a finite number").with_precision(PRECISION).value()
}

fn to_f64(x: &Big) -> f64 {
    x.to_f64().value()
}

/// e^x for x <= 0. Below e^-2000 there is nothing that any bound would let us see.
fn exp(x: Big) -> Big {
    if x < big(-2000.0) { big(0.0) } else { x.exp() }
}

fn sum(terms: impl Iterator<Item = Big>) -> Big {
    terms.fold(big(0.0), |sum, term| sum + term)
}

/// A loss of one row or element and, for each logit, the two terms that its gradient is the difference of. Before the divisor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exact {
    pub(crate) loss: f64,
    pub(crate) gradients: Vec<(f64, f64)>,
}

/// A row of softmax cross-entropy.
pub(crate) fn cross_entropy(logits: &[f32], label: usize, weights: Option<&[f32]>, smoothing: f32) -> Exact {
    let logit = |k: usize| big(f64::from(logits[k]));
    let classes = logits.len();
    let targets: Vec<Big> = (0..classes)
        .map(|k| {
            let weight = big(weights.map_or(1.0, |w| f64::from(w[k])));
            let (smoothing, own) = (big(f64::from(smoothing)), if k == label { 1.0 } else { 0.0 });
            (big(own) * (big(1.0) - smoothing.clone()) + smoothing / big(classes as f64)) * weight
        })
        .collect();
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &l| max.max(l));
    let exps: Vec<Big> = (0..classes).map(|k| exp(logit(k) - big(f64::from(max)))).collect();
    let top = (0..classes).find(|&k| logits[k] == max).expect("a largest logit");
    let but = |values: &[Big], k: usize| sum((0..classes).filter(|&j| j != k).map(|j| values[j].clone()));
    let rest = but(&exps, top);
    let log = rest.clone().ln_1p();
    let loss = sum((0..classes).map(|k| targets[k].clone() * (log.clone() + (big(f64::from(max)) - logit(k)))));
    let all = rest + big(1.0);
    let gradient = |k: usize| {
        let plus = exps[k].clone() / all.clone() * but(&targets, k);
        let minus = targets[k].clone() * but(&exps, k) / all.clone();
        (to_f64(&plus), to_f64(&minus))
    };
    Exact { loss: to_f64(&loss), gradients: (0..classes).map(gradient).collect() }
}

/// An element of binary cross-entropy.
pub(crate) fn binary_cross_entropy(logit: f32, target: f32, weight: f32) -> Exact {
    let (size, t) = (big(f64::from(logit.abs())), big(f64::from(target)));
    let e = exp(-size.clone());
    let log = e.clone().ln_1p();
    let (near, far) = (big(1.0) / (big(1.0) + e.clone()), e.clone() / (big(1.0) + e));
    // softplus and sigma of the logit, and of its negative.
    let (positive, negative) = ((size + log.clone(), near), (log, far));
    let (up, down) = if logit >= 0.0 { (positive, negative) } else { (negative, positive) };
    let (yes, no) = (big(f64::from(weight)) * t.clone(), big(1.0) - t);
    let loss = yes.clone() * down.0 + no.clone() * up.0;
    Exact { loss: to_f64(&loss), gradients: vec![(to_f64(&(no * up.1)), to_f64(&(yes * down.1)))] }
}

/// An element of the squared error, or of Huber's loss with this δ.
pub(crate) fn squared_or_huber(y: f32, target: f32, delta: Option<f32>) -> Exact {
    let r = big(f64::from(y)) - big(f64::from(target));
    let size = if r < big(0.0) { -r.clone() } else { r.clone() };
    let (loss, slope) = match delta.map(|delta| big(f64::from(delta))) {
        None => (r.clone() * r, big(2.0) * size),
        Some(delta) if size > delta => (delta.clone() * (size - delta.clone() / big(2.0)), delta),
        Some(_) => (r.clone() * r / big(2.0), size),
    };
    let slope = to_f64(&slope);
    Exact { loss: to_f64(&loss), gradients: vec![if y >= target { (slope, 0.0) } else { (0.0, slope) }] }
}
