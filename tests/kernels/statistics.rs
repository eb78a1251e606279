//! BatchNorm: statistics of the batch, their running averages, and the layer that is a norm alone. (The bits of blocks are in `family`.)

use crate::common::family::has_statistics;
use crate::common::{LAYOUTS, Rng, Threads, assert_same, contexts, eager, fastest, mat, mat_mut, size};
use proptest::prelude::*;
use resblock::reference::{self, NormTensors, Statistics};
use resblock::{
    Activation, AdamW, Affine, Block, BlockForm, Context, Dropout, Error, Functional, GradMode, Gradients, GradsMut,
    Init, Layer, Linear, Norm, NormKind, NormLayer, Optimizer, ParamsRef, Part, Record, Role, Sequence, Skip, Vector,
    Workspace,
};

/// A norm layer with the tensors of a specification.
fn layer(width: usize, norm: Norm, phi: Activation, tensors: &NormTensors<f32>) -> NormLayer {
    let NormTensors { gain, shift, running } = tensors;
    let lines = gain.iter().chain(shift).chain(running.iter().flatten());
    let vectors = lines.map(|line| Vector::new(line).expect("a vector")).collect();
    NormLayer::from_vectors(width, norm, phi, vectors).expect("a layer")
}

fn any_tensors(norm: Norm, width: usize, rng: &mut Rng) -> NormTensors<f32> {
    let mut tensors = NormTensors::filled(Some(norm), width, 0.0);
    let NormTensors { gain, shift, running } = &mut tensors;
    let lines = gain.iter_mut().chain(shift).chain(running.iter_mut().flatten());
    lines.for_each(|line| line.iter_mut().for_each(|v| *v = rng.unit()));
    if let Some([_, variance]) = running {
        variance.iter_mut().for_each(|v| *v = 0.5 + v.abs());
    }
    tensors
}

proptest! {
    #[test]
    fn a_norm_alone_has_the_bits_of_its_specification(
        (kind, [gain, shift], from) in (
            prop::sample::select(&[NormKind::Layer, NormKind::Rms, NormKind::Batch][..]),
            any::<[bool; 2]>(),
            prop::sample::select(&[Statistics::Batch, Statistics::Running][..]),
        ),
        width in 1usize..150,
        rows in prop_oneof![size(40), 60usize..200],
        far in prop::sample::select(&[0.0f32, 100.0][..]),
        phi in prop::sample::select(&[Activation::Identity, Activation::Relu, Activation::Gelu][..]),
        layout in prop::sample::select(&LAYOUTS[..]),
        blocking in crate::common::any_blocking(),
        seed in any::<u64>(),
    ) {
        let norm = Norm { kind, epsilon: 1e-5, gain, shift };
        let mut rng = Rng::new(seed);
        let from = if rows == 1 { Statistics::Running } else { from };
        let tensors = any_tensors(norm, width, &mut rng);
        let x: Vec<f32> = rng.vec(rows * width).into_iter().map(|v| v + far).collect();
        let dy = rng.vec(rows * width);
        let of = |from| reference::norm((rows, width), &x, norm, &tensors, from);
        let act = |n: &[f32]| -> Vec<f32> { n.iter().map(|&v| if phi == Activation::Identity { v } else { phi.value(v) }).collect() };
        let out = of(from);
        let (want, inferred) = (act(&out.out), act(&of(Statistics::Running).out));
        let dn: Vec<f32> = dy.iter().zip(&out.out).map(|(g, n)| if phi == Activation::Identity { *g } else { g * phi.derivative(*n) }).collect();
        let mut want_grads = NormTensors::filled(Some(norm), width, 0.0);
        let want_dx = reference::norm_backward((rows, width), norm, &tensors, &out, &dn, &mut want_grads);
        let want_grads: Vec<&Vec<f32>> = want_grads.gain.iter().chain(&want_grads.shift).collect();

        let layer = layer(width, norm, phi, &tensors);
        let run = |ctx: &Context| {
            let (mut ws, mut grads) = (Workspace::new(), Gradients::new(&layer).expect("gradients"));
            let x = crate::common::Grid::of(layout, rows, width, &x);
            let [mut y, mut dx] = [(); 2].map(|()| crate::common::Grid::new(layout, rows, width));
            layer.infer(ctx, &mut ws, x.view(), y.view_mut()).expect("infer");
            assert_same(format_args!("{ctx:?} inferred"), &y.values(), &inferred);
            let ctx = &ctx.with_frozen_statistics(from == Statistics::Running);
            let pass = layer.forward(ctx, &mut ws, x.view(), y.view_mut()).expect("forward");
            pass.backward(mat(&dy, rows, width), Some(dx.view_mut()), &mut grads, GradMode::Overwrite).expect("backward");
            assert_same(format_args!("{ctx:?} y"), &y.values(), &want);
            assert_same(format_args!("{ctx:?} dx"), &dx.values(), &want_dx);
            for (gradient, want) in grads.iter().zip(&want_grads) {
                assert_same(format_args!("{ctx:?} {gradient}"), &gradient.iter().collect::<Vec<_>>(), want);
            }
        };
        for ctx in contexts() {
            run(&ctx.with_blocking(blocking));
        }
        for threads in [Threads::Rayon(2), Threads::Rayon(3), Threads::Rayon(8)] {
            threads.run(fastest().with_blocking(blocking), |ctx| run(&ctx.with_machine(eager())));
        }
    }
}

/// A block, a record of one pass of it on 40 rows, and the statistics that the specification takes.
fn trained(from: Statistics) -> (Block, Record, Vec<[Vec<f32>; 2]>) {
    let (form, mut rng) = (BlockForm::resnet_v2(9, 21), Rng::new(3));
    let block = Block::with_form(&form, &mut Init::he(2)).expect("a block");
    let x = rng.vec(40 * 9);
    let case = crate::common::family::Case { x: x.clone(), ..crate::common::family::Case::random(form, 40, 1) };
    let rows: Vec<Vec<f32>> = block.parameters().map(|p| p.iter().collect()).collect();
    let params = case.tensors(rows);
    let out = reference::form(&form, 40, &x, &params, None, Statistics::Batch);
    let (ctx, mut record) = (fastest().with_frozen_statistics(from == Statistics::Running), Record::new());
    let (mut ws, mut y) = (Workspace::new(), vec![0.0; 40 * 9]);
    block.forward_to(&ctx, &mut ws, mat(&x, 40, 9), mat_mut(&mut y, 40, 9), &mut record).expect("forward");
    (block, record, out.statistics().cloned().collect())
}

fn running(block: &Block) -> Vec<Vec<f32>> {
    let all = block.parameters().filter(|p| !p.role().is_learned());
    all.map(|p| p.iter().collect()).collect()
}

#[test]
fn running_averages_follow_the_batches_that_count() {
    let (mut block, record, taken) = trained(Statistics::Batch);
    let before = running(&block);
    assert_eq!(before.len(), 4);
    let names: Vec<String> = block.parameters().filter(|p| !p.role().is_learned()).map(|p| p.to_string()).collect();
    assert_eq!(names[..2], ["pre_norm.running_mean", "pre_norm.running_var"]);
    block.update_statistics(record.as_slice(), 0.1).expect("an update");
    let unbiased = (40.0f64 / 39.0) as f32;
    for (i, (now, before)) in running(&block).iter().zip(&before).enumerate() {
        let (new, factor) = (&taken[i / 2][i % 2], if i % 2 == 0 { 1.0 } else { unbiased });
        let want: Vec<f32> =
            new.iter().zip(before).map(|(new, old)| 0.1f32.mul_add(new * factor, (1.0 - 0.1) * old)).collect();
        assert_same(format_args!("running average {i}"), now, &want);
    }
    // The whole weight is the batch itself.
    block.update_statistics(record.as_slice(), 1.0).expect("an update");
    assert_same("mean of the batch", &running(&block)[0], &taken[0][0]);

    let (mut block, record, _) = trained(Statistics::Running);
    let before = running(&block);
    block.update_statistics(record.as_slice(), 0.1).expect("nothing to do");
    assert_eq!(running(&block), before, "statistics were frozen");
}

#[test]
fn running_averages_of_the_callers_own_follow_alike() {
    let (mut block, record, _) = trained(Statistics::Batch);
    let formula = Functional::of(&block);
    let learned: Vec<bool> = block.parameters().filter(|p| p.shape().0 == 1).map(|p| p.role().is_learned()).collect();
    let learned = &learned[learned.len() - formula.vector_lens().len()..]; // vectors, behind the biases
    let mut own = running(&block);
    let mut lines = own.iter_mut();
    let mut vectors: Vec<Option<&mut [f32]>> =
        learned.iter().map(|learned| if *learned { None } else { lines.next().map(|line| &mut line[..]) }).collect();
    assert_eq!(vectors.iter().flatten().count(), 4);
    formula.update_statistics(record.as_slice(), 0.1, &mut vectors).expect("an update");
    block.update_statistics(record.as_slice(), 0.1).expect("an update");
    assert_eq!(own, running(&block));
    let mut short = [0.0; 3];
    let mut vectors: Vec<Option<&mut [f32]>> = learned.iter().map(|_| None).collect();
    formula.update_statistics(record.as_slice(), 0.1, &mut vectors).expect("nothing to update");
    vectors[0] = Some(&mut short);
    let refused = formula.update_statistics(record.as_slice(), 0.1, &mut vectors);
    assert_eq!(refused, Err(Error::Length { operand: "vector", expected: 9, found: 3 }));
    assert!(matches!(
        formula.update_statistics(record.as_slice(), 0.1, &mut []),
        Err(Error::Length { operand: "vectors", .. })
    ));
}

#[test]
fn updates_that_would_spoil_running_averages_are_refused() {
    let (mut block, record, _) = trained(Statistics::Batch);
    let before = running(&block);
    for momentum in [-0.1, 1.1, f32::NAN] {
        let error = block.update_statistics(record.as_slice(), momentum).expect_err("a refusal");
        assert!(matches!(error, Error::Setting { operand: "momentum", .. }), "{error}");
    }
    assert!(matches!(block.update_statistics(&[], 0.1), Err(Error::Record { .. })));
    let cut = &record.as_slice()[..record.as_slice().len() - 1];
    assert!(matches!(block.update_statistics(cut, 0.1), Err(Error::Length { operand: "record", .. })));
    let mut spoilt = record.as_slice().to_vec();
    spoilt[32 + 3] = f32::NAN;
    assert!(matches!(block.update_statistics(&spoilt, 0.1), Err(Error::Record { .. })));
    // A variance that is finite, but not times n / (n - 1).
    let mut large = record.as_slice().to_vec();
    large[32 + 16 + 3] = f32::MAX;
    assert!(matches!(block.update_statistics(&large, 0.1), Err(Error::Record { .. })));
    assert_eq!(running(&block), before);
    let mut other = Linear::with_init(9, 9, Activation::Relu, &mut Init::he(1)).expect("a layer");
    assert!(matches!(other.update_statistics(record.as_slice(), 0.1), Err(Error::Record { .. })));
}

#[test]
fn a_single_row_has_no_statistics_to_learn_by_and_no_rows_leave_them() {
    let block = Block::with_form(&BlockForm::tabular(4, 6, Dropout::default()), &mut Init::he(1)).expect("a block");
    let (ctx, mut ws, mut y) = (fastest(), Workspace::new(), [7.0; 4]);
    let error =
        block.forward(&ctx, &mut ws, mat(&[0.0; 4], 1, 4), mat_mut(&mut y, 1, 4)).map(|_| ()).expect_err("a refusal");
    assert!(matches!(error, Error::Setting { operand: "x", .. }), "{error}");
    assert_eq!(y, [7.0; 4]);
    let frozen = ctx.with_frozen_statistics(true);
    block.forward(&frozen, &mut ws, mat(&[0.0; 4], 1, 4), mat_mut(&mut y, 1, 4)).map(|_| ()).expect("a frozen pass");
    block.infer(&ctx, &mut ws, mat(&[0.0; 4], 1, 4), mat_mut(&mut y, 1, 4)).expect("inference");

    let mut block = block;
    let (before, mut grads) = (running(&block), Gradients::new(&block).expect("gradients"));
    let pass = block.forward(&ctx, &mut ws, mat(&[], 0, 4), mat_mut(&mut [], 0, 4)).expect("no rows");
    pass.backward(mat(&[], 0, 4), None, &mut grads, GradMode::Overwrite).expect("no rows");
    block.update_statistics(ws.record().as_slice(), 0.5).expect("no rows");
    assert_eq!(running(&block), before);
}

#[test]
fn optimisers_and_gradients_leave_running_averages_alone() {
    let (mut block, record, _) = trained(Statistics::Batch);
    let (before, mut grads) = (running(&block), Gradients::new(&block).expect("gradients"));
    let (ctx, mut ws, dy) = (fastest(), Workspace::new(), Rng::new(5).vec(40 * 9));
    block
        .backward(&ctx, &mut ws, record.as_slice(), mat(&dy, 40, 9), None, &mut grads, GradMode::Overwrite)
        .expect("backward");
    assert!(grads.iter().all(|gradient| gradient.role().is_learned()));
    assert_eq!(grads.iter().count() + 4, block.parameters().count());
    let name = Part::PreNorm.in_block(0).tensor(Role::RunningMean);
    assert!(!grads.set(name, mat(&[0.0; 9], 1, 9)).expect("no such gradient"));
    let mut adam = AdamW::new(0.1);
    adam.step(&ctx, &mut block, &grads).expect("a step");
    assert_eq!(running(&block), before);
    assert_eq!(
        block.parameter_count(),
        block.parameters().map(|p| p.shape().0 * p.shape().1).sum::<usize>() - 2 * (9 + 21)
    );

    // The caller's gradients have no place for them.
    let net = Functional::norm(3, Norm::batch(1e-5), Activation::Identity).expect("a norm");
    let lines: [&[f32]; 4] = [&[1.0; 3], &[0.0; 3], &[0.0; 3], &[1.0; 3]];
    let (params, x) = (ParamsRef { affines: &[], vectors: &lines }, [1.0, 2.0, 3.0, 0.0, 1.0, 5.0]);
    let (mut y, mut record) = ([0.0; 6], vec![0.0; net.record_len(2).expect("a length")]);
    net.forward(&ctx, &mut ws, params, mat(&x, 2, 3), mat_mut(&mut y, 2, 3), &mut record).expect("forward");
    let mut spare = [0.0; 3];
    let mut vectors = [None, None, Some(&mut spare[..]), None];
    let grads = GradsMut { affines: &mut [], vectors: &mut vectors };
    let error = net
        .backward(&ctx, &mut ws, params, &record, mat(&x, 2, 3), None, grads, GradMode::Overwrite)
        .expect_err("a refusal");
    assert!(matches!(error, Error::Setting { operand: "dvector", .. }), "{error}");
}

#[test]
fn folded_blocks_infer_the_same_but_for_rounding() {
    let gated = BlockForm {
        gated: true,
        biases: false,
        pre_norm: Some(Norm::batch(1e-3)),
        ..BlockForm::new(12, 20, Activation::Silu)
    };
    let every = BlockForm {
        pre_norm: Some(Norm { shift: false, ..Norm::batch(1e-5) }),
        post_norm: Some(Norm::batch(1e-5)),
        branch_scale: resblock::BranchScale::Vector(0.3),
        skip: Skip::Projection,
        outputs: 7,
        ..BlockForm { post_activation: Activation::Identity, ..BlockForm::resnet_v1(12, 20) }
    };
    for (form, left) in [
        (BlockForm::resnet_v1(12, 20), false),
        (BlockForm::resnet_v2(12, 20), true),
        (BlockForm::tabular(12, 20, Dropout::default()), false),
        (gated, false),
        (every, true),
        (BlockForm::gpt2(12, 20), false),
    ] {
        let case = crate::common::family::Case::random(form, 33, 6);
        let (block, ctx, mut ws) = (case.block(), fastest(), Workspace::new());
        let folded = block.folded().expect("a folded block");
        assert_eq!(has_statistics(folded.form()), left, "{form:?}");
        let mut y = vec![0.0; 33 * form.outputs];
        folded.infer(&ctx, &mut ws, mat(&case.x, 33, 12), mat_mut(&mut y, 33, form.outputs)).expect("infer");
        for (i, (got, want)) in y.iter().zip(case.inferred()).enumerate() {
            assert!((got - want).abs() <= 2e-5 * want.abs().max(1.0), "{form:?}: {got} at {i}, {want} unfolded");
        }
    }
    let mut init = Init::he(1);
    let net = Sequence::new([
        Linear::with_init(5, 12, Activation::Identity, &mut init).expect("a layer").into(),
        Block::with_form(&BlockForm::resnet_v1(12, 20), &mut init).expect("a block").into(),
        NormLayer::new(12, Norm::batch(1e-5), Activation::Relu).expect("a norm").into(),
        Linear::new(Affine::new(mat(&[0.1; 24], 2, 12), None).expect("a map"), Activation::Identity).into(),
    ]);
    let net = net.expect("a network");
    assert_eq!((net.vector_count(), net.folded().expect("a folded network").vector_count()), (12, 4));
}
