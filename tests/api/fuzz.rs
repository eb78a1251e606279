//! What fuzzing found (`.ci/fuzz`), each as an ordinary test.

use crate::common::{self, Map, Rng, Stage, contexts, fastest, pool};
use resblock::{
    Activation, AdamW, Blocking, Context, Error, GradMode, GradientFlow, Gradients, Layer, MatMut, MatRef, Optimizer,
    Par, Sgd, Workspace, mean_squared_error,
};

/// Most rows that a matrix without columns may have: with a panel of 16 floats for each they fill the address range.
const MOST: usize = isize::MAX as usize / 64;

/// `n` times the same row.
fn repeated(row: &[f32], n: usize) -> MatRef<'_> {
    MatRef::with_strides(row, n, row.len(), 0, 1).expect("a row, repeated")
}

/// `n` rows without columns.
fn empty<'a>(n: usize) -> MatMut<'a> {
    MatMut::with_strides(&mut [], n, 0, 0, 1).expect("an empty matrix")
}

/// A layer from `inputs` features to none.
fn sink(inputs: usize) -> impl Layer {
    let (mut rng, phi) = (Rng::new(1), Activation::Gelu);
    Stage::linear(&mut rng, inputs, 0, phi, true).build_linear()
}

#[test]
fn rows_that_leave_nothing_behind_are_not_counted_one_by_one() {
    let row = [1.0; 3];
    for ctx in contexts() {
        for n in [MOST / 1000, MOST - 1, MOST] {
            let mut ws = Workspace::new();
            assert_eq!(sink(3).infer(&ctx, &mut ws, repeated(&row, n), empty(n)), Ok(()));
            assert_eq!(sink(0).infer(&ctx, &mut ws, repeated(&[], n), empty(n)), Ok(()));
        }
        for n in [MOST + 1, usize::MAX] {
            let found = sink(3).infer(&ctx, &mut Workspace::new(), repeated(&row, n), empty(n)).err();
            assert!(matches!(found, Some(Error::Overflow { .. })), "{n} rows: {found:?}");
        }
    }
}

#[test]
fn a_record_of_more_rows_than_memory_holds_is_refused() {
    let (row, mut ws) = ([1.0; 3], Workspace::new());
    for n in [MOST + 1, usize::MAX] {
        let found = sink(3).forward(&fastest(), &mut ws, repeated(&row, n), empty(n)).err();
        assert!(matches!(found, Some(Error::Overflow { operand: "batch", .. })), "{found:?}");
    }
}

#[test]
fn a_network_without_any_width_is_differentiated_for_any_number_of_rows() {
    let (layer, n) = (sink(0), MOST);
    for mode in [GradMode::Overwrite, GradMode::Accumulate] {
        let (mut ws, mut flow) = (Workspace::new(), GradientFlow::new());
        let mut grads = Gradients::new(&layer).expect("gradients");
        let pass = layer.forward(&fastest(), &mut ws, repeated(&[], n), empty(n)).expect("forward");
        let dx = Some(empty(n));
        assert_eq!(pass.backward_probed(repeated(&[], n), dx, &mut grads, mode, &mut flow), Ok(()));
        assert_eq!(flow.norms(), [0.0]);
    }
}

#[test]
fn row_blocks_of_any_batch_are_found_without_overflow() {
    // On two threads, an odd number of blocks of one row, the largest there is, is made even.
    let (d, h) = (3, 5);
    let mut rng = Rng::new(2);
    let map = |rng: &mut Rng, inputs, outputs| Map::random(rng, inputs, outputs, true);
    let block =
        Stage::Block { first: map(&mut rng, d, h), second: map(&mut rng, h, d), phi: Activation::Relu, skip: true };
    let stages = [block, Stage::Linear { map: map(&mut rng, d, 0), phi: Activation::Identity, skip: false }];
    let input = Stage::linear(&mut rng, d, d, Activation::Identity, true);
    let [block, output] = stages;
    let layer = common::build_stack(&[input, block, output]);
    for rows in [0, 1, 7, usize::MAX] {
        let blocking = Blocking { rows, ..Blocking::default() };
        let call = |ctx: Context| layer.infer(&ctx, &mut Workspace::new(), repeated(&[1.0; 3], MOST), empty(MOST));
        let ctx = fastest().with_blocking(blocking).with_par(Par::Rayon(0));
        assert_eq!(pool(2).install(|| call(ctx)), Ok(()));
    }
}

#[test]
fn the_squared_error_of_no_elements_is_found_at_once() {
    let (y, target) = (repeated(&[], usize::MAX), repeated(&[], usize::MAX));
    assert_eq!(mean_squared_error(y, target, Some(empty(usize::MAX))), Ok(0.0));
}

/// The optimiser took moments for those of another network whose panels are as long.
#[test]
fn moments_of_a_network_with_panels_of_the_same_length_are_refused() {
    fn check(mut optimiser: impl Optimizer) {
        let mut rng = Rng::new(3);
        let mut linear = |outputs| Stage::linear(&mut rng, 3, outputs, Activation::Relu, false).build_linear();
        let (mut layer, mut other) = (linear(5), linear(7));
        let grads = Gradients::new(&layer).expect("gradients");
        assert_eq!(optimiser.step(&fastest(), &mut layer, &grads), Ok(()));
        let grads = Gradients::new(&other).expect("gradients");
        let refused = Err(Error::Mismatch { operand: "optimiser state", tensor: "linear.weight".into() });
        assert_eq!(optimiser.step(&fastest(), &mut other, &grads), refused);
    }
    check(Sgd::new(0.1, 0.9));
    check(AdamW::new(0.1));
}
