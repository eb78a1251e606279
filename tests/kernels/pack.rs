//! Copies between matrices of any strides and panels: every element arrives in its place, and nothing else is written.

use crate::common::{CANARY, Grid, LAYOUTS, Layout, REPEATING, Rng, assert_same, contexts, mat};
use resblock::{Activation, Affine, Gradients, Layer, Linear, Weights, Workspace};

/// Sizes that cut panels, blocks of 16 x 16, vectors and groups of rows, or do not.
const SIZES: [usize; 11] = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 49];

fn shapes() -> impl Iterator<Item = (usize, usize)> {
    SIZES.into_iter().flat_map(|rows| SIZES.map(|cols| (rows, cols)))
}

/// Numbered, so that a copy to a wrong place is found.
fn numbers(len: usize) -> Vec<f32> {
    (1..=len).map(|i| i as f32).collect()
}

#[test]
fn a_layer_that_copies_its_input_does_so_in_any_strides_on_every_set() {
    for ctx in contexts() {
        let mut ws = Workspace::new();
        for (n, d) in shapes() {
            // W = I: each chain is 0 and one product with 1.
            let identity: Vec<f32> = (0..d * d).map(|k| f32::from(k / d == k % d)).collect();
            let map = Affine::new(mat(&identity, d, d), None).expect("a map");
            let layer = Linear::new(map, Activation::Identity);
            for from in LAYOUTS.into_iter().chain(REPEATING) {
                let x = Grid::of(from, n, d, &numbers(n * d));
                let mut y = Grid::new(Layout::Tight, n, d);
                layer.infer(&ctx, &mut ws, x.view(), y.view_mut()).expect("infer");
                assert_same(format_args!("{n} x {d} from {from:?}, {ctx:?}"), &y.values(), &x.values());
            }
            for to in LAYOUTS {
                let x = numbers(n * d);
                let mut y = Grid::new(to, n, d);
                layer.infer(&ctx, &mut ws, mat(&x, n, d), y.view_mut()).expect("infer");
                assert_same(format_args!("{n} x {d} to {to:?}, {ctx:?}"), &y.values(), &x);
                y.assert_canaries(format_args!("{n} x {d} to {to:?}, {ctx:?}"));
            }
        }
    }
}

#[test]
fn weights_are_copied_in_and_out_in_any_strides() {
    let mut rng = Rng::new(1);
    for (outputs, inputs) in shapes() {
        for from in LAYOUTS.into_iter().chain(REPEATING) {
            let w = Grid::of(from, outputs, inputs, &rng.wild(outputs * inputs, 9));
            let weights = Weights::new(w.view()).expect("weights");
            let mut overwritten = Weights::new(mat(&vec![0.5; outputs * inputs], outputs, inputs)).expect("weights");
            overwritten.read_from(w.view()).expect("the shape");
            for (weights, to) in [&weights, &overwritten].into_iter().flat_map(|w| LAYOUTS.map(|to| (w, to))) {
                let what = format_args!("{outputs} x {inputs} from {from:?} to {to:?}");
                let mut out = Grid::new(to, outputs, inputs);
                weights.write_to(out.view_mut()).expect("the shape");
                assert_same(what, &out.values(), &w.values());
                out.assert_canaries(what);
            }
            assert!((0..outputs * inputs).all(|k| {
                let found = weights.get(k / inputs, k % inputs);
                found.is_some_and(|found| crate::common::same(found, w.values()[k]))
            }));
        }
    }
}

#[test]
fn gradients_are_copied_in_and_out_in_any_strides() {
    for (outputs, inputs) in shapes() {
        let map = Affine::new(mat(&vec![0.5; outputs * inputs], outputs, inputs), None).expect("a map");
        let layer = Linear::new(map, Activation::Identity);
        let mut grads = Gradients::new(&layer).expect("gradients");
        for layout in LAYOUTS {
            let dw = Grid::of(layout, outputs, inputs, &numbers(outputs * inputs));
            assert_eq!(grads.set(layer.affine_name(0).weight(), dw.view()), Ok(true));
            let mut out = Grid::new(layout, outputs, inputs);
            grads.iter().next().expect("dW").write_to(out.view_mut()).expect("the shape");
            assert_same(format_args!("{outputs} x {inputs}, {layout:?}"), &out.values(), &dw.values());
            out.assert_canaries(format_args!("{outputs} x {inputs}, {layout:?}"));
        }
    }
}

#[test]
fn padding_is_not_written() {
    let mut layer = Linear::new(Affine::new(mat(&[1.0; 19 * 21], 19, 21), None).expect("a map"), Activation::Identity);
    layer.parameters_mut().next().expect("weights").into_slice().fill(f32::from_bits(CANARY));
    for layout in LAYOUTS {
        let weights = layer.affine_mut(0).expect("a map").weights_mut();
        weights.read_from(Grid::of(layout, 19, 21, &numbers(19 * 21)).view()).expect("the shape");
        // Panels of Wᵀ, 21 x 19: lines of 16 in the second one hold 3.
        for (k, value) in layer.parameters().next().expect("weights").as_slice().iter().enumerate() {
            let padding = k >= 21 * 16 && k % 16 >= 3;
            assert_eq!(value.to_bits() == CANARY, padding, "{layout:?}, place {k}");
        }
    }
}
