//! The same bits as the core crate's own functions; what is refused.

use crate::common::{Numbers, block, device, floats, forms, gradients, layer};
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor};
use resblock_burn::resblock::{
    self, AffineGradMut, AffineRef, BlockForm, Context, Draw, Dropout, Functional, GradMode, GradsMut, Keep, MatMut,
    MatRef, Par, ParamsRef, Record, Workspace, rows_of, rows_of_mut,
};
use resblock_burn::{Error, Formula, Fused};

/// y, dx and the gradients of parameters, in the order of [`gradients`].
type Results = (Vec<f32>, Vec<f32>, Vec<Option<Vec<f32>>>);

/// The same by the core crate, in training.
fn core(
    form: &BlockForm,
    layer: &Fused,
    (x, dy): (&[f32], &[f32]),
    ctx: &Context,
    keep: Keep,
) -> Result<Results, resblock::Error> {
    let functional = Functional::form(form)?.with_keep(keep)?;
    let n = x.len() / form.inputs;
    let maps: Vec<_> = layer
        .maps
        .iter()
        .map(|Linear { weight, bias }| {
            let bias = bias.as_ref().map(|bias| floats(bias.val()));
            (weight.val().dims(), floats(weight.val()), bias)
        })
        .collect();
    let mut learned = layer.vectors.iter().map(|vector| floats(vector.val()));
    let mut running = layer.running.iter().map(|average| floats(average.value()));
    let roles = form.tensors().map(|(name, _)| name.role);
    let roles = roles.filter(|role| !matches!(role, resblock::Role::Weight | resblock::Role::Bias));
    let learns: Vec<_> = roles.map(|role| role.is_learned()).collect();
    let vectors: Vec<_> =
        learns.iter().map(|&learns| if learns { learned.next() } else { running.next() }.expect("a vector")).collect();

    let affines: Vec<_> = maps
        .iter()
        .map(|([inputs, outputs], weight, bias)| {
            let weights = MatRef::new(weight, *inputs, *outputs)?.t();
            Ok(AffineRef { weights, bias: bias.as_deref() })
        })
        .collect::<Result<_, resblock::Error>>()?;
    let lines: Vec<_> = vectors.iter().map(Vec::as_slice).collect();
    let params = ParamsRef { affines: &affines, vectors: &lines };
    let (mut ws, mut record) = (Workspace::new(), Record::new());
    let (mut y, mut dx) = (vec![0.0; n * form.outputs], vec![0.0; x.len()]);
    let y_view = rows_of_mut(&mut y, form.outputs)?;
    functional.forward_to(ctx, &mut ws, params, rows_of(x, form.inputs)?, y_view, &mut record)?;

    let mut weights: Vec<_> = maps.iter().map(|(_, weight, _)| vec![0.0; weight.len()]).collect();
    let mut biases: Vec<_> = maps.iter().map(|(.., bias)| bias.as_ref().map(|bias| vec![0.0; bias.len()])).collect();
    let mut others: Vec<_> =
        vectors.iter().zip(&learns).map(|(vector, learns)| learns.then(|| vec![0.0; vector.len()])).collect();
    let mut affine_grads = maps
        .iter()
        .zip(weights.iter_mut().zip(&mut biases))
        .map(|(([inputs, outputs], ..), (weight, bias))| {
            let weights = Some(MatMut::new(weight, *inputs, *outputs)?.t());
            Ok(AffineGradMut { weights, bias: bias.as_deref_mut() })
        })
        .collect::<Result<Vec<_>, resblock::Error>>()?;
    let mut vector_grads: Vec<_> = others.iter_mut().map(|grad| grad.as_deref_mut()).collect();
    let grads = GradsMut { affines: &mut affine_grads, vectors: &mut vector_grads };
    let (dy, dx_view) = (rows_of(dy, form.outputs)?, Some(rows_of_mut(&mut dx, form.inputs)?));
    functional.backward(ctx, &mut ws, params, record.as_slice(), dy, dx_view, grads, GradMode::Overwrite)?;

    let maps = weights.into_iter().zip(biases).flat_map(|(weight, bias)| [Some(weight), bias]);
    let all = maps.chain(others).flatten().map(Some).collect();
    Ok((y, dx, all))
}

#[test]
fn the_bits_of_the_core() {
    let draw = Draw { seed: 3, step: 4, first_row: 5 };
    let drop = Dropout { hidden: 0.25, branch: 0.125, depth: 0.25 };
    let dropped = ("dropped", BlockForm { dropout: drop, ..BlockForm::gpt2(19, 37) });
    for (name, form) in forms(19, 37).into_iter().chain([dropped]) {
        for (par, keep) in [(Par::Seq, Keep::All), (Par::Rayon(2), Keep::All), (Par::Rayon(0), Keep::Inputs)] {
            let numbers = &mut Numbers::new(1);
            let layer = block(form, numbers).with_context(Context::new().unwrap().with_par(par));
            let layer = layer.with_keep(keep).unwrap();
            let x = numbers.tensor([29, 19], &device()).require_grad();
            let dy = numbers.tensor([29, form.outputs], &device());
            let ctx = Context::new().unwrap().with_draw(Some(draw));
            let expected = core(&form, &layer, (&floats(x.clone()), &floats(dy.clone())), &ctx, Keep::All).unwrap();

            let y = layer.forward_drawn(x.clone(), draw).unwrap();
            let grads = (y.clone() * dy).sum().backward();
            let dx = floats(x.grad(&grads).expect("dx"));
            assert_eq!((floats(y), dx, gradients(&layer, &grads)), expected, "{name}, {par:?}, {keep:?}");
        }
    }
}

#[test]
fn evaluation_has_one_result() {
    for (name, form) in forms(16, 24) {
        let numbers = &mut Numbers::new(2);
        let layer = block(form, numbers);
        let x = numbers.tensor([7, 16], &device());
        // Tracked, but frozen; and without a graph.
        let frozen = layer.clone().freeze().forward(x.clone().require_grad());
        let valid = layer.valid();
        let evaluated = valid.forward(x.clone().without_autodiff());
        assert!(frozen.is_tracked() && !evaluated.device().is_autodiff());
        let expected = floats(frozen);
        assert_eq!(floats(evaluated), expected, "{name}");
        for call in 2..4 {
            assert_eq!(floats(valid.forward(x.clone().without_autodiff())), expected, "{name}: packed, call {call}");
        }
    }
}

#[test]
fn parameters_that_change_are_seen() {
    let form = BlockForm::gpt2(8, 12);
    let numbers = &mut Numbers::new(8);
    let mut valid = block(form, numbers).valid();
    let x = numbers.tensor([4, 8], &Device::flex());
    let call = |valid: &Fused| floats(valid.forward(x.clone()));
    let before = call(&valid);
    assert_eq!([call(&valid), call(&valid)], [before.clone(), before.clone()]);
    // A weight that is changed in place as far as burn can: the packed copy holds the old one.
    valid.maps[0].weight = valid.maps[0].weight.clone().map(|w| w * 2.0);
    let expected = call(&valid.clone());
    assert_ne!(expected, before);
    assert_eq!([call(&valid), call(&valid), call(&valid)], [expected.clone(), expected.clone(), expected]);
}

#[test]
fn a_chain_has_the_bits_of_its_layers() {
    let numbers = &mut Numbers::new(3);
    let blocks: Vec<_> = forms(16, 24).into_iter().filter(|(_, form)| form.outputs == 16).collect();
    let layers: Vec<_> = blocks.iter().map(|(_, form)| block(*form, numbers)).collect();
    let x = numbers.tensor([5, 4, 16], &device()).require_grad();
    let y = layers.iter().fold(x.clone(), |y, layer| layer.forward(y));
    let chain = Fused::chain(layers.clone()).unwrap();
    let chained = chain.forward(x.clone());
    assert_eq!(floats(chained.clone()), floats(y.clone()));
    let (grads, chained_grads) = (y.square().sum().backward(), chained.square().sum().backward());
    assert_eq!(x.grad(&chained_grads).map(floats), x.grad(&grads).map(floats), "dx");
    let of_layers = |grads| layers.iter().flat_map(|layer| gradients(layer, grads)).collect::<Vec<_>>();
    assert_eq!(of_layers(&chained_grads), of_layers(&grads));
    assert_eq!(chain.names().next().map(|name| name.to_string()).as_deref(), Some("layers.0.first.weight"));
}

#[test]
fn masks_change_with_the_step_and_not_in_evaluation() {
    let drop = Dropout { hidden: 0.5, ..Default::default() };
    let form = BlockForm { dropout: drop, ..BlockForm::gpt2(8, 12) };
    let numbers = &mut Numbers::new(4);
    let layer = block(form, numbers).with_seed(7);
    let x = numbers.tensor([6, 8], &device());
    let [first, second] = [(); 2].map(|()| floats(layer.forward(x.clone())));
    assert_ne!(first, second);
    assert_eq!(layer.step(), 2);
    layer.set_step(0);
    assert_eq!(floats(layer.forward(x.clone())), first, "the same step again");
    let drawn = layer.forward_drawn(x.clone(), Draw { seed: 7, step: 1, first_row: 0 }).unwrap();
    assert_eq!(floats(drawn), second);
    let valid = layer.valid();
    let [first, second] = [(); 2].map(|()| floats(valid.forward(x.clone().without_autodiff())));
    assert_eq!(first, second);
}

#[test]
fn what_is_refused() {
    let form = BlockForm::gpt2(8, 12);
    let layer = block(form, &mut Numbers::new(5));
    let refused = |x: Tensor<2>| layer.try_forward(x).unwrap_err();
    let wrong = refused(Tensor::zeros([3, 9], &device()));
    assert_eq!(wrong, Error::Shape { operand: "x".into(), expected: "[.., 8]".into(), found: vec![3, 9] });
    assert_eq!(wrong.to_string(), "resblock: x: expected shape [.., 8], found [3, 9]");
    let wide = refused(Tensor::zeros([3, 8], (&device(), DType::F64)));
    assert_eq!(wide, Error::Type { operand: "x".into(), found: DType::F64 });

    let turned = layer.maps.iter().rev().cloned().collect();
    let shape = Fused::from_parts(&[form.into()], turned, layer.vectors.clone(), Vec::new()).unwrap_err();
    assert_eq!(shape.to_string(), "resblock: first.weight: expected shape [8, 12], found [12, 8]");
    let count = Fused::from_parts(&[form.into()], layer.maps.clone(), Vec::new(), Vec::new()).unwrap_err();
    assert_eq!(count, Error::Count { what: "vectors", expected: 2, found: 0 });
    assert!(matches!(Fused::chain(Vec::new()), Err(Error::Core(_))));
    let other = block(BlockForm::gpt2(9, 12), &mut Numbers::new(5));
    assert!(matches!(Fused::chain(vec![layer.clone(), other]), Err(Error::Core(resblock::Error::Shape { .. }))));

    let balanced = Device::flex().autodiff().gradient_checkpointing();
    let mixed = refused(Tensor::zeros([3, 8], &balanced));
    assert_eq!(mixed, Error::Checkpointing { operand: "first.weight".into() });
}

#[test]
#[should_panic(expected = "resblock: x: expected shape [.., 8], found [3, 9]")]
fn a_wrong_shape_panics_as_burns_own_modules_do() {
    let layer = block(BlockForm::gpt2(8, 12), &mut Numbers::new(6));
    layer.forward(Tensor::<2>::zeros([3, 9], &device()));
}

#[test]
fn long_chains() {
    let numbers = &mut Numbers::new(7);
    let formulas = |count| vec![Formula::Block(BlockForm::new(4, 4, resblock::Activation::Relu)); count];
    let x = numbers.tensor([2, 4], &device());
    let long = layer(&formulas(255), numbers, &device());
    let grads = long.forward(x.clone()).sum().backward();
    assert!(gradients(&long, &grads).iter().all(Option::is_some));
    let longer = layer(&formulas(257), numbers, &device());
    assert_eq!(longer.try_forward(x.clone()).unwrap_err(), Error::TooMany { most: 1024, found: 1028 });
    let valid = longer.valid();
    assert_eq!(valid.forward(x.without_autodiff()).dims(), [2, 4]);
}
