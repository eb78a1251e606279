//! Every error that the public API can return: typed, naming operand, expected and found, and returned before any output is
//! touched. And the corners that are no errors: empty batches, zero widths.

use crate::common::{Grid, Layout, Map, MapGrad, Rng, Stage, assert_same_grads, build_stack, fastest, mat, mat_mut};
use crate::common::{gradients_of, parameters_of, random_grads, random_stack, values_of};
use resblock::{
    Activation, AdamW, Affine, Block, Context, Error, GradMode, GradientFlow, Gradients, Init, Isa, IsaList, Layer,
    Linear, MatMut, MatRef, Optimizer, Part, Sgd, Skip, Stack, StackConfig, Weights, Workspace, mean_squared_error,
    softmax_cross_entropy,
};

fn shape(operand: &'static str, expected: (usize, usize), found: (usize, usize)) -> Error {
    Error::Shape { operand, expected, found }
}

fn block() -> Block {
    Stage::block(&mut Rng::new(1), 5, 9, Activation::Silu, true, true).build_block()
}

#[test]
fn an_x_of_the_wrong_width_is_refused_and_y_untouched() {
    let (layer, ctx, mut ws) = (block(), fastest(), Workspace::new());
    let mut y = Grid::new(Layout::Padded(2), 3, 5);
    let x = vec![1.0; 18];
    let error = shape("x", (3, 5), (3, 6));
    assert_eq!(layer.infer(&ctx, &mut ws, mat(&x, 3, 6), y.view_mut()), Err(error.clone()));
    assert_eq!(layer.forward(&ctx, &mut ws, mat(&x, 3, 6), y.view_mut()).err(), Some(error));
    y.assert_untouched("y");
}

#[test]
fn a_y_of_the_wrong_shape_is_refused_and_untouched() {
    let (layer, ctx, mut ws) = (block(), fastest(), Workspace::new());
    let x = vec![1.0; 15];
    for (rows, cols) in [(2, 5), (4, 5), (3, 4), (3, 6), (5, 3), (0, 5), (3, 0)] {
        let mut y = Grid::new(Layout::Tight, rows, cols);
        let error = shape("y", (3, 5), (rows, cols));
        assert_eq!(layer.infer(&ctx, &mut ws, mat(&x, 3, 5), y.view_mut()), Err(error.clone()));
        assert_eq!(layer.forward(&ctx, &mut ws, mat(&x, 3, 5), y.view_mut()).err(), Some(error));
        y.assert_untouched("y");
    }
}

#[test]
fn a_skip_of_the_wrong_shape_or_one_too_many_is_refused_and_y_untouched() {
    let layer = Stage::linear(&mut Rng::new(1), 5, 4, Activation::Relu, true).build_linear();
    let (ctx, mut ws, x, skip) = (fastest(), Workspace::new(), vec![1.0; 15], vec![1.0; 15]);
    let mut y = Grid::new(Layout::Tight, 3, 4);
    let error = shape("skip", (3, 4), (3, 5));
    let found = layer.infer_with_skip(&ctx, &mut ws, mat(&x, 3, 5), mat(&skip, 3, 5), y.view_mut());
    assert_eq!(found, Err(error.clone()));
    let found = layer.forward_with_skip(&ctx, &mut ws, mat(&x, 3, 5), mat(&skip, 3, 5), y.view_mut()).err();
    assert_eq!(found, Some(error));
    let found = layer.infer_with_skip(&ctx, &mut ws, mat(&x, 5, 3), mat(&skip[..12], 3, 4), y.view_mut());
    assert_eq!(found, Err(shape("x", (5, 5), (5, 3))));
    y.assert_untouched("y");

    let square =
        Stage::linear(&mut Rng::new(1), 5, 5, Activation::Relu, true).build_linear().with_skip().expect("square");
    let mut y = Grid::new(Layout::Tight, 3, 5);
    let found = square.infer_with_skip(&ctx, &mut ws, mat(&x, 3, 5), mat(&skip, 3, 5), y.view_mut());
    assert_eq!(found, Err(Error::Setting { operand: "skip", reason: "this layer already adds its input" }));
    y.assert_untouched("y");
    assert_eq!(layer.with_skip().err(), Some(shape("weights", (5, 5), (4, 5))));
}

/// What a refused backward must leave as it was.
struct Untouched {
    dx: Grid,
    grads: Gradients,
    before: Vec<MapGrad<f32>>,
    flow: GradientFlow,
}

/// Runs a backward pass that is refused, with and without a probe, and checks that nothing was touched.
#[track_caller]
fn refused<L: Layer>(layer: &L, dy: (usize, usize), dx: (usize, usize), grads: Gradients, owner: &impl Layer) -> Error {
    let (ctx, mut ws) = (fastest(), Workspace::new());
    let before = values_of(owner, &grads);
    let mut kept = Untouched { dx: Grid::new(Layout::Padded(1), dx.0, dx.1), grads, before, flow: GradientFlow::new() };
    let dy_data = vec![1.0; dy.0 * dy.1];
    let x = vec![1.0; 3 * layer.inputs()];
    let mut errors = Vec::new();
    for probed in [false, true] {
        let mut y = vec![0.0; 3 * layer.outputs()];
        let x = mat(&x, 3, layer.inputs());
        let pass = layer.forward(&ctx, &mut ws, x, mat_mut(&mut y, 3, layer.outputs())).expect("forward");
        let (dy, dx) = (mat(&dy_data, dy.0, dy.1), Some(kept.dx.view_mut()));
        let result = if probed {
            pass.backward_probed(dy, dx, &mut kept.grads, GradMode::Overwrite, &mut kept.flow)
        } else {
            pass.backward(dy, dx, &mut kept.grads, GradMode::Overwrite)
        };
        errors.push(result.expect_err("a refusal"));
    }
    kept.dx.assert_untouched("dx");
    assert_same_grads("gradients", &values_of(owner, &kept.grads), &kept.before);
    assert_eq!(kept.flow, GradientFlow::new(), "the probe was touched");
    assert_eq!(errors[0], errors[1]);
    errors.swap_remove(0)
}

#[test]
fn a_dy_or_dx_of_the_wrong_shape_is_refused_and_gradients_untouched() {
    let mut rng = Rng::new(2);
    let stages = random_stack(&mut rng, (5, 6, 9, 4), 1, Activation::Gelu, true);
    let layer = build_stack(&stages);
    let grads = gradients_of(&layer, &random_grads(&mut rng, &stages));
    for dy in [(3, 5), (2, 4), (4, 3), (0, 0)] {
        assert_eq!(refused(&layer, dy, (3, 5), grads.clone(), &layer), shape("dy", (3, 4), dy));
    }
    for dx in [(3, 4), (2, 5), (5, 3)] {
        assert_eq!(refused(&layer, (3, 4), dx, grads.clone(), &layer), shape("dx", (3, 5), dx));
    }
}

fn mismatch(operand: &'static str, tensor: &str) -> Error {
    Error::Mismatch { operand, tensor: tensor.into() }
}

#[test]
fn gradients_of_another_network_are_refused_and_untouched() {
    let mut rng = Rng::new(3);
    let stages = random_stack(&mut rng, (5, 6, 9, 4), 1, Activation::Gelu, true);
    let layer = build_stack(&stages);
    for (widths, blocks, tensor) in [
        ((5, 6, 9, 3), 1, "output.weight"),
        ((5, 6, 8, 4), 1, "blocks.0.first.weight"),
        ((4, 6, 9, 4), 1, "input.weight"),
        ((5, 6, 9, 4), 2, "output.weight"),
    ] {
        let others = random_stack(&mut rng, widths, blocks, Activation::Gelu, true);
        let other = build_stack(&others);
        let grads = gradients_of(&other, &random_grads(&mut rng, &others));
        let error = refused(&layer, (3, 4), (3, 5), grads.clone(), &other);
        assert_eq!(error, mismatch("grads", tensor));

        // Optimisers refuse them, too, and change no parameter.
        let (mut trained, before) = (layer.clone(), parameters_of(&layer));
        let error = mismatch("grads", tensor);
        assert_eq!(Sgd::new(0.1, 0.9).step(&fastest(), &mut trained, &grads), Err(error.clone()));
        let mut adam = AdamW::new(0.1);
        assert_eq!(adam.step(&fastest(), &mut trained, &grads), Err(error));
        assert_eq!(adam.steps(), 0);
        assert_eq!(parameters_of(&trained), before);
    }
}

#[test]
fn gradients_with_a_bias_are_refused_by_a_layer_without() {
    let mut rng = Rng::new(4);
    let with = Stage::linear(&mut rng, 5, 4, Activation::Identity, true).build_linear();
    let without = Stage::linear(&mut rng, 5, 4, Activation::Identity, false).build_linear();
    let error = refused(&without, (3, 4), (3, 5), Gradients::new(&with).expect("gradients"), &with);
    assert_eq!(error, mismatch("grads", "linear.bias"));
}

#[test]
fn an_optimiser_refuses_a_second_network() {
    let mut rng = Rng::new(5);
    let mut first = Stage::linear(&mut rng, 5, 4, Activation::Identity, true).build_linear();
    let mut second = Stage::linear(&mut rng, 20, 4, Activation::Identity, true).build_linear();
    let grads = |layer: &Linear| Gradients::new(layer).expect("gradients");
    let error = mismatch("optimiser state", "linear.weight");
    let (mut sgd, mut adam) = (Sgd::new(0.1, 0.9), AdamW::new(0.1));
    let g = grads(&first);
    assert_eq!(sgd.step(&fastest(), &mut first, &g), Ok(()));
    assert_eq!(adam.step(&fastest(), &mut first, &g), Ok(()));
    let (before, g) = (parameters_of(&second), grads(&second));
    assert_eq!(sgd.step(&fastest(), &mut second, &g), Err(error.clone()));
    assert_eq!(adam.step(&fastest(), &mut second, &g), Err(error));
    assert_eq!(parameters_of(&second), before);
    assert_eq!(adam.steps(), 1, "a refused step does not count");
}

#[test]
fn views_reject_slices_of_the_wrong_length() {
    let data = [0.0; 11];
    let length = |expected, found| Error::Length { operand: "data", expected, found };
    assert_eq!(MatRef::new(&data, 3, 4).err(), Some(length(12, 11)));
    assert_eq!(MatRef::new(&data, 2, 5).err(), Some(length(10, 11)));
    let too_short = |rows, cols, strides, needed, found| {
        Some(Error::TooShort { operand: "data", rows, cols, strides, needed, found })
    };
    assert_eq!(MatRef::with_strides(&data, 3, 4, 4, 1).err(), too_short(3, 4, (4, 1), 12, 11));
    assert!(MatRef::with_strides(&data, 3, 3, 4, 1).is_ok(), "the gap after the last row need not exist");
    assert_eq!(MatRef::with_strides(&data, 4, 3, 1, 4).err(), too_short(4, 3, (1, 4), 12, 11));
    assert_eq!(MatRef::with_strides(&[], 1, 1, 0, 0).err(), too_short(1, 1, (0, 0), 1, 0));
    let mut data = data;
    assert_eq!(MatMut::new(&mut data, 3, 4).err(), Some(length(12, 11)));
    assert_eq!(MatMut::with_strides(&mut data, 3, 4, 4, 1).err(), too_short(3, 4, (4, 1), 12, 11));
}

#[test]
fn sizes_that_overflow_are_rejected_without_overflowing() {
    let most = usize::MAX;
    let overflow = |rows, cols, strides| Some(Error::Overflow { operand: "data", rows, cols, strides });
    assert_eq!(MatRef::new(&[], most, 2).err(), overflow(most, 2, (2, 1)));
    assert_eq!(MatMut::new(&mut [], most, most).err(), overflow(most, most, (most, 1)));
    for (rows, cols, rs, cs) in
        [(most, 2, 2, 1), (2, most, 1, most), (2, 2, most, 1), (2, 2, most, most), (most, 1, 1, 0)]
    {
        assert_eq!(MatRef::with_strides(&[0.0; 4], rows, cols, rs, cs).err(), overflow(rows, cols, (rs, cs)));
        assert_eq!(MatMut::with_strides(&mut [0.0; 4], rows, cols, rs, cs).err(), overflow(rows, cols, (rs, cs)));
    }
    // Strides of no use may be anything.
    assert!(MatRef::with_strides(&[0.0], 1, 1, most, most).is_ok());
    assert!(MatRef::with_strides(&[], 0, most, most, most).is_ok());
    assert!(MatMut::with_strides(&mut [], most, 0, most, most).is_ok());

    // A view with stride 0 may be larger than memory; what would be packed from it may not.
    let vast = MatRef::with_strides(&[0.0], most, most, 0, 0).expect("a view of one number");
    let matrix = |rows, cols| Some(Error::Overflow { operand: "matrix", rows, cols, strides: (16, 1) });
    assert_eq!(Weights::new(vast).err(), matrix(most, most));
    assert_eq!(Affine::new(vast, None).err(), matrix(most, most));
    let line = |rows, cols| MatRef::with_strides(&[0.0], rows, cols, 0, 0).expect("a view of one number");
    assert_eq!(Weights::new(line(1, most)).err(), matrix(most, 1));
    assert_eq!(Weights::new(line(most, 1)).err(), matrix(1, most));
    let weights = |rows, cols| Error::Overflow { operand: "weights", rows, cols, strides: (cols, 1) };
    assert_eq!(Init::he(0).affine(most, 2, 1.0).err(), Some(weights(2, most)));
    assert_eq!(Block::residual(most, 2, Activation::Relu, &mut Init::he(0)).err(), Some(weights(2, most)));
    let config = StackConfig { inputs: most, ..StackConfig::default() };
    assert_eq!(Stack::new(&config).err(), Some(weights(64, most)));
}

#[test]
fn a_batch_too_large_to_record_is_refused_and_y_untouched() {
    // A batch of one repeated row costs nothing to describe; the tape of it would not fit in memory.
    let layer = Linear::with_init(16, 0, Activation::Identity, &mut Init::he(0)).expect("a layer");
    let n = isize::MAX as usize / 8;
    let x = MatRef::with_strides(&[0.5; 16], n, 16, 0, 1).expect("a view");
    let mut ws = Workspace::new();
    let y = MatMut::with_strides(&mut [], n, 0, 0, 1).expect("a view");
    let found = layer.forward(&fastest(), &mut ws, x, y).err();
    assert_eq!(found, Some(Error::Overflow { operand: "batch", rows: n, cols: 16, strides: (16, 1) }));
}

#[test]
fn outputs_whose_elements_overlap_are_rejected() {
    let mut data = [0.0; 64];
    for (rows, cols, rs, cs) in
        [(2, 2, 0, 1), (2, 2, 1, 0), (2, 2, 1, 1), (3, 3, 2, 1), (3, 3, 1, 2), (3, 4, 4, 2), (2, 1, 0, 0), (1, 2, 0, 0)]
    {
        let found = MatMut::with_strides(&mut data, rows, cols, rs, cs).err();
        assert_eq!(found, Some(Error::Overlap { operand: "data", rows, cols, strides: (rs, cs) }));
        assert!(MatRef::with_strides(&data, rows, cols, rs, cs).is_ok(), "an input may");
    }
    for (rows, cols, rs, cs) in [
        (3, 3, 3, 1),
        (3, 3, 1, 3),
        (3, 3, 7, 2),
        (3, 3, 2, 7),
        (1, 9, 0, 1),
        (9, 1, 1, 0),
        (1, 1, 0, 0),
        (0, 5, 0, 0),
        (5, 0, 0, 0),
    ] {
        assert!(MatMut::with_strides(&mut data, rows, cols, rs, cs).is_ok(), "{rows}x{cols} with ({rs}, {cs})");
    }
}

#[test]
fn lengths_of_vectors_are_checked() {
    let w = [0.0; 6];
    let length = |operand, expected, found| Error::Length { operand, expected, found };
    assert_eq!(Affine::new(mat(&w, 2, 3), Some(&[0.0; 3])).err(), Some(length("bias", 2, 3)));
    let layer = Linear::with_init(3, 2, Activation::Relu, &mut Init::he(0)).expect("a layer");
    let mut grads = Gradients::new(&layer).expect("gradients");
    let error = Error::TensorShape { tensor: "linear.bias".into(), expected: (1, 2), found: (1, 3) };
    assert_eq!(grads.set(Part::Linear.bias(), mat(&w[..3], 1, 3)), Err(error));
    assert_eq!(softmax_cross_entropy(mat(&w, 2, 3), &[0], None), Err(length("labels", 2, 1)));
}

#[test]
fn shapes_of_parameters_and_gradients_are_checked_as_the_caller_wrote_them() {
    let w = vec![1.0; 64];
    let mut layer = Linear::with_init(3, 2, Activation::Relu, &mut Init::he(0)).expect("a layer");
    let before = parameters_of(&layer);
    let weights = layer.affine_mut(0).expect("a map").weights_mut();
    assert_eq!(weights.read_from(mat(&w[..6], 3, 2)), Err(shape("weights", (2, 3), (3, 2))));
    let mut out = Grid::new(Layout::Tight, 3, 2);
    assert_eq!(weights.write_to(out.view_mut()), Err(shape("output", (2, 3), (3, 2))));
    assert_eq!(parameters_of(&layer), before);
    for parameter in layer.parameters() {
        let mut wrong = Grid::new(Layout::Tight, 3, 3);
        assert_eq!(parameter.write_to(wrong.view_mut()), Err(shape("output", parameter.shape(), (3, 3))));
        wrong.assert_untouched("output");
    }
    out.assert_untouched("output");
    let mut grads = Gradients::new(&layer).expect("gradients");
    let error = Error::TensorShape { tensor: "linear.weight".into(), expected: (2, 3), found: (3, 2) };
    assert_eq!(grads.set(Part::Linear.weight(), mat(&w[..6], 3, 2)), Err(error.clone()));
    let mut weights = layer.parameters_mut().next().expect("weights");
    assert_eq!(weights.read_from(mat(&w[..6], 3, 2)), Err(error));
    assert_eq!(parameters_of(&layer), before);
    assert_eq!(grads.set(Part::Output.weight(), mat(&w[..6], 3, 2)), Ok(false), "no such tensor");
    assert_eq!(grads.norm(&fastest()), 0.0);
    for gradient in grads.iter() {
        let mut wrong = Grid::new(Layout::Tight, 3, 3);
        assert_eq!(gradient.write_to(wrong.view_mut()), Err(shape("output", gradient.shape(), (3, 3))));
        wrong.assert_untouched("output");
    }
}

#[test]
fn layers_that_do_not_fit_together_are_refused() {
    let mut rng = Rng::new(7);
    let mut map = |inputs, outputs| Map::random(&mut rng, inputs, outputs, true).affine();
    let wrong = Block::new(map(4, 9), map(9, 5), Activation::Relu, Skip::None).err();
    assert_eq!(wrong, Some(shape("second weights", (4, 9), (5, 9))));
    let mut linear = |inputs, outputs| Linear::new(map(inputs, outputs), Activation::Identity);
    let block = || Stage::block(&mut Rng::new(1), 5, 9, Activation::Relu, true, true).build_block();
    let wrong = Stack::from_layers(linear(3, 4), vec![block()], linear(5, 2)).err();
    assert_eq!(wrong, Some(shape("block", (4, 5), (5, 5))));
    let wrong = Stack::from_layers(linear(3, 5), vec![block(), block()], linear(4, 2)).err();
    assert_eq!(wrong, Some(shape("output", (5, 2), (4, 2))));
    assert!(Stack::from_layers(linear(3, 4), vec![], linear(4, 2)).is_ok());
}

#[test]
fn losses_refuse_wrong_labels_and_shapes_and_leave_gradients_untouched() {
    let logits = [0.0; 6];
    let mut d = Grid::new(Layout::Padded(1), 2, 3);
    let class = Error::Class { operand: "labels", index: 1, classes: 3, found: 3 };
    assert_eq!(softmax_cross_entropy(mat(&logits, 2, 3), &[2, 3], Some(d.view_mut())), Err(class));
    let class = Error::Class { operand: "labels", index: 0, classes: 0, found: 0 };
    assert_eq!(softmax_cross_entropy(mat(&[], 1, 0), &[0], None), Err(class), "no classes, no label");
    let found = softmax_cross_entropy(mat(&logits, 3, 2), &[0, 1, 1], Some(d.view_mut()));
    assert_eq!(found, Err(shape("dlogits", (3, 2), (2, 3))));
    let found = mean_squared_error(mat(&logits, 2, 3), mat(&logits, 3, 2), Some(d.view_mut()));
    assert_eq!(found, Err(shape("target", (2, 3), (3, 2))));
    let found = mean_squared_error(mat(&logits, 3, 2), mat(&logits, 3, 2), Some(d.view_mut()));
    assert_eq!(found, Err(shape("dy", (3, 2), (2, 3))));
    d.assert_untouched("gradient");
}

#[test]
fn instruction_sets_that_do_not_exist_or_are_not_there_are_refused_with_the_list_of_those_that_are() {
    let Err(error) = "sse9".parse::<Isa>() else { panic!("sse9 is an instruction set now") };
    let Error::Isa { source_name: "RESBLOCK_ISA", requested, .. } = &error else { panic!("{error:?}") };
    assert_eq!(requested, "sse9");
    assert_eq!(
        error.to_string(),
        format!("RESBLOCK_ISA=\"sse9\": not an instruction set of this CPU; it has {IsaList}")
    );
    assert!(error.to_string().contains("scalar"));
    assert!("".parse::<Isa>().is_err());

    let ctx = Context::new().expect("a context");
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar, Isa::Odd] {
        let chosen = ctx.with_isa(isa);
        if isa.is_available() {
            assert_eq!(chosen.map(|ctx| ctx.isa()), Ok(isa));
            assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
        } else {
            let error = Error::Isa { source_name: "isa", requested: isa.name().into(), available: IsaList.to_string() };
            assert_eq!(chosen, Err(error));
            assert!(isa.name().parse::<Isa>().is_err());
        }
    }
    let foreign = if cfg!(target_arch = "aarch64") { Isa::Avx2 } else { Isa::Neon };
    assert!(ctx.with_isa(foreign).is_err(), "no CPU has both");
}

#[test]
fn empty_batches_and_layers_without_width_are_no_errors() {
    let mut rng = Rng::new(8);
    for (n, inputs, width, hidden, outputs) in [
        (0, 5, 6, 9, 4),
        (3, 0, 6, 9, 4),
        (3, 5, 0, 9, 4),
        (3, 5, 6, 0, 4),
        (3, 5, 6, 9, 0),
        (0, 0, 0, 0, 0),
        (3, 0, 0, 0, 0),
    ] {
        let layer = build_stack(&random_stack(&mut rng, (inputs, width, hidden, outputs), 2, Activation::Gelu, true));
        let (x, mut y, mut dx) = (rng.vec(n * inputs), vec![0.0; n * outputs], vec![0.0; n * inputs]);
        let (ctx, mut ws) = (fastest(), Workspace::new());
        let mut grads = Gradients::new(&layer).expect("gradients");
        let (x, mut flow) = (mat(&x, n, inputs), GradientFlow::new());
        layer.infer(&ctx, &mut ws, x, mat_mut(&mut y, n, outputs)).expect("infer");
        let pass = layer.forward(&ctx, &mut ws, x, mat_mut(&mut y, n, outputs)).expect("forward");
        let (dy, dx) = (vec![1.0; n * outputs], mat_mut(&mut dx, n, inputs));
        let dy = mat(&dy, n, outputs);
        pass.backward_probed(dy, Some(dx), &mut grads, GradMode::Overwrite, &mut flow).expect("backward");
        assert!(flow.norms().iter().all(|norm| norm.is_finite()));
        let mut layer = layer;
        Sgd::new(0.1, 0.9).step(&ctx, &mut layer, &grads).expect("a step");
        AdamW::new(0.1).step(&ctx, &mut layer, &grads).expect("a step");
    }
    assert_eq!(softmax_cross_entropy(mat(&[], 0, 3), &[], None), Ok(0.0));
    assert_eq!(mean_squared_error(mat(&[], 0, 3), mat(&[], 0, 3), None), Ok(0.0));
    assert_eq!(mean_squared_error(mat(&[], 3, 0), mat(&[], 3, 0), None), Ok(0.0));
}

#[test]
fn a_view_reads_and_writes_the_elements_that_its_strides_say() {
    let data: Vec<f32> = (0..20_u8).map(f32::from).collect();
    let view = MatRef::with_strides(&data, 3, 2, 5, 2).expect("a view");
    assert_eq!((view.rows(), view.cols(), view.shape()), (3, 2, (3, 2)));
    assert_eq!([view.get(0, 0), view.get(0, 1), view.get(2, 1)], [Some(0.0), Some(2.0), Some(12.0)]);
    assert_eq!([view.get(3, 0), view.get(0, 2), view.get(usize::MAX, usize::MAX)], [None; 3]);
    let t = view.t();
    assert_eq!((t.shape(), t.get(1, 2), t.t().get(2, 1)), ((2, 3), Some(12.0), Some(12.0)));
    let repeated = MatRef::with_strides(&data[7..8], 4, 9, 0, 0).expect("a view");
    assert_eq!(repeated.get(3, 8), Some(7.0));

    let mut data = data;
    let mut view = MatMut::with_strides(&mut data, 3, 2, 5, 2).expect("a view");
    assert_eq!((view.rows(), view.cols(), view.shape()), (3, 2, (3, 2)));
    assert!(view.set(2, 1, -1.0) && view.reborrow().set(0, 1, -2.0));
    assert!(!view.set(3, 0, -9.0) && !view.set(0, 2, -9.0));
    assert_eq!((view.as_ref().get(2, 1), view.as_ref().get(0, 1)), (Some(-1.0), Some(-2.0)));
    assert!(view.t().set(1, 1, -3.0));
    assert_eq!((data[12], data[2], data[7]), (-1.0, -2.0, -3.0));
    assert_eq!(data.iter().filter(|v| **v < 0.0).count(), 3);
}

#[test]
fn errors_say_what_is_wrong_and_cross_threads() {
    fn crosses_threads<E: std::error::Error + Send + Sync + 'static>(_: &E) {}
    let (operand, rows, cols, strides) = ("data", 2, 3, (4, 1));
    let texts = [
        (shape("x", (2, 3), (4, 5)), "x: expected shape (2, 3) (rows, columns), found (4, 5)"),
        (Error::Length { operand: "bias", expected: 2, found: 3 }, "bias: expected length 2, found 3"),
        (
            Error::TooShort { operand, rows, cols, strides, needed: 7, found: 6 },
            "data: a 2x3 matrix with strides (4, 1) needs 7 elements, found 6",
        ),
        (Error::Overflow { operand, rows, cols, strides }, "data: 2x3 with strides (4, 1) overflows the address range"),
        (Error::Overlap { operand, rows, cols, strides }, "data: strides (4, 1) make elements of a 2x3 output overlap"),
        (
            Error::Class { operand: "labels", index: 1, classes: 3, found: 7 },
            "labels[1]: expected a class below 3, found 7",
        ),
        (Error::Setting { operand: "skip", reason: "no" }, "skip: no"),
        (mismatch("grads", "output.bias"), "grads: made for a network with other tensors; output.bias differs"),
    ];
    for (error, text) in texts {
        crosses_threads(&error);
        assert_eq!(error.to_string(), text);
    }
}
