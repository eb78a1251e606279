//! Views: rows of slices, owned matrices, reversed axes, and arrays of `ndarray`, as inputs, outputs, weights and gradients.

use crate::common::{Rng, assert_same, contexts, mat, mat_mut};
use ndarray::{Array2, ArrayView2, Axis, ShapeBuilder, s};
use proptest::prelude::*;
use resblock::{
    Activation, AffineGradMut, AffineRef, Error, Functional, GradMode, MatMut, MatRef, Matrix, Skip, Workspace,
    rows_of, rows_of_mut,
};

/// The elements of a view, row by row.
fn values(m: MatRef<'_>) -> Vec<f32> {
    (0..m.rows()).flat_map(|i| (0..m.cols()).filter_map(move |j| m.get(i, j))).collect()
}

#[test]
fn rows_are_as_many_as_the_slice_has() {
    let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    assert_eq!(rows_of(&x, 3).map(|m| m.shape()), Ok((2, 3)));
    assert_eq!(rows_of(&x, 6).map(values), Ok(x.to_vec()));
    assert_eq!(rows_of(&x, 4).err(), Some(Error::Length { operand: "data", expected: 4, found: 6 }));
    assert_eq!(rows_of(&x, 7).err(), Some(Error::Length { operand: "data", expected: 0, found: 6 }));
    assert_eq!(rows_of(&x, 0).err(), Some(Error::Length { operand: "data", expected: 0, found: 6 }));
    assert_eq!(rows_of(&[], 0).map(|m| m.shape()), Ok((0, 0)));
    assert_eq!(rows_of(&[], 5).map(|m| m.shape()), Ok((0, 5)));
    assert!(rows_of_mut(&mut x, 2).is_ok_and(|mut m| m.set(2, 1, 9.0)));
    assert_eq!(x[5], 9.0);
    assert_eq!(
        rows_of_mut(&mut x, 4).map(|m| m.shape()).err(),
        Some(Error::Length { operand: "data", expected: 4, found: 6 })
    );
}

#[test]
fn an_owned_matrix_is_its_rows() {
    let mut m = Matrix::from_fn(3, 2, |i, j| (10 * i + j) as f32).expect("a matrix");
    assert_eq!((m.shape(), m.row(2), m.row(3)), ((3, 2), Some(&[20.0, 21.0][..]), None));
    assert_eq!((m.get(1, 1), m.get(1, 2), m.get(3, 0)), (Some(11.0), None, None));
    m.row_mut(0).expect("a row")[1] = 5.0;
    m.as_mut_slice()[0] = 4.0;
    assert!(m.view_mut().set(2, 0, 7.0));
    assert_eq!(values(m.view()), [4.0, 5.0, 10.0, 11.0, 7.0, 21.0]);
    assert_eq!(m.clone(), Matrix::from_vec(m.as_slice().to_vec(), 3, 2).expect("a matrix"));
    assert_eq!(m.into_vec().len(), 6);
    assert_eq!(Matrix::from_vec(vec![0.0; 5], 3, 2), Err(Error::Length { operand: "data", expected: 6, found: 5 }));
    assert!(matches!(Matrix::zeros(usize::MAX, 2), Err(Error::Overflow { .. })));
    assert!(matches!(Matrix::from_vec(vec![], usize::MAX, 2), Err(Error::Overflow { .. })));
    assert_eq!(Matrix::zeros(0, 4).map(|m| (m.shape(), m.row(0).is_some())), Ok(((0, 4), false)));
    assert_eq!(Matrix::from_fn(4, 0, |_, _| 0.0).map(|m| m.row(3).map(<[f32]>::len)), Ok(Some(0)));
}

/// Turns an array about: neither, one or both axes reversed, and exchanged.
fn turned(mut view: ArrayView2<'_, f32>, (rows, cols, swap): (bool, bool, bool)) -> ArrayView2<'_, f32> {
    if swap {
        view.swap_axes(0, 1);
    }
    for (axis, reverse) in [(0, rows), (1, cols)] {
        if reverse {
            view.invert_axis(Axis(axis));
        }
    }
    view
}

proptest! {
    #[test]
    fn arrays_are_seen_as_they_are(
        rows in 0..9_usize, cols in 0..9_usize, columns_first: bool, turn: (bool, bool, bool), at in 0..4_usize,
    ) {
        let array = Array2::from_shape_fn((rows, cols).set_f(columns_first), |(i, j)| (100 * i + j) as f32);
        let view = turned(array.view(), turn);
        let want: Vec<f32> = view.iter().copied().collect();
        let seen = MatRef::try_from(view).expect("no gaps");
        prop_assert_eq!(seen.shape(), view.dim());
        prop_assert_eq!(values(seen), &want[..]);
        prop_assert_eq!(values(seen.t()), view.t().iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(Matrix::try_from(view).expect("a copy").into_vec(), &want[..]);
        // Broadcast: one row or column again and again.
        if rows > 0 && cols > 0 {
            let row = array.row(at % rows);
            if let (Some(many), false) = (row.broadcast((5, cols)), columns_first) {
                prop_assert_eq!(values(MatRef::try_from(many).expect("no gaps")), many.iter().copied().collect::<Vec<_>>());
            }
        }
        let mut array = Array2::<f32>::zeros((rows, cols).set_f(columns_first));
        let mut out = array.view_mut();
        if turn.0 { out.invert_axis(Axis(0)); }
        if turn.1 { out.invert_axis(Axis(1)); }
        if turn.2 { out.swap_axes(0, 1); }
        let shape = out.dim();
        let mut seen = MatMut::try_from(out.view_mut()).expect("no gaps");
        prop_assert_eq!(seen.shape(), shape);
        for i in 0..shape.0 {
            for j in 0..shape.1 {
                prop_assert!(seen.set(i, j, (100 * i + j) as f32));
            }
        }
        prop_assert!(out.indexed_iter().all(|((i, j), &v)| v == (100 * i + j) as f32));
    }

    /// Functional calls on reversed and exchanged operands of all kinds have the bits of those on plain ones.
    #[test]
    fn reversed_operands_give_the_bits_of_plain_ones(turns: [(bool, bool, bool); 6], n in 1..20_usize, d in 1..40_usize, h in 1..40_usize) {
        let mut rng = Rng::new(7);
        let net = Functional::block(d, h, d, Activation::Gelu, Skip::Identity).expect("a block");
        let plain = [(n, d), (h, d), (d, h), (n, d)].map(|(rows, cols)| rng.vec(rows * cols));
        let shapes = [(n, d), (h, d), (d, h), (n, d)];
        for ctx in contexts() {
            // What lies in memory such that, turned, it is the plain matrix.
            let stored: Vec<Array2<f32>> = (0..4).map(|i| {
                let plain = ArrayView2::from_shape(shapes[i], &plain[i]).expect("an array");
                let (rows, cols, swap) = turns[i];
                let turned = turned(plain, (rows, cols, false));
                if swap { turned.t().to_owned() } else { turned.to_owned() }
            }).collect();
            let views: Vec<MatRef<'_>> = (0..4).map(|i| {
                let (rows, cols, swap) = turns[i];
                let mut view = stored[i].view();
                if swap { view.swap_axes(0, 1); }
                MatRef::try_from(turned(view, (rows, cols, false))).expect("no gaps")
            }).collect();
            for i in 0..4 {
                prop_assert_eq!(values(views[i]), &plain[i][..]);
            }
            let run = |x: MatRef<'_>, w1: MatRef<'_>, w2: MatRef<'_>, dy: MatRef<'_>, turn: [(bool, bool); 2]| {
                let params = [w1, w2].map(|weights| AffineRef { weights, bias: None });
                let mut ws = Workspace::new();
                let (mut y, mut dw) = (vec![0.0; n * d], vec![0.0; h * d]);
                let mut record = vec![0.0; net.record_len(n).expect("a length")];
                let flip = |m: MatMut<'_>, (rows, cols): (bool, bool)| -> () {
                    let m = if rows { m.reversed_rows() } else { m };
                    let m = if cols { m.reversed_cols() } else { m };
                    net.forward(&ctx, &mut Workspace::new(), &params, x, m, &mut vec![0.0; record.len()]).expect("forward");
                };
                flip(mat_mut(&mut y, n, d), turn[0]);
                net.forward(&ctx, &mut ws, &params, x, mat_mut(&mut vec![0.0; n * d], n, d), &mut record).expect("forward");
                let view = mat_mut(&mut dw, h, d);
                let view = if turn[1].0 { view.reversed_rows() } else { view };
                let view = if turn[1].1 { view.reversed_cols() } else { view };
                let mut grads = [AffineGradMut { weights: Some(view), bias: None }, AffineGradMut::default()];
                net.backward(&ctx, &mut ws, &params, &record, dy, None, &mut grads, GradMode::Overwrite).expect("backward");
                let y = turned(ArrayView2::from_shape((n, d), &y).expect("an array"), (turn[0].0, turn[0].1, false));
                let dw = turned(ArrayView2::from_shape((h, d), &dw).expect("an array"), (turn[1].0, turn[1].1, false));
                (y.iter().copied().collect::<Vec<_>>(), dw.iter().copied().collect::<Vec<_>>())
            };
            let of = |i: usize| mat(&plain[i], shapes[i].0, shapes[i].1);
            let want = run(of(0), of(1), of(2), of(3), [(false, false); 2]);
            let got = run(views[0], views[1], views[2], views[3], [(turns[4].0, turns[4].1), (turns[5].0, turns[5].1)]);
            assert_same("y", &got.0, &want.0);
            assert_same("dW", &got.1, &want.1);
        }
    }
}

#[test]
fn arrays_with_gaps_are_refused_and_can_be_copied() {
    let mut array = Array2::from_shape_fn((4, 6), |(i, j)| (10 * i + j) as f32);
    let gaps = array.slice(s![.., ..3]);
    assert!(matches!(MatRef::try_from(gaps), Err(Error::Setting { operand: "array", .. })));
    assert_eq!(Matrix::try_from(gaps).expect("a copy").row(1), Some(&[10.0, 11.0, 12.0][..]));
    assert_eq!(
        MatRef::try_from(array.slice(s![1..3, ..])).map(values),
        Ok(array.slice(s![1..3, ..]).iter().copied().collect())
    );
    assert_eq!(MatRef::try_from(array.row(2)).map(|m| m.shape()), Ok((1, 6)));
    assert!(MatMut::try_from(array.slice_mut(s![.., ..;2])).is_err());
}
