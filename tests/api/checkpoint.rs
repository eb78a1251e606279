//! Saved networks: the same bits come back, whatever the file holds it breaks nothing, and a run that goes on from a file has
//! the bits of one that never stopped.

use crate::common::{
    MapGrad, Rng, Stage, assert_same, build_stack, context, fastest, gradients_of, isas, mat, mat_mut, parameters_of,
    random_stack,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use resblock::{
    Activation, AdamW, Block, BlockForm, BranchScale, Checkpoint, CheckpointError, Context, Error, GradMode, Gradients,
    Init, Layer, Linear, Norm, NormKind, NormLayer, Optimizer, Part, SavedOptimizer, Sequence, Sgd, Skip, Snapshot,
    Stack, Workspace,
};
use std::alloc::{GlobalAlloc, System};
use std::cell::Cell;

// ------------------------------------------------------------------------------------------------------ networks

fn stack(seed: u64) -> Stack {
    build_stack(&random_stack(&mut Rng::new(seed), (5, 17, 33, 4), 2, Activation::Gelu, true))
}

/// A block of 2 features and 3 hidden ones, with parameters 1, 2, 3, …
fn counted() -> Block {
    let mut block = Stage::block(&mut Rng::new(0), 2, 3, Activation::Relu, true, true).build_block();
    let mut numbers = (1_u8..).map(f32::from);
    for i in 0..2 {
        let map = block.affine_mut(i).expect("a map");
        let (outputs, inputs) = (map.outputs(), map.inputs());
        let w: Vec<f32> = numbers.by_ref().take(outputs * inputs).collect();
        map.weights_mut().read_from(mat(&w, outputs, inputs)).expect("weights");
        map.bias_mut().expect("a bias").iter_mut().zip(&mut numbers).for_each(|(b, value)| *b = value);
    }
    block
}

/// `steps` of training on random data.
fn train<L: Layer>(ctx: &Context, net: &mut L, optimizer: &mut impl Optimizer, seed: u64, steps: usize) {
    let (mut rng, mut ws, mut grads) = (Rng::new(seed), Workspace::new(), Gradients::new(net).expect("gradients"));
    for _ in 0..steps {
        let (n, inputs, outputs) = (7, net.inputs(), net.outputs());
        let (x, dy, mut y) = (rng.vec(n * inputs), rng.vec(n * outputs), vec![0.0; n * outputs]);
        let pass = net.forward(ctx, &mut ws, mat(&x, n, inputs), mat_mut(&mut y, n, outputs)).expect("forward");
        pass.backward(mat(&dy, n, outputs), None, &mut grads, GradMode::Overwrite).expect("backward");
        optimizer.step(ctx, net, &grads).expect("a step");
    }
}

fn bytes<L: Layer, O: SavedOptimizer>(net: &L, optimizer: &O) -> Vec<u8> {
    Snapshot::with_optimizer(net, optimizer).and_then(|s| s.to_bytes()).expect("a snapshot")
}

fn adam() -> AdamW {
    let mut adam = AdamW::new(0.01);
    adam.weight_decay = 0.1;
    adam
}

fn sgd() -> Sgd {
    let mut sgd = Sgd::new(0.05, 0.9);
    sgd.weight_decay = 0.01;
    sgd
}

// --------------------------------------------------------------------------------------------------- round trips

/// That `from`'s parameters come back in `to`.
fn assert_restores<L: Layer>(from: &L, to: &mut L) {
    let bytes = Snapshot::new(from).to_bytes().expect("bytes");
    Checkpoint::from_bytes(&bytes).expect("a checkpoint").restore(to).expect("restored");
    for (got, want) in parameters_of(to).iter().zip(&parameters_of(from)) {
        assert_same("a parameter", got, want);
    }
    assert_eq!(Snapshot::new(to).to_bytes().expect("bytes"), bytes);
}

proptest! {
    #[test]
    fn parameters_come_back_bit_by_bit((d, h) in (0..40_usize, 0..40_usize), bias: bool, seed: u64) {
        let mut rng = Rng::new(seed);
        let linear = |rng: &mut Rng| Stage::linear(rng, d, h, Activation::Relu, bias).build_linear();
        let block = |rng: &mut Rng| Stage::block(rng, d, h, Activation::Relu, true, bias).build_block();
        let blocks = |rng: &mut Rng| Stack::from_blocks(vec![block(rng), block(rng), block(rng)]).expect("a stack");
        assert_restores::<Linear>(&linear(&mut rng), &mut linear(&mut rng));
        assert_restores::<Block>(&block(&mut rng), &mut block(&mut rng));
        assert_restores::<Stack>(&blocks(&mut rng), &mut blocks(&mut rng));
        assert_restores::<Stack>(&stack(seed), &mut stack(!seed));
    }
}

#[test]
fn values_that_are_no_numbers_come_back_too() {
    let mut rng = Rng::new(3);
    let wild = rng.wild(33 * 17, 2);
    let linear = |w: &[f32]| {
        Linear::new(resblock::Affine::new(mat(w, 33, 17), Some(&w[..33])).expect("a map"), Activation::Identity)
    };
    assert_restores(&linear(&wild), &mut linear(&rng.vec(33 * 17)));
}

/// `before` steps, a save, and `after` more: by the same objects, and by others that were loaded.
fn assert_resumes<O: SavedOptimizer + Clone>(fresh: impl Fn() -> O, before: usize) {
    let contexts: Vec<Context> = isas().into_iter().map(context).collect();
    let (mut net, mut optimizer) = (stack(1), fresh());
    train(&contexts[0], &mut net, &mut optimizer, 2, before);
    let saved = bytes(&net, &optimizer);
    train(&contexts[0], &mut net, &mut optimizer, 3, 4);
    let want = bytes(&net, &optimizer);
    // On every instruction set, and over the state of another run.
    for ctx in &contexts {
        let (mut net, mut optimizer) = (stack(4), fresh());
        train(ctx, &mut net, &mut optimizer, 5, 2);
        Checkpoint::from_bytes(&saved).and_then(|c| c.resume(&mut net, &mut optimizer)).expect("resumed");
        assert_eq!(bytes(&net, &optimizer), saved);
        train(ctx, &mut net, &mut optimizer, 3, 4);
        assert_eq!(bytes(&net, &optimizer), want, "{}", ctx.isa());
    }
}

#[test]
fn training_goes_on_to_the_same_bits() {
    for before in [0, 1, 3] {
        assert_resumes(sgd, before);
        assert_resumes(adam, before);
    }
}

#[test]
fn hyper_parameters_and_steps_are_restored() {
    let (mut net, mut saved) = (stack(1), adam());
    (saved.betas, saved.eps) = ((0.8, 0.99), 1e-6);
    train(&fastest(), &mut net, &mut saved, 2, 3);
    let file = bytes(&net, &saved);
    let mut adam = AdamW::new(1.0);
    Checkpoint::from_bytes(&file).and_then(|c| c.resume(&mut net, &mut adam)).expect("resumed");
    assert_eq!(adam.steps(), 3);
    assert_eq!((adam.lr, adam.betas, adam.eps, adam.weight_decay), (0.01, (0.8, 0.99), 1e-6, 0.1));

    let (file, mut sgd) = (bytes(&net, &sgd()), Sgd::new(1.0, 0.0));
    Checkpoint::from_bytes(&file).and_then(|c| c.resume(&mut net, &mut sgd)).expect("resumed");
    assert_eq!((sgd.lr, sgd.momentum, sgd.weight_decay), (0.05, 0.9, 0.01));
}

#[test]
fn a_training_checkpoint_gives_its_parameters_alone_too() {
    let (mut net, mut adam) = (stack(1), adam());
    train(&fastest(), &mut net, &mut adam, 2, 2);
    let (file, mut other) = (bytes(&net, &adam), stack(5));
    Checkpoint::from_bytes(&file).and_then(|c| c.restore(&mut other)).expect("restored");
    assert_eq!(parameters_of(&other), parameters_of(&net));
}

#[test]
fn a_snapshot_of_another_networks_optimiser_is_refused() {
    let (mut net, mut adam) = (stack(1), adam());
    train(&fastest(), &mut net, &mut adam, 2, 1);
    let error = Snapshot::with_optimizer(&counted(), &adam).expect_err("refused");
    assert_eq!(error, Error::Mismatch { operand: "optimiser state", tensor: "first.weight".into() });
}

// ------------------------------------------------------------------------------------------------ files by hand

/// A file as the format's description has it: length, JSON, data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Where the data of a good file begin.
fn data_start(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The tensors of `counted`, as others would write them: (name, type, shape, data).
fn tensors() -> Vec<(&'static str, &'static str, &'static str, Vec<u8>)> {
    let count = |from: u8, to: u8| floats((from..=to).map(f32::from));
    vec![
        ("first.weight", "F32", "[3,2]", count(1, 6)),
        ("first.bias", "F32", "[3]", count(7, 9)),
        ("second.weight", "F32", "[2,3]", count(10, 15)),
        ("second.bias", "F32", "[2]", count(16, 17)),
    ]
}

/// A file of these tensors, one after the other.
fn written(tensors: &[(&str, &str, &str, Vec<u8>)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#));
        data.extend(bytes);
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}

#[test]
fn a_file_holds_matrices_row_by_row_under_their_names() {
    let block = counted();
    let snapshot = Snapshot::new(&block).metadata("z", "last").note("by hand").metadata("a \"", "first");
    let saved = snapshot.to_bytes().expect("bytes");
    let header = concat!(
        r#"{"__metadata__":{"a \"":"first","note":"by hand","#,
        r#""resblock.architecture":"first relu; second identity + x","z":"last"},"#,
        r#""first.bias":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"#,
        r#""first.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[12,36]},"#,
        r#""second.bias":{"dtype":"F32","shape":[2],"data_offsets":[36,44]},"#,
        r#""second.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[44,68]}}"#,
    );
    // Padded with spaces, so that data begin at a multiple of 8.
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let data = [7, 8, 9, 1, 2, 3, 4, 5, 6, 16, 17, 10, 11, 12, 13, 14, 15].map(|n: u8| f32::from(n));
    assert_eq!(saved, file(&header, &floats(data)));
}

#[test]
fn a_file_by_others_is_read_in_any_order() {
    let mut all = tensors();
    for _ in 0..4 {
        all.rotate_left(1);
        let mut block = Stage::block(&mut Rng::new(9), 2, 3, Activation::Relu, true, true).build_block();
        Checkpoint::from_bytes(&written(&all)).and_then(|c| c.restore(&mut block)).expect("restored");
        assert_eq!(parameters_of(&block), parameters_of(&counted()));
    }
}

// -------------------------------------------------------------------------------------------------------- errors

/// Reads `bytes` into a network and an optimiser, and asserts that neither is touched if they are refused.
fn attempt(bytes: &[u8]) -> Result<(), Error> {
    let (mut block, mut adam) = (counted(), adam());
    train(&fastest(), &mut block, &mut adam, 1, 2);
    let before = self::bytes(&block, &adam);
    let checkpoint = Checkpoint::from_bytes(bytes)?;
    let restored = checkpoint.restore(&mut block);
    if restored.is_err() {
        assert_eq!(self::bytes(&block, &adam), before, "parameters or optimiser were touched");
    }
    let before = self::bytes(&block, &adam);
    if checkpoint.resume(&mut block, &mut adam).is_err() {
        assert_eq!(self::bytes(&block, &adam), before, "parameters or optimiser were touched");
    }
    restored
}

#[track_caller]
fn assert_refused(bytes: &[u8], error: CheckpointError) {
    assert_eq!(attempt(bytes), Err(Error::Checkpoint(error)));
}

/// `counted` trained by AdamW: a file with everything in it.
fn training_file() -> Vec<u8> {
    let (mut block, mut adam) = (counted(), adam());
    train(&fastest(), &mut block, &mut adam, 6, 3);
    Snapshot::with_optimizer(&block, &adam).and_then(|s| s.note("a note").to_bytes()).expect("bytes")
}

#[test]
fn missing_unexpected_and_duplicate_tensors_are_refused() {
    for at in 0..tensors().len() {
        let mut some = tensors();
        let (tensor, ..) = some.remove(at);
        assert_refused(&written(&some), CheckpointError::Missing { tensor: tensor.into() });
        let mut twice = tensors();
        twice.push(twice[at].clone());
        assert_refused(&written(&twice), CheckpointError::Duplicate { tensor: tensor.into() });
    }
    // At the same place, too: nothing but the name is then wrong.
    let entry = r#""first.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let twice = file(&format!("{{{entry},{entry}}}"), &[0; 4]);
    assert_refused(&twice, CheckpointError::Duplicate { tensor: "first.bias".into() });
    let mut more = tensors();
    more.push(("third.bias", "F32", "[0]", Vec::new()));
    assert_refused(&written(&more), CheckpointError::Unexpected { tensor: "third.bias".into() });
}

#[test]
fn other_shapes_and_types_are_refused() {
    let shapes = ["[2,3]", "[6]", "[3,2,1]", "[1,3,2]", "[6,1]"];
    for found in shapes {
        let mut all = tensors();
        all[0].2 = found;
        let found = serde_json::from_str(found).expect("a shape");
        let tensor = "first.weight".into();
        assert_refused(&written(&all), CheckpointError::Shape { tensor, expected: vec![3, 2], found });
    }
    for (found, bytes) in [
        ("I32", 4),
        ("U32", 4),
        ("I64", 8),
        ("U64", 8),
        ("C64", 8),
        ("I16", 2),
        ("U16", 2),
        ("I8", 1),
        ("U8", 1),
        ("BOOL", 1),
        ("F8_E4M3", 1),
        ("F8_E5M2", 1),
        ("F8_E8M0", 1),
    ] {
        let mut all = tensors();
        (all[1].1, all[1].3) = (found, vec![0; 3 * bytes]);
        let bytes = written(&all);
        let (tensor, expected, found) = ("first.bias".into(), "F32".into(), found.into());
        let refused = CheckpointError::Dtype { tensor, expected, found };
        let values = Checkpoint::from_bytes(&bytes).and_then(|c| c.values("first.bias"));
        assert_eq!(values, Err(refused.clone().into()));
        assert_refused(&bytes, refused);
    }
}

/// f32 as another type of element; exact for the numbers of `counted`.
fn converted(dtype: &str, floats: &[u8]) -> Vec<u8> {
    let convert = |&bytes: &[u8; 4]| {
        let (value, bits) = (f32::from_le_bytes(bytes), u32::from_le_bytes(bytes));
        match dtype {
            "F64" => f64::from(value).to_le_bytes().to_vec(),
            "BF16" => bytes[2..].to_vec(),
            "F16" => {
                let exponent = (bits >> 23 & 255) - 127 + 15;
                ((exponent << 10 | bits >> 13 & 1023) as u16).to_le_bytes().to_vec()
            }
            _ => bytes.to_vec(),
        }
    };
    floats.as_chunks().0.iter().flat_map(convert).collect()
}

#[test]
fn floats_of_16_and_64_bits_are_read_too() {
    for types in [["F16"; 4], ["BF16"; 4], ["F64"; 4], ["F64", "F16", "F32", "BF16"]] {
        let mut all = tensors();
        for (tensor, dtype) in all.iter_mut().zip(types) {
            (tensor.1, tensor.3) = (dtype, converted(dtype, &tensor.3));
        }
        let bytes = written(&all);
        let checkpoint = Checkpoint::from_bytes(&bytes).and_then(Checkpoint::require_finite).expect("a checkpoint");
        let mut block = Stage::block(&mut Rng::new(9), 2, 3, Activation::Relu, true, true).build_block();
        checkpoint.restore(&mut block).expect("restored");
        assert_eq!(parameters_of(&block), parameters_of(&counted()));
        assert_eq!(checkpoint.values("first.bias"), Ok(vec![7.0, 8.0, 9.0]));
    }
    let values = |dtype, bytes: &[u8]| {
        let file = written(&[("a", dtype, "[1]", bytes.to_vec())]);
        let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
        (checkpoint.values("a").expect("values")[0], checkpoint.require_finite().is_ok())
    };
    assert_eq!(values("F16", &[0x01, 0x80]), (-(2_f32.powi(-24)), true));
    assert_eq!(values("F16", &[0xff, 0x7b]), (65504.0, true));
    assert_eq!(values("F16", &[0x00, 0x7c]), (f32::INFINITY, false));
    assert_eq!(values("BF16", &[0x80, 0xff]), (f32::NEG_INFINITY, false));
    assert_eq!(values("F64", &0.1_f64.to_le_bytes()), (0.1, true));
    assert_eq!(values("F64", &(1.0 + 2_f64.powi(-24)).to_le_bytes()), (1.0, true), "a tie goes to even");
    assert_eq!(values("F64", &1e39_f64.to_le_bytes()), (f32::INFINITY, false));
}

/// Moments and hyper-parameters of another type, as a script that converts all floats of a file would leave them.
#[test]
fn an_optimiser_is_resumed_from_floats_of_64_bits() {
    let (mut net, mut adam) = (counted(), adam());
    train(&fastest(), &mut net, &mut adam, 6, 3);
    let saved = bytes(&net, &adam);
    let checkpoint = Checkpoint::from_bytes(&saved).expect("a checkpoint");
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    let start = data_start(&saved);
    let header: serde_json::Value = serde_json::from_slice(&saved[8..start]).expect("JSON");
    for tensor in checkpoint.tensors() {
        let place = |i: usize| start + header[tensor.name]["data_offsets"][i].as_u64().expect("an offset") as usize;
        let (bytes, count) = (&saved[place(0)..place(1)], tensor.dtype == "I64");
        let (dtype, bytes) = if count { ("I64", bytes.to_vec()) } else { ("F64", converted("F64", bytes)) };
        entries.push((tensor.name, dtype, format!("{:?}", tensor.shape), bytes));
    }
    let entries: Vec<_> =
        entries.iter().map(|(name, dtype, shape, data)| (*name, *dtype, &shape[..], data.clone())).collect();
    data.extend(written(&entries));
    let (mut other, mut resumed) = (counted(), AdamW::new(1.0));
    Checkpoint::from_bytes(&data).and_then(|c| c.resume(&mut other, &mut resumed)).expect("resumed");
    assert_eq!(bytes(&other, &resumed), saved);
}

// --------------------------------------------------------------------------------------------- names, parts, strings

/// `tensors` under the names of another network that has `counted` in it.
fn inside_another() -> Vec<u8> {
    let mut all = tensors();
    all.iter_mut()
        .zip(["model.first.weight", "model.first.bias", "model.second.weight", "model.second.bias"])
        .for_each(|(tensor, name)| tensor.0 = name);
    all.insert(1, ("head.weight", "BF16", "[1,2]", vec![0; 4]));
    all.push(("step", "I64", "[]", vec![0; 8]));
    written(&all)
}

#[test]
fn a_file_is_listed() {
    let bytes = inside_another();
    let checkpoint = Checkpoint::from_bytes(&bytes).expect("a checkpoint");
    let found: Vec<_> = checkpoint.tensors().map(|t| (t.name, t.shape.to_vec(), t.dtype)).collect();
    let want = [
        ("model.first.weight", vec![3, 2], "F32"),
        ("head.weight", vec![1, 2], "BF16"),
        ("model.first.bias", vec![3], "F32"),
        ("model.second.weight", vec![2, 3], "F32"),
        ("model.second.bias", vec![2], "F32"),
        ("step", vec![], "I64"),
    ];
    assert_eq!(found, want.map(|(name, shape, dtype)| (name, shape, dtype.to_string())));
    assert_eq!(checkpoint.values("model.first.bias"), Ok(vec![7.0, 8.0, 9.0]));
    assert_eq!(checkpoint.values("first.bias"), Err(CheckpointError::Missing { tensor: "first.bias".into() }.into()));
    assert_eq!(checkpoint.metadata().count(), 0);
}

#[test]
fn names_are_mapped_and_parts_restored() {
    let bytes = inside_another();
    let checkpoint = || Checkpoint::from_bytes(&bytes).expect("a checkpoint");
    let fresh = || Stage::block(&mut Rng::new(9), 2, 3, Activation::Relu, true, true).build_block();
    let names = |of: &[&str]| of.iter().map(|name| name.to_string()).collect::<Vec<_>>();

    let mut block = fresh();
    let stripped = checkpoint().strip_prefix("model.").expect("names");
    let unexpected = CheckpointError::Unexpected { tensor: "head.weight".into() };
    assert_eq!(stripped.restore(&mut block), Err(unexpected.into()), "a whole network is asked for");
    assert_eq!(parameters_of(&block), parameters_of(&fresh()));
    let leftovers = stripped.restore_partial(&mut block).expect("restored");
    assert_eq!((leftovers.missing, leftovers.unexpected), (names(&[]), names(&["head.weight", "step"])));
    assert_eq!(parameters_of(&block), parameters_of(&counted()));

    // Those of the network alone: then nothing is left over.
    let mut block = fresh();
    let mapped = checkpoint().map_names(|name| Some(name.strip_prefix("model.")?.to_string())).expect("names");
    mapped.restore(&mut block).expect("restored");
    assert_eq!(parameters_of(&block), parameters_of(&counted()));

    // Nothing fits, and nothing is changed.
    let mut block = fresh();
    let leftovers = checkpoint().restore_partial(&mut block).expect("nothing restored");
    assert_eq!(leftovers.missing, names(&["first.weight", "first.bias", "second.weight", "second.bias"]));
    assert_eq!(leftovers.unexpected.len(), 6);
    assert_eq!(parameters_of(&block), parameters_of(&fresh()));

    // Some fit.
    let first = |name: &str| name.strip_prefix("model.").filter(|name| name.starts_with("first")).map(str::to_string);
    let leftovers = checkpoint().map_names(first).and_then(|c| c.restore_partial(&mut block)).expect("restored");
    assert_eq!((leftovers.missing, leftovers.unexpected), (names(&["second.weight", "second.bias"]), names(&[])));
    assert_eq!(parameters_of(&block)[..2], parameters_of(&counted())[..2]);
    assert_eq!(parameters_of(&block)[2..], parameters_of(&fresh())[2..]);

    // One that fits by name alone: an error, and the others are not restored either.
    let mut block = fresh();
    let wrong =
        |name: &str| Some(if name == "head.weight" { "second.weight" } else { name.strip_prefix("model.")? }.into());
    let twice = checkpoint().map_names(wrong).err();
    assert_eq!(twice, Some(CheckpointError::Duplicate { tensor: "second.weight".into() }.into()));
    let wrong = |name: &str| wrong(name).filter(|_| name != "model.second.weight");
    let refused = checkpoint().map_names(wrong).and_then(|c| c.restore_partial(&mut block));
    let (tensor, expected, found) = ("second.weight".into(), vec![2, 3], vec![1, 2]);
    assert_eq!(refused, Err(CheckpointError::Shape { tensor, expected, found }.into()));
    assert_eq!(parameters_of(&block), parameters_of(&fresh()));
    let all_one = checkpoint().map_names(|_| Some(String::new())).err();
    assert_eq!(all_one, Some(CheckpointError::Duplicate { tensor: String::new() }.into()));
}

#[test]
fn a_part_of_a_training_checkpoint_leaves_the_optimiser_out() {
    let (good, mut block) = (training_file(), counted());
    let leftovers = Checkpoint::from_bytes(&good).and_then(|c| c.restore_partial(&mut block)).expect("restored");
    assert_eq!((leftovers.missing.len(), leftovers.unexpected.len()), (0, 0));
    let mut want = counted();
    Checkpoint::from_bytes(&good).and_then(|c| c.restore(&mut want)).expect("restored");
    assert_eq!(parameters_of(&block), parameters_of(&want));
}

#[test]
fn strings_come_back_and_are_the_same_bytes_each_time() {
    let names: Vec<String> = (0..40).map(|i| format!("name {i}")).collect();
    let block = counted();
    let saved = |names: &mut dyn Iterator<Item = &String>| {
        let snapshot = Snapshot::new(&block).note("first").note("second").metadata("resblock.architecture", "mine");
        names
            .fold(snapshot, |snapshot, name| snapshot.metadata(name, format!("{name}\n\u{0}ü")))
            .to_bytes()
            .expect("bytes")
    };
    let bytes = saved(&mut names.iter());
    assert_eq!(bytes, saved(&mut names.iter().rev()));
    let checkpoint = Checkpoint::from_bytes(&bytes).expect("a checkpoint");
    assert_eq!(checkpoint.note(), Some("second"));
    let mut want: Vec<_> = names.iter().map(|name| (name.clone(), format!("{name}\n\u{0}ü"))).collect();
    want.push(("note".into(), "second".into()));
    want.push(("resblock.architecture".into(), "first relu; second identity + x".into()));
    want.sort();
    let found: Vec<_> = checkpoint.metadata().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    assert_eq!(found, want);
}

#[test]
fn what_the_safetensors_crate_reads_is_read() {
    let entry = r#""linear.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}"#;
    for header in [
        format!(r#"{{"__metadata__":null,{entry}}}"#),
        format!(r#"{{{entry},"__metadata__":null}}"#),
        format!(r#"{{"__metadata__":{{}},{entry}}}"#),
        format!(r#"{{"__metadata__":{{"format":"pt"}},{entry}}}"#),
        format!("  \n\t{{{entry}}}  \n   "),
        format!("{}{{{entry}}}", " ".repeat(1000)),
        entry.replace(r#"[0,4]"#, r#"[0,4],"other":{}"#).replacen("\"linear", "{\"linear", 1) + "}",
    ] {
        let bytes = file(&header, &[0, 0, 0x80, 0x3f]);
        assert!(safetensors_of_others(&bytes), "{header}");
        let checkpoint = Checkpoint::from_bytes(&bytes).unwrap_or_else(|error| panic!("{header}: {error}"));
        assert_eq!(checkpoint.values("linear.weight"), Ok(vec![1.0]), "{header}");
    }
    // Tensors without elements, wherever they lie.
    let mut all = tensors();
    all.insert(0, ("none", "F32", "[0,7]", Vec::new()));
    all.push(("nothing", "F16", "[3,0]", Vec::new()));
    let bytes = written(&all);
    let checkpoint = Checkpoint::from_bytes(&bytes).expect("a checkpoint");
    assert_eq!(checkpoint.values("none"), Ok(vec![]));
    assert_eq!(checkpoint.restore_partial(&mut counted()).expect("restored").unexpected, ["none", "nothing"]);
}

/// Whether the safetensors crate reads it.
fn safetensors_of_others(bytes: &[u8]) -> bool {
    safetensors::SafeTensors::deserialize(bytes).is_ok()
}

// -------------------------------------------------------------------------------------------------- architecture

const ACTIVATIONS: [Activation; 12] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu(0.01),
    Activation::LeakyRelu(0.010_000_001),
    Activation::LeakyRelu(0.0),
    Activation::LeakyRelu(-0.0),
    Activation::LeakyRelu(f32::NAN),
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
    Activation::Sigmoid,
];

fn block(phi: Activation, skip: bool) -> Block {
    Stage::block(&mut Rng::new(1), 3, 3, phi, skip, true).build_block()
}

/// Saves each network with a small optimiser and loads it into each: only itself takes it, unless the file is silent or unheard.
fn assert_told_apart<L: Layer + Clone>(nets: &[L], differs: &str) {
    for (i, from) in nets.iter().enumerate() {
        let sgd = Sgd::new(0.1, 0.9);
        let file = bytes(from, &sgd);
        for (j, to) in nets.iter().enumerate() {
            let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
            let (mut net, mut optimizer) = (to.clone(), sgd.clone());
            let before = bytes(&net, &optimizer);
            let results = [
                checkpoint.restore(&mut net),
                checkpoint.resume(&mut net, &mut optimizer),
                checkpoint.restore_partial(&mut net).map(|_| ()),
            ];
            for result in results {
                match result {
                    Ok(()) => assert_eq!(i, j, "{i} was loaded as {j}"),
                    Err(Error::Checkpoint(CheckpointError::Architecture { layer, expected, found })) => {
                        assert!(
                            i != j && layer == differs && expected != found,
                            "{i} as {j}: {layer} {expected} {found}"
                        );
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(i == j || bytes(&net, &optimizer) == before, "a refusal changed something");
            checkpoint.clone().ignore_architecture().restore(&mut net).expect("restored");
            checkpoint.ignore_architecture().resume(&mut net, &mut optimizer).expect("resumed");
        }
    }
}

#[test]
fn networks_that_compute_something_else_are_told_apart() {
    assert_told_apart(&ACTIVATIONS.map(|phi| block(phi, true)), "first");
    assert_told_apart(&[true, false].map(|skip| block(Activation::Gelu, skip)), "second");
    let linear = |phi, skip| {
        let layer = Stage::linear(&mut Rng::new(1), 3, 3, phi, true).build_linear();
        if skip { layer.with_skip().expect("a skip") } else { layer }
    };
    let linears = ACTIVATIONS.iter().flat_map(|&phi| [linear(phi, true), linear(phi, false)]).collect::<Vec<_>>();
    assert_told_apart(&linears, "linear");
    let stack = |blocks: Vec<Block>| Stack::from_blocks(blocks).expect("a stack");
    assert_told_apart(
        &ACTIVATIONS.map(|phi| stack(vec![block(Activation::Gelu, true), block(phi, true)])),
        "blocks.1.first",
    );
    let ends = |input, output| {
        let blocks = vec![block(Activation::Gelu, true)];
        Stack::from_layers(linear(input, false), blocks, linear(output, false)).expect("a stack")
    };
    assert_told_apart(&ACTIVATIONS.map(|phi| ends(phi, Activation::Identity)), "input");
    assert_told_apart(&ACTIVATIONS.map(|phi| ends(Activation::Identity, phi)), "output");
}

#[test]
fn blocks_of_other_forms_are_told_apart_and_come_back() {
    let bare = BlockForm::new(3, 5, Activation::Gelu);
    let norm = |kind, epsilon| Some(Norm { kind, epsilon, gain: true, shift: true });
    let block = |form: BlockForm| Block::with_form(&form, &mut Init::he(3)).expect("a block");
    let pre = |form: BlockForm| block(BlockForm { pre_norm: norm(NormKind::Layer, 1e-5), ..form });
    let first = [
        pre(bare),
        block(BlockForm { pre_norm: norm(NormKind::Rms, 1e-5), ..bare }),
        block(BlockForm { pre_norm: norm(NormKind::Layer, 1e-6), ..bare }),
        pre(BlockForm { pre_activation: Activation::Relu, ..bare }),
        pre(BlockForm { activation: Activation::Silu, ..bare }),
    ];
    assert_told_apart(&first, "first");
    let second = [
        block(bare),
        block(BlockForm { skip: Skip::None, ..bare }),
        block(BlockForm { skip_scale: 1.5, ..bare }),
        block(BlockForm { branch_scale: BranchScale::Constant(0.1), ..bare }),
        block(BlockForm { post_activation: Activation::Relu, ..bare }),
        block(BlockForm { post_norm: Some(Norm { gain: false, shift: false, ..Norm::rms(1e-5) }), ..bare }),
        block(BlockForm { post_norm: Some(Norm { gain: false, shift: false, ..Norm::layer(1e-5) }), ..bare }),
    ];
    assert_told_apart(&second, "second");
    let plain = |norm| Norm { gain: false, shift: false, ..norm };
    let before_head = |norm, phi| {
        let head = Linear::with_init(3, 2, Activation::Identity, &mut Init::he(1)).expect("a layer");
        let norm = NormLayer::new(3, norm, phi).expect("a norm");
        Sequence::new([norm.into(), head.into()]).expect("a network")
    };
    let heads = [
        before_head(plain(Norm::layer(1e-5)), Activation::Identity),
        before_head(plain(Norm::layer(1e-6)), Activation::Identity),
        before_head(plain(Norm::rms(1e-5)), Activation::Identity),
        before_head(plain(Norm::rms(1e-5)), Activation::Relu),
    ];
    assert_told_apart(&heads, "layers.1.linear");

    let forms =
        [BlockForm::llama(8, 12), BlockForm::cait(8, 12, 0.1), BlockForm::resnet_v2(8, 12), BlockForm::rezero(8, 12)];
    let net = |seed| {
        let blocks = forms.map(|form| Block::with_form(&form, &mut Init::he(seed)).expect("a block"));
        Stack::from_blocks(blocks.into()).expect("a stack")
    };
    let (saved, mut restored) = (net(1), net(2));
    let file = Snapshot::new(&saved).to_bytes().expect("bytes");
    Checkpoint::from_bytes(&file).and_then(|checkpoint| checkpoint.restore(&mut restored)).expect("restored");
    assert_eq!(parameters_of(&restored), parameters_of(&saved));
}

#[test]
fn the_error_says_what_the_file_has() {
    let file = Snapshot::new(&block(Activation::Gelu, true)).to_bytes().expect("bytes");
    let restored = |mut net: Block| Checkpoint::from_bytes(&file).and_then(|c| c.restore(&mut net));
    let error = |layer: &str, expected: &str, found: &str| {
        let (layer, expected, found) = (layer.into(), expected.into(), found.into());
        Err(CheckpointError::Architecture { layer, expected, found }.into())
    };
    assert_eq!(restored(block(Activation::Gelu, true)), Ok(()));
    assert_eq!(restored(block(Activation::LeakyRelu(0.25), true)), error("first", "leaky_relu(0.25)", "gelu"));
    let plain = restored(block(Activation::Gelu, false));
    assert_eq!(plain, error("second", "identity", "identity + x"));
    let text = plain.expect_err("refused").to_string();
    assert_eq!(text, r#"second: expected "identity" after it, the file's network has "identity + x""#);
    // A wrong shape is told first: it may be quite another network.
    let other = Stage::block(&mut Rng::new(1), 3, 4, Activation::Relu, true, true).build_block();
    assert!(matches!(restored(other), Err(Error::Checkpoint(CheckpointError::Shape { .. }))));
}

/// What a file says goes with its tensors, whatever they are called now.
#[test]
fn the_architecture_follows_the_names() {
    let net = |phi| Stack::from_blocks(vec![block(Activation::Relu, true), block(phi, true)]).expect("a stack");
    let file = Snapshot::new(&net(Activation::Gelu)).to_bytes().expect("bytes");
    let second = || Checkpoint::from_bytes(&file).and_then(|c| c.strip_prefix("blocks.1.")).expect("names");
    let restored = |phi| second().restore_partial(&mut block(phi, true)).map(|leftovers| leftovers.unexpected.len());
    assert_eq!(restored(Activation::Gelu), Ok(4), "those of the first block");
    assert!(matches!(restored(Activation::Relu), Err(Error::Checkpoint(CheckpointError::Architecture { .. }))));
    let ignored = second().ignore_architecture().restore_partial(&mut block(Activation::Relu, true));
    assert_eq!(ignored.expect("restored").missing.len(), 0);
}

#[test]
fn a_file_that_says_nothing_of_its_architecture_fits_any() {
    let entries = |strings: &str| {
        let bytes = written(&tensors());
        let start = data_start(&bytes);
        let header = String::from_utf8(bytes[8..start].to_vec()).expect("a header");
        file(&header.replacen('{', &format!("{{{strings}"), 1), &bytes[start..])
    };
    let metadata = |text: &str| entries(&format!(r#""__metadata__":{{"resblock.architecture":"{text}"}},"#));
    let restored = |bytes: &[u8], phi, skip| {
        let (first, second) = (counted().first().clone(), counted().second().clone());
        let mut block = Block::new(first, second, phi, skip).expect("a block");
        Checkpoint::from_bytes(bytes).and_then(|c| c.restore(&mut block))
    };
    for silent in ["", ";", "first", "third gelu", "first;second", "{}", "\\u0000", "; ; ;"] {
        assert_eq!(restored(&metadata(silent), Activation::Gelu, Skip::None), Ok(()), "{silent:?}");
    }
    assert_eq!(restored(&entries(""), Activation::Tanh, Skip::None), Ok(()));
    // An activation that this version does not know is not this network's.
    for other in ["first mish", "first gelu_tanh; second identity", "second identity + x", "first GELU"] {
        assert!(restored(&metadata(other), Activation::Gelu, Skip::None).is_err(), "{other:?}");
    }
}

/// Replaces the one place where `from` is in `bytes` by `to`, of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    let mut bytes = bytes.to_vec();
    assert_eq!(places.len(), 1, "{from}");
    bytes[places[0]..][..to.len()].copy_from_slice(to.as_bytes());
    bytes
}

fn resumed(bytes: &[u8]) -> Result<(), Error> {
    let (mut block, mut adam) = (counted(), adam());
    let before = self::bytes(&block, &adam);
    let result = Checkpoint::from_bytes(bytes)?.resume(&mut block, &mut adam);
    assert!(result.is_ok() || self::bytes(&block, &adam) == before, "parameters or optimiser were touched");
    result
}

#[test]
fn an_optimisers_tensors_are_checked_as_well() {
    let good = training_file();
    assert_eq!(resumed(&good), Ok(()));
    let missing = |tensor: &str| Err(CheckpointError::Missing { tensor: tensor.into() }.into());
    let without = Snapshot::new(&counted()).to_bytes().expect("bytes");
    assert_eq!(resumed(&without), missing("optimizer.adamw.lr"));
    assert_eq!(resumed(&bytes(&counted(), &Sgd::new(0.1, 0.9))), missing("optimizer.adamw.lr"));
    for name in ["beta2", "steps", "exp_avg.first.weight", "exp_avg_sq.second.bias"] {
        let name = format!("optimizer.adamw.{name}");
        let changed = replaced(&good, &format!("{name}\""), &format!("{}_\"", &name[..name.len() - 1]));
        assert_eq!(resumed(&changed), missing(&name));
    }
    let unexpected = written(&[tensors(), vec![("optimizer.other", "F32", "[]", vec![0; 4])]].concat());
    assert_eq!(attempt(&unexpected), Ok(()), "parameters alone leave an optimiser's tensors alone");

    // Counts of steps come first in the data, having the widest elements, in the order of their names.
    let data = data_start(&good);
    let counts = ["step.first.bias", "step.first.weight", "step.second.bias", "step.second.weight", "steps"];
    for (at, name) in counts.into_iter().enumerate() {
        let place = data + 8 * at;
        let mut negative = good.clone();
        assert_eq!(good[place..][..8], 3_i64.to_le_bytes());
        negative[place..][..8].copy_from_slice(&(-3_i64).to_le_bytes());
        let tensor = format!("optimizer.adamw.{name}");
        assert_eq!(resumed(&negative), Err(CheckpointError::Count { tensor, found: -3 }.into()));
    }
}

#[test]
fn files_without_counts_for_each_parameter_resume_as_they_did() {
    let good = training_file();
    let without = |lost: &str| {
        let kept = |name: &str| (!name.starts_with(lost)).then(|| name.to_string());
        let (mut block, mut adam) = (counted(), AdamW::new(1.0));
        let checkpoint = Checkpoint::from_bytes(&good).and_then(|c| c.map_names(kept)).expect("a file");
        checkpoint.resume(&mut block, &mut adam).map(|()| bytes(&block, &adam))
    };
    // A file of before has one count, which every parameter has had.
    assert!(without("optimizer.adamw.step.").is_ok());
    assert_eq!(without("optimizer.adamw.step."), without("no such tensor"));
    let tensor = "optimizer.adamw.step.first.weight";
    assert_eq!(without(tensor), Err(CheckpointError::Missing { tensor: tensor.into() }.into()));
}

#[test]
fn a_declined_parameters_count_is_saved_and_restored() {
    let (ctx, mut block, mut adam) = (fastest(), counted(), adam());
    let all = gradients_of(&block, &ones(&block));
    let mut some = all.clone();
    assert_eq!(some.decline(|name| name == Part::First.weight()), 1);
    for _ in 0..3 {
        adam.step(&ctx, &mut block, &some).expect("a step");
    }
    let saved = bytes(&block, &adam);
    let (mut other, mut resumed) = (counted(), AdamW::new(1.0));
    Checkpoint::from_bytes(&saved).and_then(|c| c.resume(&mut other, &mut resumed)).expect("resumed");
    for (net, optimizer) in [(&mut block, &mut adam), (&mut other, &mut resumed)] {
        optimizer.step(&ctx, net, &all).expect("a step");
    }
    assert_eq!(bytes(&block, &adam), bytes(&other, &resumed));
}

/// Gradients of one for every parameter.
fn ones(block: &Block) -> Vec<MapGrad<f32>> {
    let maps = [block.first(), block.second()];
    maps.map(|m| MapGrad { dw: vec![1.0; m.inputs() * m.outputs()], db: vec![1.0; m.outputs()] }).into()
}

#[test]
fn what_is_not_finite_is_refused_where_asked() {
    let good = training_file();
    assert!(Checkpoint::from_bytes(&good).and_then(Checkpoint::require_finite).is_ok());
    for (value, found) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut all = tensors();
        all[2].3[8..12].copy_from_slice(&value.to_le_bytes());
        let bytes = written(&all);
        let refused = Checkpoint::from_bytes(&bytes).and_then(Checkpoint::require_finite).err();
        let (tensor, found) = ("second.weight".into(), found.into());
        assert_eq!(refused, Some(CheckpointError::NotFinite { tensor, index: 2, found }.into()));
        assert_eq!(attempt(&bytes), Ok(()), "no one asked");
    }
}

// ------------------------------------------------------------------------------------------------- hostile files

#[test]
fn every_truncation_is_refused() {
    let good = training_file();
    for len in 0..good.len() {
        let error = attempt(&good[..len]).expect_err("refused");
        let Error::Checkpoint(CheckpointError::Length { expected, found }) = error else { panic!("{error:?}") };
        assert!(expected > len && found == len, "{len}: {error}");
    }
    let more = [&good[..], &[0]].concat();
    assert_refused(&more, CheckpointError::Length { expected: good.len(), found: more.len() });
    println!("proof: a truncated file is refused, and changes nothing | every length | {} files | ok", good.len());
}

/// What is not one of ours is said to be none, with its first bytes, whatever its first eight would be as a length.
#[test]
fn other_formats_are_recognised() {
    let long = |start: &[u8]| [start, &[0x5a; 100]].concat();
    let cases: [(&[u8], &str, &str); 28] = [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
            "version https://git-lfs",
            "git-lfs",
        ),
        (b"<!DOCTYPE html>\n<html><head>", "<!DOCTYPE html>\\n<html>", "HTML"),
        (b"\n\n<html lang=\"en\">", "\\n\\n<html lang=\\\"en", "HTML"),
        (b"<?xml version=\"1.0\"?><Error>", "<?xml", "XML"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "PK\\x03\\x04", "zip"),
        (b"PK\x03\x04\x14\x00\x00\x00{", "PK\\x03\\x04", "zip"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "\\x1f\\x8b", "gzip"),
        (b"BZh91AY&SY", "BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\0\0\x04", "\\xfd7zXZ", "xz"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "(\\xb5/\\xfd", "Zstandard"),
        (b"GGUF\x03\x00\x00\x00\x10\x01", "GGUF\\x03", "GGUF"),
        (b"{\"metadata\": {\"total_size\": 1}, \"weight_map\": {}}", "{\\\"metadata", "JSON"),
        (b"{\n  \"weight_map\": {}}", "{\\n", "JSON"),
        (b"{\"data\":{\"a\": 1}}", "{\\\"data", "JSON"),
        (b"{\"a\":  {\"b\":7}}", "{\\\"a", "JSON"),
        (b"\xef\xbb\xbf{\"a\": 1}", "\\xef\\xbb\\xbf{", "JSON"),
        (b"[1, 2, 3, 4, 5]", "[1, 2, 3", "JSON"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "\\x93NUMPY", "NumPy"),
        (b"\x89HDF\r\n\x1a\n\0", "\\x89HDF", "HDF5"),
        (b"\x80\x02}q\x00(X\x05\x00", "\\x80\\x02", "pickle"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00", "\\x80\\x04", "pickle"),
        (b"not such a file at all", "not such a file at all", ""),
        (b"PNG is another {thing}", "PNG is another", ""),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "\\x89PNG", ""),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", "\\x7fELF", ""),
        (&[0; 100], "\\x00\\x00", "zeros"),
        (&[0; 8], "\\x00\\x00", "zeros"),
        (&[0xff; 100], "\\xff\\xff", ""),
    ];
    for (start, begins, format) in cases {
        let texts = [start.to_vec(), if start.starts_with(&[0]) { start.to_vec() } else { long(start) }];
        for bytes in texts {
            let Err(Error::Checkpoint(error)) = attempt(&bytes) else { panic!("{begins}: no error") };
            let text = error.to_string();
            assert!(matches!(error, CheckpointError::Header { .. }), "{text}");
            assert!(text.contains("not a safetensors file"), "{text}");
            assert!(text.contains(&format!("begins with \"{begins}")) && text.contains(format), "{text}");
            assert!(text.len() < 300, "{text}");
        }
    }
    // What may be the first bytes of one of ours is taken for that.
    for start in [&b""[..], b"{}", b"hi", b"\x10\0\0\0\0\0\0"] {
        assert_refused(start, CheckpointError::Length { expected: 8, found: start.len() });
    }
    assert!(attempt(b"hello\n").expect_err("refused").to_string().contains("\"hello\\n\""));
}

#[test]
fn a_header_longer_than_the_file_is_refused() {
    for (len, expected) in [(10, 18), (1 << 20, (1 << 20) + 8), (u64::MAX, usize::MAX), (u64::MAX - 7, usize::MAX)] {
        let bytes = [&len.to_le_bytes()[..], b"{}"].concat();
        assert_refused(&bytes, CheckpointError::Length { expected, found: 10 });
    }
}

#[test]
fn hostile_headers_are_refused() {
    let refused = |header: &str, data: &[u8]| match attempt(&file(header, data)) {
        Err(Error::Checkpoint(CheckpointError::Header { reason })) => reason,
        other => panic!("{header}: {other:?}"),
    };
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    // No JSON, or another kind of it.
    for header in
        ["", "{", "null", "[]", "7", "{}{}", "\u{0}", "{\"a\":1}", "{\"a\":{}}", "{\"__metadata__\":{\"a\":1}}"]
    {
        refused(header, &[]);
    }
    refused(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), &[]);
    let nested = format!(r#"{{"a":{{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":{}}}}}"#, "[".repeat(100_000));
    refused(&nested, &[0; 4]);
    assert!(refused(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]).contains("duplicate field"));
    assert!(matches!(
        attempt(&[&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        Err(Error::Checkpoint(CheckpointError::Header { .. }))
    ));
    // Types, shapes and places that cannot be.
    for header in [
        r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}"#,
    ] {
        refused(header, &[0; 4]);
    }
    for (shape, start, end) in [
        ("[2]", 0, 4),                        // shorter than its shape
        ("[1]", 0, 8),                        // longer
        ("[1]", 4, 0),                        // backwards
        ("[1]", 4, 8),                        // a gap before it
        ("[1]", u64::MAX - 3, u64::MAX),      // far away
        ("[18446744073709551615]", 0, 4),     // a size that overflows
        ("[4294967296,4294967296]", 0, 4),    // a product that does
        ("[4611686018427387904]", 0, 4),      // in bits
        ("[0,18446744073709551615,2]", 0, 4), // nothing at all, but there are data
    ] {
        refused(&format!("{{{}}}", tensor("a", shape, start, end)), &[0; 8]);
    }
    for (start, end) in [(0, 4), (2, 6), (3, 7), (5, 9)] {
        // The same place, overlaps, a gap.
        refused(&format!("{{{},{}}}", tensor("a", "[1]", 0, 4), tensor("b", "[1]", start, end)), &[0; 9]);
    }
}

/// Sizes whose sum is just below 2^64, so that adding the header's overflows: the parser of the safetensors crate panics at these,
/// in builds that check.
#[test]
#[cfg(target_pointer_width = "64")]
fn sizes_that_add_up_to_more_than_there_is_are_refused() {
    let (eighth, mut start) = (usize::MAX / 8, 0_usize);
    let mut entries = Vec::new();
    let mut tensor = |name: String, len: usize| {
        entries.push(format!(r#""{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{}]}}"#, start + len));
        start += len;
    };
    (0..8).for_each(|i| tensor(i.to_string(), eighth));
    tensor("rest".into(), 7);
    assert_eq!(start, usize::MAX);
    let bytes = file(&format!("{{{}}}", entries.join(",")), &[]);
    assert_refused(&bytes, CheckpointError::Length { expected: usize::MAX, found: bytes.len() });
}

/// Counts the largest piece of memory that this thread asks for.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; this one looks at sizes and passes on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        // A thread that ends has no such variable any more, and is not watched.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// Reads hostile bytes: no panic, and memory in proportion to them.
fn assert_harmless(bytes: &[u8]) {
    LARGEST.set(0);
    if let Ok(checkpoint) = Checkpoint::from_bytes(bytes) {
        let _ = checkpoint.require_finite();
    }
    let largest = LARGEST.get();
    assert!(largest <= 4096 + 64 * bytes.len(), "{largest} bytes were asked for, by {} bytes", bytes.len());
    let _ = attempt(bytes);
}

#[test]
fn a_header_cannot_ask_for_memory() {
    let n = 1_u64 << 40;
    for header in [
        format!(r#"{{"a":{{"dtype":"F32","shape":[{n}],"data_offsets":[0,{}]}}}}"#, 4 * n),
        format!(r#"{{"a":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}}}"#),
        format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(10_000)),
    ] {
        assert_harmless(&file(&header, &[0; 4]));
    }
    assert_harmless(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat());
}

/// A change to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
    /// A decimal digit: sizes and offsets that remain numbers.
    Digit(prop::sample::Index, u8),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            _ if bytes.is_empty() => {}
            Damage::Flip(at, bits) => *at.get_mut(bytes) ^= bits,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Insert(at, more) => drop(bytes.splice(at.index(bytes.len()).., more.iter().copied())),
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                drop(bytes.splice(to..to, piece));
            }
            Damage::Digit(at, digit) => {
                let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    bytes[*at.get(&digits)] = b'0' + digit;
                }
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    use prop::sample::Index;
    prop_oneof![
        4 => (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        4 => (any::<Index>(), 0..10_u8).prop_map(|(at, digit)| Damage::Digit(at, digit)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, m)| Damage::Insert(at, m)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

/// `PROPTEST_CASES` sets how many.
#[test]
fn damaged_files_break_nothing() {
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::default() };
    let (cases, good) = (config.cases, training_file());
    let damages = (prop::collection::vec(damage(), 1..5), any::<bool>());
    let result = TestRunner::new(config).run(&damages, |(damages, header_only)| {
        let mut bytes = good.clone();
        // In the header there is more to break.
        let tail = if header_only { bytes.split_off(data_start(&bytes)) } else { Vec::new() };
        damages.iter().for_each(|damage| damage.apply(&mut bytes));
        bytes.extend(tail);
        assert_harmless(&bytes);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    println!(
        "proof: a damaged file changes nothing, or is one that fits | bytes flipped, cut, inserted, repeated, digits changed | \
         {cases} files | ok"
    );
}

proptest! {
    #[test]
    fn noise_breaks_nothing(noise in prop::collection::vec(any::<u8>(), 0..200), fitting: bool) {
        let noise = if fitting { file(&String::from_utf8_lossy(&noise), &[]) } else { noise };
        assert_harmless(&noise);
    }
}
