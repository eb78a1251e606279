//! A block of two weight layers, [`BlockForm`]: the steps of every form, its adjoint, and its specification.

use super::elementwise::{Slope, activate, each};
use super::linear::linear;
use super::norm::{Emitted, NormOut, NormTensors, Statistics, norm, norm_backward};
use super::spec::{Real, input_gradient, row_sum, times_derivative, weight_gradient};
use crate::Activation;
use crate::gemm::epilogue::{Aux, Post, Scale};
use crate::program::build::{Builder, Vector};
use crate::program::form::{BlockForm, BranchScale, Dropout, Skip};
use crate::program::norm::Norm;
use crate::program::step::{Beside, GemmStep, Grad, MOST_POSTS, Posts, Side, Step, Val};
use crate::random::{Draw, Mask};

/// What is added to a gradient on its way down, and times what.
type Added = Option<(f32, Val)>;

fn add((factor, v): (f32, Val)) -> Post<Val> {
    if factor == 1.0 { Post::Add(v) } else { Post::AddScaled(factor, v) }
}

fn gemm(a: Val, affine: usize, side: Side, posts: Posts<Val>, out: Val) -> GemmStep<Val> {
    GemmStep { a, affine, side, onto: false, posts, aux: None, out }
}

/// A block on its way from forward to backward.
#[derive(Debug, Clone, Copy)]
struct Emission {
    form: BlockForm,
    x: Val,
    pre_norm: Option<Emitted>,
    pre_slope: Slope,
    /// What the first weight layers read.
    n: Val,
    first: usize,
    hidden: Hidden,
    h: Val,
    masks: Masks,
    second: usize,
    shortcut: Option<usize>,
    scale: Option<Vector>,
    /// The branch before its scale, where that is learned.
    branch: Option<Val>,
    branch_norm: Option<Emitted>,
    post_slope: Slope,
    post_norm: Option<Emitted>,
}

/// What is dropped: of h, of the branch, of whole rows of it.
#[derive(Debug, Clone, Copy)]
struct Masks {
    hidden: Option<Mask>,
    branch: Option<Mask>,
    depth: Option<Mask>,
}

impl Masks {
    fn new(b: &mut Builder, Dropout { hidden, branch, depth }: Dropout) -> Self {
        Self { hidden: b.mask(0, hidden, false), branch: b.mask(1, branch, false), depth: b.mask(2, depth, true) }
    }
}

/// How h comes about.
#[derive(Debug, Clone, Copy)]
enum Hidden {
    /// φ(z), z perhaps having been through a norm.
    Plain { inner: Option<Emitted>, slope: Slope },
    /// φ(z) ⊙ u: the map of u, φ(z), and u ⊙ φ'(z).
    Gated { third: usize, gate: Val, passed: Val },
}

/// The GEMM that makes h, and that which makes what its gate lets through.
type Makers = (GemmStep<Val>, Option<GemmStep<Val>>);

impl BlockForm {
    pub(super) fn formula(&self) -> String {
        let Self { inputs, hidden, outputs, activation, .. } = *self;
        let act = |phi: Activation, of: String| {
            if phi == Activation::Identity { of } else { format!("{}({of})", phi.name()) }
        };
        let normed =
            |norm: Option<Norm>, of: String| norm.map_or(of.clone(), |norm| format!("{} of {of}", norm.formula()));
        let n = act(self.pre_activation, normed(self.pre_norm, "x".into()));
        let z = normed(self.inner_norm, format!("{n} W1ᵀ + b1"));
        let h = act(activation, z);
        let h = if self.gated { format!("({h} ⊙ ({n} W3ᵀ + b3))") } else { h };
        let branch = normed(self.branch_norm, format!("{h} W2ᵀ + b2"));
        let branch = match self.branch_scale {
            BranchScale::Constant(1.0) => branch,
            BranchScale::Constant(scale) => format!("{scale} ({branch})"),
            BranchScale::Scalar(_) | BranchScale::Vector(_) => format!("λ ({branch})"),
        };
        let factor = if self.skip_scale == 1.0 { String::new() } else { format!("{} ", self.skip_scale) };
        let skip = match self.skip {
            Skip::None => String::new(),
            Skip::Identity => format!(" + {factor}x"),
            Skip::Projection => format!(" + {factor}(x Wsᵀ + bs)"),
        };
        let y = normed(self.post_norm, act(self.post_activation, branch + &skip));
        format!("y = {y}, {inputs} -> {hidden} -> {outputs}")
    }

    pub(super) fn emit(self, b: &mut Builder, x: Val) -> Val {
        let pre_norm = self.pre_norm.map(|norm| norm.emit(b, x, false));
        let (n, pre_slope) = activate(b, self.pre_activation, pre_norm.map_or(x, |norm| norm.out), false);
        let first = b.affine(self.inputs, self.hidden);
        // What is between the two GEMMs goes by chunks of its columns, unless a norm wants whole rows of it.
        let masks = Masks::new(b, self.dropout);
        let (makers, hidden, h) = self.hidden(b, n, first, masks.hidden);
        let second = b.affine(self.hidden, self.outputs);
        let (shortcut, skip) = match self.skip {
            Skip::None => (None, None),
            Skip::Identity => (None, Some((self.skip_scale, x))),
            Skip::Projection => {
                let (map, s) = (b.affine(self.inputs, self.outputs), b.value("s", self.outputs));
                b.step(Step::Gemm(gemm(x, map, Side::Forward, Posts::default(), s)));
                (Some(map), Some((self.skip_scale, s)))
            }
        };
        let scale = match self.branch_scale {
            BranchScale::Constant(_) => None,
            BranchScale::Scalar(_) => Some(b.vector("scale", 1)),
            BranchScale::Vector(_) => Some(b.vector("scale", self.outputs)),
        };
        let factor = match (self.branch_scale, scale) {
            (_, Some(vector)) => Some(Scale::Row(vector.val)),
            (BranchScale::Constant(c), _) if c != 1.0 => Some(Scale::Number(c)),
            _ => None,
        };
        let sum = match (factor, skip) {
            (None, skip) => [skip.map(add), None],
            (Some(factor), Some((1.0, s))) => [Some(Post::ScaleAdd(factor, s)), None],
            (Some(factor), skip) => [Some(Post::Scale(factor)), skip.map(add)],
        };
        let drops = [masks.branch, masks.depth].into_iter().flatten().map(Post::Drop);
        let posts: Vec<_> = drops.chain(sum.into_iter().flatten()).collect();
        // One second result a step, and so long a list: else the activation after the skip is a pass of its own.
        let branch = scale.map(|_| b.value("f", self.outputs));
        let fuses = branch.is_none() && posts.len() < MOST_POSTS;
        let fused = if fuses { self.post_activation } else { Activation::Identity };
        let r = b.value(if self.post_norm.is_some() || branch.is_some() { "r" } else { "y" }, self.outputs);
        let slope = Slope::new(b, fused, r, false);
        let act = (fused != Activation::Identity).then_some(Post::Act(fused));
        let posts = posts.into_iter().chain(act).collect();
        let aux = branch.map(|to| Beside { what: Aux::Chains, to }).or(slope.aux());
        let last = match self.branch_norm {
            None => GemmStep { aux, ..gemm(h, second, Side::Forward, posts, r) },
            Some(_) => gemm(h, second, Side::Forward, Posts::default(), b.value("f", self.outputs)),
        };
        b.step(match makers {
            Some((first, second)) => Step::Chunks { first, second, last: Some(last) },
            None => Step::Gemm(last),
        });
        let branch_norm = self.branch_norm.map(|norm| norm.emit(b, last.out, false));
        if let Some(norm) = branch_norm {
            b.step(Step::Each { a: norm.out, posts, aux, out: r });
        }
        let (r, post_slope) =
            if fused == self.post_activation { (r, slope) } else { activate(b, self.post_activation, r, true) };
        let post_norm = self.post_norm.map(|norm| norm.emit(b, r, true));
        let y = post_norm.map_or(r, |norm| norm.out);

        let emission = Emission {
            form: self,
            x,
            pre_norm,
            pre_slope,
            n,
            first,
            hidden,
            h,
            masks,
            second,
            shortcut,
            scale,
            branch,
            branch_norm,
            post_slope,
            post_norm,
        };
        b.adjoint(move |b, dy| emission.adjoint(b, dy));
        y
    }

    /// h, and the GEMMs that make it, if they may go by chunks of its columns.
    fn hidden(self, b: &mut Builder, n: Val, first: usize, mask: Option<Mask>) -> (Option<Makers>, Hidden, Val) {
        let Self { hidden: width, activation: phi, .. } = self;
        let drop = mask.map(Post::Drop);
        if self.gated {
            let act = Posts::new(phi, None);
            let third = b.affine(self.inputs, width);
            let (gate, slope) = (b.value("gate", width), b.value("slope", width));
            let (passed, h) = (b.value("passed", width), b.value("h", width));
            // u goes on record times the slope of the gate, which is all that backward needs of the two.
            let straight = phi == Activation::Identity;
            let of_gate = (!straight).then_some(Beside { what: Aux::Slope, to: slope });
            let of_u = Beside { what: if straight { Aux::Chains } else { Aux::Product(slope) }, to: passed };
            let one = GemmStep { aux: of_gate, ..gemm(n, first, Side::Forward, act, gate) };
            let times = [Post::Times(gate)].into_iter().chain(drop).collect();
            let other = GemmStep { aux: Some(of_u), ..gemm(n, third, Side::Forward, times, h) };
            return (Some((one, Some(other))), Hidden::Gated { third, gate, passed }, h);
        }
        let Some(norm) = self.inner_norm else {
            let h = b.value("h", width);
            let slope = Slope::new(b, phi, h, true);
            let act = Posts::new(phi, None).iter().chain(drop).collect();
            let step = GemmStep { aux: slope.aux(), ..gemm(n, first, Side::Forward, act, h) };
            return (Some((step, None)), Hidden::Plain { inner: None, slope }, h);
        };
        let z = b.value("z", width);
        b.step(Step::Gemm(gemm(n, first, Side::Forward, Posts::default(), z)));
        let inner = norm.emit(b, z, false);
        let (h, slope) = activate(b, phi, inner.out, false);
        let h = each(b, "h", h, drop);
        (None, Hidden::Plain { inner: Some(inner), slope }, h)
    }
}

impl Emission {
    fn adjoint(self, b: &mut Builder, dy: Val) -> Val {
        let Self { form, x, h, second, .. } = self;
        // Down to r, the sum of skip and branch.
        let dr = match self.post_norm {
            Some(norm) => norm.adjoint(b, dy, None),
            None => self.post_slope.times(b, "dr", dy),
        };
        let skip: Added = match (form.skip, self.shortcut) {
            (Skip::Identity, _) => Some((form.skip_scale, dr)),
            (_, None) => None,
            (_, Some(shortcut)) => {
                let scale = (form.skip_scale != 1.0).then_some(Post::Scale(Scale::Number(form.skip_scale)));
                let (ds, dx) = (each(b, "ds", dr, scale), b.value("dxs", form.inputs));
                b.step(Step::Gemm(gemm(ds, shortcut, Side::Adjoint, Posts::default(), dx)));
                b.grad(Grad::Affine { affine: shortcut, a: x, b: ds });
                Some((1.0, dx))
            }
        };
        // Down the branch.
        let df = self.scaled(b, dr);
        let df = self.branch_norm.map_or(df, |norm| norm.adjoint(b, df, None));
        b.grad(Grad::Affine { affine: second, a: h, b: df });
        // The last step of the branch adds the skip's gradient.
        let enters = self.pre_norm.is_none() && matches!(self.pre_slope, Slope::One);
        let dn = self.first_layer(b, df, if enters { skip } else { None });
        let before = match (self.pre_slope.post(), self.pre_norm) {
            (None, _) => dn,
            (post, None) => return each(b, "dx", dn, post.into_iter().chain(skip.map(add))),
            (post, Some(_)) => each(b, "dn", dn, post),
        };
        self.pre_norm.map_or(before, |norm| norm.adjoint(b, before, skip))
    }

    /// The gradient of the branch before its scale, and that of the scale.
    fn scaled(self, b: &mut Builder, dr: Val) -> Val {
        let scale = match (self.scale, self.form.branch_scale) {
            (Some(scale), _) => Some(Scale::Row(scale.val)),
            (None, BranchScale::Constant(c)) if c != 1.0 => Some(Scale::Number(c)),
            _ => None,
        };
        if let (Some(Vector { number: vector, .. }), Some(times)) = (self.scale, self.branch) {
            b.grad(match self.form.branch_scale {
                BranchScale::Scalar(_) => Grad::Rows { vector, b: dr, times },
                _ => Grad::Columns { vector, b: dr, times: Some(times) },
            });
        }
        let drops = [self.masks.depth, self.masks.branch].into_iter().flatten().map(Post::Drop);
        each(b, "df", dr, scale.map(Post::Scale).into_iter().chain(drops))
    }

    /// B1 and B2, from the gradient of the branch to that of what its first layers read.
    fn first_layer(self, b: &mut Builder, df: Val, skip: Added) -> Val {
        let Self { form, n, first, second, .. } = self;
        let BlockForm { inputs, hidden: width, .. } = form;
        let last = Posts::from_iter(skip.map(add));
        let drop = self.masks.hidden.map(Post::Drop);
        match self.hidden {
            Hidden::Plain { inner: None, slope } => {
                let (dz, dn) = (b.value("dz", width), b.value("dx", inputs));
                let one = gemm(df, second, Side::Adjoint, drop.into_iter().chain(slope.post()).collect(), dz);
                let other = gemm(dz, first, Side::Adjoint, last, dn);
                b.step(Step::Chunks { first: one, second: None, last: Some(other) });
                b.grad(Grad::Affine { affine: first, a: n, b: dz });
                dn
            }
            Hidden::Plain { inner: Some(norm), slope } => {
                let da = b.value("da", width);
                b.step(Step::Gemm(gemm(df, second, Side::Adjoint, drop.into_iter().chain(slope.post()).collect(), da)));
                let dz = norm.adjoint(b, da, None);
                let dn = b.value("dx", inputs);
                b.step(Step::Gemm(gemm(dz, first, Side::Adjoint, last, dn)));
                b.grad(Grad::Affine { affine: first, a: n, b: dz });
                dn
            }
            Hidden::Gated { third, gate, passed } => {
                let (du, dz, dn) = (b.value("du", width), b.value("dz", width), b.value("dx", inputs));
                let beside = Some(Beside { what: Aux::Product(gate), to: du });
                let times = drop.into_iter().chain([Post::Times(passed)]).collect();
                let one = GemmStep { aux: beside, ..gemm(df, second, Side::Adjoint, times, dz) };
                let other = gemm(dz, first, Side::Adjoint, Posts::default(), dn);
                b.step(Step::Chunks { first: one, second: None, last: Some(other) });
                b.step(Step::Gemm(GemmStep { onto: true, ..gemm(du, third, Side::Adjoint, last, dn) }));
                b.grad(Grad::Affine { affine: first, a: n, b: dz });
                b.grad(Grad::Affine { affine: third, a: n, b: du });
                dn
            }
        }
    }
}

/// The parameters of a two-layer block. W1: `h x d`, b1: `h`, W2: `d x h`, b2: `d`.
#[derive(Debug, Clone, Copy)]
pub struct BlockParams<'a, T> {
    /// First weights, `h x d`.
    pub w1: &'a [T],
    /// First bias, `h`.
    pub b1: &'a [T],
    /// Second weights, `d x h`.
    pub w2: &'a [T],
    /// Second bias, `d`.
    pub b2: &'a [T],
    /// phi.
    pub phi: Activation,
    /// True for y = x + G(x), false for the plain y = G(x).
    pub skip: bool,
}

/// What a block computes on the way forward.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOut<T> {
    /// z = x W1ᵀ + b1, `n x h`.
    pub z: Vec<T>,
    /// h = phi(z), `n x h`.
    pub h: Vec<T>,
    /// y = (h W2ᵀ + b2) (+ x), `n x d`.
    pub y: Vec<T>,
}

/// y = x + W2 phi(W1 x + b1) + b2, or without x. Sizes are (n, d, h).
pub fn block<T: Real>((n, d, h): (usize, usize, usize), x: &[T], p: BlockParams<'_, T>) -> BlockOut<T> {
    let first = linear((n, d, h), x, p.w1, Some(p.b1), p.phi, None);
    let second = linear((n, h, d), &first.y, p.w2, Some(p.b2), Activation::Identity, p.skip.then_some(x));
    BlockOut { z: first.z, h: first.y, y: second.y }
}

/// Gradients of a block. On entry to [`block_backward`] the parameter gradients hold what the chains continue from.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGrads<T> {
    /// dL/dx, `n x d`.
    pub dx: Vec<T>,
    /// dL/dW1, `h x d`.
    pub dw1: Vec<T>,
    /// dL/db1, `h`.
    pub db1: Vec<T>,
    /// dL/dW2, `d x h`.
    pub dw2: Vec<T>,
    /// dL/db2, `d`.
    pub db2: Vec<T>,
}

impl<T: Real> BlockGrads<T> {
    /// All zero.
    pub fn zeros((n, d, h): (usize, usize, usize)) -> Self {
        let z = |len| vec![T::ZERO; len];
        Self { dx: z(n * d), dw1: z(h * d), db1: z(h), dw2: z(d * h), db2: z(d) }
    }
}

/// Backward of [`block`] given dy: dz = (dy W2) * phi'(z), dx = dz W1 (+ dy), dW2 += dyᵀ h, db2 += sums of dy, dW1 += dzᵀ x,
/// db1 += sums of dz.
pub fn block_backward<T: Real>(
    (n, d, h): (usize, usize, usize),
    x: &[T],
    p: BlockParams<'_, T>,
    out: &BlockOut<T>,
    dy: &[T],
    grads: &mut BlockGrads<T>,
) {
    let dh = input_gradient((n, h, d), dy, p.w2, None);
    let dz: Vec<T> = dh.iter().zip(&out.z).map(|(&g, &z)| times_derivative(g, z, p.phi)).collect();
    grads.dx = input_gradient((n, d, h), &dz, p.w1, p.skip.then_some(dy));
    weight_gradient((n, h, d), &out.h, dy, &mut grads.dw2, &mut grads.db2);
    weight_gradient((n, d, h), x, &dz, &mut grads.dw1, &mut grads.db1);
}

/// Weights (outputs, inputs) and bias of a map, or their gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct MapTensors<T> {
    /// W.
    pub w: Vec<T>,
    /// b.
    pub b: Option<Vec<T>>,
}

/// The parameters of a [`BlockForm`], or their gradients. What the form does not have is None.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTensors<T> {
    /// W1, b1.
    pub first: MapTensors<T>,
    /// W3, b3 of a gated block.
    pub third: Option<MapTensors<T>>,
    /// W2, b2.
    pub second: MapTensors<T>,
    /// Ws, bs.
    pub shortcut: Option<MapTensors<T>>,
    /// Those of the norms: of the input, before φ, after the skip, of the branch.
    pub norms: [NormTensors<T>; 4],
    /// λ: of length 1 if it is one number.
    pub scale: Option<Vec<T>>,
}

impl<T: Real> BlockTensors<T> {
    /// All of one number.
    pub fn filled(form: &BlockForm, value: T) -> Self {
        let BlockForm { inputs: d, hidden: h, outputs: m, .. } = *form;
        let map = |k: usize, m: usize| MapTensors { w: vec![value; k * m], b: form.biases.then(|| vec![value; m]) };
        let norm = |norm: Option<Norm>, width: usize| NormTensors::filled(norm, width, value);
        Self {
            first: map(d, h),
            third: form.gated.then(|| map(d, h)),
            second: map(h, m),
            shortcut: (form.skip == Skip::Projection).then(|| map(d, m)),
            norms: [
                norm(form.pre_norm, d),
                norm(form.inner_norm, h),
                norm(form.post_norm, m),
                norm(form.branch_norm, m),
            ],
            scale: match form.branch_scale {
                BranchScale::Constant(_) => None,
                BranchScale::Scalar(_) => Some(vec![value]),
                BranchScale::Vector(_) => Some(vec![value; m]),
            },
        }
    }
}

/// What a block of any form computes on the way forward.
#[derive(Debug, Clone, PartialEq)]
pub struct FormOut<T> {
    pre_norm: Option<NormOut<T>>,
    inner_norm: Option<NormOut<T>>,
    post_norm: Option<NormOut<T>>,
    branch_norm: Option<NormOut<T>>,
    /// What the pre-activation is applied to, what the first layers read, and what φ is applied to.
    before: Vec<T>,
    n: Vec<T>,
    z: Vec<T>,
    /// φ(z), what the gate lets through, and their product (or φ(z) itself).
    gate: Vec<T>,
    passed: Vec<T>,
    h: Vec<T>,
    /// The branch before its scale, the sum, and the result.
    f: Vec<T>,
    r: Vec<T>,
    /// y, `n x outputs`.
    pub y: Vec<T>,
}

impl<T> FormOut<T> {
    /// Mean and variance of each BatchNorm, as far as they are the batch's, in the order of the block's vectors.
    pub fn statistics(&self) -> impl Iterator<Item = &[Vec<T>; 2]> {
        let norms = [&self.pre_norm, &self.inner_norm, &self.branch_norm, &self.post_norm];
        norms.into_iter().filter_map(|norm| norm.as_ref()?.statistics.as_ref())
    }
}

fn activated<T: Real>(z: &[T], phi: Activation) -> Vec<T> {
    z.iter().map(|z| if phi == Activation::Identity { *z } else { z.activate(phi) }).collect()
}

/// v times the factors of a mask, if there is one and something is drawn.
fn dropped<T: Real>(v: Vec<T>, cols: usize, draw: Option<Draw>, mask: Option<Mask>) -> Vec<T> {
    let (Some(draw), Some(mask)) = (draw, mask) else { return v };
    let mask = mask.drawn(draw, 0, 0);
    let factor = |i: usize| mask.factor(i / cols, i % cols);
    v.iter().enumerate().map(|(i, v)| v.mul(T::number(factor(i)))).collect()
}

fn hidden_mask(form: &BlockForm) -> Option<Mask> {
    Mask::new(form.dropout.hidden, 0, false)
}

fn branch_masks(form: &BlockForm) -> [Option<Mask>; 2] {
    [Mask::new(form.dropout.branch, 1, false), Mask::new(form.dropout.depth, 2, true)]
}

fn plus<T: Real>(g: T, factor: f32, s: T) -> T {
    if factor == 1.0 { g.add(s) } else { s.fma(T::number(factor), g) }
}

/// λ for output j: None where there is no scale.
fn scale<T: Real>(form: &BlockForm, p: &BlockTensors<T>, j: usize) -> Option<T> {
    match (&p.scale, form.branch_scale) {
        (Some(scale), _) => Some(scale[j.min(scale.len() - 1)]),
        (None, BranchScale::Constant(c)) if c != 1.0 => Some(T::number(c)),
        _ => None,
    }
}

/// A block of any form on `n` rows: the formula of [`BlockForm`].
///
/// With a draw, some of it is dropped: the block is then part number 0 of its network. Each BatchNorm has its statistics from where `from` says.
pub fn form<T: Real>(
    form: &BlockForm,
    n: usize,
    x: &[T],
    p: &BlockTensors<T>,
    draw: Option<Draw>,
    from: Statistics,
) -> FormOut<T> {
    let BlockForm { inputs: d, hidden: width, outputs: m, .. } = *form;
    let map = |k, m, x: &[T], map: &MapTensors<T>| {
        linear((n, k, m), x, &map.w, map.b.as_deref(), Activation::Identity, None).z
    };
    let normed =
        |at: usize, kind: Option<Norm>, width, x: &[T]| kind.map(|kind| norm((n, width), x, kind, &p.norms[at], from));
    let of = |norm: &Option<NormOut<T>>, x: &[T]| norm.as_ref().map_or_else(|| x.to_vec(), |norm| norm.out.clone());

    let pre_norm = normed(0, form.pre_norm, d, x);
    let before = of(&pre_norm, x);
    let entered = activated(&before, form.pre_activation);
    let z = map(d, width, &entered, &p.first);
    let inner_norm = normed(1, form.inner_norm, width, &z);
    let z = of(&inner_norm, &z);
    let gate = activated(&z, form.activation);
    let passed = p.third.as_ref().map(|third| map(d, width, &entered, third)).unwrap_or_default();
    let h: Vec<T> = if form.gated { passed.iter().zip(&gate).map(|(u, g)| u.mul(*g)).collect() } else { gate.clone() };
    let h = dropped(h, width, draw, hidden_mask(form));
    let f = map(width, m, &h, &p.second);
    let branch_norm = normed(3, form.branch_norm, m, &f);
    let f = of(&branch_norm, &f);
    let f = branch_masks(form).into_iter().fold(f, |f, mask| dropped(f, m, draw, mask));
    let s = p.shortcut.as_ref().map_or_else(|| x.to_vec(), |shortcut| map(d, m, x, shortcut));
    let sum = |(i, &f): (usize, &T)| match (scale(form, p, i % m), form.skip) {
        (None, Skip::None) => f,
        (Some(scale), Skip::None) => f.mul(scale),
        (None, _) => plus(f, form.skip_scale, s[i]),
        (Some(scale), _) if form.skip_scale == 1.0 => f.fma(scale, s[i]),
        (Some(scale), _) => plus(f.mul(scale), form.skip_scale, s[i]),
    };
    let r: Vec<T> = f.iter().enumerate().map(sum).collect();
    let post_norm = normed(2, form.post_norm, m, &r);
    let y = of(&post_norm, &activated(&r, form.post_activation));
    FormOut { pre_norm, inner_norm, post_norm, branch_norm, before, n: entered, z, gate, passed, h, f, r, y }
}

/// Backward of [`form`] given dy: returns dx. `grads` holds what the chains continue from.
///
/// dr = dy p'(r) or the norm's; df = λ dr; dh = df W2; dz = dh φ'(z), or dh (u φ'(z)) and du = dh φ(z) of a gate; dn = dz W1, and on in the same
/// chain du W3; then the norm's, the pre-activation's, and + α dr, or + (α dr) Ws. dλ: sums of dr f over the rows by fma; of one number, those of
/// each row first. The draw is that of the forward pass.
#[allow(clippy::too_many_arguments, reason = "one argument for each operand of the formula")]
pub fn form_backward<T: Real>(
    form: &BlockForm,
    n: usize,
    x: &[T],
    p: &BlockTensors<T>,
    out: &FormOut<T>,
    dy: &[T],
    grads: &mut BlockTensors<T>,
    draw: Option<Draw>,
) -> Vec<T> {
    let BlockForm { inputs: d, hidden: width, outputs: m, .. } = *form;
    let norm_adjoint =
        |at: usize, kind: Option<Norm>, width, out: &Option<NormOut<T>>, dn: Vec<T>, grads: &mut BlockTensors<T>| {
            let (Some(kind), Some(out)) = (kind, out) else { return dn };
            norm_backward((n, width), kind, &p.norms[at], out, &dn, &mut grads.norms[at])
        };
    let derive =
        |g: Vec<T>, z: &[T], phi| -> Vec<T> { g.iter().zip(z).map(|(&g, &z)| times_derivative(g, z, phi)).collect() };
    let sums = |k, m, x: &[T], dz: &[T], grad: &mut MapTensors<T>| {
        let (mut none, MapTensors { w, b }) = (vec![T::ZERO; m], grad);
        weight_gradient((n, k, m), x, dz, w, b.as_mut().unwrap_or(&mut none));
    };

    let dr = norm_adjoint(2, form.post_norm, m, &out.post_norm, dy.to_vec(), grads);
    let dr = derive(dr, &out.r, form.post_activation);
    let skip: Option<(f32, Vec<T>)> = match (form.skip, &p.shortcut, &mut grads.shortcut) {
        (Skip::None, ..) => None,
        (_, Some(shortcut), Some(grad)) => {
            let factor = T::number(form.skip_scale);
            let ds: Vec<T> = dr.iter().map(|g| if form.skip_scale == 1.0 { *g } else { g.mul(factor) }).collect();
            sums(d, m, x, &ds, grad);
            Some((1.0, input_gradient((n, d, m), &ds, &shortcut.w, None)))
        }
        _ => Some((form.skip_scale, dr.clone())),
    };
    let added = |dx: Vec<T>| match &skip {
        Some((factor, s)) => dx.iter().zip(s).map(|(&g, &s)| plus(g, *factor, s)).collect(),
        None => dx,
    };
    match grads.scale.as_deref_mut() {
        Some([sum]) if matches!(form.branch_scale, BranchScale::Scalar(_)) => {
            for r in 0..n {
                *sum = sum.add(row_sum(m, |j, sum: T| dr[r * m + j].fma(out.f[r * m + j], sum)));
            }
        }
        Some(sums) => (0..n * m).for_each(|i| sums[i % m] = dr[i].fma(out.f[i], sums[i % m])),
        None => {}
    }
    let df: Vec<T> =
        dr.iter().enumerate().map(|(i, g)| scale(form, p, i % m).map_or(*g, |scale| g.mul(scale))).collect();
    let df = branch_masks(form).into_iter().rev().fold(df, |df, mask| dropped(df, m, draw, mask));
    let df = norm_adjoint(3, form.branch_norm, m, &out.branch_norm, df, grads);
    sums(width, m, &out.h, &df, &mut grads.second);
    let dh = input_gradient((n, width, m), &df, &p.second.w, None);
    let dh = dropped(dh, width, draw, hidden_mask(form));
    let (dz, du) = if form.gated {
        let phi = form.activation;
        let passed = |i: usize| times_derivative(out.passed[i], out.z[i], phi);
        let dz: Vec<T> = (0..n * width).map(|i| dh[i].mul(passed(i))).collect();
        (dz, (0..n * width).map(|i| dh[i].mul(out.gate[i])).collect())
    } else {
        (derive(dh, &out.z, form.activation), Vec::new())
    };
    let dz = norm_adjoint(1, form.inner_norm, width, &out.inner_norm, dz, grads);
    sums(d, width, &out.n, &dz, &mut grads.first);
    let mut dn = input_gradient((n, d, width), &dz, &p.first.w, None);
    if let (Some(third), Some(grad)) = (&p.third, &mut grads.third) {
        sums(d, width, &out.n, &du, grad);
        for r in 0..n {
            for (i, dn) in dn[r * d..(r + 1) * d].iter_mut().enumerate() {
                *dn = (0..width).fold(*dn, |g, j| du[r * width + j].fma(third.w[j * d + i], g));
            }
        }
    }
    let dn = derive(dn, &out.before, form.pre_activation);
    added(norm_adjoint(0, form.pre_norm, d, &out.pre_norm, dn, grads))
}
