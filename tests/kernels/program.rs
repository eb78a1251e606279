//! Programs: free sequences of layers, records that live on their own, and functional calls on a caller's weights, bit for bit as the
//! sequential oracle; and explanations.

use crate::common::problem::{Net, Problem, Trained};
use crate::common::{
    self, ACTIVATIONS, CANARY, Grid, Layout, MapGrad, Rng, Stage, THREADS, Threads, any_blocking, assert_same,
    contexts, fastest, isas, mat, mat_mut, size,
};
use proptest::prelude::*;
use resblock::{
    Activation, AffineGradMut, AffineRef, Block, Blocking, Context, Error, Functional, GradMode, Gradients, Init,
    Layer, Linear, MatRef, Node, Purpose, Record, Sequence, Skip, Stack, StackConfig, Workspace,
};

/// Stages of changing widths, in any order.
fn free_stages(rng: &mut Rng, widths: &[usize], phi: Activation, bias: bool) -> Vec<Stage> {
    let mut stages = vec![];
    for pair in widths.windows(2) {
        let (d, next) = (pair[0], pair[1]);
        if rng.below(2) == 0 {
            let skip = rng.below(3) > 0;
            stages.push(Stage::block(rng, d, next, phi, skip, bias));
        }
        let phi = if rng.below(2) == 0 { phi } else { Activation::Identity };
        stages.push(Stage::linear(rng, d, next, phi, bias));
    }
    if rng.below(2) == 0 {
        let d = widths[widths.len() - 1];
        stages.push(Stage::block(rng, d, widths[0], phi, true, bias));
    }
    stages
}

fn any_threads() -> impl Strategy<Value = Threads> {
    prop::sample::select(&THREADS[..])
}

fn any_phi() -> impl Strategy<Value = Activation> {
    prop::sample::select(&ACTIVATIONS[..])
}

fn any_context() -> impl Strategy<Value = Context> {
    let blocking = any_blocking();
    (prop::sample::select(isas()), blocking).prop_map(|(isa, blocking)| common::context(isa).with_blocking(blocking))
}

proptest! {
    #[test]
    fn sequences_of_any_layers_equal_the_oracle(
        ctx in any_context(), threads in any_threads(), phi in any_phi(), n in size(40), seed: u64, bias: bool,
        accumulate: bool, widths in prop::collection::vec(size(50), 2..5),
    ) {
        let mut rng = Rng::new(seed);
        let stages = free_stages(&mut rng, &widths, phi, bias);
        let mut problem = Problem::random(&mut rng, stages, n);
        problem.net = Net::sequence(&problem.stages);
        let want = problem.oracle(accumulate);
        let got = threads.run(ctx, |ctx| problem.train(&ctx, &mut Workspace::new(), &[], accumulate));
        got.assert_same("sequence", &want);
        let y = threads.run(ctx, |ctx| problem.infer(&ctx, &mut Workspace::new(), &[]));
        assert_same("inference", &y, &want.y);
    }

    #[test]
    fn functional_calls_equal_the_oracle_for_weights_of_any_strides(
        ctx in any_context(), threads in any_threads(), phi in any_phi(), n in size(40), seed: u64, bias: bool,
        accumulate: bool, widths in prop::collection::vec(size(40), 2..4),
        layouts in prop::collection::vec((prop::sample::select(&common::LAYOUTS[..]), prop::sample::select(&common::LAYOUTS[..])), 1..4),
    ) {
        let mut rng = Rng::new(seed);
        let stages = free_stages(&mut rng, &widths, phi, bias);
        let problem = Problem::random(&mut rng, stages, n);
        let want = problem.oracle(accumulate);
        let got = threads.run(ctx, |ctx| functional(&problem, &ctx, &mut Workspace::new(), &layouts, accumulate));
        got.assert_same("functional", &want);
    }
}

/// Solves a problem by functional calls, with weights and gradients in `layouts`, in turn.
fn functional(
    problem: &Problem,
    ctx: &Context,
    ws: &mut Workspace,
    layouts: &[(Layout, Layout)],
    accumulate: bool,
) -> Trained {
    let net = problem.net.functional();
    let n = problem.rows;
    let maps: Vec<_> = problem.stages.iter().flat_map(Stage::maps).collect();
    let layouts: Vec<_> = layouts.iter().copied().cycle().take(maps.len()).collect();
    let weights: Vec<Grid> =
        maps.iter().zip(&layouts).map(|(map, (of, _))| Grid::of(*of, map.outputs, map.inputs, &map.w)).collect();
    let params: Vec<AffineRef<'_>> = maps
        .iter()
        .zip(&weights)
        .map(|(map, weights)| AffineRef { weights: weights.view(), bias: map.b.as_deref() })
        .collect();
    let mut record = vec![f32::NAN; net.record_len(n).expect("a length")];
    let (mut y, mut inferred) = (vec![f32::NAN; n * net.outputs()], vec![f32::NAN; n * net.outputs()]);
    let x = mat(&problem.x, n, net.inputs());
    net.infer(ctx, ws, &params, x, mat_mut(&mut inferred, n, net.outputs())).expect("infer");
    net.forward(ctx, ws, &params, x, mat_mut(&mut y, n, net.outputs()), &mut record).expect("forward");
    assert_same("inference", &inferred, &y);

    let mut dws: Vec<Grid> = (maps.iter().zip(&layouts).zip(&problem.preset))
        .map(|((map, (_, of)), preset)| Grid::of(*of, map.outputs, map.inputs, &preset.dw))
        .collect();
    let mut dbs: Vec<Vec<f32>> = problem.preset.iter().map(|preset| preset.db.clone()).collect();
    let mut grads: Vec<AffineGradMut<'_>> = (maps.iter().zip(&mut dws).zip(&mut dbs))
        .map(|((map, dw), db)| AffineGradMut {
            weights: Some(dw.view_mut()),
            bias: map.b.as_ref().map(|_| &mut db[..]),
        })
        .collect();
    let mut dx = vec![f32::NAN; n * net.inputs()];
    let mode = if accumulate { GradMode::Accumulate } else { GradMode::Overwrite };
    let (dy, dx_out) = (mat(&problem.dy, n, net.outputs()), mat_mut(&mut dx, n, net.inputs()));
    net.backward(ctx, ws, &params, &record, dy, Some(dx_out), &mut grads, mode).expect("backward");
    dws.iter().for_each(|dw| dw.assert_canaries("dW"));
    let grads = (dws.iter().zip(dbs).zip(maps))
        .map(|((dw, db), map)| MapGrad { dw: dw.values(), db: if map.b.is_some() { db } else { vec![] } })
        .collect();
    Trained { y, dx, grads }
}

#[test]
fn functional_calls_skip_what_is_not_wanted() {
    let mut rng = Rng::new(3);
    let stages = vec![Stage::block(&mut rng, 20, 33, Activation::Gelu, true, true)];
    let problem = Problem::random(&mut rng, stages, 9);
    let want = problem.oracle(false);
    let maps: Vec<_> = problem.stages.iter().flat_map(Stage::maps).collect();
    let net = Functional::block(20, 33, 20, Activation::Gelu, Skip::Identity).expect("a block");
    for ctx in contexts() {
        let mut ws = Workspace::new();
        let params = [0, 1].map(|i| AffineRef {
            weights: mat(&maps[i].w, maps[i].outputs, maps[i].inputs),
            bias: maps[i].b.as_deref(),
        });
        let (mut y, mut record) = (vec![0.0; 9 * 20], vec![0.0; net.record_len(9).expect("a length")]);
        net.forward(&ctx, &mut ws, &params, mat(&problem.x, 9, 20), mat_mut(&mut y, 9, 20), &mut record)
            .expect("forward");
        let mut dw2 = vec![0.0; 20 * 33];
        let mut grads =
            [AffineGradMut::default(), AffineGradMut { weights: Some(mat_mut(&mut dw2, 20, 33)), bias: None }];
        net.backward(&ctx, &mut ws, &params, &record, mat(&problem.dy, 9, 20), None, &mut grads, GradMode::Overwrite)
            .expect("backward");
        assert_same("dW2 alone", &dw2, &want.grads[1].dw);
    }
}

#[test]
fn the_stride_of_a_single_line_of_weights_is_any_number() {
    let (n, mut rng) = (5, Rng::new(4));
    for (inputs, outputs) in [(1, 40), (40, 1), (1, 1), (1, 7)] {
        let stage = Stage::linear(&mut rng, inputs, outputs, Activation::Tanh, true);
        let problem = Problem::random(&mut rng, vec![stage], n);
        let (want, net) = (problem.oracle(false), problem.net.functional());
        let map = problem.stages[0].maps()[0];
        for stride in [0, 1, 3, usize::MAX] {
            let strides = if inputs == 1 { (1, stride) } else { (stride, 1) };
            let weights = MatRef::with_strides(&map.w, outputs, inputs, strides.0, strides.1).expect("a view");
            let params = [AffineRef { weights, bias: map.b.as_deref() }];
            for ctx in contexts() {
                let mut ws = Workspace::new();
                let mut record = vec![0.0; net.record_len(n).expect("a length")];
                let (mut y, mut dx) = (vec![0.0; n * outputs], vec![0.0; n * inputs]);
                let x = mat(&problem.x, n, inputs);
                net.forward(&ctx, &mut ws, &params, x, mat_mut(&mut y, n, outputs), &mut record).expect("forward");
                let (dy, out) = (mat(&problem.dy, n, outputs), Some(mat_mut(&mut dx, n, inputs)));
                let grads = &mut [AffineGradMut::default()];
                net.backward(&ctx, &mut ws, &params, &record, dy, out, grads, GradMode::Overwrite).expect("backward");
                assert_same("y", &y, &want.y);
                assert_same("dx", &dx, &want.dx);
            }
        }
    }
}

#[test]
fn functional_calls_name_the_operand_that_does_not_fit_and_write_nothing() {
    let net = Functional::block(4, 6, 4, Activation::Relu, Skip::Identity).expect("a block");
    let (ctx, mut ws) = (fastest(), Workspace::new());
    let (w, b, x) = (vec![1.0; 24], vec![1.0; 6], vec![1.0; 8]);
    let map = |outputs, inputs, bias| AffineRef { weights: mat(&w, outputs, inputs), bias: Some(&b[..bias]) };
    let good = [map(6, 4, 6), map(4, 6, 4)];
    let shape = |operand, expected, found| Error::Shape { operand, expected, found };
    let length = |operand, expected, found| Error::Length { operand, expected, found };
    let cases: [(&[AffineRef<'_>], Error); 4] = [
        (&good[..1], length("params", 2, 1)),
        (&[map(4, 6, 4), good[1]], shape("w1", (6, 4), (4, 6))),
        (&[good[0], map(6, 4, 4)], shape("w2", (4, 6), (6, 4))),
        (&[good[0], map(4, 6, 5)], length("b2", 4, 5)),
    ];
    for (params, error) in cases {
        let mut y = Grid::new(Layout::Tight, 2, 4);
        assert_eq!(net.infer(&ctx, &mut ws, params, mat(&x, 2, 4), y.view_mut()), Err(error));
        y.assert_untouched("y");
    }
    let mut record = vec![f32::from_bits(CANARY); 3];
    let mut y = Grid::new(Layout::Tight, 2, 4);
    let len = net.record_len(2).expect("a length");
    let result = net.forward(&ctx, &mut ws, &good, mat(&x, 2, 4), y.view_mut(), &mut record);
    assert_eq!(result, Err(length("record", len, 3)));
    y.assert_untouched("y");

    let mut record = vec![0.0; len];
    let mut y = vec![0.0; 8];
    net.forward(&ctx, &mut ws, &good, mat(&x, 2, 4), mat_mut(&mut y, 2, 4), &mut record).expect("forward");
    let mut dw = Grid::new(Layout::Tight, 4, 6);
    let mut db = vec![0.0; 5];
    let mut grads = [AffineGradMut { weights: Some(dw.view_mut()), bias: None }, AffineGradMut::default()];
    let result = net.backward(&ctx, &mut ws, &good, &record, mat(&x, 2, 4), None, &mut grads, GradMode::Overwrite);
    assert_eq!(result, Err(shape("dw1", (6, 4), (4, 6))));
    let mut grads = [AffineGradMut { weights: None, bias: Some(&mut db) }, AffineGradMut::default()];
    let result = net.backward(&ctx, &mut ws, &good, &record, mat(&x, 2, 4), None, &mut grads, GradMode::Overwrite);
    assert_eq!(result, Err(length("db1", 6, 5)));
    dw.assert_untouched("dW");
    assert!(Functional::linear(3, 4, Activation::Relu, Skip::Identity).is_err());
    assert!(Functional::block(3, 9, 4, Activation::Relu, Skip::Identity).is_err());
}

/// A network with every kind of part, and two batches.
fn two_problems() -> [Problem; 2] {
    let mut rng = Rng::new(11);
    let stages = vec![
        Stage::linear(&mut rng, 9, 20, Activation::Gelu, true),
        Stage::block(&mut rng, 20, 50, Activation::Silu, true, true),
        Stage::linear(&mut rng, 20, 17, Activation::Relu, false),
        Stage::block(&mut rng, 17, 5, Activation::Relu, true, true),
    ];
    [30, 7].map(|rows| Problem::random(&mut rng, stages.clone(), rows))
}

fn network(problem: &Problem) -> &Sequence {
    let Net::Sequence(net) = &problem.net else { panic!("a sequence") };
    net
}

/// Backward from a record, as any host would.
fn from_record(problem: &Problem, ctx: &Context, ws: &mut Workspace, record: &[f32], y: Vec<f32>) -> Trained {
    let (net, n) = (network(problem), problem.rows);
    let mut grads = Gradients::new(net).expect("gradients");
    let mut dx = vec![f32::NAN; n * net.inputs()];
    let (dy, dx_out) = (mat(&problem.dy, n, net.outputs()), mat_mut(&mut dx, n, net.inputs()));
    net.backward(ctx, ws, record, dy, Some(dx_out), &mut grads, GradMode::Overwrite).expect("backward");
    Trained { y, dx, grads: common::values_of(net, &grads) }
}

#[test]
fn records_are_read_in_any_order_again_and_on_other_threads() {
    let problems = two_problems();
    let wants = problems.each_ref().map(|problem| problem.oracle(false));
    let tiny = Blocking { rows: 4, hidden: 16, depth: 16 };
    for ctx in contexts().flat_map(|ctx| [ctx, ctx.with_blocking(tiny)]) {
        let mut ws = Workspace::new();
        // Both are alive, and the workspace serves other calls meanwhile.
        let recorded = problems.each_ref().map(|problem| {
            let (net, n) = (network(problem), problem.rows);
            let (mut record, mut y) = (Record::new(), vec![f32::NAN; n * net.outputs()]);
            let x = mat(&problem.x, n, net.inputs());
            net.forward_to(&ctx, &mut ws, x, mat_mut(&mut y, n, net.outputs()), &mut record).expect("forward");
            problem.train(&ctx, &mut ws, &[], false);
            (record, y)
        });
        for i in [1, 0, 0, 1] {
            let (record, y) = &recorded[i];
            from_record(&problems[i], &ctx, &mut ws, record.as_slice(), y.clone())
                .assert_same("in any order", &wants[i]);
        }
        // On other threads, with other block sizes, other numbers of threads, and from a copy that is not aligned.
        let (problem, want) = (&problems[0], &wants[0]);
        let (record, y) = &recorded[0];
        std::thread::scope(|scope| {
            for threads in THREADS {
                scope.spawn(move || {
                    let mut copy = vec![0.0; record.as_slice().len() + 1];
                    copy[1..].copy_from_slice(record.as_slice());
                    let ctx = ctx.with_blocking(Blocking { rows: 7, ..Blocking::default() });
                    let got = threads
                        .run(ctx, |ctx| from_record(problem, &ctx, &mut Workspace::new(), &copy[1..], y.clone()));
                    got.assert_same("elsewhere", want);
                });
            }
        });
    }
}

#[test]
fn a_record_in_the_callers_memory_is_of_a_length_known_beforehand() {
    let [problem, _] = two_problems();
    let (net, n, want) = (network(&problem), problem.rows, problem.oracle(false));
    let len = net.record_len(n).expect("a length");
    // What backward reads: x of each part, slopes of the linear layers and of the SiLU block, both h; all of them in panels.
    let width = (16 + 32) + (32 + 64 + 64) + (32 + 32) + (32 + 16);
    assert_eq!(len, 32 + n * width);
    let x = mat(&problem.x, n, net.inputs());
    for (threads, ctx) in THREADS.into_iter().flat_map(|threads| contexts().map(move |ctx| (threads, ctx))) {
        // Canaries around it, at an odd place.
        let mut memory = Grid::with_margin(Layout::Tight, 1, len, 5);
        let mut y = vec![f32::NAN; n * net.outputs()];
        threads.run(ctx, |ctx| {
            let mut row = vec![0.0; len];
            net.forward_to_slice(&ctx, &mut Workspace::new(), x, mat_mut(&mut y, n, net.outputs()), &mut row)
                .expect("forward");
            memory = Grid::with_margin(Layout::Tight, 1, len, 5).filled(&row);
        });
        let record = memory.values();
        from_record(&problem, &ctx, &mut Workspace::new(), &record, y).assert_same("a caller's record", &want);
    }
}

#[test]
fn what_is_no_record_of_this_network_and_batch_is_refused() {
    let [problem, _] = two_problems();
    let (net, n) = (network(&problem), problem.rows);
    let (ctx, mut ws) = (fastest(), Workspace::new());
    let mut record = vec![0.0; net.record_len(n).expect("a length")];
    let mut y = vec![0.0; n * net.outputs()];
    net.forward_to_slice(
        &ctx,
        &mut ws,
        mat(&problem.x, n, net.inputs()),
        mat_mut(&mut y, n, net.outputs()),
        &mut record,
    )
    .expect("forward");
    let mut grads = Gradients::new(net).expect("gradients");
    let mut refused = |record: &[f32], rows: usize| {
        let dy = vec![1.0; rows * net.outputs()];
        let mut dx = Grid::new(Layout::Tight, rows, net.inputs());
        let dy = mat(&dy, rows, net.outputs());
        let result = net.backward(&ctx, &mut ws, record, dy, Some(dx.view_mut()), &mut grads, GradMode::Overwrite);
        let error = result.expect_err("no record");
        dx.assert_untouched("dx");
        error
    };
    assert!(matches!(refused(&record, n - 1), Error::Length { operand: "record", .. }));
    assert!(matches!(refused(&[], n), Error::Length { operand: "record", found: 0, .. }));
    assert!(matches!(refused(Record::new().as_slice(), n), Error::Length { .. }));
    assert!(matches!(refused(&vec![0.0; record.len()], n), Error::Record { .. }));
    for at in 0..12 {
        for value in [f32::NAN, f32::INFINITY, -1.0, 65536.0, 1e30] {
            let mut damaged = record.clone();
            damaged[at] = value;
            // Rows of the batch and the fingerprint are known; the rows of a block are any number, and all that they change is numbers.
            if (4..8).contains(&at) {
                let (dy, mut dx) = (vec![1.0; n * net.outputs()], vec![0.0; n * net.inputs()]);
                let (dy, dx) = (mat(&dy, n, net.outputs()), mat_mut(&mut dx, n, net.inputs()));
                let mut grads = Gradients::new(net).expect("gradients");
                let _ =
                    net.backward(&ctx, &mut Workspace::new(), &damaged, dy, Some(dx), &mut grads, GradMode::Overwrite);
            } else if (damaged[at] as u16) != (record[at] as u16) {
                assert!(matches!(refused(&damaged, n), Error::Record { .. }), "{at} {value}");
            }
        }
    }
    // Of another network with a record of the same length.
    let relu = |phi| Linear::with_init(9, 9, phi, &mut Init::he(1)).expect("a layer");
    let (silu, gelu) = (relu(Activation::Silu), relu(Activation::Gelu));
    let (x, mut y) = (vec![1.0; 18], vec![0.0; 18]);
    let mut record = Record::new();
    silu.forward_to(&ctx, &mut ws, mat(&x, 2, 9), mat_mut(&mut y, 2, 9), &mut record).expect("forward");
    let mut grads = Gradients::new(&gelu).expect("gradients");
    let result = gelu.backward(&ctx, &mut ws, record.as_slice(), mat(&x, 2, 9), None, &mut grads, GradMode::Overwrite);
    assert!(matches!(result, Err(Error::Record { .. })));
}

#[test]
fn plans_that_take_turns_in_a_workspace_are_told_apart() {
    let mut rng = Rng::new(12);
    // Networks of as many parts, of sizes that differ where a plan would show it, and more calls than a workspace keeps plans of.
    let widths = [[20, 33, 7], [20, 50, 7], [9, 33, 40], [17, 5, 5]];
    let problems: Vec<Problem> = (widths.iter())
        .flat_map(|&[inputs, hidden, outputs]| {
            let stages = vec![
                Stage::block(&mut rng, inputs, hidden, Activation::Gelu, true, true),
                Stage::linear(&mut rng, inputs, outputs, Activation::Relu, true),
            ];
            [7, 30, 3].map(|rows| {
                let mut problem = Problem::random(&mut rng, stages.clone(), rows);
                problem.net = Net::sequence(&stages);
                problem
            })
        })
        .collect();
    let wants: Vec<Trained> = problems.iter().map(|problem| problem.oracle(false)).collect();
    let tiny = Blocking { rows: 4, hidden: 16, depth: 16 };
    for ctx in contexts() {
        let mut ws = Workspace::new();
        for turn in 0..4 * problems.len() {
            let at = rng.below(problems.len());
            let ctx = if turn % 3 == 0 { ctx.with_blocking(tiny) } else { ctx };
            problems[at].train(&ctx, &mut ws, &[], false).assert_same("by turns", &wants[at]);
            assert_same("by turns", &problems[at].infer(&ctx, &mut ws, &[]), &wants[at].y);
        }
    }
}

#[test]
fn chains_of_formulas_and_packed_copies_have_the_bits_of_the_network() {
    for problem in two_problems() {
        let (want, n) = (problem.oracle(false), problem.rows);
        let parts = network(&problem).layers().iter().map(|node| match node {
            Node::Linear(layer) => Functional::of(layer),
            Node::Block(layer) => Functional::of(layer),
            other => panic!("{other:?}"),
        });
        let chain = Functional::chain(&parts.collect::<Vec<_>>()).expect("widths that fit");
        let maps: Vec<_> = problem.stages.iter().flat_map(Stage::maps).collect();
        // Turned, so that what is packed is a copy by any strides.
        let turned: Vec<Grid> =
            maps.iter().map(|map| Grid::of(Layout::Transposed(3), map.outputs, map.inputs, &map.w)).collect();
        let params: Vec<AffineRef<'_>> = (maps.iter().zip(&turned))
            .map(|(map, weights)| AffineRef { weights: weights.view(), bias: map.b.as_deref() })
            .collect();
        let packed = chain.pack(&params).expect("a copy");
        let x = mat(&problem.x, n, chain.inputs());
        for ctx in contexts() {
            let (mut ws, mut record, mut y) = (Workspace::new(), Record::new(), vec![f32::NAN; n * chain.outputs()]);
            chain
                .forward_to(&ctx, &mut ws, &params, x, mat_mut(&mut y, n, chain.outputs()), &mut record)
                .expect("forward");
            assert_same("a chain", &y, &want.y);
            let mut grads = Gradients::new(&packed).expect("gradients");
            let (mut dx, dy) = (vec![f32::NAN; n * chain.inputs()], mat(&problem.dy, n, chain.outputs()));
            // The record of one is a record of the other.
            let (record, dx_out) = (record.as_slice(), mat_mut(&mut dx, n, chain.inputs()));
            packed
                .backward(&ctx, &mut ws, record, dy, Some(dx_out), &mut grads, GradMode::Overwrite)
                .expect("backward");
            let grads = common::values_of(&packed, &grads);
            Trained { y, dx, grads }.assert_same("a packed copy", &want);
        }
    }
    let [narrow, wide] = [3, 4].map(|d| Functional::block(d, 5, d, Activation::Relu, Skip::Identity).expect("a block"));
    let refused = Functional::chain(&[narrow.clone(), wide]).expect_err("widths that do not fit");
    assert_eq!(refused, Error::Shape { operand: "parts", expected: (3, 4), found: (4, 4) });
    assert!(matches!(Functional::chain(&[]), Err(Error::Setting { operand: "parts", .. })));
    assert_eq!(
        narrow.pack(&[]).expect_err("no parameters"),
        Error::Length { operand: "params", expected: 2, found: 0 }
    );
}

#[test]
fn sequences_are_checked_and_name_their_tensors() {
    let mut init = Init::he(5);
    let linear = |a, b, init: &mut Init| Node::from(Linear::with_init(a, b, Activation::Relu, init).expect("a layer"));
    assert!(matches!(Sequence::new([]), Err(Error::Setting { operand: "layers", .. })));
    let wrong = Sequence::new([linear(3, 4, &mut init), linear(5, 6, &mut init)]);
    assert!(matches!(wrong, Err(Error::Shape { operand: "layers", expected: (4, 6), found: (5, 6) })));
    let stack =
        Stack::new(&StackConfig { inputs: 4, width: 8, hidden: 9, blocks: 2, outputs: 4, ..StackConfig::default() });
    let block = Block::residual(4, 7, Activation::Gelu, &mut init).expect("a block");
    let mut net = Sequence::new([linear(3, 4, &mut init), stack.expect("a stack").into(), block.into()]).expect("fits");
    let names: Vec<String> = net.parameters().map(|tensor| tensor.name().to_string()).collect();
    assert_eq!(names.len(), 2 * net.affine_count());
    assert_eq!(names[0], "layers.0.linear.weight");
    assert_eq!(names[2], "layers.1.input.weight");
    assert_eq!(names[7], "layers.1.blocks.0.second.bias");
    assert_eq!(names[names.len() - 1], "layers.2.second.bias");
    let again: Vec<String> = net.parameters_mut().map(|tensor| tensor.name().to_string()).collect();
    assert_eq!(names, again);
    let places: Vec<String> = (0..net.affine_count()).map(|i| net.affine_name(i).weight().to_string()).collect();
    assert_eq!(places, names.iter().step_by(2).cloned().collect::<Vec<_>>());
    assert_eq!(net.affine(net.affine_count()).map(|_| ()), None);
    assert_eq!(net.into_layers().len(), 3);
}

#[test]
fn a_parameter_of_another_size_is_an_error() {
    let mut init = Init::he(5);
    let block = || Block::residual(4, 7, Activation::Gelu, &mut Init::he(5)).expect("a block");
    let (ctx, mut ws, x) = (fastest(), Workspace::new(), vec![1.0; 8]);
    let mut record = Record::new();
    block().forward_to(&ctx, &mut ws, mat(&x, 2, 4), mat_mut(&mut [0.0; 8], 2, 4), &mut record).expect("forward");
    for (index, outputs, inputs) in [(0, 8, 4), (1, 4, 8)] {
        let mut block = block();
        *block.affine_mut(index).expect("a map") = init.affine(inputs, outputs, 1.0).expect("a map");
        let expected = if index == 0 { (7, 4) } else { (4, 7) };
        let error = Error::Shape { operand: "weights", expected, found: (outputs, inputs) };
        let mut y = Grid::new(Layout::Tight, 2, 4);
        assert_eq!(block.infer(&ctx, &mut ws, mat(&x, 2, 4), y.view_mut()), Err(error.clone()));
        let grads = &mut Gradients::new(&block).expect("gradients");
        let mode = GradMode::Overwrite;
        let result = block.backward(&ctx, &mut ws, record.as_slice(), mat(&x, 2, 4), Some(y.view_mut()), grads, mode);
        assert_eq!(result, Err(error));
        y.assert_untouched("y and dx");
    }
}

#[test]
fn explanations_say_what_a_call_does() {
    let [problem, _] = two_problems();
    let net = network(&problem);
    for ctx in contexts() {
        for n in [0, 1, 30, 1000] {
            for purpose in [Purpose::Inference, Purpose::Training] {
                let text = net.explain(&ctx, n, purpose).expect("an explanation").to_string();
                assert!(text.contains(&format!("of {n} rows on {}", ctx.isa().name())), "{text}");
                assert!(text.contains("part 1: y = silu(x W1ᵀ + b1) W2ᵀ + b2 + x, 20 -> 50 -> 20"), "{text}");
                assert_eq!(text.contains("dW[5]"), purpose == Purpose::Training, "{text}");
            }
        }
    }
    assert!(net.explain(&fastest(), usize::MAX, Purpose::Training).is_err());
}
