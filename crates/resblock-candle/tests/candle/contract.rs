//! The same bits as the core crate's own layers; weights that change; what is refused.

use crate::common::{Numbers, floats, forms, fused, tensors, variables};
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, ModuleT, Optimizer, SGD};
use resblock_candle::resblock::{
    self, Activation, Affine, Block, BlockForm, Context, Draw, Dropout, GradMode, Gradients, Keep, Layer, MatRef, Norm,
    Par, Role, Vector, Workspace, rows_of, rows_of_mut,
};
use resblock_candle::{Formula, Fused};

/// The core crate's layer with the same parameters.
fn core(form: &BlockForm, parameters: &[Var]) -> Block {
    let (mut affines, mut vectors) = (Vec::new(), Vec::new());
    let mut all = form.tensors().zip(parameters).peekable();
    while let Some(((name, (rows, cols)), tensor)) = all.next() {
        let values = floats(tensor);
        if name.role != Role::Weight {
            vectors.push(Vector::new(&values).unwrap());
            continue;
        }
        let bias = all.next_if(|((name, _), _)| name.role == Role::Bias).map(|(_, tensor)| floats(tensor));
        affines.push(Affine::new(MatRef::new(&values, rows, cols).unwrap(), bias.as_deref()).unwrap());
    }
    Block::from_parts(form, affines, vectors).unwrap()
}

#[test]
fn the_bits_of_the_core() -> Result<()> {
    let draw = Draw { seed: 3, step: 4, first_row: 5 };
    let drop = Dropout { hidden: 0.25, branch: 0.125, depth: 0.25 };
    let dropped = ("dropped", BlockForm { dropout: drop, ..BlockForm::gpt2(19, 37) });
    for (name, form) in forms(19, 37).into_iter().chain([dropped]) {
        for (par, keep) in [(Par::Seq, Keep::All), (Par::Rayon(2), Keep::All), (Par::Rayon(0), Keep::Inputs)] {
            let numbers = &mut Numbers::new(1);
            let parameters = variables(&form, numbers);
            let x = Var::from_tensor(&numbers.tensor(&[29, 19]))?;
            let block = core(&form, &parameters);
            let layer =
                fused(&form, &parameters).with_context(Context::new().unwrap().with_par(par)).with_keep(keep)?;
            let dy = numbers.tensor(&[29, form.outputs]);

            let y = layer.forward_drawn(&x, draw)?;
            let grads = y.mul(&dy)?.sum_all()?.backward()?;

            let (ctx, mut ws) = (Context::new().unwrap().with_draw(Some(draw)), Workspace::new());
            let (mut core_y, mut dx) = (vec![0.0; 29 * form.outputs], vec![0.0; 29 * 19]);
            let mut core_grads = Gradients::new(&block).unwrap();
            let x_values = floats(&x);
            let pass = block.forward(
                &ctx,
                &mut ws,
                rows_of(&x_values, 19).unwrap(),
                rows_of_mut(&mut core_y, form.outputs).unwrap(),
            );
            let dy = floats(&dy);
            let dx_view = rows_of_mut(&mut dx, 19).unwrap();
            let dy = rows_of(&dy, form.outputs).unwrap();
            pass.unwrap().backward(dy, Some(dx_view), &mut core_grads, GradMode::Overwrite).unwrap();

            assert_eq!(floats(&y), core_y, "{name}: y");
            assert_eq!(floats(grads.get(&x).expect("dx")), dx, "{name}: dx");
            for ((tensor, _), variable) in
                form.tensors().zip(&parameters).filter(|((name, _), _)| name.role.is_learned())
            {
                let expected = core_grads.iter().find(|gradient| gradient.name() == tensor).expect("a gradient");
                let found = floats(grads.get(variable).expect("a gradient"));
                assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{name}: gradient of {tensor}");
            }
            // Evaluation: tracked, frozen and packed, and by the core.
            let evaluated = layer.forward(&x)?;
            assert_eq!(floats(&evaluated), floats(&layer.frozen()?.forward(&x.detach())?), "{name}: packed");
            if form.pre_norm.is_none_or(|norm| norm.kind != resblock::NormKind::Batch) && !name.contains("resnet") {
                let ctx = Context::new().unwrap();
                block
                    .infer(
                        &ctx,
                        &mut ws,
                        rows_of(&x_values, 19).unwrap(),
                        rows_of_mut(&mut core_y, form.outputs).unwrap(),
                    )
                    .unwrap();
                assert_eq!(floats(&evaluated), core_y, "{name}: evaluated");
            }
        }
    }
    Ok(())
}

#[test]
fn a_chain_has_the_bits_of_its_layers() -> Result<()> {
    let numbers = &mut Numbers::new(2);
    let blocks: Vec<_> = forms(16, 24).into_iter().filter(|(_, form)| form.outputs == 16).collect();
    let parameters: Vec<_> = blocks.iter().map(|(_, form)| variables(form, numbers)).collect();
    let layers: Vec<_> =
        blocks.iter().zip(&parameters).map(|((_, form), parameters)| fused(form, parameters)).collect();
    let x = Var::from_tensor(&numbers.tensor(&[5, 4, 16]))?;
    let mut y = x.as_tensor().clone();
    for layer in &layers {
        y = layer.forward(&y)?;
    }
    let chain = Fused::chain(&layers)?;
    let chained = chain.forward(&x)?;
    assert_eq!(floats(&chained), floats(&y));
    assert_eq!(floats(&chain.frozen()?.forward(&x.detach())?), floats(&y));
    let (grads, chained_grads) = (y.sqr()?.sum_all()?.backward()?, chained.sqr()?.sum_all()?.backward()?);
    let learned = chain.parameters().filter(|(name, _)| name.role.is_learned());
    for (name, tensor) in learned {
        assert_eq!(chained_grads.get(tensor).map(floats), grads.get(tensor).map(floats), "{name}");
    }
    assert_eq!(chained_grads.get(&x).map(floats), grads.get(&x).map(floats));
    Ok(())
}

#[test]
fn weights_that_change_are_seen() -> Result<()> {
    let form = BlockForm::gpt2(8, 12);
    let numbers = &mut Numbers::new(3);
    let parameters = variables(&form, numbers);
    let x = numbers.tensor(&[4, 8]);
    let (block, frozen) = (fused(&form, &parameters), fused(&form, &parameters).frozen()?);
    let before = floats(&block.forward(&x)?);
    assert_eq!(floats(&frozen.forward(&x)?), before);
    parameters[2].set(&numbers.tensor(&[8, 12]))?;
    let after = floats(&block.forward(&x)?);
    assert_ne!(after, before);
    assert_eq!(floats(&frozen.forward(&x)?), before, "it has a copy");
    // Tensors that were detached share the variable's storage: who writes it says so.
    let detached = Fused::new(form, parameters.iter().map(|v| v.detach()).collect())?;
    assert_eq!(floats(&detached.forward(&x)?), after);
    parameters[2].set(&numbers.tensor(&[8, 12]))?;
    detached.refresh();
    assert_eq!(floats(&detached.forward(&x)?), floats(&block.forward(&x)?));
    Ok(())
}

#[test]
fn candles_optimisers_train_it() -> Result<()> {
    let form = BlockForm::llama(8, 12);
    let numbers = &mut Numbers::new(4);
    let (x, target) = (numbers.tensor(&[32, 8]), (numbers.tensor(&[32, 8]) * 0.3)?);
    let train = |step: &mut dyn FnMut(&Tensor) -> Result<()>, block: &Fused| -> Result<(f32, f32)> {
        let loss = || block.forward(&x)?.sub(&target)?.sqr()?.mean_all();
        let first = loss()?.to_scalar::<f32>()?;
        for _ in 0..60 {
            step(&loss()?)?;
        }
        Ok((first, loss()?.to_scalar::<f32>()?))
    };
    let parameters = variables(&form, numbers);
    let mut adam = AdamW::new_lr(parameters.clone(), 1e-2)?;
    let (first, last) = train(&mut |loss| adam.backward_step(loss), &fused(&form, &parameters))?;
    assert!(last < 0.2 * first, "{first} to {last}");
    let parameters = variables(&form, numbers);
    let settings = candle_nn::ParamsAdamW { lr: 1e-2, ..Default::default() };
    let mut adam = resblock_candle::AdamW::new(parameters.clone(), settings)?;
    let (first, last) = train(&mut |loss| adam.backward_step(loss), &fused(&form, &parameters))?;
    assert!(last < 0.2 * first, "{first} to {last}");
    let parameters = variables(&form, numbers);
    let mut sgd = SGD::new(parameters.clone(), 0.3)?;
    let (first, last) = train(&mut |loss| sgd.backward_step(loss), &fused(&form, &parameters))?;
    assert!(last < 0.8 * first, "{first} to {last}");
    Ok(())
}

#[test]
fn dropout_and_running_averages() -> Result<()> {
    let drop = Dropout { hidden: 0.5, branch: 0.0, depth: 0.0 };
    let form = BlockForm { dropout: drop, ..BlockForm::gpt2(8, 64) };
    let numbers = &mut Numbers::new(5);
    let parameters = variables(&form, numbers);
    let x = numbers.tensor(&[16, 8]);
    let block = fused(&form, &parameters).with_seed(7);
    let [first, second] = [block.forward_t(&x, true)?, block.forward_t(&x, true)?];
    assert_ne!(floats(&first), floats(&second), "another step, other masks");
    assert_eq!(block.step(), 2);
    block.set_step(0);
    assert_eq!(floats(&block.forward_t(&x, true)?), floats(&first), "the same step, the same masks");
    let again = fused(&form, &parameters).with_seed(7);
    assert_eq!(floats(&again.forward_t(&x, true)?), floats(&first), "the same seed");
    // Evaluation drops nothing; of a batch in pieces, each has the masks of the whole.
    assert_eq!(floats(&block.forward_t(&x, false)?), floats(&block.forward(&x)?));
    let draw = |first_row| Draw { seed: 7, step: 0, first_row };
    let pieces =
        [block.forward_drawn(&x.narrow(0, 0, 5)?, draw(0))?, block.forward_drawn(&x.narrow(0, 5, 11)?, draw(5))?];
    assert_eq!(floats(&Tensor::cat(&pieces, 0)?), floats(&first));

    let form = BlockForm::tabular(8, 12, Dropout::default());
    let parameters = variables(&form, numbers);
    let (block, mut own) = (fused(&form, &parameters), core(&form, &parameters));
    let before = floats(&block.forward(&x)?);
    block.forward_t(&x, true)?;
    assert_ne!(floats(&block.forward(&x)?), before, "the averages have moved");
    let (ctx, mut ws, mut y) = (Context::new().unwrap(), Workspace::new(), vec![0.0; 16 * 8]);
    let values = floats(&x);
    own.forward(&ctx, &mut ws, rows_of(&values, 8).unwrap(), rows_of_mut(&mut y, 8).unwrap()).map(|_| ()).unwrap();
    let record = ws.record().clone();
    own.update_statistics(record.as_slice(), 0.1).unwrap();
    // Frozen, they stay: training is then evaluation, but for masks.
    let frozen = block.clone().with_context(Context::new().unwrap().with_frozen_statistics(true));
    assert_eq!(floats(&frozen.forward_t(&x, true)?), floats(&block.forward(&x)?));
    let averages = form.tensors().zip(&parameters).filter(|((name, _), _)| !name.role.is_learned());
    for ((name, _), variable) in averages {
        let expected = own.parameters().find(|tensor| tensor.name() == name).expect("an average");
        assert_eq!(floats(variable), expected.iter().collect::<Vec<_>>(), "{name}");
    }
    Ok(())
}

#[test]
fn packed_copies_follow_running_averages() -> Result<()> {
    let form = BlockForm::tabular(8, 12, Dropout::default());
    let numbers = &mut Numbers::new(12);
    let parameters = variables(&form, numbers);
    let x = numbers.tensor(&[16, 8]);
    let layer = Fused::new(form, parameters.iter().map(|v| v.detach().copy().unwrap()).collect())?;
    // Nothing is tracked: both have packed copies, and share the averages.
    let chain = Fused::chain(&[layer.clone(), layer.clone()])?;
    let before = [floats(&layer.forward(&x)?), floats(&chain.forward(&x)?)];
    chain.forward_t(&x, true)?;
    let now = floats(&layer.forward(&x)?);
    assert_ne!(now, before[0]);
    assert_ne!(floats(&chain.forward(&x)?), before[1]);
    let fresh = Fused::new(form, layer.parameters().map(|(_, tensor)| tensor.clone()).collect())?;
    assert_eq!(floats(&fresh.forward(&x)?), now);
    Ok(())
}

#[test]
fn layers_of_a_chain_that_share_a_norm_move_its_averages_one_after_the_other() -> Result<()> {
    let numbers = &mut Numbers::new(14);
    let x = numbers.tensor(&[16, 8]);
    let new = || -> Result<Fused> {
        let (one, zero) = (Tensor::ones(8, DType::F32, &Device::Cpu)?, Tensor::zeros(8, DType::F32, &Device::Cpu)?);
        Fused::new(Formula::norm(8, Norm::batch(1e-5)), vec![one.clone(), zero.clone(), zero, one])
    };
    let (chained, alone) = (new()?, new()?);
    let together = Fused::chain(&[chained.clone(), chained.clone()])?.forward_t(&x, true)?;
    let apart = alone.forward_t(&alone.forward_t(&x, true)?, true)?;
    assert_eq!(floats(&together), floats(&apart));
    for ((name, found), (_, expected)) in chained.parameters().zip(alone.parameters()) {
        assert_eq!(floats(found), floats(expected), "{name}");
    }
    Ok(())
}

#[test]
fn writers_and_readers_do_not_wait_for_each_other_for_ever() -> Result<()> {
    let form = BlockForm { biases: false, ..BlockForm::new(16, 16, Activation::Relu) };
    let parameters = variables(&form, &mut Numbers::new(13));
    let (layer, x, w) =
        (fused(&form, &parameters), Numbers::new(1).tensor(&[8, 16]), Numbers::new(2).tensor(&[16, 16]));
    let (done, finished) = std::sync::mpsc::channel();
    let writer = (done.clone(), parameters[0].clone());
    std::thread::spawn(move || (0..20_000).try_for_each(|_| writer.1.set(&w)).map(|()| writer.0.send(())));
    std::thread::spawn(move || (0..20_000).try_for_each(|_| layer.forward(&x).map(drop)).map(|()| done.send(())));
    for _ in 0..2 {
        finished.recv_timeout(std::time::Duration::from_secs(60)).expect("both end");
    }
    Ok(())
}

#[test]
fn evaluation_and_training_in_one_graph() -> Result<()> {
    let form = BlockForm::tabular(8, 12, Dropout::default());
    let parameters = variables(&form, &mut Numbers::new(14));
    let layer = fused(&form, &parameters);
    let (x, other) = (Var::from_tensor(&Numbers::new(3).tensor(&[6, 8]))?, Numbers::new(4).tensor(&[16, 8]));
    let expected = layer.forward(&x)?.sqr()?.sum_all()?.backward()?;
    let y = layer.forward(&x)?;
    layer.forward_t(&other, true)?; // moves the running averages
    let found = y.sqr()?.sum_all()?.backward()?;
    assert_eq!(found.get(&x).map(floats), expected.get(&x).map(floats));
    Ok(())
}

#[test]
fn candles_own_pool() -> Result<()> {
    let form = BlockForm::gpt2(64, 256);
    let parameters = variables(&form, &mut Numbers::new(6));
    let block = fused(&form, &parameters);
    let x = Numbers::new(7).tensor(&[256, 64]);
    let outside = floats(&block.forward(&x)?);
    let inside = Device::Cpu.with_context(|| block.forward(&x).map(|y| floats(&y)))?;
    assert_eq!(inside, outside);
    Ok(())
}

#[test]
fn refusals() -> Result<()> {
    let form = BlockForm::gpt2(8, 12);
    let parameters = variables(&form, &mut Numbers::new(8));
    let block = fused(&form, &parameters);
    let text = |result: Result<Tensor>| result.unwrap_err().to_string();
    let x = Numbers::new(9).tensor(&[4, 8]);
    assert!(text(block.forward(&x.to_dtype(DType::F64)?)).contains("resblock: x, expected: F32, got: F64"));
    assert!(text(block.forward(&x.to_dtype(DType::BF16)?)).contains("got: BF16"));
    assert!(text(block.forward(&x.narrow(1, 0, 7)?)).contains("expected a last dimension of 8, found [4, 7]"));
    assert!(text(block.forward(&Tensor::new(1f32, &Device::Cpu)?)).contains("expected a last dimension of 8"));
    // More rows than any memory holds, all of them one.
    let endless = x.narrow(0, 0, 1)?.broadcast_as((1 << 40, 1 << 20, 8))?;
    assert!(text(block.forward(&endless)).contains("no memory"));
    let more = x.narrow(0, 0, 1)?.broadcast_as((1 << 40, 1 << 40, 8))?;
    assert!(text(block.forward(&more)).contains("no memory"));

    let refused = |formula: Formula, tensors: Vec<Tensor>| Fused::new(formula, tensors).unwrap_err().to_string();
    let all = tensors(&parameters);
    assert!(refused(form.into(), all[1..].to_vec()).contains("expected 6 parameters (first.weight, first.bias, "));
    let mut wrong = all.clone();
    wrong[0] = wrong[0].t()?;
    assert!(refused(form.into(), wrong).contains("first.weight: expected shape [12, 8], found [8, 12]"));
    let mut wrong = all.clone();
    wrong[3] = wrong[3].to_dtype(DType::F16)?;
    assert!(refused(form.into(), wrong).contains("parameter, expected: F32, got: F16"));
    let contradiction = BlockForm { pre_norm: Some(Norm::layer(0.0)), ..form };
    assert!(refused(contradiction.into(), all.clone()).contains("epsilon"));
    assert!(Fused::chain(&[]).unwrap_err().to_string().contains("no layers"));
    let wider = fused(&BlockForm::gpt2(9, 12), &variables(&BlockForm::gpt2(9, 12), &mut Numbers::new(1)));
    assert!(Fused::chain(&[block.clone(), wider]).unwrap_err().to_string().contains("parts: expected shape (8, 9)"));
    // A BatchNorm has no statistics of one row; its averages stay.
    let tabular = BlockForm { activation: Activation::Relu, ..BlockForm::tabular(8, 12, Dropout::default()) };
    let parameters = variables(&tabular, &mut Numbers::new(2));
    let before: Vec<_> = parameters.iter().map(|v| floats(v)).collect();
    assert!(fused(&tabular, &parameters).forward_t(&x.narrow(0, 0, 1)?, true).is_err());
    assert_eq!(parameters.iter().map(|v| floats(v)).collect::<Vec<_>>(), before);
    Ok(())
}

#[test]
fn our_adamw_is_candles_but_for_rounding() -> Result<()> {
    let numbers = &mut Numbers::new(10);
    let vars = [vec![300, 7], vec![5], vec![1]].map(|dims| Var::from_tensor(&numbers.tensor(&dims)).unwrap());
    let copies = vars.each_ref().map(|v| Var::from_tensor(&v.detach().copy().unwrap()).unwrap());
    let settings = candle_nn::ParamsAdamW { lr: 0.01, weight_decay: 0.1, ..Default::default() };
    let mut ours = resblock_candle::AdamW::new(vars.to_vec(), settings.clone())?;
    let mut candles = AdamW::new(copies.to_vec(), settings)?;
    for _ in 0..20 {
        // One variable in no graph, so without a gradient: it stays.
        let loss = |vars: &[Var]| vars[0].sqr()?.sum_all()?.add(&vars[1].exp()?.sum_all()?);
        ours.backward_step(&loss(&vars)?)?;
        candles.backward_step(&loss(&copies)?)?;
    }
    for (ours, candles) in vars.iter().zip(&copies) {
        for (ours, candles) in floats(ours).iter().zip(floats(candles)) {
            assert!((ours - candles).abs() <= 2e-6, "{ours} for {candles}");
        }
    }
    Ok(())
}

#[test]
fn names_of_candle_and_of_others() -> Result<()> {
    use candle_nn::{VarBuilder, VarMap};
    use resblock_candle::resblock::Convention;
    let (vars, cpu) = (VarMap::new(), Device::Cpu);
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &cpu);
    let x = Numbers::new(11).tensor(&[3, 8]);
    let linear = Fused::build(Formula::linear(8, 4, Activation::Identity), vb.pp("linear"))?;
    let own = candle_nn::linear(8, 4, vb.pp("linear"))?;
    let norm = Fused::build(Formula::norm(8, Norm::batch(1e-5)), vb.pp("norm"))?;
    let theirs = candle_nn::batch_norm(8, 1e-5, vb.pp("norm"))?;
    crate::common::assert_close("linear", &linear.forward(&x)?, &candle_nn::Module::forward(&own, &x)?);
    crate::common::assert_close("norm", &norm.forward_t(&x, true)?, &theirs.forward_t(&x, true)?);
    crate::common::assert_close("norm", &norm.forward_t(&x, false)?, &theirs.forward_t(&x, false)?);
    Fused::build(BlockForm::cait(8, 12, 0.5), vb.pp("own"))?;
    let scale = vars.data().lock().unwrap()["own.branch.scale"].clone();
    assert_eq!(floats(&scale), [0.5; 8]);

    // Gate and up in one matrix, GPT-2's orientation, and BERT's names; gradients reach the variables of the file.
    let forms = [
        (BlockForm::llama(8, 12), Convention::phi3(), "phi", ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]),
        (BlockForm::gpt2(8, 12), Convention::gpt2(), "gpt", ["mlp.c_fc.weight", "ln_2.bias"]),
        (BlockForm::bert(8, 12), Convention::bert(), "bert", ["output.LayerNorm.weight", "intermediate.dense.bias"]),
    ];
    for (form, convention, prefix, names) in forms {
        let block = Fused::load(form, &convention, vb.pp(prefix))?;
        let grads = block.forward(&x)?.sqr()?.sum_all()?.backward()?;
        for name in names {
            let var = vars.data().lock().unwrap()[&format!("{prefix}.{name}")].clone();
            assert_eq!(grads.get(&var).map(|grad| grad.dims().to_vec()), Some(var.dims().to_vec()), "{name}");
        }
        let frozen = VarBuilder::from_tensors(
            vars.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.detach())).collect(),
            DType::F32,
            &cpu,
        );
        let frozen = Fused::load(form, &convention, frozen.pp(prefix))?;
        assert_eq!(floats(&frozen.forward(&x)?), floats(&block.forward(&x)?), "{prefix}");
    }
    assert!(Fused::load(BlockForm::llama(8, 12), &Convention::gpt2(), vb.pp("gpt")).is_err());
    Ok(())
}
