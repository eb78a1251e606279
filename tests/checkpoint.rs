//! Saved networks: the same bits come back, whatever the file holds it breaks nothing, and a run that goes on from a file has
//! the bits of one that never stopped.

mod common;

use common::{Rng, Stage, assert_same, build_stack, context, fastest, isas, mat, mat_mut, parameters_of, random_stack};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use resblock::{
    Activation, AdamW, Block, Checkpoint, CheckpointError, Context, Error, GradMode, Gradients, Layer, Linear,
    Optimizer, SavedOptimizer, Sgd, Snapshot, Stack, Workspace,
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
    assert_eq!(error, Error::Mismatch { operand: "optimiser state", index: 0 });
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
    let saved = Snapshot::new(&counted()).note("by hand").to_bytes().expect("bytes");
    let header = concat!(
        r#"{"__metadata__":{"note":"by hand"},"#,
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
    for found in ["I32", "U32"] {
        let mut all = tensors();
        all[1].1 = found;
        let (expected, found) = ("F32".into(), found.into());
        assert_refused(&written(&all), CheckpointError::Dtype { tensor: "first.bias".into(), expected, found });
    }
    let mut all = tensors();
    (all[1].1, all[1].3) = ("F16", vec![0; 6]);
    let (expected, found) = ("F32".into(), "F16".into());
    assert_refused(&written(&all), CheckpointError::Dtype { tensor: "first.bias".into(), expected, found });
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

    // Counts of steps come first in the data, having the widest elements.
    let data = data_start(&good);
    let mut negative = good.clone();
    assert_eq!(good[data..][..8], 3_i64.to_le_bytes());
    negative[data..][..8].copy_from_slice(&(-3_i64).to_le_bytes());
    let tensor = "optimizer.adamw.steps".to_string();
    assert_eq!(resumed(&negative), Err(CheckpointError::Count { tensor, found: -3 }.into()));
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
