//! Names of other libraries: what they call and how they lay out each parameter, there and back to the same bits.

use crate::common::{Rng, mat, parameters_of};
use proptest::prelude::*;
use resblock::{
    Activation, AdamW, Block, BlockForm, BranchScale, Checkpoint, CheckpointError, Context, Convention, Dropout, Error,
    GradMode, Gradients, Init, Layer, Linear, Node, Norm, NormLayer, Optimizer, Part, Role, Sequence, Skip, Snapshot,
    Stack, Stored, Workspace,
};

// ---------------------------------------------------------------------------------------------- conventions and networks

/// Gate and up in one matrix (inputs, outputs), up first, and biases alike.
fn up_first() -> Convention {
    let fused = |name, piece| Stored::new(name).piece_of(piece, 2);
    Convention::new()
        .with(Part::First, Role::Weight, fused("w12", 1))
        .with(Part::First, Role::Bias, fused("b12", 1))
        .with(Part::Third, Role::Weight, fused("w12", 0))
        .with(Part::Third, Role::Bias, fused("b12", 0))
        .transposed()
        .with_module(Part::Second, "w3")
        .with_module(Part::PreNorm, "norm")
}

/// Norms as rows of one vector each, every part there is.
fn everything() -> Convention {
    let norms = [Part::PreNorm, Part::BranchNorm, Part::PostNorm];
    let all = norms.iter().enumerate().fold(Convention::new(), |all, (at, &part)| {
        let names = [(Role::Gain, "gains"), (Role::Shift, "shifts")];
        names.iter().fold(all, |all, &(role, name)| all.with(part, role, Stored::new(name).piece_of(at, 3)))
    });
    all.with_module(Part::First, "a")
        .with_module(Part::Second, "b")
        .with_module(Part::Shortcut, "c")
        .transposed()
        .with_module(Part::InnerNorm, "inner")
        .with(Part::Branch, Role::Scale, Stored::new("alpha"))
}

fn gated(d: usize, h: usize) -> BlockForm {
    BlockForm { gated: true, ..BlockForm::gpt2(d, h) }
}

fn with_everything(d: usize, h: usize) -> BlockForm {
    let norm = Some(Norm::layer(1e-5));
    BlockForm {
        pre_norm: norm,
        inner_norm: Some(Norm::batch(1e-5)),
        branch_norm: norm,
        post_norm: norm,
        skip: Skip::Projection,
        branch_scale: BranchScale::Scalar(0.5),
        ..BlockForm::new(d, h, Activation::Relu)
    }
}

/// Each convention with a form that it fits, on 2 features with 3 hidden ones, and how a file of it has a block: names and shapes.
#[allow(clippy::type_complexity, reason = "a table")]
fn conventions() -> Vec<(&'static str, Convention, fn(usize, usize) -> BlockForm, Vec<(&'static str, &'static [usize])>)>
{
    let weights = |first, second, norm: [&'static str; 2], [b1, b2]: [&'static str; 2]| -> Vec<(_, &'static [usize])> {
        vec![(first, &[3, 2]), (b1, &[3]), (second, &[2, 3]), (b2, &[2]), (norm[0], &[2]), (norm[1], &[2])]
    };
    let and = |mut all: Vec<(&'static str, &'static [usize])>, name: &'static str| {
        all.push((name, &[2]));
        all
    };
    let dense = ("intermediate.dense.weight", "output.dense.weight");
    let dense_biases = ["intermediate.dense.bias", "output.dense.bias"];
    let timm = || {
        weights("mlp.fc1.weight", "mlp.fc2.weight", ["norm2.weight", "norm2.bias"], ["mlp.fc1.bias", "mlp.fc2.bias"])
    };
    let linear = |norm| weights("linear1.weight", "linear2.weight", norm, ["linear1.bias", "linear2.bias"]);
    let gpt2: Vec<(_, &'static [usize])> = vec![
        ("ln_2.weight", &[2]),
        ("ln_2.bias", &[2]),
        ("mlp.c_fc.weight", &[2, 3]),
        ("mlp.c_fc.bias", &[3]),
        ("mlp.c_proj.weight", &[3, 2]),
        ("mlp.c_proj.bias", &[2]),
    ];
    let gates = |norm, gate, up, down| -> Vec<(_, &'static [usize])> {
        vec![(norm, &[2]), (gate, &[3, 2]), (up, &[3, 2]), (down, &[2, 3])]
    };
    let t5 = [
        ("layer.1.layer_norm.weight", "layer.1.DenseReluDense.wi_0.weight", "layer.1.DenseReluDense.wi_1.weight"),
        ("layer.2.layer_norm.weight", "layer.2.DenseReluDense.wi_0.weight", "layer.2.DenseReluDense.wi_1.weight"),
    ];
    let after = "post_attention_layernorm.weight";
    vec![
        ("gpt2", Convention::gpt2(), BlockForm::gpt2, gpt2),
        (
            "bert",
            Convention::bert(),
            BlockForm::bert,
            weights(dense.0, dense.1, ["output.LayerNorm.weight", "output.LayerNorm.bias"], dense_biases),
        ),
        (
            "llama",
            Convention::llama(),
            BlockForm::llama,
            gates(after, "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
        ),
        (
            "phi3",
            Convention::phi3(),
            BlockForm::llama,
            vec![(after, &[2]), ("mlp.gate_up_proj.weight", &[6, 2]), ("mlp.down_proj.weight", &[2, 3])],
        ),
        (
            "t5_encoder",
            Convention::t5_encoder(),
            BlockForm::t5,
            gates(t5[0].0, t5[0].1, t5[0].2, "layer.1.DenseReluDense.wo.weight"),
        ),
        (
            "t5_decoder",
            Convention::t5_decoder(),
            BlockForm::t5,
            gates(t5[1].0, t5[1].1, t5[1].2, "layer.2.DenseReluDense.wo.weight"),
        ),
        (
            "vit",
            Convention::vit(),
            BlockForm::vit,
            weights(dense.0, dense.1, ["layernorm_after.weight", "layernorm_after.bias"], dense_biases),
        ),
        ("timm_vit", Convention::timm_vit(), BlockForm::vit, timm()),
        ("timm_vit, scaled", Convention::timm_vit(), |d, h| BlockForm::cait(d, h, 0.1), and(timm(), "ls2.gamma")),
        ("cait", Convention::cait(), |d, h| BlockForm::cait(d, h, 0.1), and(timm(), "gamma_2")),
        (
            "convnext",
            Convention::convnext(),
            |d, h| BlockForm { skip: Skip::None, ..BlockForm::cait(d, h, 0.1) },
            and(
                weights(
                    "pwconv1.weight",
                    "pwconv2.weight",
                    ["layernorm.weight", "layernorm.bias"],
                    ["pwconv1.bias", "pwconv2.bias"],
                ),
                "layer_scale_parameter",
            ),
        ),
        ("torch_encoder, post", Convention::torch_encoder(), BlockForm::bert, linear(["norm2.weight", "norm2.bias"])),
        ("torch_encoder, pre", Convention::torch_encoder(), BlockForm::vit, linear(["norm2.weight", "norm2.bias"])),
        (
            "tabular",
            Convention::tabular(),
            |d, h| BlockForm::tabular(d, h, Dropout::default()),
            and(
                and(linear(["normalization.weight", "normalization.bias"]), "normalization.running_mean"),
                "normalization.running_var",
            ),
        ),
        (
            "up first",
            up_first(),
            gated,
            vec![
                ("w12", &[2, 6]),
                ("b12", &[6]),
                ("w3.weight", &[2, 3]),
                ("w3.bias", &[2]),
                ("norm.weight", &[2]),
                ("norm.bias", &[2]),
            ],
        ),
        (
            "everything",
            everything(),
            with_everything,
            vec![
                ("gains", &[6]),
                ("shifts", &[6]),
                ("a.weight", &[2, 3]),
                ("a.bias", &[3]),
                ("b.weight", &[3, 2]),
                ("b.bias", &[2]),
                ("c.weight", &[2, 2]),
                ("c.bias", &[2]),
                ("inner.weight", &[3]),
                ("inner.bias", &[3]),
                ("inner.running_mean", &[3]),
                ("inner.running_var", &[3]),
                ("alpha", &[1]),
            ],
        ),
    ]
}

/// A block with random values for every parameter, gains and scales included.
fn block(form: &BlockForm, rng: &mut Rng) -> Block {
    let mut block = Block::with_form(form, &mut Init::he(1)).expect("a block");
    for mut tensor in block.parameters_mut() {
        let (rows, cols) = tensor.shape();
        tensor.read_from(mat(&rng.vec(rows * cols), rows, cols)).expect("values");
    }
    block
}

fn stack(form: &BlockForm, rng: &mut Rng, blocks: usize) -> Stack {
    Stack::from_blocks((0..blocks).map(|_| block(form, rng)).collect()).expect("a stack")
}

fn bits<L: Layer>(net: &L) -> Vec<Vec<u32>> {
    parameters_of(net).iter().map(|values| values.iter().map(|value| value.to_bits()).collect()).collect()
}

// --------------------------------------------------------------------------------------------------- files by hand

/// A tensor of a file: name, type, shape, data.
type Raw = (String, &'static str, Vec<usize>, Vec<u8>);

/// A file of these tensors, one after the other.
fn written(tensors: &[Raw]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
        data.extend(bytes);
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn f32s(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Raw {
    (name.into(), "F32", shape.to_vec(), values.into_iter().flat_map(f32::to_le_bytes).collect())
}

/// Where element (i, j) of a parameter of this shape is in the tensor that has it, by the formula of either orientation.
fn place(stored: &Stored, role: Role, (rows, cols): (usize, usize), i: usize, j: usize) -> usize {
    let (piece, count) = stored.piece();
    match role {
        Role::Weight if stored.is_transposed() => j * (rows * count) + piece * rows + i,
        Role::Weight => (piece * rows + i) * cols + j,
        _ => piece * cols + j,
    }
}

// ---------------------------------------------------------------------------------------------------- there and back

#[test]
fn a_file_has_the_names_and_shapes_of_the_library() {
    for (name, convention, form, want) in conventions() {
        let block = block(&form(2, 3), &mut Rng::new(1));
        let bytes =
            Snapshot::new(&block).with_convention(&convention, "encoder.7.").and_then(|s| s.to_bytes()).expect("bytes");
        let checkpoint = Checkpoint::from_bytes(&bytes).expect("a checkpoint");
        let mut found: Vec<_> = checkpoint.tensors().map(|t| (t.name.to_string(), t.shape.to_vec())).collect();
        let mut want: Vec<_> =
            want.into_iter().map(|(name, shape)| (format!("encoder.7.{name}"), shape.to_vec())).collect();
        found.sort();
        want.sort();
        assert_eq!(found, want, "{name}");
        assert!(checkpoint.metadata().any(|string| string == ("format", "pt")), "{name}");
    }
}

/// That a snapshot under these names has each parameter where the formula says, and gives it back.
fn assert_there_and_back(convention: &Convention, form: &BlockForm, seed: u64) {
    let mut rng = Rng::new(seed);
    let (saved, mut other) = (block(form, &mut rng), block(form, &mut rng));
    let file = Snapshot::new(&saved).with_convention(convention, "x.").and_then(|s| s.to_bytes()).expect("bytes");
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    for tensor in saved.parameters() {
        let (name, shape) = (tensor.name(), tensor.shape());
        let stored = convention.stored(name.place.part, name.role).expect("a name");
        let values = checkpoint.values(&format!("x.{}", stored.name())).expect("values");
        assert_eq!(values.len(), stored.dims(name.role, shape).iter().product::<usize>());
        for (at, value) in tensor.iter().enumerate() {
            let found = values[place(stored, name.role, shape, at / shape.1, at % shape.1)];
            assert_eq!(found.to_bits(), value.to_bits(), "{name} {at}");
        }
    }
    let checkpoint = checkpoint.with_convention(convention, "x.", &other).expect("converted");
    let checkpoint = checkpoint.require_finite().expect("finite");
    for tensor in saved.parameters() {
        let values = checkpoint.values(&tensor.to_string()).expect("values");
        assert_eq!(values, tensor.iter().collect::<Vec<_>>(), "{tensor}");
    }
    checkpoint.restore(&mut other).expect("restored");
    assert_eq!(bits(&other), bits(&saved));
}

proptest! {
    #[test]
    fn a_block_comes_back_from_every_convention((d, h) in (1..20_usize, 0..20_usize), seed: u64) {
        for (_, convention, form, _) in conventions() {
            let form = form(d, h);
            if h > 0 || form.inner_norm.is_none() {
                assert_there_and_back(&convention, &form, seed);
            }
        }
    }

    #[test]
    fn a_stack_comes_back_by_a_pattern(
        (d, h, blocks) in (1..8_usize, 1..8_usize, 1..13_usize),
        from in 0..100_usize,
        (before, after) in ("[a-z.0-9]{0,5}", "[a-z.]{0,5}"),
        seed: u64,
    ) {
        let pattern = format!("{before}{{{}}}{after}", if from == 0 { String::new() } else { from.to_string() });
        for (name, convention, form, names) in conventions() {
            let mut rng = Rng::new(seed);
            let (saved, mut other) = (stack(&form(d, h), &mut rng, blocks), stack(&form(d, h), &mut rng, blocks));
            let file = Snapshot::new(&saved).with_convention(&convention, &pattern).and_then(|s| s.to_bytes());
            let file = file.expect("bytes");
            let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
            prop_assert_eq!(checkpoint.tensors().count(), names.len() * blocks);
            let last = format!("{before}{}{after}{}", from + blocks - 1, names[0].0);
            prop_assert!(checkpoint.tensors().any(|t| t.name == last), "{} {}", name, last);
            let checkpoint = checkpoint.with_convention(&convention, &pattern, &other).expect("converted");
            checkpoint.restore(&mut other).expect("restored");
            prop_assert_eq!(bits(&other), bits(&saved));
        }
    }
}

/// Gate and up together, up first, and apart: the same network.
#[test]
fn fused_and_separate_gates_are_the_same_network() {
    let form = BlockForm::llama(4, 6);
    let saved = block(&form, &mut Rng::new(2));
    let up_first = Convention::phi3().with(Part::First, Role::Weight, Stored::new("up_gate").piece_of(1, 2)).with(
        Part::Third,
        Role::Weight,
        Stored::new("up_gate").piece_of(0, 2),
    );
    let transposed = Convention::phi3().transposed();
    for convention in [Convention::llama(), Convention::phi3(), up_first, transposed] {
        let file = Snapshot::new(&saved).with_convention(&convention, "").and_then(|s| s.to_bytes()).expect("bytes");
        let mut other = block(&form, &mut Rng::new(3));
        let checkpoint = Checkpoint::from_bytes(&file).and_then(|c| c.with_convention(&convention, "", &other));
        checkpoint.and_then(|c| c.restore(&mut other)).expect("restored");
        assert_eq!(bits(&other), bits(&saved));
    }
}

/// What another library writes: whole numbers that each type has, in each orientation, fused or not.
#[test]
fn halves_under_the_names_of_others_are_read() {
    let numbers = |from: u8, count: u8| (from..from + count).map(f32::from);
    let convert = |dtype: &str, value: f32| match dtype {
        "F16" => {
            let bits = value.to_bits();
            let exponent = (bits >> 23 & 255) - 127 + 15;
            ((exponent << 10 | bits >> 13 & 1023) as u16).to_le_bytes().to_vec()
        }
        "BF16" => value.to_le_bytes()[2..].to_vec(),
        "F64" => f64::from(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    for dtype in ["F16", "BF16", "F32", "F64"] {
        let raw = |name: &str, shape: &[usize], from: u8| -> Raw {
            let count = shape.iter().product::<usize>() as u8;
            (name.into(), dtype, shape.to_vec(), numbers(from, count).flat_map(|value| convert(dtype, value)).collect())
        };
        let file = written(&[
            raw("m.0.w12", &[2, 6], 1),
            raw("m.0.b12", &[6], 20),
            raw("m.0.w3.weight", &[2, 3], 30),
            raw("m.0.w3.bias", &[2], 40),
            raw("m.0.norm.weight", &[2], 50),
            raw("m.0.norm.bias", &[2], 60),
            raw("m.head.weight", &[2], 70),
        ]);
        let mut block = block(&gated(2, 3), &mut Rng::new(4));
        let checkpoint = Checkpoint::from_bytes(&file).and_then(|c| c.with_convention(&up_first(), "m.{}.", &block));
        let checkpoint = checkpoint.expect("converted");
        let leftovers = checkpoint.restore_partial(&mut block).expect("restored");
        assert_eq!((&leftovers.missing[..], &leftovers.unexpected[..]), (&[][..], &["m.head.weight".to_string()][..]));
        let want: [&[f32]; 8] = [
            &[4., 10., 5., 11., 6., 12.], // the gate: the last three columns, transposed
            &[23., 24., 25.],
            &[1., 7., 2., 8., 3., 9.],
            &[20., 21., 22.],
            &[30., 31., 32., 33., 34., 35.],
            &[40., 41.],
            &[50., 51.],
            &[60., 61.],
        ];
        assert_eq!(parameters_of(&block), want, "{dtype}");
        assert_eq!(checkpoint.values("third.weight").expect("values"), want[2]);
        let shapes: Vec<_> = checkpoint.tensors().filter(|t| t.name == "first.weight").map(|t| t.shape).collect();
        assert_eq!(shapes, [[3, 2]]);
    }
}

/// A table's network: a layer, blocks, a norm and a layer. The blocks are counted, not the layers, and the others have names of their own.
#[test]
fn the_blocks_of_a_sequence_are_counted() {
    let net = |seed| {
        let (mut rng, mut init) = (Rng::new(seed), Init::he(seed));
        let form = BlockForm::tabular(4, 6, Dropout::default());
        let mut linear =
            |inputs, outputs| Linear::with_init(inputs, outputs, Activation::Identity, &mut init).expect("a layer");
        let nodes: [Node; 5] = [
            linear(3, 4).into(),
            block(&form, &mut rng).into(),
            stack(&form, &mut rng, 2).into(),
            NormLayer::new(4, Norm::batch(1e-5), Activation::Relu).expect("a norm").into(),
            linear(4, 2).into(),
        ];
        Sequence::new(nodes).expect("a network")
    };
    let ends = Convention::new().with_module(Part::Linear, "linear").with_module(Part::Norm, "normalization");
    let (saved, mut other) = (net(1), net(2));
    let snapshot = Snapshot::new(&saved).with_convention(&Convention::tabular(), "blocks.{}.").expect("named");
    let file = snapshot.clone().to_bytes().expect("bytes");
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    for name in ["blocks.0.linear1.weight", "blocks.2.normalization.running_var", "layers.0.linear.weight"] {
        assert!(checkpoint.tensors().any(|t| t.name == name), "{name}");
    }
    let checkpoint = checkpoint.with_convention(&Convention::tabular(), "blocks.{}.", &other).expect("converted");
    checkpoint.restore(&mut other).expect("restored");
    assert_eq!(bits(&other), bits(&saved));

    // Then the rest, by a convention of its own.
    let file = snapshot.with_convention(&ends, "ends.{}.").and_then(|s| s.to_bytes()).expect("bytes");
    let (checkpoint, mut other) = (Checkpoint::from_bytes(&file).expect("a checkpoint"), net(3));
    for name in ["ends.0.linear.bias", "ends.1.normalization.running_mean", "ends.2.linear.weight"] {
        assert!(checkpoint.tensors().any(|t| t.name == name), "{name}");
    }
    let checkpoint = checkpoint.with_convention(&Convention::tabular(), "blocks.{}.", &other).expect("converted");
    checkpoint.with_convention(&ends, "ends.{}.", &other).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(bits(&other), bits(&saved));
}

/// More than nine blocks, and the rest of a network named in a second step: in the order of their numbers, not of their names.
#[test]
fn blocks_are_counted_by_number() {
    let linears = |seed| {
        let mut init = Init::he(seed);
        let nodes = (0..12).map(|_| Linear::with_init(2, 2, Activation::Relu, &mut init).expect("a layer").into());
        let last = Block::residual(2, 3, Activation::Relu, &mut Init::he(seed)).expect("a block").into();
        Sequence::new(nodes.chain([last])).expect("a network")
    };
    let (saved, mut other) = (linears(1), linears(2));
    let (ends, blocks) = (Convention::new().with_module(Part::Linear, "l"), Convention::torch_encoder());
    let snapshot = Snapshot::new(&saved).with_convention(&blocks, "b.").expect("named");
    let file = snapshot.with_convention(&ends, "{1}.").and_then(|s| s.to_bytes()).expect("bytes");
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    let eleventh = saved.parameters().find(|p| p.to_string() == "layers.10.linear.weight").expect("a tensor");
    assert_eq!(checkpoint.values("11.l.weight").expect("values"), eleventh.iter().collect::<Vec<_>>());
    let checkpoint = checkpoint.with_convention(&ends, "{1}.", &other).expect("converted");
    checkpoint.with_convention(&blocks, "b.", &other).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(bits(&other), bits(&saved));
}

#[test]
fn a_form_lists_its_tensors_in_the_order_of_the_parts() {
    for (name, _, form, _) in conventions() {
        let form = form(3, 4);
        let block = block(&form, &mut Rng::new(1));
        let found: Vec<_> = block.parameters().map(|p| (p.name(), p.shape())).collect();
        assert_eq!(form.tensors().collect::<Vec<_>>(), found, "{name}");
    }
}

#[test]
fn a_run_goes_on_from_a_file_under_other_names() {
    let (ctx, convention) = (Context::new().expect("a context"), Convention::phi3());
    let form = BlockForm::llama(4, 6);
    let step = |net: &mut Stack, adam: &mut AdamW, seed| {
        let (mut rng, mut ws, mut grads) = (Rng::new(seed), Workspace::new(), Gradients::new(net).expect("gradients"));
        let (x, dy, mut y) = (rng.vec(12), rng.vec(12), vec![0.0; 12]);
        let y = resblock::rows_of_mut(&mut y, 4).expect("a view");
        let pass = net.forward(&ctx, &mut ws, mat(&x, 3, 4), y).expect("forward");
        pass.backward(mat(&dy, 3, 4), None, &mut grads, GradMode::Overwrite).expect("backward");
        adam.step(&ctx, net, &grads).expect("a step");
    };
    let (mut net, mut adam) = (stack(&form, &mut Rng::new(1), 2), AdamW::new(0.01));
    step(&mut net, &mut adam, 1);
    let snapshot = Snapshot::with_optimizer(&net, &adam).and_then(|s| s.with_convention(&convention, "l.{}."));
    let file = snapshot.and_then(|s| s.to_bytes()).expect("bytes");
    let (mut other, mut resumed) = (stack(&form, &mut Rng::new(2), 2), AdamW::new(1.0));
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    assert!(
        checkpoint.tensors().any(|t| t.name == "optimizer.adamw.exp_avg.blocks.1.third.weight" && t.shape == [6, 4])
    );
    let checkpoint = checkpoint.with_convention(&convention, "l.{}.", &other).expect("converted");
    checkpoint.resume(&mut other, &mut resumed).expect("resumed");
    step(&mut net, &mut adam, 2);
    step(&mut other, &mut resumed, 2);
    assert_eq!(bits(&other), bits(&net));
}

// ------------------------------------------------------------------------------------------------------ architecture

#[test]
fn what_a_network_does_is_told_under_their_names_too() {
    let fused = |piece| Stored::new("up.weight").piece_of(piece, 2);
    for (gate, down, want) in [
        (0, "down.weight", "up silu gate; up identity; down identity + x"),
        (1, "down.weight", "up identity; up silu gate; down identity + x"),
        (0, "down", "up silu gate; up identity; down identity + x"),
        // A name that would be read as another.
        (0, "down now", "up silu gate; up identity"),
    ] {
        let convention = Convention::new()
            .with(Part::First, Role::Weight, fused(gate))
            .with(Part::Third, Role::Weight, fused(1 - gate))
            .with(Part::Second, Role::Weight, Stored::new(down));
        let form = BlockForm { pre_norm: None, ..BlockForm::llama(2, 3) };
        let saved = block(&form, &mut Rng::new(1));
        let file = Snapshot::new(&saved).with_convention(&convention, "").and_then(|s| s.to_bytes()).expect("bytes");
        let checkpoint = || Checkpoint::from_bytes(&file).expect("a checkpoint");
        assert!(checkpoint().metadata().any(|string| string == ("resblock.architecture", want)), "{want}");
        let mut other = block(&BlockForm { activation: Activation::Gelu, ..form }, &mut Rng::new(2));
        let before = bits(&other);
        let refused = checkpoint().with_convention(&convention, "", &other).and_then(|c| c.restore(&mut other));
        let (layer, expected, found) = ("first".into(), "gelu gate".into(), "silu gate".into());
        assert_eq!(refused, Err(CheckpointError::Architecture { layer, expected, found }.into()));
        assert_eq!(bits(&other), before);
        let ignored = checkpoint().ignore_architecture().with_convention(&convention, "", &other);
        ignored.and_then(|c| c.restore(&mut other)).expect("restored");
        assert_eq!(bits(&other), bits(&saved));
    }
}

/// One block out of a stack's file, and a prefix more before its names: the check goes along.
#[test]
fn the_architecture_goes_with_a_block_out_of_a_file() {
    let form = BlockForm::gpt2(2, 3);
    let saved = stack(&form, &mut Rng::new(1), 3);
    let file =
        Snapshot::new(&saved).with_convention(&Convention::gpt2(), "transformer.h.{}.").and_then(|s| s.to_bytes());
    let file = file.expect("bytes");
    let checkpoint =
        || Checkpoint::from_bytes(&file).and_then(|c| c.strip_prefix("transformer.")).expect("a checkpoint");
    let mut other = block(&form, &mut Rng::new(2));
    let one = checkpoint().with_convention(&Convention::gpt2(), "h.2.", &other).expect("converted");
    let leftovers = one.restore_partial(&mut other).expect("restored");
    assert_eq!((leftovers.missing.len(), leftovers.unexpected.len()), (0, 12));
    assert_eq!(bits(&other)[..], bits(&saved)[12..]);

    let mut other = block(&BlockForm { skip: Skip::None, ..form }, &mut Rng::new(2));
    let one = checkpoint().with_convention(&Convention::gpt2(), "h.2.", &other).expect("converted");
    let refused = one.restore_partial(&mut other).map(|_| ());
    let (layer, expected, found) = ("second".into(), "identity".into(), "identity + x".into());
    assert_eq!(refused, Err(CheckpointError::Architecture { layer, expected, found }.into()));
}

// ----------------------------------------------------------------------------------------------------------- errors

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, error: impl Into<Error>) {
    assert_eq!(result.expect_err("refused"), error.into());
}

/// The file of a gated block by `phi3`, under `m.0.`, changed.
fn phi3(change: impl Fn(&mut Vec<Raw>)) -> Vec<u8> {
    let mut all = vec![
        f32s("m.0.mlp.gate_up_proj.weight", &[6, 2], (1_u8..13).map(f32::from)),
        f32s("m.0.mlp.down_proj.weight", &[2, 3], [1.0; 6]),
        f32s("m.0.post_attention_layernorm.weight", &[2], [1.0; 2]),
    ];
    change(&mut all);
    written(&all)
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_their_own_names() {
    let fused = "m.0.mlp.gate_up_proj.weight";
    let mut net = block(&BlockForm::llama(2, 3), &mut Rng::new(1));
    let before = bits(&net);
    let restored = |net: &mut Block, bytes: &[u8], pattern: &str| {
        Checkpoint::from_bytes(bytes)?.with_convention(&Convention::phi3(), pattern, net)?.restore(net)
    };
    for found in [vec![2, 6], vec![4, 3], vec![12], vec![3, 2, 2], vec![12, 1], vec![6, 2, 1]] {
        let bytes = phi3(|all| all[0].2 = found.clone());
        let error = CheckpointError::Shape { tensor: fused.into(), expected: vec![6, 2], found };
        assert_refused(restored(&mut net, &bytes, "m.{}."), error);
    }
    let halved = phi3(|all| all[0] = f32s(fused, &[3, 2], [1.0; 6]));
    let error = CheckpointError::Shape { tensor: fused.into(), expected: vec![6, 2], found: vec![3, 2] };
    assert_refused(restored(&mut net, &halved, "m.{}."), error);
    // Integers keep their place among names, and are refused when they are read, as ever.
    for (dtype, size) in [("I32", 4), ("U8", 1), ("I64", 8), ("F8_E4M3", 1)] {
        let bytes = phi3(|all| (all[0].1, all[0].3) = (dtype, vec![0; 12 * size]));
        let (expected, found) = ("F32".into(), dtype.into());
        assert_refused(
            restored(&mut net, &bytes, "m.{}."),
            CheckpointError::Dtype { tensor: "first.weight".into(), expected, found },
        );
        let checkpoint =
            Checkpoint::from_bytes(&bytes).and_then(|c| c.with_convention(&Convention::phi3(), "m.{}.", &net));
        let _ = checkpoint.and_then(Checkpoint::require_finite).expect("integers are finite");
    }
    let missing = phi3(|all| drop(all.remove(0)));
    assert_refused(restored(&mut net, &missing, "m.{}."), CheckpointError::Missing { tensor: "first.weight".into() });
    let more = phi3(|all| all.push(f32s("m.0.mlp.up_proj.weight", &[3, 2], [1.0; 6])));
    let tensor = "m.0.mlp.up_proj.weight".to_string();
    assert_refused(restored(&mut net, &more, "m.{}."), CheckpointError::Unexpected { tensor });
    let ours = phi3(|all| all.push(f32s("third.weight", &[3, 2], [1.0; 6])));
    assert_refused(restored(&mut net, &ours, "m.{}."), CheckpointError::Duplicate { tensor: "third.weight".into() });
    // Another pattern: none of the names is found.
    let error = CheckpointError::Missing { tensor: "first.weight".into() };
    assert_refused(restored(&mut net, &phi3(|_| ()), "n.{}."), error);
    // A block without the gate's partner has but one of two pieces.
    let plain = BlockForm { pre_norm: Some(Norm::rms(1e-5)), biases: false, ..BlockForm::new(2, 3, Activation::Silu) };
    let mut plain = block(&plain, &mut Rng::new(1));
    let error = CheckpointError::Pieces { tensor: fused.into(), expected: 2, found: 1 };
    assert_refused(restored(&mut plain, &phi3(|_| ()), "m.{}."), error.clone());
    let CheckpointError::Pieces { expected, found, .. } = error else { unreachable!() };
    let tensor = "m.mlp.gate_up_proj.weight".into();
    assert_refused(
        Snapshot::new(&plain).with_convention(&Convention::phi3(), "m."),
        CheckpointError::Pieces { tensor, expected, found },
    );
    assert_eq!(bits(&net), before);
    restored(&mut net, &phi3(|_| ()), "m.{}.").expect("restored");
    assert_ne!(bits(&net), before);
}

#[test]
fn patterns_and_conventions_that_contradict_themselves_are_refused() {
    let nets = stack(&BlockForm::vit(2, 3), &mut Rng::new(1), 2);
    let one = block(&BlockForm::vit(2, 3), &mut Rng::new(1));
    let file = Snapshot::new(&one).with_convention(&Convention::vit(), "").and_then(|s| s.to_bytes()).expect("bytes");
    let read = |convention: &Convention, pattern: &str| {
        Checkpoint::from_bytes(&file).and_then(|c| c.with_convention(convention, pattern, &one)).map(|_| ())
    };
    let write =
        |convention: &Convention, pattern: &str| Snapshot::new(&one).with_convention(convention, pattern).map(|_| ());

    let setting = |operand, reason| Error::Setting { operand, reason };
    let patterns =
        ["{", "}", "{}{}", "{}.{}", "a}b", "{a}", "{-1}", "{1", "{ }", "{99999999999999999999999}", "{{}}", "}{"];
    for pattern in patterns {
        for found in [read(&Convention::vit(), pattern), write(&Convention::vit(), pattern)] {
            assert_refused(found, setting("pattern", "has at most one {}, or one {number}"));
        }
    }
    for pattern in ["", "a", "{}", "{7}", "{18446744073709551615}", "é.{}."] {
        write(&Convention::vit(), pattern).expect(pattern);
        read(&Convention::vit(), pattern).expect(pattern);
    }
    for convention in [Convention::new(), Convention::new().with_module(Part::Third, "up")] {
        for found in [read(&convention, ""), write(&convention, "")] {
            assert_refused(found, setting("convention", "names no parameter of this network"));
        }
    }
    // Two parameters of one name: two blocks by a pattern without a number, and two that should be two.
    let tensor = "b.intermediate.dense.bias".to_string();
    assert_refused(
        Snapshot::new(&nets).with_convention(&Convention::vit(), "b."),
        CheckpointError::Duplicate { tensor: tensor.clone() },
    );
    assert_refused(
        Checkpoint::from_bytes(&file).and_then(|c| c.with_convention(&Convention::vit(), "b.", &nets)),
        CheckpointError::Duplicate { tensor },
    );
    let piece = |name, index, count| Stored::new(name).piece_of(index, count);
    let twice = Convention::vit().with(Part::Second, Role::Weight, Stored::new("intermediate.dense.weight"));
    let bias = |stored| Convention::vit().with(Part::PreNorm, Role::Shift, stored);
    let counts = bias(piece("n", 0, 3)).with(Part::PreNorm, Role::Gain, piece("n", 1, 2));
    let shapes = bias(piece("n", 0, 2)).with(Part::First, Role::Bias, piece("n", 1, 2));
    let turned = Convention::vit().with(Part::First, Role::Weight, piece("w", 0, 2).transposed()).with(
        Part::Second,
        Role::Weight,
        piece("w", 1, 2),
    );
    let own = "pieces of a tensor have one shape, one orientation and one count";
    for (convention, error) in [
        (&twice, CheckpointError::Duplicate { tensor: "intermediate.dense.weight".into() }.into()),
        (&counts, setting("convention", own)),
        (&shapes, setting("convention", own)),
        (&turned, setting("convention", own)),
        (&bias(piece("n", 2, 2)), setting("convention", "pieces are counted from 0")),
        (&bias(piece("n", 0, 0)), setting("convention", "pieces are counted from 0")),
        (&bias(piece("n", usize::MAX, usize::MAX)), setting("convention", "pieces are counted from 0")),
    ] {
        assert_refused(read(convention, ""), error.clone());
        assert_refused(write(convention, ""), error);
    }
    for count in [2, usize::MAX] {
        let error = CheckpointError::Pieces { tensor: "n".into(), expected: count, found: 1 };
        assert_refused(write(&bias(piece("n", 1, count)), ""), error);
    }
}

#[test]
fn a_snapshot_leaves_no_parameter_of_a_block_without_a_name() {
    let scaled = block(&BlockForm::cait(2, 3, 0.1), &mut Rng::new(1));
    let refused = Snapshot::new(&scaled).with_convention(&Convention::vit(), "");
    assert_refused(refused, CheckpointError::Unnamed { tensor: "branch.scale".into() });
    let both = BlockForm { pre_norm: Some(Norm::layer(1e-5)), ..BlockForm::bert(2, 3) };
    let refused = block(&both, &mut Rng::new(1));
    let refused = Snapshot::new(&refused).with_convention(&Convention::torch_encoder(), "");
    assert_refused(refused, CheckpointError::Duplicate { tensor: "norm2.bias".into() });
    // Names of the file's own.
    let own = Convention::vit().with(Part::PreNorm, Role::Gain, Stored::new("__metadata__"));
    let net = block(&BlockForm::vit(2, 3), &mut Rng::new(1));
    let refused = Snapshot::new(&net).with_convention(&own, "");
    assert_refused(refused, CheckpointError::Duplicate { tensor: "__metadata__".into() });
    // Theirs may be ours, turned round.
    let swapped = Convention::new()
        .with_module(Part::First, "second")
        .with_module(Part::Second, "first")
        .with_module(Part::PreNorm, "norm");
    assert_there_and_back(&swapped, &BlockForm::vit(2, 3), 5);
    let file = Snapshot::new(&net).with_convention(&swapped, "").and_then(|s| s.to_bytes()).expect("bytes");
    let mut other = block(&BlockForm::vit(2, 3), &mut Rng::new(2));
    let checkpoint = Checkpoint::from_bytes(&file).and_then(|c| c.with_convention(&swapped, "", &other));
    checkpoint.and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(bits(&other), bits(&net));
}

#[test]
fn projections_of_a_stack_keep_their_names() {
    let net = |seed| {
        let mut init = Init::he(seed);
        let mut linear =
            |inputs, outputs| Linear::with_init(inputs, outputs, Activation::Identity, &mut init).expect("a layer");
        let (input, output) = (linear(3, 2), linear(2, 4));
        Stack::from_layers(input, vec![block(&BlockForm::gpt2(2, 3), &mut Rng::new(seed))], output).expect("a stack")
    };
    let (saved, mut other) = (net(1), net(2));
    let convention = Convention::gpt2().with_module(Part::Input, "wte").with_module(Part::Output, "head");
    let file = Snapshot::new(&saved).with_convention(&convention, "h.{}.").and_then(|s| s.to_bytes()).expect("bytes");
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    for name in ["input.weight", "output.bias", "h.0.ln_2.weight"] {
        assert!(checkpoint.tensors().any(|t| t.name == name), "{name}");
    }
    let checkpoint = checkpoint.with_convention(&convention, "h.{}.", &other).expect("converted");
    checkpoint.restore(&mut other).expect("restored");
    assert_eq!(bits(&other), bits(&saved));
}

/// The first by the parameter's own order, not by the file's.
#[test]
fn what_is_not_finite_is_found_in_pieces_and_columns() {
    let mut values: Vec<f32> = (0_u8..12).map(f32::from).collect();
    (values[4], values[9]) = (f32::NAN, f32::INFINITY); // row 0, column 4; row 1, column 3: of the gate (1, 0) and (0, 1)
    let file = written(&[f32s("w12", &[2, 6], values), f32s("w3.weight", &[2, 3], [0.0; 6])]);
    let net = block(&gated(2, 3), &mut Rng::new(1));
    let checkpoint = || Checkpoint::from_bytes(&file).expect("a checkpoint");
    let refused =
        |checkpoint: Result<Checkpoint<'_>, Error>| checkpoint.and_then(Checkpoint::require_finite).map(|_| ());
    let error = |tensor: &str, index, found: &str| {
        Err(CheckpointError::NotFinite { tensor: tensor.into(), index, found: found.into() }.into())
    };
    assert_eq!(refused(Ok(checkpoint())), error("w12", 4, "NaN"));
    let named = || checkpoint().with_convention(&up_first(), "", &net);
    assert_eq!(refused(named()), error("first.weight", 1, "inf"));
    let rest = named().and_then(|c| c.map_names(|name| (name != "first.weight").then(|| name.into())));
    assert_eq!(refused(rest), Ok(()), "the other half is finite");
}

/// Sizes beside a 0 cost nothing, however large.
#[test]
fn a_tensor_of_no_elements_is_read_at_once() {
    let net = block(&BlockForm { biases: false, pre_norm: None, ..BlockForm::gpt2(2, 0) }, &mut Rng::new(1));
    let convention = Convention::gpt2();
    let file = Snapshot::new(&net).with_convention(&convention, "").and_then(|s| s.to_bytes()).expect("bytes");
    let mut other = net.clone();
    let checkpoint = Checkpoint::from_bytes(&file).and_then(|c| c.with_convention(&convention, "", &other));
    let checkpoint = checkpoint.and_then(Checkpoint::require_finite).expect("a checkpoint");
    assert_eq!(checkpoint.values("first.weight"), Ok(vec![]));
    checkpoint.restore(&mut other).expect("restored");
    let huge = written(&[("mlp.c_fc.weight".into(), "F32", vec![usize::MAX / 64, 0], vec![])]);
    let refused =
        Checkpoint::from_bytes(&huge).and_then(|c| c.require_finite()?.with_convention(&convention, "", &net));
    let (tensor, expected, found) = ("mlp.c_fc.weight".into(), vec![2, 0], vec![usize::MAX / 64, 0]);
    assert_refused(refused, CheckpointError::Shape { tensor, expected, found });
}

/// A change to a file's bytes.
fn damaged(mut bytes: Vec<u8>, at: usize, kind: u8, byte: u8) -> Vec<u8> {
    match kind {
        0 => bytes[at] = byte,
        1 => bytes[at] = b'0' + byte % 10,
        2 => bytes.insert(at, byte),
        _ => drop(bytes.remove(at)),
    }
    bytes
}

proptest! {
    /// Most of the damage is in the header: what then still loads is of the right shape.
    #[test]
    fn damaged_files_under_other_names_break_nothing(
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..4),
        in_header: bool,
    ) {
        let mut bytes = phi3(|_| ());
        for (at, kind, byte) in damages {
            let len = bytes.len();
            bytes = damaged(bytes, at.index(if in_header { len - 80 } else { len }), kind, byte);
        }
        let mut net = block(&BlockForm::llama(2, 3), &mut Rng::new(1));
        let before = bits(&net);
        let named = |bytes| Checkpoint::from_bytes(bytes)?.with_convention(&Convention::phi3(), "m.{}.", &net);
        if let Ok(checkpoint) = named(&bytes) {
            let names: Vec<(_, usize)> =
                checkpoint.tensors().map(|t| (t.name.to_string(), t.shape.iter().product())).collect();
            for (name, len) in names {
                match checkpoint.values(&name) {
                    Ok(values) => prop_assert_eq!(values.len(), len),
                    Err(error) => prop_assert!(error.to_string().contains("expected elements of type"), "{}", error),
                }
            }
            let restored = checkpoint.restore(&mut net);
            prop_assert!(restored.is_ok() || bits(&net) == before);
            let _ = checkpoint.require_finite();
        }
    }
}
