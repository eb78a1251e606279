//! Corners that no other test looks into: each was found by a change of the code that nothing else noticed.

mod common;

use common::{ACTIVATIONS, Grid, Layout, Rng, Stage, assert_same, contexts, mat, mat_mut, oracle_forward};
use resblock::{Activation, Affine, Blocking, Context, Layer, Linear, Par, Workspace, mean_squared_error};

#[test]
fn the_mean_of_squares_is_over_all_elements() {
    // Of a 2 x 2 case, rows + columns are as many as rows * columns.
    let mut d = [0.0; 6];
    let (y, target) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 2.0, 3.0, 4.0, 5.0, 9.0]);
    let loss = mean_squared_error(mat(&y, 2, 3), mat(&target, 2, 3), Some(mat_mut(&mut d, 2, 3)));
    assert_eq!(loss, Ok(10.0 / 6.0));
    assert_eq!(d, [(1.0 / 3.0) as f32, 0.0, 0.0, 0.0, 0.0, -1.0]);
}

#[test]
fn an_output_whose_rows_lie_as_those_of_a_panel_keeps_its_gaps() {
    // 16 floats from row to row, as in a panel, but the last of them are not ours.
    let mut rng = Rng::new(1);
    let (n, inputs, outputs) = (7, 5, 11);
    for phi in ACTIVATIONS {
        let stage = Stage::linear(&mut rng, inputs, outputs, phi, true);
        let x = rng.vec(n * inputs);
        let want = oracle_forward(std::slice::from_ref(&stage), n, &x, None).pop().expect("a stage").y;
        let layer = stage.build_linear();
        for ctx in contexts() {
            let mut y = Grid::new(Layout::Padded(16 - outputs), n, outputs);
            layer.infer(&ctx, &mut Workspace::new(), mat(&x, n, inputs), y.view_mut()).expect("infer");
            assert_same(format_args!("{} {ctx:?}", phi.name()), &y.values(), &want);
            y.assert_canaries(phi.name());
        }
    }
}

#[test]
fn norms_do_not_count_the_padding_of_a_second_panel() {
    let map = Affine::new(mat(&[1.0; 63], 21, 3), None).expect("a map");
    let mut layer = Linear::new(map, Activation::Identity);
    layer.affine_mut(0).expect("a map").weights_mut().as_mut_slice().fill(2.0);
    assert_eq!(layer.parameters().next().expect("weights").norm_squared(), 252.0);
}

#[test]
fn activations_have_names_of_their_own() {
    let names = ACTIVATIONS.map(Activation::name);
    assert_eq!(names, ["identity", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]);
}

#[test]
fn a_context_keeps_what_it_is_given() {
    let blocking = Blocking { rows: 3, hidden: 17, depth: 40 };
    let ctx = Context::new().expect("a context").with_par(Par::Rayon(3)).with_blocking(blocking);
    assert_eq!((ctx.blocking(), ctx.par()), (blocking, Par::Rayon(3)));
}
