//! Blocks of every form: bit for bit what the specification says, whatever threads, blocks, strides, instruction set, batch and owner of
//! the weights are.

use crate::common::family::{Case, cast, each, flat, has_statistics, named};
use crate::common::{
    LAYOUTS, Layout, Rng, Threads, assert_same, assert_within, blockings, contexts, eager, fastest, mat, mat_mut,
    narrow, size, to_f64, to_running,
};
use proptest::prelude::*;
use resblock::bounds::Running;
use resblock::reference::{self, BlockTensors, Statistics};
use resblock::{
    Activation, Affine, Block, BlockForm, BranchScale, Context, Draw, Dropout, Error, Functional, GradMode, Gradients,
    Init, Keep, Layer, Norm, NormKind, Record, Sequence, Skip, Stack, Vector, Workspace,
};

fn any_norm() -> impl Strategy<Value = Option<Norm>> {
    let kind = prop::sample::select(&[NormKind::Layer, NormKind::Rms, NormKind::Batch][..]);
    let norm = (kind, any::<[bool; 2]>(), prop::sample::select(&[1e-5_f32, 1e-12, 0.3][..]));
    prop::option::of(norm.prop_map(|(kind, [gain, shift], epsilon)| Norm { kind, epsilon, gain, shift }))
}

fn any_activation() -> impl Strategy<Value = Activation> {
    prop::sample::select(&crate::common::ACTIVATIONS[..])
}

fn any_form(limit: usize) -> impl Strategy<Value = BlockForm> {
    let sizes = (size(limit), size(limit), size(limit));
    let norms = (any_norm(), any_norm(), any_norm(), any_norm());
    let activations = (any_activation(), any_activation(), any_activation());
    let scale = prop_oneof![
        Just(BranchScale::Constant(1.0)),
        Just(BranchScale::Constant(0.3)),
        Just(BranchScale::Scalar(0.0)),
        Just(BranchScale::Vector(0.1)),
    ];
    let skip = prop::sample::select(&[Skip::Identity, Skip::None, Skip::Projection][..]);
    let p = || prop::sample::select(&[0.0_f32, 0.0, 0.3][..]);
    let dropout = (p(), p(), p()).prop_map(|(hidden, branch, depth)| Dropout { hidden, branch, depth });
    let rest = (any::<[bool; 4]>(), skip, prop::sample::select(&[1.0_f32, 1.7][..]), scale, dropout);
    (sizes, norms, activations, rest).prop_map(|((d, h, m), norms, activations, rest)| {
        let ([gated, biases, pre, post], skip, skip_scale, branch_scale, dropout) = rest;
        let or = |there: bool, phi| if there { phi } else { Activation::Identity };
        let norm = |norm: Option<Norm>, width: usize| norm.filter(|_| width > 0);
        let outputs = if skip == Skip::Identity { d } else { m };
        let post_norm = norm(norms.2, outputs);
        BlockForm {
            inputs: d,
            hidden: h,
            outputs,
            biases,
            activation: activations.0,
            gated,
            pre_norm: norm(norms.0, d),
            pre_activation: or(pre, activations.1),
            inner_norm: norm(norms.1, h).filter(|_| !gated),
            post_norm,
            branch_norm: norm(norms.3, outputs),
            post_activation: or(post && post_norm.is_none(), activations.2),
            skip,
            skip_scale: if skip == Skip::None { 1.0 } else { skip_scale },
            branch_scale,
            dropout,
            init_scales: [1.0; 2],
        }
    })
}

proptest! {
    #[test]
    fn any_block_has_the_bits_of_its_specification(
        form in any_form(40),
        rows in size(36),
        seed in any::<u64>(),
        layout in prop::sample::select(&LAYOUTS[..]),
        blocking in crate::common::any_blocking(),
        (turned, accumulate, frozen, again) in any::<(bool, bool, bool, bool)>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut case = Case::random(form, rows, seed);
        if frozen || rows == 1 {
            case.from = Statistics::Running;
        }
        case.keep = if again { Keep::Inputs } else { Keep::All };
        let want = case.oracle(accumulate);
        let mut ws = Workspace::new();
        for ctx in contexts() {
            let ctx = ctx.with_blocking(blocking);
            // Statistics of a batch are those of all of it.
            let whole = has_statistics(&form) && case.from == Statistics::Batch;
            let cut = if whole { rows } else { cut.index(rows + 1) };
            case.owned(&ctx, &mut ws, layout, cut, accumulate).assert_same(format_args!("{ctx:?}"), &want);
            case.borrowed(&ctx, &mut ws, layout, turned, accumulate).assert_same(format_args!("borrowed {ctx:?}"), &want);
        }
        for threads in [Threads::Rayon(2), Threads::Rayon(3), Threads::Rayon(8)] {
            for machine in [eager(), narrow()] {
                let (got, borrowed) = threads.run(fastest().with_blocking(blocking), |ctx| {
                    let (ctx, mut ws) = (ctx.with_machine(machine), Workspace::new());
                    let owned = case.owned(&ctx, &mut ws, layout, rows, accumulate);
                    (owned, case.borrowed(&ctx, &mut ws, layout, turned, accumulate))
                });
                got.assert_same(format_args!("{threads:?}"), &want);
                borrowed.assert_same(format_args!("borrowed, {threads:?}"), &want);
            }
        }
    }
}

#[test]
fn named_blocks_have_the_bits_of_their_specification() {
    for (name, form) in named(48, 80).into_iter().chain(named(33, 17)) {
        let mut case = Case::random(form, 70, 5);
        let want = case.oracle(true);
        let cut = if has_statistics(&form) { 70 } else { 31 };
        for (ctx, keep) in contexts().flat_map(|ctx| [(ctx, Keep::All), (ctx, Keep::Inputs)]) {
            case.keep = keep;
            for blocking in blockings() {
                let ctx = ctx.with_blocking(blocking);
                case.owned(&ctx, &mut Workspace::new(), Layout::Tight, cut, true)
                    .assert_same(format_args!("{name} {ctx:?}"), &want);
            }
        }
    }
}

#[test]
fn special_values_propagate_as_in_the_specification_and_stay_in_their_rows() {
    let mut rng = Rng::new(3);
    for (name, form) in named(20, 37) {
        let mut case = Case::random(form, 24, 8);
        // Where statistics are those of the batch, a spoilt row spoils it all.
        case.from = Statistics::Running;
        let clean = case.oracle(false);
        // Rows 4, 8, ... are spoilt.
        let wild = |rng: &mut Rng, cols: usize, values: &mut Vec<f32>| {
            for row in values.chunks_mut(cols).skip(4).step_by(4) {
                row.copy_from_slice(&rng.wild(cols, 5));
            }
        };
        wild(&mut rng, form.inputs, &mut case.x);
        wild(&mut rng, form.outputs, &mut case.dy);
        let want = case.oracle(false);
        for ctx in contexts() {
            let got = case.owned(&ctx, &mut Workspace::new(), Layout::Tight, 24, false);
            got.assert_same(format_args!("{name} {ctx:?}"), &want);
            for row in (0..24).filter(|row| row % 4 != 0 || *row == 0) {
                let (x, y) = (row * form.inputs..(row + 1) * form.inputs, row * form.outputs..(row + 1) * form.outputs);
                assert_same(format_args!("{name}: y of row {row}"), &got.y[y.clone()], &clean.y[y]);
                assert_same(format_args!("{name}: dx of row {row}"), &got.dx[x.clone()], &clean.dx[x]);
            }
        }
    }
}

#[test]
fn outputs_stay_within_their_running_bounds() {
    for (name, form) in named(20, 37) {
        let case = Case::random(form, 5, 11);
        let (x, params) = (to_running(&case.x), cast::<Running>(&form, &case.params));
        let want = reference::form(&form, 5, &x, &params, case.draw, case.from);
        assert_within(name, &case.oracle(false).y, &want.y);
    }
}

/// The gradients of Σ dy y in f64 against its slope in random directions.
#[test]
fn gradients_are_the_slopes_of_the_loss_in_f64() {
    let smooth = |form: BlockForm| {
        let or = |phi| if phi == Activation::Relu { Activation::Gelu } else { phi };
        BlockForm {
            activation: or(form.activation),
            pre_activation: or(form.pre_activation),
            post_activation: or(form.post_activation),
            ..form
        }
    };
    let projected = BlockForm { skip: Skip::Projection, outputs: 9, skip_scale: 1.7, ..BlockForm::cait(7, 11, 0.1) };
    let forms = named(7, 11).into_iter().chain([("projected", projected)]);
    for ((name, form), from) in forms.flat_map(|form| [(form, Statistics::Batch), (form, Statistics::Running)]) {
        let form = smooth(form);
        let case = Case::random(form, 4, 21);
        let (x, dy, params) = (to_f64(&case.x), to_f64(&case.dy), cast::<f64>(&form, &case.params));
        let out = reference::form(&form, 4, &x, &params, case.draw, from);
        let mut grads = BlockTensors::filled(&form, 0.0);
        let dx = reference::form_backward(&form, 4, &x, &params, &out, &dy, &mut grads, case.draw);
        // A direction for each input and parameter, and the slope that the gradients tell.
        let mut rng = Rng::new(4);
        let mut direction = BlockTensors::filled(&form, 0.0);
        each(&mut direction, |name, values| {
            values.iter_mut().filter(|_| name != "running").for_each(|v| *v = f64::from(rng.unit()));
        });
        let along_x = to_f64(&rng.vec(x.len()));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let told = dot(&dx, &along_x) + dot(&flat(&grads), &flat(&direction));
        let loss = |step: f64| {
            let x: Vec<f64> = x.iter().zip(&along_x).map(|(x, d)| x + step * d).collect();
            let (mut params, steps) = (params.clone(), flat(&direction));
            let mut steps = steps.iter();
            each(&mut params, |_, values| values.iter_mut().zip(&mut steps).for_each(|(v, d)| *v += step * d));
            dot(&reference::form(&form, 4, &x, &params, case.draw, from).y, &dy)
        };
        let h = 1e-4;
        let slope = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h);
        assert!((slope - told).abs() <= 1e-7 * told.abs().max(1.0), "{name}: slope {slope}, gradients tell {told}");
    }
}

#[test]
fn forms_that_contradict_themselves_and_parameters_that_do_not_fit_are_refused() {
    let form = BlockForm::new(4, 6, Activation::Relu);
    let (norm, none) = (Norm::layer(1e-5), Dropout::default());
    let bad = [
        (BlockForm { outputs: 5, ..form }, "second weights"),
        (BlockForm { pre_norm: Some(Norm::layer(0.0)), ..form }, "epsilon"),
        (BlockForm { pre_norm: Some(Norm::rms(-1.0)), ..form }, "epsilon"),
        (BlockForm { inner_norm: Some(Norm::rms(f32::NAN)), ..form }, "epsilon"),
        (BlockForm { post_norm: Some(Norm::rms(f32::INFINITY)), ..form }, "epsilon"),
        (BlockForm { pre_norm: Some(norm), ..BlockForm::new(0, 6, Activation::Relu) }, "pre_norm"),
        (BlockForm { inner_norm: Some(norm), ..BlockForm::new(4, 0, Activation::Relu) }, "inner_norm"),
        (BlockForm { inner_norm: Some(norm), gated: true, ..form }, "inner_norm"),
        (BlockForm { post_norm: Some(norm), post_activation: Activation::Relu, ..form }, "post_activation"),
        (BlockForm { skip: Skip::None, skip_scale: 2.0, ..form }, "skip_scale"),
        (BlockForm { skip_scale: f32::NAN, ..form }, "skip_scale"),
        (BlockForm { branch_scale: BranchScale::Constant(f32::NAN), ..form }, "branch_scale"),
        (BlockForm { branch_scale: BranchScale::Constant(f32::INFINITY), ..form }, "branch_scale"),
        (BlockForm { dropout: Dropout { hidden: 1.0, ..none }, ..form }, "hidden dropout"),
        (BlockForm { dropout: Dropout { branch: -0.1, ..none }, ..form }, "branch dropout"),
        (BlockForm { dropout: Dropout { depth: f32::NAN, ..none }, ..form }, "stochastic depth"),
    ];
    for (form, wrong) in bad {
        for error in [
            Block::with_form(&form, &mut Init::he(1)).map(|_| ()).expect_err("a refusal"),
            Block::from_parts(&form, vec![], vec![]).map(|_| ()).expect_err("a refusal"),
            Functional::form(&form).map(|_| ()).expect_err("a refusal"),
        ] {
            let (Error::Setting { operand, .. } | Error::Shape { operand, .. }) = error else { panic!("{error}") };
            assert_eq!(operand, wrong, "{form:?}");
        }
    }

    let projected = Functional::linear(4, 4, Activation::Relu, Skip::Projection).map(|_| ()).expect_err("a refusal");
    assert!(matches!(projected, Error::Setting { operand: "skip", .. }), "{projected}");
    let form = BlockForm::cait(4, 6, 0.1);
    let map = |k, m| Affine::new(mat(&vec![0.0; k * m], m, k), None).expect("a map");
    let vector = |len| Vector::filled(len, 1.0).expect("a vector");
    let (maps, vectors) = (|| vec![map(4, 6), map(6, 4)], || vec![vector(4), vector(4), vector(4)]);
    assert!(Block::from_parts(&form, maps(), vectors()).is_ok());
    let refused = |maps, vectors| Block::from_parts(&form, maps, vectors).map(|_| ()).expect_err("a refusal");
    let length = |operand, expected, found| Error::Length { operand, expected, found };
    assert_eq!(refused(vec![map(4, 6)], vectors()), length("affines", 2, 1));
    assert_eq!(refused(maps(), vec![vector(4)]), length("vectors", 3, 1));
    assert_eq!(refused(maps(), vec![vector(5), vector(4), vector(4)]), length("gain", 4, 5));
    assert_eq!(refused(maps(), vec![vector(4), vector(3), vector(4)]), length("shift", 4, 3));
    assert_eq!(refused(maps(), vec![vector(4), vector(4), vector(1)]), length("scale", 4, 1));
    let expected = Error::Shape { operand: "second weights", expected: (4, 6), found: (4, 7) };
    assert_eq!(refused(vec![map(4, 6), map(7, 4)], vectors()), expected);
}

#[test]
fn blocks_of_all_forms_and_widths_are_one_network() {
    let mut init = Init::he(7);
    let wider = BlockForm { skip: Skip::Projection, outputs: 24, ..BlockForm::gpt2(16, 32) };
    let forms = [BlockForm::gpt2(16, 32), wider, BlockForm::llama(24, 40), BlockForm::bert(24, 48)];
    let blocks: Vec<Block> = forms.iter().map(|form| Block::with_form(form, &mut init).expect("a block")).collect();
    let (mut ws, mut rng, ctx) = (Workspace::new(), Rng::new(1), fastest());
    let x = rng.vec(5 * 16);
    let mut want = x.clone();
    for block in &blocks {
        let mut y = vec![0.0; 5 * block.outputs()];
        let (x, out) = (mat(&want, 5, block.inputs()), mat_mut(&mut y, 5, block.outputs()));
        block.infer(&ctx, &mut ws, x, out).expect("infer");
        want = y;
    }
    let stack = Stack::from_blocks(blocks.clone()).expect("a stack");
    let sequence = Sequence::new(blocks.into_iter().map(Into::into)).expect("a sequence");
    let mut y = vec![0.0; want.len()];
    stack.infer(&ctx, &mut ws, mat(&x, 5, 16), mat_mut(&mut y, 5, 24)).expect("infer");
    assert_same("a stack", &y, &want);
    sequence.infer(&ctx, &mut ws, mat(&x, 5, 16), mat_mut(&mut y, 5, 24)).expect("infer");
    assert_same("a sequence", &y, &want);
    let names: Vec<String> = stack.parameters().map(|p| p.to_string()).collect();
    assert!(names.contains(&"blocks.1.shortcut.weight".into()) && names.contains(&"blocks.3.post_norm.shift".into()));
    assert_eq!(stack.vector_count(), 7);
    assert_eq!((0..7).filter(|&i| Layer::vector(&stack, i).is_some()).count(), 7);
    let of_sequence: Vec<String> = sequence.parameters().map(|p| p.to_string()).collect();
    assert!(of_sequence.contains(&"layers.2.third.weight".into()), "{of_sequence:?}");
}

#[test]
fn masks_are_those_of_the_draw_and_nothing_is_dropped_without_one() {
    let dropout = Dropout { hidden: 0.4, branch: 0.2, depth: 0.2 };
    let block =
        |_| Block::with_form(&BlockForm { dropout, ..BlockForm::vit(12, 20) }, &mut Init::he(5)).expect("a block");
    let stack = Stack::from_blocks((0..3).map(block).collect()).expect("a stack");
    let (x, mut ws) = (Rng::new(2).vec(9 * 12), Workspace::new());
    let mut run = |draw, rows: std::ops::Range<usize>| {
        let (x, n) = (&x[rows.start * 12..rows.end * 12], rows.len());
        let mut y = vec![0.0; n * 12];
        let ctx = fastest().with_draw(draw);
        stack.forward(&ctx, &mut ws, mat(x, n, 12), mat_mut(&mut y, n, 12)).map(|_| ()).expect("forward");
        y
    };
    let draw = Draw { seed: 1, step: 2, first_row: 0 };
    let (whole, still) = (run(Some(draw), 0..9), run(None, 0..9));
    let mut inferred = vec![0.0; 9 * 12];
    let y = mat_mut(&mut inferred, 9, 12);
    stack.infer(&fastest().with_draw(Some(draw)), &mut Workspace::new(), mat(&x, 9, 12), y).expect("infer");
    assert_same("without a draw", &still, &inferred);
    assert_same("the same draw", &run(Some(draw), 0..9), &whole);
    let pieces = [run(Some(draw), 0..4), run(Some(Draw { first_row: 4, ..draw }), 4..9)].concat();
    assert_same("in pieces", &pieces, &whole);
    for other in [Draw { seed: 2, ..draw }, Draw { step: 3, ..draw }, Draw { first_row: 1, ..draw }] {
        assert_ne!(run(Some(other), 0..9), whole, "{other:?}");
    }
    assert_ne!(whole, still);
}

#[test]
fn a_network_keeps_what_its_budget_allows_and_has_the_same_gradients() {
    let forms = [
        BlockForm::gpt2(16, 64),
        BlockForm::llama(16, 48),
        BlockForm::bert(16, 64),
        BlockForm::resnet_v1(16, 32),
        BlockForm::tabular(16, 32, Dropout { hidden: 0.5, branch: 0.1, depth: 0.0 }),
        BlockForm::resnet_v2(16, 32),
    ];
    let blocks = forms.iter().cycle().take(12).map(|form| Block::with_form(form, &mut Init::he(3)).expect("a block"));
    let mut net = Stack::from_blocks(blocks.collect()).expect("a stack");
    let (x, dy) = (Rng::new(1).vec(40 * 16), Rng::new(2).vec(40 * 16));
    let step = |net: &Stack, ctx: &Context| {
        let (mut ws, mut grads) = (Workspace::new(), Gradients::new(net).expect("gradients"));
        let (mut y, mut dx) = (vec![0.0; 40 * 16], vec![0.0; 40 * 16]);
        let ctx = ctx.with_draw(Some(Draw { seed: 1, step: 2, first_row: 3 }));
        let pass = net.forward(&ctx, &mut ws, mat(&x, 40, 16), mat_mut(&mut y, 40, 16)).expect("forward");
        pass.backward(mat(&dy, 40, 16), Some(mat_mut(&mut dx, 40, 16)), &mut grads, GradMode::Overwrite)
            .expect("backward");
        let grads: Vec<f32> = grads.iter().flat_map(|gradient| gradient.iter().collect::<Vec<_>>()).collect();
        (y, dx, grads)
    };
    let want = step(&net, &fastest());
    let len = |net: &Stack| net.record_len(40).expect("a length") * 4;
    let all = len(&net);
    net.set_keep(Keep::Inputs).expect("a policy");
    let least = len(&net);
    assert!(least < all / 4, "{least} of {all} bytes");
    let mut before = 0;
    for bytes in [least, least + 1, (least + all) / 3, (least + all) / 2, all - 1, all, usize::MAX] {
        net.set_keep(Keep::Within { bytes, rows: 40 }).expect("a policy");
        assert!(len(&net) <= bytes && len(&net) >= before, "{} of {bytes} bytes", len(&net));
        assert!(len(&net) > least || bytes < (least + all) / 2, "of {bytes} bytes only {} are used", len(&net));
        before = len(&net);
        let threads = [Threads::Seq, Threads::Rayon(3)]
            .map(|threads| threads.run(fastest(), |ctx| step(&net, &ctx.with_machine(eager()))));
        for got in [step(&net, &fastest())].into_iter().chain(threads) {
            assert_same("y", &got.0, &want.0);
            assert_same("dx", &got.1, &want.1);
            assert_same("gradients", &got.2, &want.2);
        }
    }
    assert_eq!(before, all);
    let refused = net.set_keep(Keep::Within { bytes: least - 1, rows: 40 }).expect_err("a refusal");
    assert!(matches!(refused, Error::Setting { operand: "bytes", .. }), "{refused}");
    assert_eq!(len(&net), all, "nothing has changed");

    // A record is of the network with the policy that it was made with.
    let (mut ws, mut record, mut y) = (Workspace::new(), Record::new(), vec![0.0; 40 * 16]);
    net.forward_to(&fastest(), &mut ws, mat(&x, 40, 16), mat_mut(&mut y, 40, 16), &mut record).expect("forward");
    net.set_keep(Keep::Inputs).expect("a policy");
    let mut grads = Gradients::new(&net).expect("gradients");
    let (record, dy) = (record.as_slice(), mat(&dy, 40, 16));
    let refused = net.backward(&fastest(), &mut ws, record, dy, None, &mut grads, GradMode::Overwrite);
    assert!(matches!(refused, Err(Error::Length { operand: "record", .. })), "{refused:?}");
}
