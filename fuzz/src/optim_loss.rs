//! Optimisers and losses: any numbers in parameters, gradients, settings, logits and targets; labels that are no classes, shapes
//! that do not fit, gradients and state of other networks. Against the formulas of their documentation: optimisers bit for bit, on every
//! instruction set, losses within their bounds, and their pieces bit for bit.

use crate::common::optimizers::{adamw_step, sgd_step};
use crate::common::{Grid, Map, MapGrad, assert_same, contexts, gradients_of, parameters_of, values_of};
use crate::input::{Extent, Number, Phi, Place, Size, Values};
use arbitrary::Arbitrary;
use resblock::bounds::loss::{self, LossAccuracy};
use resblock::{
    AdamW, BinaryCrossEntropy, Block, Context, CrossEntropy, Divisor, Error, Gradients, Huber, Layer, Linear, MatMut,
    MatRef, Optimizer, Role, Sgd, Skip, SquaredError,
};

#[derive(Debug, Arbitrary)]
pub enum Case {
    Optimiser(Training),
    CrossEntropy {
        rows: Size,
        classes: Size,
        labels: Vec<Extent>,
        all_classes: bool,
        values: Values,
        places: Places,
        divide: Divide,
        ignore: Option<Extent>,
        weights: Option<Weights>,
        smoothing: Option<Number>,
    },
    Elements {
        loss: Elementwise,
        rows: Size,
        cols: Size,
        values: Values,
        targets: Weights,
        places: Places,
        target_wide: bool,
        divide: Divide,
    },
}

/// A divisor, and at which row the batch is cut.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Divide {
    given: Option<Number>,
    sum: bool,
    cut: u8,
}

/// Numbers from 0 to 1, or any.
#[derive(Debug, Clone, Arbitrary)]
pub struct Weights {
    values: Values,
    usual: bool,
}

#[derive(Debug, Clone, Arbitrary)]
pub enum Elementwise {
    Squared,
    Huber(Number),
    Binary(Option<Weights>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Places {
    x: Place,
    target: Place,
    gradient: Option<(Place, bool)>,
}

#[derive(Debug, Arbitrary)]
pub struct Training {
    rule: Rule,
    phi: Phi,
    inputs: Size,
    outputs: Size,
    block: bool,
    bias: bool,
    parameters: Values,
    gradients: Vec<(Values, Number)>,
    declined: u8,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Rule {
    Sgd { lr: Number, momentum: Number, decay: Number },
    AdamW { lr: Number, betas: (Number, Number), eps: Number, decay: Number },
}

pub fn run(case: &Case) {
    match case {
        Case::Optimiser(training) => training.run(),
        Case::CrossEntropy {
            rows,
            classes,
            labels,
            all_classes,
            values,
            places,
            divide,
            ignore,
            weights,
            smoothing,
        } => {
            let (n, classes) = (rows.0, classes.0);
            let class = |Extent(label): Extent| if *all_classes && classes > 0 { label % classes } else { label };
            let mut labels: Vec<usize> = labels.iter().map(|&label| class(label)).collect();
            if *all_classes {
                labels.resize(n, classes / 2);
            }
            let weights = weights.as_ref().map(|weights| weights.fill(2, classes));
            let loss = CrossEntropy {
                divisor: divide.divisor(),
                ignore: ignore.map(class),
                class_weights: weights.as_deref(),
                label_smoothing: smoothing.map_or(0.0, |Number(smoothing)| smoothing),
            };
            cross_entropy(&loss, (n, classes), &labels, values, *places, divide.cut);
        }
        Case::Elements { loss, rows, cols, values, targets, places, target_wide, divide } => {
            let (n, m) = (rows.0, cols.0);
            let y = grid(places.x, n, m, &values.fill(0, n * m));
            let wide = m + usize::from(*target_wide);
            let target = match loss {
                Elementwise::Binary(_) => targets.fill(1, n * wide),
                _ => values.fill(1, n * wide),
            };
            let target = grid(places.target, n, wide, &target);
            loss.run(&y, &target, (n, m), *places, *target_wide, *divide);
        }
    }
}

impl Divide {
    fn divisor(self) -> Divisor {
        match self.given {
            Some(Number(by)) => Divisor::Given(by.into()),
            None if self.sum => Divisor::Sum,
            None => Divisor::Mean,
        }
    }
}

impl Weights {
    fn fill(&self, stream: u64, len: usize) -> Vec<f32> {
        let one = |v: f32| {
            if !self.usual {
                v
            } else if v.is_nan() {
                0.5
            } else {
                v.abs().min(1.0)
            }
        };
        self.values.fill(stream, len).into_iter().map(one).collect()
    }
}

fn grid(place: Place, rows: usize, cols: usize, values: &[f32]) -> Grid {
    Grid::with_margin(place.input(), rows, cols, place.margin()).filled(values)
}

fn gradient_grid(places: Places, rows: usize, cols: usize) -> Option<Grid> {
    let (place, wide) = places.gradient?;
    Some(Grid::with_margin(place.output(), rows, cols + usize::from(wide), place.margin()))
}

fn shape(operand: &'static str, (rows, cols): (usize, usize)) -> Error {
    Error::Shape { operand, expected: (rows, cols), found: (rows, cols + 1) }
}

fn bad_divisor(divisor: Divisor) -> Option<Error> {
    let bad = matches!(divisor, Divisor::Given(by) if !(by > 0.0 && by.is_finite()));
    bad.then_some(Error::Setting { operand: "divisor", reason: "must be positive and finite" })
}

fn bad_element(
    operand: &'static str,
    cols: usize,
    values: &[f32],
    largest: f32,
    reason: &'static str,
) -> Option<Error> {
    let at = values.iter().position(|v| !(*v >= 0.0 && *v <= largest))?;
    Some(Error::Element { operand, row: at / cols, col: at % cols, reason, found: values[at].to_string() })
}

fn bad_weight(operand: &'static str, weights: Option<&[f32]>) -> Option<Error> {
    let weights = weights?;
    bad_element(operand, weights.len(), weights, f32::MAX, "must be finite and not negative")
}

/// A row or an element in the formulas of the documentation: its loss, and the terms whose difference its gradients are.
#[derive(Debug, Clone)]
struct Part {
    loss: f64,
    gradients: Vec<(f64, f64)>,
}

/// `weight * x`, 0 where the weight is.
fn weighted(weight: f64, x: f64) -> f64 {
    if weight == 0.0 && !x.is_nan() { 0.0 } else { weight * x }
}

fn cross_entropy_of_row(loss: &CrossEntropy<'_>, row: &[f32], label: usize) -> Part {
    let classes = row.len();
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || row.iter().any(|l| l.is_nan()) {
        return Part { loss: f64::NAN, gradients: vec![(f64::NAN, f64::NAN); classes] };
    }
    let top = row.iter().position(|&l| l == max).expect("a largest logit");
    let exp: Vec<f64> = row.iter().map(|&l| libm::exp(f64::from(l) - f64::from(max))).collect();
    let smoothing = f64::from(loss.label_smoothing);
    let target = |k: usize| {
        let own = if k == label { 1.0 - smoothing } else { 0.0 };
        (own + smoothing / classes as f64) * loss.class_weights.map_or(1.0, |w| f64::from(w[k]))
    };
    let but = |k: usize, of: &dyn Fn(usize) -> f64| (0..classes).filter(|&j| j != k).map(of).sum::<f64>();
    let log = libm::log1p(but(top, &|j| exp[j]));
    let cost = |k: usize| weighted(target(k), log + (f64::from(max) - f64::from(row[k])));
    let sum: f64 = exp.iter().sum();
    let gradient = |k: usize| (exp[k] / sum * but(k, &target), target(k) * (but(k, &|j| exp[j]) / sum));
    Part { loss: (0..classes).map(cost).sum(), gradients: (0..classes).map(gradient).collect() }
}

fn cross_entropy(
    loss: &CrossEntropy<'_>,
    (n, classes): (usize, usize),
    labels: &[usize],
    values: &Values,
    places: Places,
    cut: u8,
) {
    let logits = grid(places.x, n, classes, &values.fill(0, n * classes));
    let mut d = gradient_grid(places, n, classes);
    let found = loss.evaluate(logits.view(), labels, d.as_mut().map(Grid::view_mut));
    let counted = |label: usize| loss.ignore != Some(label);
    let wrong_class = labels.iter().enumerate().find(|&(_, &label)| counted(label) && label >= classes);
    let error = if let Some(error) = bad_divisor(loss.divisor) {
        Some(error)
    } else if !(0.0..=1.0).contains(&loss.label_smoothing) {
        Some(Error::Setting { operand: "label_smoothing", reason: "must lie in [0, 1]" })
    } else if labels.len() != n {
        Some(Error::Length { operand: "labels", expected: n, found: labels.len() })
    } else if let Some(error) = bad_weight("class_weights", loss.class_weights) {
        Some(error)
    } else if let Some((index, &found)) = wrong_class {
        Some(Error::Class { operand: "labels", index, classes, found })
    } else if places.gradient.is_some_and(|(_, wide)| wide) {
        Some(shape("dlogits", (n, classes)))
    } else {
        None
    };
    if let Some(error) = error {
        assert_eq!(found, Err(error));
        return d.iter().for_each(|d| d.assert_untouched("dlogits"));
    }
    let total = loss.total_weight(labels).expect("a total");
    let divisor = divisor_of(loss.divisor, total);
    let logits = logits.values();
    let part = |i: usize| match counted(labels[i]) && divisor > 0.0 {
        true => cross_entropy_of_row(loss, &logits[i * classes..][..classes], labels[i]),
        false => Part { loss: 0.0, gradients: vec![(0.0, 0.0); classes] },
    };
    let parts: Vec<Part> = (0..n).map(part).collect();
    let mut accuracy = loss::cross_entropy(n, classes);
    let heaviest = loss.class_weights.map_or(1.0, |w| w.iter().fold(0.0, |max: f32, &w| max.max(w)).into());
    if divisor > 0.0 {
        accuracy.underflow *= (heaviest / divisor).max(1.0);
    }
    let whole = d.as_ref().map(|d| {
        d.assert_canaries("dlogits");
        d.values()
    });
    let found = found.expect("a loss");
    assert_accurate(found, whole.as_deref(), &parts, if divisor > 0.0 { divisor } else { 1.0 }, accuracy);
    if let Some(whole) = whole.filter(|_| divisor > 0.0) {
        assert_pieces((n, classes), cut, &whole, |rows, d| {
            let (start, rows) = (rows.start, rows.len());
            let x = MatRef::new(&logits[start * classes..][..rows * classes], rows, classes).expect("a matrix");
            let loss = CrossEntropy { divisor: Divisor::Given(divisor), ..*loss };
            loss.evaluate(x, &labels[start..][..rows], Some(d)).expect("a loss");
        });
    }
}

fn divisor_of(divisor: Divisor, mean: f64) -> f64 {
    match divisor {
        Divisor::Mean => mean,
        Divisor::Given(by) => by,
        Divisor::Sum => 1.0,
    }
}

/// Within twice the bounds, one of which is the oracle's, which adds its parts in f64.
fn assert_accurate(found: f64, gradient: Option<&[f32]>, parts: &[Part], divisor: f64, accuracy: LossAccuracy) {
    let want = parts.iter().map(|part| part.loss).sum::<f64>() / divisor;
    let close = |found: f64, want: f64, bound: f64| {
        found == want || (found.is_nan() && want.is_nan()) || (found - want).abs() <= bound
    };
    let bound = 2.0 * accuracy.value_error(want) + parts.len() as f64 * f64::EPSILON * want;
    assert!(close(found, want, bound), "loss {found}, expected {want}");
    assert!(found.is_nan() || found >= 0.0, "loss {found}");
    let Some(gradient) = gradient else { return };
    let terms = parts.iter().flat_map(|part| &part.gradients);
    assert_eq!(gradient.len(), terms.clone().count());
    for (k, (&found, &(plus, minus))) in gradient.iter().zip(terms).enumerate() {
        let (plus, minus) = (plus / divisor, minus / divisor);
        let want = plus - minus;
        // Near the largest f32 either side may have overflowed.
        let overflow = found.is_infinite()
            && want.abs() >= 0.999_999 * f64::from(f32::MAX)
            && want.signum() == f64::from(found.signum());
        let bound = 2.0 * accuracy.gradient_error(plus, minus);
        assert!(overflow || close(found.into(), want, bound), "gradient {k} is {found:e}, expected {want:e}");
    }
}

/// The gradient of a batch that is cut in two has the bits of the whole.
fn assert_pieces((n, m): (usize, usize), cut: u8, whole: &[f32], piece: impl Fn(std::ops::Range<usize>, MatMut<'_>)) {
    let at = usize::from(cut).min(n);
    let mut pieces = vec![0.0; n * m];
    let (head, tail) = pieces.split_at_mut(at * m);
    piece(0..at, MatMut::new(head, at, m).expect("a matrix"));
    piece(at..n, MatMut::new(tail, n - at, m).expect("a matrix"));
    assert_same("the gradient of two pieces", &pieces, whole);
}

impl Elementwise {
    fn evaluate(
        &self,
        divisor: Divisor,
        weights: Option<&[f32]>,
        y: MatRef<'_>,
        target: MatRef<'_>,
        dy: Option<MatMut<'_>>,
    ) -> Result<f64, Error> {
        match self {
            Elementwise::Squared => SquaredError { divisor }.evaluate(y, target, dy),
            Elementwise::Huber(delta) => Huber { divisor, delta: delta.0 }.evaluate(y, target, dy),
            Elementwise::Binary(_) => BinaryCrossEntropy { divisor, pos_weights: weights }.evaluate(y, target, dy),
        }
    }

    fn part(&self, y: f32, target: f32, weight: f32) -> Part {
        let (y, target, weight) = (f64::from(y), f64::from(target), f64::from(weight));
        let r = y - target;
        let (loss, slope) = match self {
            Elementwise::Squared => (r * r, 2.0 * r),
            Elementwise::Huber(Number(delta)) => {
                let delta = f64::from(*delta);
                let loss = if r.abs() > delta { delta * (r.abs() - 0.5 * delta) } else { 0.5 * r * r };
                (loss, if r.abs() > delta { delta.copysign(r) } else { r })
            }
            Elementwise::Binary(_) => {
                let softplus =
                    |l: f64| if l > 0.0 { l + libm::log1p(libm::exp(-l)) } else { libm::log1p(libm::exp(l)) };
                let sigma =
                    |l: f64| if l > 0.0 { 1.0 / (1.0 + libm::exp(-l)) } else { libm::exp(l) / (1.0 + libm::exp(l)) };
                let (yes, no) = (weight * target, 1.0 - target);
                let loss = weighted(yes, softplus(-y)) + weighted(no, softplus(y));
                return Part { loss, gradients: vec![(no * sigma(y), yes * sigma(-y))] };
            }
        };
        Part { loss, gradients: vec![if slope < 0.0 { (0.0, -slope) } else { (slope, 0.0) }] }
    }

    fn run(&self, y: &Grid, target: &Grid, (n, m): (usize, usize), places: Places, target_wide: bool, divide: Divide) {
        let binary = matches!(self, Elementwise::Binary(_));
        let weights = match self {
            Elementwise::Binary(Some(weights)) => Some(weights.fill(2, m)),
            _ => None,
        };
        let (divisor, weights) = (divide.divisor(), weights.as_deref());
        let mut dy = gradient_grid(places, n, m);
        let found = self.evaluate(divisor, weights, y.view(), target.view(), dy.as_mut().map(Grid::view_mut));
        let (y, t) = (y.values(), target.values());
        let (of_target, of_dy) = if binary { ("targets", "dlogits") } else { ("target", "dy") };
        let error = if let Some(error) = bad_divisor(divisor) {
            Some(error)
        } else if matches!(self, Elementwise::Huber(Number(delta)) if !(*delta > 0.0 && delta.is_finite())) {
            Some(Error::Setting { operand: "delta", reason: "must be positive and finite" })
        } else if let Some(error) = bad_weight("pos_weights", weights) {
            Some(error)
        } else if target_wide {
            Some(shape(of_target, (n, m)))
        } else if places.gradient.is_some_and(|(_, wide)| wide) {
            Some(shape(of_dy, (n, m)))
        } else if binary {
            bad_element("targets", m, &t, 1.0, "must lie in [0, 1]")
        } else {
            None
        };
        if let Some(error) = error {
            assert_eq!(found, Err(error));
            return dy.iter().for_each(|dy| dy.assert_untouched("the gradient"));
        }
        let found = found.expect("a loss");
        if n * m == 0 {
            return assert_eq!(found, 0.0);
        }
        let weight = |k: usize| weights.map_or(1.0, |w| w[k % m]);
        let parts: Vec<Part> = (0..n * m).map(|k| self.part(y[k], t[k], weight(k))).collect();
        let by = divisor_of(divisor, (n * m) as f64);
        let mut accuracy = match self {
            Elementwise::Squared => loss::squared_error(n * m),
            Elementwise::Huber(_) => loss::huber(n * m),
            Elementwise::Binary(_) => loss::binary_cross_entropy(n * m),
        };
        let heaviest = weights.map_or(1.0, |w| w.iter().fold(1.0, |max: f32, &w| max.max(w)).into());
        accuracy.underflow *= (heaviest / by).max(1.0);
        let whole = dy.as_ref().map(|dy| {
            dy.assert_canaries("the gradient");
            dy.values()
        });
        assert_accurate(found, whole.as_deref(), &parts, by, accuracy);
        if let Some(whole) = whole {
            assert_pieces((n, m), divide.cut, &whole, |rows, dy| {
                let (from, len) = (rows.start * m, rows.len() * m);
                let view = |values: &[f32]| -> Result<f64, Error> {
                    let y = MatRef::new(&y[from..][..len], rows.len(), m)?;
                    self.evaluate(Divisor::Given(by), weights, y, MatRef::new(values, rows.len(), m)?, Some(dy))
                };
                view(&t[from..][..len]).expect("a loss");
            });
        }
    }
}

/// An optimiser in the formulas of its documentation: moments and steps of each number.
#[derive(Debug, Clone, Default)]
struct Naive {
    state: Vec<([f32; 2], u64)>,
}

impl Naive {
    /// p: all parameters; g: their gradients, where there are any; weights: which are subject to decay.
    fn step(&mut self, optimiser: &Either, p: &mut [f32], g: &[Option<f32>], weights: &[bool]) {
        self.state.resize(p.len(), ([0.0; 2], 0));
        for (((p, g), (moments, steps)), &is_weight) in p.iter_mut().zip(g).zip(&mut self.state).zip(weights) {
            let &Some(g) = g else { continue };
            *steps += 1;
            match optimiser {
                Either::Sgd(sgd) => sgd_step(sgd, *steps, p, g, moments, is_weight),
                Either::AdamW(adam) => adamw_step(adam, *steps, p, g, moments, is_weight),
            }
        }
    }
}

/// Either optimiser.
enum Either {
    Sgd(Sgd),
    AdamW(AdamW),
}

impl Either {
    fn new(rule: Rule) -> Self {
        match rule {
            Rule::Sgd { lr, momentum, decay } => {
                let mut sgd = Sgd::new(lr.0, momentum.0);
                sgd.weight_decay = decay.0;
                Either::Sgd(sgd)
            }
            Rule::AdamW { lr, betas: (b1, b2), eps, decay } => {
                let mut adam = AdamW::new(lr.0);
                (adam.betas, adam.eps, adam.weight_decay) = ((b1.0, b2.0), eps.0, decay.0);
                Either::AdamW(adam)
            }
        }
    }

    /// Whether every setting is in its range.
    fn is_valid(&self) -> bool {
        let natural = |x: f32| x.is_finite() && x >= 0.0;
        let below_one = |x: f32| (0.0..1.0).contains(&x);
        match self {
            Either::Sgd(sgd) => natural(sgd.lr) && below_one(sgd.momentum) && natural(sgd.weight_decay),
            Either::AdamW(AdamW { lr, betas: (b1, b2), eps, weight_decay, .. }) => {
                let all = [*lr, *eps, *weight_decay].into_iter().all(natural) && below_one(*b1) && below_one(*b2);
                let (lr, rest) = (f64::from(*lr), 1.0 - f64::from(*b1));
                all && ((lr / rest) as f32).is_finite() && ((lr * f64::from(*weight_decay)) as f32).is_finite()
            }
        }
    }

    /// Whether a gradient of 0 may leave nothing to divide by.
    fn may_divide_by_zero(&self) -> bool {
        matches!(self, Either::AdamW(adam) if adam.eps < 1e-15)
    }

    fn step<L: Layer>(&mut self, ctx: &Context, layer: &mut L, grads: &Gradients) -> Result<(), Error> {
        match self {
            Either::Sgd(sgd) => sgd.step(ctx, layer, grads),
            Either::AdamW(adam) => adam.step(ctx, layer, grads),
        }
    }
}

impl Training {
    fn run(&self) {
        let map = |stream, inputs: usize, outputs: usize| Map {
            inputs,
            outputs,
            w: self.parameters.fill(stream, inputs * outputs),
            b: self.bias.then(|| self.parameters.fill(stream + 1, outputs)),
        };
        let (d, h) = (self.inputs.0, self.outputs.0);
        let first = map(10, d, h).affine();
        if self.block {
            self.train(&Block::new(first, map(12, h, d).affine(), self.phi.into(), Skip::Identity).expect("a block"));
        } else {
            self.train(&Linear::new(first, self.phi.into()));
        }
    }

    /// Gradients of step `t` in the oracle's form: `values`, times `factor`.
    fn gradients<L: Layer>(&self, layer: &L, (values, factor): &(Values, Number)) -> Gradients {
        let maps = (0..layer.affine_count()).filter_map(|i| layer.affine(i));
        let fill = |stream, len| values.fill(stream, len);
        let all = maps.map(|m| MapGrad { dw: fill(20, m.inputs() * m.outputs()), db: fill(21, m.outputs()) });
        let mut grads = gradients_of(layer, &all.collect::<Vec<_>>());
        grads.scale(&Context::new().expect("a context"), factor.0);
        for i in 0..layer.affine_count() {
            if self.declined & (1 << (2 * i)) != 0 {
                grads.decline(|name| name == layer.affine_name(i).weight());
            }
            if self.declined & (2 << (2 * i)) != 0 {
                grads.decline(|name| name == layer.affine_name(i).bias());
            }
        }
        grads
    }

    fn train<L: Layer + Clone>(&self, start: &L) {
        let steps: Vec<Gradients> = self.gradients.iter().take(4).map(|step| self.gradients(start, step)).collect();
        let weights: Vec<bool> =
            start.parameters().flat_map(|p| vec![p.role() == Role::Weight; p.shape().0 * p.shape().1]).collect();
        for ctx in contexts() {
            let (mut layer, mut optimiser, mut naive) = (start.clone(), Either::new(self.rule), Naive::default());
            for grads in &steps {
                let before = parameters_of(&layer).concat();
                let mut want = before.clone();
                match optimiser.step(&ctx, &mut layer, grads) {
                    Ok(()) => {
                        assert!(optimiser.is_valid(), "settings out of range: {:?}", self.rule);
                        naive.step(&optimiser, &mut want, &given(start, grads), &weights);
                    }
                    Err(Error::Setting { .. }) => {
                        assert!(!optimiser.is_valid() || optimiser.may_divide_by_zero(), "refused: {:?}", self.rule);
                    }
                    Err(error) => panic!("{error}"),
                }
                assert_same(format_args!("parameters on {ctx:?}"), &parameters_of(&layer).concat(), &want);
            }
            if !steps.is_empty() && optimiser.is_valid() && !optimiser.may_divide_by_zero() {
                self.refuses(&ctx, &mut layer, &mut optimiser);
            }
        }
    }

    /// Gradients and state of another network are refused, and no parameter changes.
    fn refuses<L: Layer + Clone>(&self, ctx: &Context, layer: &mut L, optimiser: &mut Either) {
        let wider = Map { inputs: layer.inputs() + 17, outputs: 5, w: vec![1.0; (layer.inputs() + 17) * 5], b: None };
        let mut other = Linear::new(wider.affine(), resblock::Activation::Relu);
        let grads = Gradients::new(&other).expect("gradients");
        let before = parameters_of(layer);
        let tensor = layer.parameters().next().expect("a parameter").to_string();
        let error = Error::Mismatch { operand: "grads", tensor };
        assert_eq!(optimiser.step(ctx, layer, &grads), Err(error));
        for (found, want) in parameters_of(layer).iter().zip(&before) {
            assert_same("a parameter after a refusal", found, want);
        }
        let error = Error::Mismatch { operand: "optimiser state", tensor: "linear.weight".into() };
        assert_eq!(optimiser.step(ctx, &mut other, &grads), Err(error));
        assert_eq!(parameters_of(&other), [wider.w]);
    }
}

/// Every gradient in the order of the parameters; None where it was declined.
fn given<L: Layer>(layer: &L, grads: &Gradients) -> Vec<Option<f32>> {
    let mut given = Vec::new();
    for (grad, i) in values_of(layer, grads).into_iter().zip(0..) {
        let map = layer.affine(i).expect("a map");
        let (dw, db) = (map.inputs() * map.outputs(), map.bias().map_or(0, <[f32]>::len));
        for (values, len) in [(grad.dw, dw), (grad.db, db)] {
            given.extend((0..len).map(|k| values.get(k).copied()));
        }
    }
    given
}
