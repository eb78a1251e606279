//! Every public type may be sent to and shared by threads, and all but those that borrow mutably may be seen after a caught
//! panic: asserted when this file compiles.

use resblock::bounds::loss::LossAccuracy;
use resblock::bounds::{Accuracy, BackwardBounds, ForwardBounds, Map, MapBounds, NetworkBounds, Numbers, Running};
use resblock::reference::{
    BlockGrads, BlockOut, BlockParams, BlockTensors, FormOut, LinearGrads, LinearOut, MapTensors, NormOut, NormTensors,
    Statistics,
};
use resblock::{
    Activation, AdamW, Affine, AffineGradMut, AffineRef, BinaryCrossEntropy, Block, BlockForm, Blocking, BranchScale,
    Checkpoint, CheckpointError, Context, Convention, CrossEntropy, Divisor, Draw, Dropout, Error, Explanation,
    Formula, Functional, GradMode, GradientFlow, GradientSummary, Gradients, GradsMut, Group, Huber, Init, Isa,
    IsaList, Keep, KernelBench, Leftovers, Linear, Machine, MatMut, MatRef, Matrix, Node, Norm, NormKind, NormLayer,
    Par, ParamsRef, Part, Pass, Peak, Place, Purpose, RateDecay, Record, Role, Schedule, Scheme, Select, Sequence, Sgd,
    Skip, Snapshot, SquaredError, Stack, StackConfig, Stored, TensorInfo, TensorMut, TensorName, TensorRef, Vector,
    Weights, Workspace,
};
use std::panic::{RefUnwindSafe, UnwindSafe};

const fn crosses_threads<T: Send + Sync + RefUnwindSafe>() {}
const fn survives_panics<T: UnwindSafe>() {}

/// Asserts the traits, and keeps the names.
macro_rules! assert_traits {
    ($list:ident: $($type:ty),* ; $($bound:ident),*) => {
        const $list: &[&str] = &[$(stringify!($type)),*];
        const _: () = { assert_traits!(@each [$($type),*] [$($bound),*]); };
    };
    (@each [$($type:ty),*] $bounds:tt) => { $(assert_traits!(@one $type, $bounds);)* };
    (@one $type:ty, [$($bound:ident),*]) => { $($bound::<$type>();)* };
}

assert_traits!(VALUES:
    Activation, AdamW, Affine, AffineRef<'_>, Block, BlockForm, Blocking, BranchScale, Checkpoint<'_>, CheckpointError, Context, Error, GradMode,
    GradientFlow, Gradients, GradientSummary, Init, Isa, Snapshot<'_>, IsaList, KernelBench, Linear, Machine, MatRef<'_>, Matrix, Par, Part, Peak, Place, Role, TensorName, TensorRef<'_>, Group, Select, Schedule, RateDecay, Scheme, Sgd, Skip, Stack, StackConfig,
    Leftovers, TensorInfo<'_>, Weights, Workspace, Accuracy, BackwardBounds, ForwardBounds, Map, MapBounds, NetworkBounds, Numbers, Running, BlockGrads<f32>, BlockOut<f32>, BlockParams<'_, f32>, LinearGrads<f32>, LinearOut<f32>,
    BinaryCrossEntropy<'_>, CrossEntropy<'_>, Divisor, Huber, SquaredError, LossAccuracy,
    Convention, Draw, Dropout, Explanation, Formula, Functional, Keep, Node, Norm, NormKind, NormLayer, ParamsRef<'_>, Purpose, Record, Sequence, Vector,
    Stored, BlockTensors<f32>, FormOut<f32>, MapTensors<f32>, NormOut<f32>, NormTensors<f32>, Statistics;
    crosses_threads, survives_panics
);
assert_traits!(BORROWS: AffineGradMut<'_>, GradsMut<'_, '_>, MatMut<'_>, TensorMut<'_>, Pass<'_, Linear>, Pass<'_, Block>, Pass<'_, Stack>, Pass<'_, Sequence>; crosses_threads);

/// The types of the public API, by the list that `.ci/api` holds it to.
fn exported() -> Vec<String> {
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/public-api.txt");
    let list = std::fs::read_to_string(list).expect("the list of the public API");
    let types = list.lines().filter_map(|line| line.split_once("pub struct ").or_else(|| line.split_once("pub enum ")));
    types.filter_map(|(_, path)| Some(path.split('<').next()?.rsplit("::").next()?.to_string())).collect()
}

#[test]
fn no_exported_type_is_left_out() {
    let exported = exported();
    assert!(exported.len() > 40, "the list is read: {exported:?}");
    for name in &exported {
        let asserted = VALUES.iter().chain(BORROWS).any(|ty| ty.split('<').next() == Some(name));
        assert!(asserted, "{name} is exported: assert its auto traits here");
    }
    let cases = VALUES.len() + BORROWS.len();
    println!(
        "proof: public types are Send, Sync and unwind-safe | tests/api/auto_traits.rs, as it compiles | {cases} | ok"
    );
}
