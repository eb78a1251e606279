//! Optimisers and losses: any numbers in parameters, gradients, settings, logits and targets; labels that are no classes, shapes
//! that do not fit, gradients and state of other networks. Against the formulas of their documentation, bit for bit, on every
//! instruction set.

use crate::common::{Grid, Map, MapGrad, assert_same, contexts, gradients_of, parameters_of, values_of};
use crate::input::{Extent, Number, Phi, Place, Size, Values};
use arbitrary::Arbitrary;
use resblock::{
    AdamW, Block, Context, Error, Gradients, Layer, Linear, Optimizer, Sgd, Skip, mean_squared_error,
    softmax_cross_entropy,
};

#[derive(Debug, Arbitrary)]
pub enum Case {
    Optimiser(Training),
    CrossEntropy { rows: Size, classes: Size, labels: Vec<Extent>, all_classes: bool, values: Values, places: Places },
    SquaredError { rows: Size, cols: Size, values: Values, places: Places, target_wide: bool },
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
        Case::CrossEntropy { rows, classes, labels, all_classes, values, places } => {
            let (n, classes) = (rows.0, classes.0);
            let class = |Extent(label): Extent| if *all_classes && classes > 0 { label % classes } else { label };
            let mut labels: Vec<usize> = labels.iter().map(|&label| class(label)).collect();
            if *all_classes {
                labels.resize(n, classes / 2);
            }
            cross_entropy(n, classes, &labels, values, *places);
        }
        Case::SquaredError { rows, cols, values, places, target_wide } => {
            squared_error(rows.0, cols.0, values, *places, *target_wide);
        }
    }
}

fn grid(place: Place, rows: usize, cols: usize, values: &Values, stream: u64) -> Grid {
    Grid::with_margin(place.input(), rows, cols, place.margin()).filled(&values.fill(stream, rows * cols))
}

fn gradient_grid(places: Places, rows: usize, cols: usize) -> Option<Grid> {
    let (place, wide) = places.gradient?;
    Some(Grid::with_margin(place.output(), rows, cols + usize::from(wide), place.margin()))
}

fn shape(operand: &'static str, (rows, cols): (usize, usize)) -> Error {
    Error::Shape { operand, expected: (rows, cols), found: (rows, cols + 1) }
}

fn cross_entropy(n: usize, classes: usize, labels: &[usize], values: &Values, places: Places) {
    let logits = grid(places.x, n, classes, values, 0);
    let mut d = gradient_grid(places, n, classes);
    let found = softmax_cross_entropy(logits.view(), labels, d.as_mut().map(Grid::view_mut));
    let wrong_class = labels.iter().enumerate().find(|&(_, &label)| label >= classes);
    let error = if labels.len() != n {
        Some(Error::Length { operand: "labels", expected: n, found: labels.len() })
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
    let logits = logits.values();
    let (mut loss, mut gradient) = (0.0, Vec::new());
    for (row, &label) in logits.chunks(classes.max(1)).zip(labels) {
        let max = row.iter().map(|&l| f64::from(l)).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|&l| libm::exp(f64::from(l) - max)).sum();
        loss += libm::log(sum) + max - f64::from(row[label]);
        gradient.extend(row.iter().enumerate().map(|(j, &l)| {
            let p = libm::exp(f64::from(l) - max) / sum - f64::from(u8::from(j == label));
            (p / n as f64) as f32
        }));
    }
    assert_loss(found, if n == 0 { 0.0 } else { loss / n as f64 });
    if let Some(d) = d {
        d.assert_canaries("dlogits");
        assert_same("dlogits", &d.values(), &gradient);
    }
    if logits.iter().all(|l| l.is_finite()) {
        assert!(loss.is_finite() && loss >= -1e-6, "loss {loss} of finite logits");
    }
}

fn squared_error(n: usize, m: usize, values: &Values, places: Places, target_wide: bool) {
    let y = grid(places.x, n, m, values, 0);
    let target = grid(places.target, n, m + usize::from(target_wide), values, 1);
    let mut dy = gradient_grid(places, n, m);
    let found = mean_squared_error(y.view(), target.view(), dy.as_mut().map(Grid::view_mut));
    let error = if target_wide {
        Some(shape("target", (n, m)))
    } else {
        places.gradient.filter(|&(_, wide)| wide).map(|_| shape("dy", (n, m)))
    };
    if let Some(error) = error {
        assert_eq!(found, Err(error));
        return dy.iter().for_each(|dy| dy.assert_untouched("dy"));
    }
    let (y, target, count) = (y.values(), target.values(), (n * m) as f64);
    let errors: Vec<f64> = y.iter().zip(&target).map(|(&y, &t)| f64::from(y) - f64::from(t)).collect();
    let sum = errors.iter().map(|e| e * e).fold(0.0, |sum, square| sum + square);
    assert_loss(found, if count == 0.0 { 0.0 } else { sum / count });
    if let Some(dy) = dy {
        dy.assert_canaries("dy");
        let gradient: Vec<f32> = errors.iter().map(|e| (2.0 * e / count) as f32).collect();
        assert_same("dy", &dy.values(), &gradient);
    }
}

fn assert_loss(found: Result<f64, Error>, want: f64) {
    let found = found.expect("a loss");
    assert!(found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan()), "loss {found}, expected {want}");
}

/// An optimiser in the formulas of its documentation: parameter, gradient and moments of one number.
#[derive(Debug, Clone, Default)]
struct Naive {
    moments: Vec<[f32; 2]>,
    steps: u64,
}

impl Naive {
    /// p: all parameters; g: their gradients, where there are any; weights: which are subject to decay.
    fn step(&mut self, rule: Rule, p: &mut [f32], g: &[Option<f32>], weights: &[bool]) {
        self.moments.resize(p.len(), [0.0; 2]);
        self.steps += 1;
        for (((p, g), [m, v]), &is_weight) in p.iter_mut().zip(g).zip(&mut self.moments).zip(weights) {
            let &Some(g) = g else { continue };
            match rule {
                Rule::Sgd { lr, momentum, decay } => {
                    let decay = if is_weight { decay.0 } else { 0.0 };
                    *m = momentum.0.mul_add(*m, decay.mul_add(*p, g));
                    *p = (-lr.0).mul_add(*m, *p);
                }
                Rule::AdamW { lr, betas: (Number(b1), Number(b2)), eps, decay } => {
                    let correction = |b: f32| 1.0 - libm::pow(f64::from(b), self.steps as f64);
                    let rate = (f64::from(lr.0) / correction(b1)) as f32;
                    let root = (1.0 / libm::sqrt(correction(b2))) as f32;
                    let keep = if is_weight { 1.0 - lr.0 * decay.0 } else { 1.0 };
                    *m = b1.mul_add(*m, (1.0 - b1) * g);
                    *v = b2.mul_add(*v, (1.0 - b2) * (g * g));
                    let step = *m / v.sqrt().mul_add(root, eps.0);
                    *p = (-rate).mul_add(step, keep * *p);
                }
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
        grads.scale(factor.0);
        for i in 0..layer.affine_count() {
            if self.declined & (1 << (2 * i)) != 0 {
                grads.decline_weights(layer.affine_name(i));
            }
            if self.declined & (2 << (2 * i)) != 0 {
                grads.decline_bias(layer.affine_name(i));
            }
        }
        grads
    }

    fn train<L: Layer + Clone>(&self, start: &L) {
        let steps: Vec<Gradients> = self.gradients.iter().take(4).map(|step| self.gradients(start, step)).collect();
        let kinds: Vec<bool> = start.parameters().map(|p| !p.is_bias()).collect();
        let mut want = parameters_of(start);
        let weights: Vec<bool> = want.iter().zip(kinds).flat_map(|(p, is_weight)| vec![is_weight; p.len()]).collect();
        let mut naive = Naive::default();
        for grads in &steps {
            let mut given = Vec::new();
            for (grad, i) in values_of(start, grads).into_iter().zip(0..) {
                let map = start.affine(i).expect("a map");
                let (dw, db) = (map.inputs() * map.outputs(), map.bias().map_or(0, <[f32]>::len));
                for (values, len) in [(grad.dw, dw), (grad.db, db)] {
                    given.extend((0..len).map(|k| values.get(k).copied()));
                }
            }
            let mut flat = want.concat();
            naive.step(self.rule, &mut flat, &given, &weights);
            let mut rest = &flat[..];
            for p in &mut want {
                let (head, tail) = rest.split_at(p.len());
                p.copy_from_slice(head);
                rest = tail;
            }
        }
        for ctx in contexts() {
            let (mut layer, mut optimiser) = (start.clone(), Either::new(self.rule));
            for grads in &steps {
                optimiser.step(&ctx, &mut layer, grads).expect("a step");
            }
            for (k, (found, want)) in parameters_of(&layer).iter().zip(&want).enumerate() {
                assert_same(format_args!("parameter {k} on {ctx:?}"), found, want);
            }
            if !steps.is_empty() {
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
        let error = Error::Mismatch { operand: "grads", index: 0 };
        assert_eq!(optimiser.step(ctx, layer, &grads), Err(error));
        for (found, want) in parameters_of(layer).iter().zip(&before) {
            assert_same("a parameter after a refusal", found, want);
        }
        let error = Error::Mismatch { operand: "optimiser state", index: 0 };
        assert_eq!(optimiser.step(ctx, &mut other, &grads), Err(error));
        assert_eq!(parameters_of(&other), [wider.w]);
    }
}
