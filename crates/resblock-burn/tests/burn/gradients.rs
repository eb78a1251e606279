//! Gradients of x and of every parameter against burn's own operations.

use crate::common::{Numbers, assert_close, block, device, floats, forms, gradients, layer, reference};
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData, activation};
use resblock_burn::resblock::{Activation, BlockForm, Norm};
use resblock_burn::{Formula, Fused};

/// A loss that weighs every element of y otherwise.
fn loss<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    let weights = Numbers::new(9).tensor(y.dims(), &device());
    (y.clone() * weights.cast(y.dtype())).sum()
}

/// That two results and the gradients of their losses agree.
fn compare<const D: usize, const E: usize>(what: &str, layer: &Fused, x: &Tensor<E>, y: Tensor<D>, wide: Tensor<D>) {
    assert_close(what, &floats(y.clone()), &floats(wide.clone().cast(DType::F32)));
    let (grads, wide_grads) = (loss(y).backward(), loss(wide).backward());
    let dx = |grads: &Gradients| floats(x.grad(grads).expect("dx"));
    assert_close(&format!("{what}: dx"), &dx(&grads), &dx(&wide_grads));
    for (at, pair) in gradients(layer, &grads).into_iter().zip(gradients(layer, &wide_grads)).enumerate() {
        match pair {
            (Some(found), Some(expected)) => assert_close(&format!("{what}: gradient {at}"), &found, &expected),
            (None, None) => {}
            (found, expected) => panic!("{what}: gradient {at}: {found:?} for {expected:?}"),
        }
    }
}

#[test]
fn every_form() {
    for (n, d, h) in [(1, 3, 5), (7, 17, 33), (40, 16, 8)] {
        for (name, form) in forms(d, h) {
            let numbers = &mut Numbers::new(n as u64);
            let layer = block(form, numbers).freeze().set_require_grad(true);
            let x = numbers.tensor([n, d], &device()).require_grad();
            let wide = reference(&layer, &form, x.clone(), false);
            compare(&format!("{name} of {n}x{d}x{h}"), &layer, &x, layer.forward(x.clone()), wide);
        }
    }
}

#[test]
fn batch_statistics() {
    for (name, form) in forms(12, 20) {
        let numbers = &mut Numbers::new(3);
        let layer = block(form, numbers);
        let x = numbers.tensor([50, 12], &device()).require_grad();
        let wide = reference(&layer, &form, x.clone(), true);
        compare(name, &layer, &x, layer.forward(x.clone()), wide);
    }
}

#[test]
fn linear_layers_and_norms() {
    let numbers = &mut Numbers::new(4);
    let linear = layer(&[Formula::linear(9, 5, Activation::Tanh)], numbers, &device());
    let x = numbers.tensor([2, 3, 9], &device()).require_grad();
    let expected = activation::tanh(linear.maps[0].forward(x.clone()));
    compare("linear", &linear, &x, linear.forward(x.clone()), expected);

    let norm = layer(&[Formula::norm(9, Norm::layer(1e-5))], numbers, &device());
    let mut own = burn::nn::LayerNormConfig::new(9).init(&device());
    (own.gamma, own.beta) = (norm.vectors[0].clone(), Some(norm.vectors[1].clone()));
    compare("norm", &norm, &x, norm.forward(x.clone()), own.forward(x.clone()));

    let rms = layer(&[Formula::norm(9, Norm::rms(1e-5))], numbers, &device());
    let mut own = burn::nn::RmsNormConfig::new(9).init(&device());
    own.gamma = rms.vectors[0].clone();
    compare("rms", &rms, &x, rms.forward(x.clone()), own.forward(x.clone()));
}

/// Rows of a tensor that is some view of `x`, through a block.
fn view<const D: usize, const E: usize>(what: &str, dims: [usize; D], view: fn(Tensor<D>) -> Tensor<E>) {
    for (kind, form) in [("bert", BlockForm::bert(8, 12)), ("llama", BlockForm::llama(8, 12))] {
        let numbers = &mut Numbers::new(5);
        let layer = block(form, numbers);
        let x = numbers.tensor(dims, &device()).require_grad();
        let seen = view(x.clone());
        let dims = seen.dims();
        let y = layer.forward(seen);
        // A view of its own: burn's backward pass takes its graph with it.
        let rows = view(x.clone()).reshape([dims.iter().product::<usize>() / 8, 8]);
        let wide = reference(&layer, &form, rows, false).reshape(dims);
        compare(&format!("{kind}, {what}"), &layer, &x, y, wide);
    }
}

#[test]
fn strided_inputs() {
    view("transposed", [8, 10], Tensor::t);
    view("narrowed", [10, 20], |t| t.narrow(1, 3, 8));
    view("swapped leading dimensions", [4, 5, 8], |t| t.swap_dims(0, 1));
    view("rows at one distance", [4, 5, 16], |t| t.narrow(2, 5, 8));
    view("broadcast rows", [1, 8], |t| t.expand([7, 8]));
    view("one feature over all", [6, 1], |t| t.expand([6, 8]));
    view("flipped rows", [6, 8], |t| t.flip([0]));
    view("flipped features", [6, 8], |t| t.flip([1]));
    view("flipped leading dimension", [3, 2, 8], |t| t.flip([0]));
    view("one vector", [8], |t| t);
}

#[test]
fn weights_of_other_strides() {
    let form = BlockForm::gpt2(6, 10);
    let numbers = &mut Numbers::new(6);
    let layer = block(form, numbers);
    let x = numbers.tensor([9, 6], &device()).require_grad();
    // The same values in memory of another order: by columns, and backwards.
    fn turned<const D: usize>(from: &Param<Tensor<D>>, turn: fn(Tensor<D>) -> Tensor<D>) -> Param<Tensor<D>> {
        let data = turn(from.val().without_autodiff()).into_data();
        Param::from_tensor(Tensor::from_inner(turn(Tensor::from_data(data, &Device::flex()))))
    }
    let [first, second] = &layer.maps[..] else { panic!("two maps") };
    let bias = |map: &Linear| map.bias.clone().expect("a bias");
    let maps = vec![
        Linear { weight: turned(&first.weight, Tensor::t), bias: Some(turned(&bias(first), |b| b.flip([0]))) },
        Linear { weight: turned(&second.weight, |w| w.flip([0, 1])), bias: Some(bias(second)) },
    ];
    let strided = Fused::from_parts(&[form.into()], maps, layer.vectors.clone(), Vec::new()).unwrap();
    let (y, same) = (layer.forward(x.clone()), strided.forward(x.clone()));
    assert_close("strided", &floats(same.clone()), &floats(y.clone()));
    let (grads, same_grads) = (loss(y).backward(), loss(same).backward());
    for (found, expected) in gradients(&strided, &same_grads).into_iter().zip(gradients(&layer, &grads)) {
        assert_close("strided gradient", &found.expect("tracked"), &expected.expect("tracked"));
    }
}

#[test]
fn several_consumers() {
    let form = BlockForm::gpt2(8, 12);
    let numbers = &mut Numbers::new(7);
    let layer = block(form, numbers);
    let x = numbers.tensor([6, 8], &device()).require_grad();
    // The same layer twice, its first result used three times, x used outside as well.
    let first = layer.forward(x.clone());
    let y = layer.forward(first.clone()) * first.clone() + first * x.clone();
    let first = reference(&layer, &form, x.clone(), false);
    let second = reference(&layer, &form, first.clone(), false);
    let wide = second * first.clone() + first * x.clone().cast(DType::F64);
    compare("twice", &layer, &x, y, wide);
}

#[test]
fn one_tensor_as_x_and_both_weights() {
    let form = BlockForm { biases: false, ..BlockForm::new(8, 8, Activation::Gelu) };
    let layer = block(form, &mut Numbers::new(8));
    let w = layer.maps[0].weight.clone();
    let maps = [&w, &w].map(|w| Linear { weight: w.clone(), bias: None });
    let layer = Fused::from_parts(&[form.into()], maps.into(), Vec::new(), Vec::new()).unwrap();
    let (y, wide) = (layer.forward(w.val()), reference(&layer, &form, w.val(), false));
    compare("one tensor", &layer, &w.val(), y, wide);
}

#[test]
fn untracked_parameters() {
    let form = BlockForm::bert(8, 12);
    let numbers = &mut Numbers::new(10);
    let full = block(form, numbers);
    let x = numbers.tensor([6, 8], &device());
    let tracked_x = x.clone().require_grad();
    let grads = loss(full.forward(tracked_x.clone())).backward();
    let (expected, expected_dx) = (gradients(&full, &grads), tracked_x.grad(&grads).map(floats));
    let count = expected.len();
    // Every choice of parameters that are tracked, with x tracked or not.
    for choice in 0..1 << (count + 1) {
        let is_tracked = |at: usize| choice & 1 << at != 0;
        let mut at = 0..count;
        let mut set = || at.next().is_some_and(is_tracked);
        let maps = full.maps.iter().map(|Linear { weight, bias }| Linear {
            weight: weight.clone().set_require_grad(set()),
            bias: bias.clone().map(|bias| bias.set_require_grad(set())),
        });
        let maps = maps.collect();
        let vectors = full.vectors.iter().map(|vector| vector.clone().set_require_grad(set())).collect();
        let layer = Fused::from_parts(&[form.into()], maps, vectors, Vec::new()).unwrap();
        let x = if is_tracked(count) { x.clone().require_grad() } else { x.clone() };
        let y = layer.forward(x.clone());
        if choice == 0 {
            assert!(!y.is_tracked());
            continue;
        }
        let grads = loss(y).backward();
        let expected_dx = expected_dx.clone().filter(|_| is_tracked(count));
        assert_eq!(x.grad(&grads).map(floats), expected_dx, "choice {choice:b}, dx");
        let expected = expected.iter().enumerate().map(|(at, grad)| grad.clone().filter(|_| is_tracked(at)));
        assert_eq!(gradients(&layer, &grads), expected.collect::<Vec<_>>(), "choice {choice:b}");
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    let form = BlockForm::llama(8, 12);
    let balanced = Device::flex().autodiff().gradient_checkpointing();
    let run = |device: &Device| {
        let numbers = &mut Numbers::new(11);
        let layer = layer(&[form.into()], numbers, device);
        let x = numbers.tensor([6, 8], device).require_grad();
        // Operations that are computed again, before and after.
        let y = activation::relu(layer.forward(activation::relu(x.clone()) * 2.0)).square();
        let grads = y.clone().sum().backward();
        (floats(y), x.grad(&grads).map(floats), gradients(&layer, &grads))
    };
    assert_eq!(run(&balanced), run(&device()));
}

#[test]
fn nan_rows_stay_in_their_rows() {
    for (name, form) in forms(8, 12).into_iter().filter(|(_, form)| !crate::common::has_batch_norm(form)) {
        let numbers = &mut Numbers::new(12);
        let layer = block(form, numbers);
        let mut values = floats(numbers.tensor([6, 8], &device()));
        values[2 * 8 + 3] = f32::NAN;
        let x = Tensor::<2>::from_data(TensorData::new(values, [6, 8]), &device()).require_grad();
        let y = layer.forward(x.clone());
        let outputs = y.dims()[1];
        let dx = floats(x.grad(&loss(y.clone()).backward()).expect("dx"));
        let nan = |values: &[f32], width: usize| -> Vec<usize> {
            let rows = values.chunks(width).enumerate();
            rows.filter(|(_, row)| row.iter().any(|v| v.is_nan())).map(|(row, _)| row).collect()
        };
        assert_eq!(nan(&floats(y), outputs), [2], "{name}");
        assert!(nan(&dx, 8).iter().all(|&row| row == 2), "{name}");
    }
}

#[test]
fn empty_batches() {
    let layer = block(BlockForm::gpt2(8, 12), &mut Numbers::new(13));
    let x = Tensor::<3>::zeros([0, 4, 8], &device()).require_grad();
    let y = layer.forward(x.clone());
    assert_eq!(y.dims(), [0, 4, 8]);
    let grads = y.sum().backward();
    assert_eq!(x.grad(&grads).expect("dx").dims(), [0, 4, 8]);
    for grad in gradients(&layer, &grads) {
        assert!(grad.expect("a gradient").iter().all(|v| *v == 0.0));
    }
}
