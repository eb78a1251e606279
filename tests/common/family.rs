//! Blocks of every form with their specification: solved by it, or by the kernels in any of the ways that must not matter.

use super::{Grid, Layout, Rng, assert_same, mat};
use resblock::reference::{self, BlockTensors, MapTensors, NormTensors, Real, Statistics};
use resblock::{
    Activation, Affine, AffineGradMut, AffineRef, Block, BlockForm, Context, Draw, Dropout, Functional, GradMode,
    Gradients, GradsMut, Keep, Layer, NormKind, ParamsRef, Skip, Vector, Workspace,
};
use std::fmt::Display;

/// A block, a batch, and what its gradients start from.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) form: BlockForm,
    pub(crate) rows: usize,
    pub(crate) params: BlockTensors<f32>,
    pub(crate) preset: BlockTensors<f32>,
    pub(crate) x: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    /// What is dropped, if something is.
    pub(crate) draw: Option<Draw>,
    /// Where recorded passes have the statistics of norms of columns from.
    pub(crate) from: Statistics,
    pub(crate) keep: Keep,
}

/// What a forward and backward pass leaves.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    pub(crate) y: Vec<f32>,
    pub(crate) dx: Vec<f32>,
    pub(crate) grads: BlockTensors<f32>,
}

/// Calls `f` with each list of numbers that a block has, in the order of its maps and then of its vectors.
pub(crate) fn each<'t, T>(tensors: &'t mut BlockTensors<T>, mut f: impl FnMut(&'static str, &'t mut Vec<T>)) {
    let BlockTensors { first, third, second, shortcut, norms: [pre, inner, post, branch], scale } = tensors;
    let maps =
        [("first", Some(first)), ("third", third.as_mut()), ("second", Some(second)), ("shortcut", shortcut.as_mut())];
    for (name, map) in maps {
        let Some(map) = map else { continue };
        f(name, &mut map.w);
        map.b.as_mut().into_iter().for_each(|b| f(name, b));
    }
    let [pre, inner, branch, post] = [pre, inner, branch, post].map(|norm| {
        let NormTensors { gain, shift, running } = norm;
        let running = running.as_mut().map(|[mean, variance]| [("running", mean), ("running", variance)]);
        let learned = [gain, shift].map(|line| line.as_mut().map(|line| ("vector", line)));
        learned.into_iter().flatten().chain(running.into_iter().flatten())
    });
    let scale = scale.as_mut().map(|scale| ("vector", scale));
    pre.chain(inner).chain(scale).chain(branch).chain(post).for_each(|(name, v)| f(name, v));
}

impl Trained {
    #[track_caller]
    pub(crate) fn assert_same(&self, what: impl Display, want: &Trained) {
        assert_same(format_args!("{what}: y"), &self.y, &want.y);
        assert_same(format_args!("{what}: dx"), &self.dx, &want.dx);
        let (mut got, mut want) = (self.grads.clone(), want.grads.clone());
        let mut all = vec![];
        each(&mut want, |name, values| all.push((name, values.clone())));
        let mut all = all.into_iter();
        each(&mut got, |_, values| {
            let (name, want) = all.next().expect("as many tensors");
            assert_same(format_args!("{what}: gradient of {name}"), values, &want);
        });
    }
}

/// The maps of a form's tensors, in order.
pub(crate) fn maps<T>(tensors: &BlockTensors<T>) -> impl Iterator<Item = &MapTensors<T>> {
    let BlockTensors { first, third, second, shortcut, .. } = tensors;
    [Some(first), third.as_ref(), Some(second), shortcut.as_ref()].into_iter().flatten()
}

/// The vectors, in order.
pub(crate) fn vectors<T>(tensors: &BlockTensors<T>) -> impl Iterator<Item = &Vec<T>> {
    let BlockTensors { norms: [pre, inner, post, branch], scale, .. } = tensors;
    let [pre, inner, branch, post] = [pre, inner, branch, post]
        .map(|NormTensors { gain, shift, running }| gain.iter().chain(shift).chain(running.iter().flatten()));
    pre.chain(inner).chain(scale).chain(branch).chain(post)
}

/// Whether a form has a norm of columns.
pub(crate) fn has_statistics(form: &BlockForm) -> bool {
    let norms = [form.pre_norm, form.inner_norm, form.branch_norm, form.post_norm];
    norms.into_iter().flatten().any(|norm| norm.kind == NormKind::Batch)
}

/// (inputs, outputs) of each map.
pub(crate) fn shapes(form: &BlockForm) -> Vec<(usize, usize)> {
    let (d, h, m) = (form.inputs, form.hidden, form.outputs);
    let third = form.gated.then_some((d, h));
    let shortcut = (form.skip == Skip::Projection).then_some((d, m));
    [Some((d, h)), third, Some((h, m)), shortcut].into_iter().flatten().collect()
}

impl Case {
    pub(crate) fn random(form: BlockForm, rows: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut params = BlockTensors::filled(&form, 0.0);
        let mut shapes = shapes(&form).into_iter().flat_map(|(k, _)| vec![k; if form.biases { 2 } else { 1 }]);
        each(&mut params, |name, values| {
            let scale = match name {
                "vector" | "running" => 1.0,
                _ => 1.5 / (shapes.next().expect("a shape").max(1) as f32).sqrt(),
            };
            values.iter_mut().for_each(|v| *v = rng.unit() * scale);
        });
        for norm in &mut params.norms {
            if let Some([_, variance]) = &mut norm.running {
                variance.iter_mut().for_each(|v| *v = 0.5 + v.abs());
            }
        }
        let mut preset = BlockTensors::filled(&form, 0.0);
        each(&mut preset, |_, values| values.iter_mut().for_each(|v| *v = rng.unit()));
        let (x, dy) = (rng.vec(rows * form.inputs), rng.vec(rows * form.outputs));
        let draw = Some(Draw { seed: rng.next(), step: rng.next() as u32, first_row: rng.next() >> 40 });
        Self { form, rows, params, preset, x, dy, draw, from: Statistics::Batch, keep: Keep::All }
    }

    /// How recorded passes run.
    fn recorded(&self, ctx: &Context) -> Context {
        ctx.with_frozen_statistics(self.from == Statistics::Running)
    }

    /// What inference gives: nothing dropped, by running averages.
    pub(crate) fn inferred(&self) -> Vec<f32> {
        reference::form(&self.form, self.rows, &self.x, &self.params, None, Statistics::Running).y
    }

    pub(crate) fn oracle(&self, accumulate: bool) -> Trained {
        let Self { form, rows, params, preset, x, dy, draw, from, .. } = self;
        let mut grads = if accumulate { preset.clone() } else { BlockTensors::filled(form, 0.0) };
        let out = reference::form(form, *rows, x, params, *draw, *from);
        let dx = reference::form_backward(form, *rows, x, params, &out, dy, &mut grads, *draw);
        Trained { y: out.y, dx, grads }
    }

    pub(crate) fn block(&self) -> Block {
        let affine = |(map, (k, m)): (&MapTensors<f32>, (usize, usize))| {
            Affine::new(mat(&map.w, m, k), map.b.as_deref()).expect("a map")
        };
        let affines = maps(&self.params).zip(shapes(&self.form)).map(affine).collect();
        let vectors = vectors(&self.params).map(|values| Vector::new(values).expect("a vector")).collect();
        let mut block = Block::from_parts(&self.form, affines, vectors).expect("a block");
        block.set_keep(self.keep).expect("a policy");
        block
    }

    /// Tensors of a block of this form, from their rows in order.
    pub(crate) fn tensors(&self, rows: impl IntoIterator<Item = Vec<f32>>) -> BlockTensors<f32> {
        let (mut tensors, mut rows) = (BlockTensors::filled(&self.form, 0.0), rows.into_iter());
        each(&mut tensors, |_, values| *values = rows.next().expect("a tensor"));
        tensors
    }

    /// By weights of the crate's own, rows from `cut` on in a second call.
    pub(crate) fn owned(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        layout: Layout,
        cut: usize,
        accumulate: bool,
    ) -> Trained {
        let (block, (d, m)) = (self.block(), (self.form.inputs, self.form.outputs));
        let mut grads = Gradients::new(&block).expect("gradients");
        let mut preset = self.preset.clone();
        let mut all = vec![];
        each(&mut preset, |name, values| all.extend((name != "running").then(|| values.clone())));
        for (mut gradient, values) in grads.iter_mut().zip(&all) {
            let (rows, cols) = gradient.shape();
            gradient.read_from(mat(values, rows, cols)).expect("the same shape");
        }
        let (mut y, mut dx) = (vec![], vec![]);
        for (first, rows) in [(0, cut), (cut, self.rows - cut)] {
            if rows == 0 && (first > 0 || self.rows > 0) {
                continue;
            }
            let x = Grid::of(layout, rows, d, &self.x[first * d..(first + rows) * d]);
            let dys = Grid::of(layout, rows, m, &self.dy[first * m..(first + rows) * m]);
            let (mut ys, mut dxs) = (Grid::new(layout, rows, m), Grid::new(layout, rows, d));
            let mode = if first == 0 && !accumulate { GradMode::Overwrite } else { GradMode::Accumulate };
            block.infer(ctx, ws, x.view(), ys.view_mut()).expect("infer");
            let inferred = ys.values();
            let draw = self.draw.map(|draw| Draw { first_row: draw.first_row + first as u64, ..draw });
            let ctx = &self.recorded(ctx).with_draw(draw);
            let pass = block.forward(ctx, ws, x.view(), ys.view_mut()).expect("forward");
            pass.backward(dys.view(), Some(dxs.view_mut()), &mut grads, mode).expect("backward");
            if cut == self.rows || cut == 0 {
                assert_same("inferred", &inferred, &self.inferred());
            }
            ys.assert_canaries("y");
            dxs.assert_canaries("dx");
            y.extend(ys.values());
            dx.extend(dxs.values());
        }
        let mut learned = grads.iter().map(|gradient| gradient.iter().collect());
        // Running averages have no gradient: what the specification leaves alone.
        let start = if accumulate { self.preset.clone() } else { BlockTensors::filled(&self.form, 0.0) };
        let mut grads = start;
        each(&mut grads, |name, values| {
            if name != "running" {
                *values = learned.next().expect("a gradient");
            }
        });
        Trained { y, dx, grads }
    }

    /// By weights of the caller's, (outputs, inputs) or turned.
    pub(crate) fn borrowed(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        layout: Layout,
        turned: bool,
        accumulate: bool,
    ) -> Trained {
        let (d, m, n) = (self.form.inputs, self.form.outputs, self.rows);
        let net = Functional::form(&self.form).and_then(|net| net.with_keep(self.keep)).expect("a form");
        assert!(net.shapes().eq(shapes(&self.form).into_iter().map(|(k, m)| (m, k))));
        let layout_of = if turned { Layout::Transposed(3) } else { Layout::Tight };
        let held = |tensors: &BlockTensors<f32>| -> Vec<Grid> {
            let grids = maps(tensors).zip(shapes(&self.form)).map(|(map, (k, m))| Grid::of(layout_of, m, k, &map.w));
            grids.collect()
        };
        let weights = held(&self.params);
        let affines: Vec<AffineRef<'_>> = weights
            .iter()
            .zip(maps(&self.params))
            .map(|(grid, map)| AffineRef { weights: grid.view(), bias: map.b.as_deref() })
            .collect();
        let lines: Vec<&[f32]> = vectors(&self.params).map(|v| &v[..]).collect();
        let params = ParamsRef { affines: &affines, vectors: &lines };

        let mut start = if accumulate { self.preset.clone() } else { BlockTensors::filled(&self.form, f32::NAN) };
        let mut names = vec![];
        each(&mut start, |name, values| match name {
            "vector" => names.push(true),
            "running" => {
                names.push(false);
                values.iter_mut().filter(|_| !accumulate).for_each(|v| *v = 0.0);
            }
            _ => {}
        });
        let mut dws = held(&start);
        let mut dbs: Vec<Option<Vec<f32>>> = maps(&start).map(|map| map.b.clone()).collect();
        let mut dvs: Vec<Vec<f32>> = vectors(&start).cloned().collect();
        let x = Grid::of(layout, n, d, &self.x);
        let (mut y, mut dx) = (Grid::new(layout, n, m), Grid::new(layout, n, d));
        let mut record = vec![0.0; net.record_len(n).expect("a length")];
        net.infer(ctx, ws, params, x.view(), y.view_mut()).expect("infer");
        assert_same("inferred", &y.values(), &self.inferred());
        let ctx = &self.recorded(ctx).with_draw(self.draw);
        net.forward(ctx, ws, params, x.view(), y.view_mut(), &mut record).expect("forward");
        // Backward has its masks, and whether statistics are frozen, from the record.
        let ctx = &ctx.with_draw(None).with_frozen_statistics(false);
        let mode = if accumulate { GradMode::Accumulate } else { GradMode::Overwrite };
        let mut affine_grads: Vec<AffineGradMut<'_>> = (dws.iter_mut().zip(&mut dbs))
            .map(|(dw, db)| AffineGradMut { weights: Some(dw.view_mut()), bias: db.as_deref_mut() })
            .collect();
        let mut vector_grads: Vec<Option<&mut [f32]>> =
            dvs.iter_mut().zip(names).map(|(v, learned)| learned.then_some(&mut v[..])).collect();
        let grads = GradsMut { affines: &mut affine_grads, vectors: &mut vector_grads };
        let dys = mat(&self.dy, n, m);
        net.backward(ctx, ws, params, &record, dys, Some(dx.view_mut()), grads, mode).expect("backward");
        let maps = dws.iter().zip(dbs).flat_map(|(dw, db)| [Some(dw.values()), db]).flatten();
        let grads = self.tensors(maps.chain(dvs));
        Trained { y: y.values(), dx: dx.values(), grads }
    }
}

/// The named blocks.
pub(crate) fn named(d: usize, h: usize) -> Vec<(&'static str, BlockForm)> {
    vec![
        ("bare", BlockForm::new(d, h, Activation::Gelu)),
        ("resnet_v1", BlockForm::resnet_v1(d, h)),
        ("tabular", BlockForm::tabular(d, h, Dropout { hidden: 0.2, branch: 0.1, depth: 0.0 })),
        ("resnet_v2", BlockForm::resnet_v2(d, h)),
        ("gpt2", BlockForm::gpt2(d, h)),
        ("vit", BlockForm::vit(d, h)),
        ("bert", BlockForm::bert(d, h)),
        ("llama", BlockForm::llama(d, h)),
        ("t5", BlockForm::t5(d, h)),
        ("cait", BlockForm::cait(d, h, 0.1)),
        ("sandwich", BlockForm::sandwich(d, h)),
        ("rezero", BlockForm::rezero(d, h)),
        ("deepnorm", BlockForm::deepnorm(d, h, 12)),
        ("euler", BlockForm::euler(d, h, Activation::Tanh, 0.1)),
        ("dropout", BlockForm { dropout: Dropout { hidden: 0.1, branch: 0.2, depth: 0.3 }, ..BlockForm::gpt2(d, h) }),
    ]
}

/// The same numbers of another kind.
pub(crate) fn cast<T: Real>(form: &BlockForm, tensors: &BlockTensors<f32>) -> BlockTensors<T> {
    let (mut from, mut to) = (tensors.clone(), BlockTensors::filled(form, T::ZERO));
    let mut all = vec![];
    each(&mut from, |_, values| all.push(values.iter().map(|&v| T::number(v)).collect()));
    let mut all = all.into_iter();
    each(&mut to, |_, values| *values = all.next().expect("as many tensors"));
    to
}

/// All numbers of a block, one after the other.
pub(crate) fn flat<T: Copy>(tensors: &BlockTensors<T>) -> Vec<T> {
    let (mut tensors, mut all) = (tensors.clone(), vec![]);
    each(&mut tensors, |_, values| all.extend(values.iter().copied()));
    all
}
