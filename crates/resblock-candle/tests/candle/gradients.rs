//! Gradients against those of candle's own operations, in f64.

use crate::common::{Numbers, assert_close, floats, forms, fused, reference, tensors, variables, wide};
use candle_core::{DType, Device, Result, Tensor, Var};
use resblock_candle::resblock::{Activation, BlockForm, Norm};
use resblock_candle::{Formula, Fused};

/// A loss that weighs every element of y otherwise.
fn loss(y: &Tensor) -> Result<Tensor> {
    let weights = Numbers::new(9).tensor(y.dims()).to_dtype(y.dtype())?;
    y.mul(&weights)?.sum_all()
}

/// The variables of two passes have gradients that agree; so have their results.
fn compare(what: &str, (y, found): (&Tensor, &[&Var]), (wide_y, expected): (&Tensor, &[&Var])) -> Result<()> {
    assert_close(what, y, wide_y);
    let (grads, wide_grads) = (loss(y)?.backward()?, loss(wide_y)?.backward()?);
    for (at, (v, w)) in found.iter().zip(expected).enumerate() {
        match (grads.get(v), wide_grads.get(w)) {
            (Some(found), Some(expected)) => assert_close(&format!("{what}, gradient {at}"), found, expected),
            (None, None) => {}
            (found, expected) => panic!("{what}, gradient {at}: {found:?} for {expected:?}"),
        }
    }
    Ok(())
}

/// x and the parameters.
fn all<'a>(x: &'a Var, parameters: &'a [Var]) -> Vec<&'a Var> {
    std::iter::once(x).chain(parameters).collect()
}

/// x and the parameters that are learned.
fn learned<'a>(form: &BlockForm, x: &'a Var, parameters: &'a [Var]) -> Vec<&'a Var> {
    let parameters = form.tensors().zip(parameters).filter(|((name, _), _)| name.role.is_learned());
    std::iter::once(x).chain(parameters.map(|(_, v)| v)).collect()
}

#[test]
fn every_form() -> Result<()> {
    for (n, d, h) in [(1, 3, 5), (7, 17, 33), (40, 16, 8)] {
        for (name, form) in forms(d, h) {
            let numbers = &mut Numbers::new(n as u64);
            let parameters = variables(&form, numbers);
            let x = Var::from_tensor(&numbers.tensor(&[n, d]))?;
            let (wide_x, wide) = (wide(std::slice::from_ref(&x)).remove(0), wide(&parameters));
            let what = format!("{name} of {n}x{d}x{h}");
            let y = fused(&form, &parameters).forward(&x)?;
            let wide_y = reference(&form, &wide_x, &tensors(&wide), false)?;
            let (found, expected) = (learned(&form, &x, &parameters), learned(&form, &wide_x, &wide));
            compare(&what, (&y, &found), (&wide_y, &expected))?;
        }
    }
    Ok(())
}

#[test]
fn batch_statistics() -> Result<()> {
    use candle_nn::ModuleT;
    for (name, form) in forms(12, 20) {
        let numbers = &mut Numbers::new(3);
        let parameters = variables(&form, numbers);
        let x = Var::from_tensor(&numbers.tensor(&[50, 12]))?;
        let (wide_x, wide) = (wide(std::slice::from_ref(&x)).remove(0), wide(&parameters));
        let y = fused(&form, &parameters).forward_t(&x, true)?;
        let wide_y = reference(&form, &wide_x, &tensors(&wide), true)?;
        let (found, expected) = (learned(&form, &x, &parameters), learned(&form, &wide_x, &wide));
        compare(name, (&y, &found), (&wide_y, &expected))?;
    }
    Ok(())
}

#[test]
fn linear_layers_and_norms() -> Result<()> {
    let numbers = &mut Numbers::new(4);
    let (w, b) = (Var::from_tensor(&numbers.tensor(&[5, 9]))?, Var::from_tensor(&numbers.tensor(&[5]))?);
    let x = Var::from_tensor(&numbers.tensor(&[2, 3, 9]))?;
    let wide = wide(&[x.clone(), w.clone(), b.clone()]);
    let linear =
        Fused::new(Formula::linear(9, 5, Activation::Tanh), vec![w.as_tensor().clone(), b.as_tensor().clone()])?;
    let expected =
        wide[0].reshape((6, 9))?.matmul(&wide[1].t()?)?.broadcast_add(&wide[2])?.tanh()?.reshape((2, 3, 5))?;
    let (y, wide_all) = (linear.forward(&x)?, wide.iter().collect::<Vec<_>>());
    compare("linear", (&y, &[&x, &w, &b]), (&expected, &wide_all))?;

    let (gain, shift) = (Var::from_tensor(&numbers.tensor(&[9]))?, Var::from_tensor(&numbers.tensor(&[9]))?);
    let parameters = vec![gain.as_tensor().clone(), shift.as_tensor().clone()];
    let norm = Fused::new(Formula::norm(9, Norm::layer(1e-5)), parameters)?;
    let wide = self::wide(&[x.clone(), gain.clone(), shift.clone()]);
    let own = candle_nn::LayerNorm::new(wide[1].as_tensor().clone(), wide[2].as_tensor().clone(), 1e-5);
    // Candle's own fused norm has no gradient; of a strided input it takes the long way, which has one.
    let strided = wide[0].transpose(0, 1)?;
    let expected = candle_nn::Module::forward(&own, &strided)?.transpose(0, 1)?;
    compare("norm", (&norm.forward(&x)?, &[&x, &gain, &shift]), (&expected, &wide.iter().collect::<Vec<_>>()))
}

/// x by a view of some tensor, and the same in f64.
type View = fn(&Tensor) -> Result<Tensor>;

#[test]
fn strided_inputs() -> Result<()> {
    let views: [(&str, &[usize], View); 6] = [
        ("transposed", &[8, 10], |t| t.t()),
        ("narrowed", &[10, 20], |t| t.narrow(1, 3, 8)),
        ("swapped leading dimensions", &[4, 5, 8], |t| t.transpose(0, 1)),
        ("rows at one distance", &[4, 5, 16], |t| t.narrow(2, 5, 8)),
        ("broadcast rows", &[1, 8], |t| t.broadcast_as((7, 8))),
        ("one feature over all", &[6, 1], |t| t.broadcast_as((6, 8))),
    ];
    for (name, dims, view) in views {
        for (kind, form) in [("bert", BlockForm::bert(8, 12)), ("llama", BlockForm::llama(8, 12))] {
            let numbers = &mut Numbers::new(5);
            let parameters = variables(&form, numbers);
            let base = Var::from_tensor(&numbers.tensor(dims))?;
            let (wide_base, wide) = (wide(std::slice::from_ref(&base)).remove(0), wide(&parameters));
            let y = fused(&form, &parameters).forward(&view(&base)?)?;
            let wide_x = view(&wide_base)?;
            let rows = wide_x.contiguous()?.reshape(((), 8))?;
            let wide_y = reference(&form, &rows, &tensors(&wide), false)?.reshape(wide_x.shape())?;
            let what = format!("{kind}, {name}");
            compare(&what, (&y, &all(&base, &parameters)), (&wide_y, &all(&wide_base, &wide)))?;
        }
    }
    Ok(())
}

#[test]
fn weights_the_other_way_round_and_computed() -> Result<()> {
    let form = BlockForm::gpt2(6, 10);
    let numbers = &mut Numbers::new(6);
    let parameters = variables(&form, numbers);
    // W1 (inputs, outputs), as GPT-2's files have it; W2 with a low-rank addition; b1 a column of a matrix.
    let turned = Var::from_tensor(&parameters[0].t()?.contiguous()?)?;
    let (a, b) = (Var::from_tensor(&numbers.tensor(&[6, 2]))?, Var::from_tensor(&numbers.tensor(&[2, 10]))?);
    let column = Var::from_tensor(&numbers.tensor(&[10, 3]))?;
    let x = Var::from_tensor(&numbers.tensor(&[9, 6]))?;
    let build = |turned: &Var, w2: &Tensor, a: &Var, b: &Var, column: &Var, rest: &[Tensor]| -> Result<Vec<Tensor>> {
        let w2 = w2.add(&a.matmul(b)?)?;
        let mut all = vec![turned.t()?, column.narrow(1, 1, 1)?.squeeze(1)?, w2];
        all.extend_from_slice(rest);
        Ok(all)
    };
    let computed = build(&turned, &parameters[2].detach(), &a, &b, &column, &tensors(&parameters[3..]))?;
    let y = Fused::new(form, computed)?.forward(&x)?;
    let vars = [&x, &turned, &a, &b, &column, &parameters[3], &parameters[4], &parameters[5]];
    let owned: Vec<Var> = vars.iter().map(|v| (*v).clone()).collect();
    let wide_vars = wide(&owned);
    let wide_w2 = parameters[2].detach().to_dtype(DType::F64)?;
    let wide_rest = tensors(&wide_vars[5..]);
    let computed = build(&wide_vars[1], &wide_w2, &wide_vars[2], &wide_vars[3], &wide_vars[4], &wide_rest)?;
    let wide_y = reference(&form, &wide_vars[0], &computed, false)?;
    compare("computed weights", (&y, &vars), (&wide_y, &wide_vars.iter().collect::<Vec<_>>()))
}

#[test]
fn several_consumers_and_a_tensor_used_twice() -> Result<()> {
    let form = BlockForm::gpt2(8, 12);
    let numbers = &mut Numbers::new(7);
    let parameters = variables(&form, numbers);
    let x = Var::from_tensor(&numbers.tensor(&[6, 8]))?;
    let (wide_x, wide) = (wide(std::slice::from_ref(&x)).remove(0), wide(&parameters));
    // The same layer twice, its first result used three times, x used outside as well.
    let block = fused(&form, &parameters);
    let first = block.forward(&x)?;
    let y = block.forward(&first)?.mul(&first)?.add(&first.mul(&x)?)?;
    let own = tensors(&wide);
    let first = reference(&form, &wide_x, &own, false)?;
    let wide_y = reference(&form, &first, &own, false)?.mul(&first)?.add(&first.mul(&wide_x)?)?;
    compare("twice", (&y, &all(&x, &parameters)), (&wide_y, &all(&wide_x, &wide)))?;

    // One tensor as x, W1 and W2.
    let form = BlockForm { biases: false, ..BlockForm::new(8, 8, Activation::Gelu) };
    let w = Var::from_tensor(&numbers.tensor(&[8, 8]))?;
    let wide_w = self::wide(std::slice::from_ref(&w)).remove(0);
    let y = Fused::new(form, vec![w.as_tensor().clone(), w.as_tensor().clone()])?.forward(&w)?;
    let own = [wide_w.as_tensor().clone(), wide_w.as_tensor().clone()];
    let wide_y = reference(&form, &wide_w, &own, false)?;
    compare("one tensor", (&y, &[&w]), (&wide_y, &[&wide_w]))
}

#[test]
fn backward_again_and_in_parallel() -> Result<()> {
    let form = BlockForm::llama(8, 12);
    let numbers = &mut Numbers::new(8);
    let parameters = variables(&form, numbers);
    let x = Var::from_tensor(&numbers.tensor(&[6, 8]))?;
    let loss = loss(&fused(&form, &parameters).forward(&x)?)?;
    let bits = |loss: &Tensor| -> Result<Vec<Vec<f32>>> {
        let grads = loss.backward()?;
        Ok(all(&x, &parameters).into_iter().map(|v| floats(grads.get(v).expect("a gradient"))).collect())
    };
    let first = bits(&loss)?;
    assert_eq!(bits(&loss)?, first, "a second time");
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| (0..20).map(|_| bits(&loss)).collect::<Result<Vec<_>>>())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
    })?;
    assert!(results.iter().flatten().all(|bits| *bits == first));
    Ok(())
}

#[test]
fn declined_gradients() -> Result<()> {
    let form = BlockForm::bert(8, 12);
    let numbers = &mut Numbers::new(10);
    let parameters = variables(&form, numbers);
    let x = numbers.tensor(&[6, 8]);
    let full = loss(&fused(&form, &parameters).forward(&x)?)?.backward()?;
    // Every choice of parameters that are tracked, with x tracked or not.
    for choice in 0..1 << (parameters.len() + 1) {
        let tracked = |at: usize| choice & 1 << at != 0;
        let some = |(at, v): (usize, &Var)| if tracked(at) { v.as_tensor().clone() } else { v.detach() };
        let block = Fused::new(form, parameters.iter().enumerate().map(some).collect())?;
        let x = if tracked(parameters.len()) { Var::from_tensor(&x)?.into_inner() } else { x.clone() };
        let y = block.forward(&x)?;
        assert_eq!(y.track_op(), choice != 0);
        let grads = loss(&y)?.backward()?;
        assert_eq!(grads.get(&x).is_some(), tracked(parameters.len()));
        for (at, v) in parameters.iter().enumerate() {
            let (found, expected) = (grads.get(v).map(floats), full.get(v).map(floats));
            assert_eq!(found, expected.filter(|_| tracked(at)), "choice {choice:b}, gradient {at}");
        }
    }
    Ok(())
}

/// An operation whose backward fails.
struct Fails;
impl candle_core::CustomOp1 for Fails {
    fn name(&self) -> &'static str {
        "fails"
    }
    fn cpu_fwd(
        &self,
        storage: &candle_core::CpuStorage,
        layout: &candle_core::Layout,
    ) -> Result<(candle_core::CpuStorage, candle_core::Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }
}

#[test]
fn an_error_in_the_middle() -> Result<()> {
    let form = BlockForm::gpt2(8, 12);
    let numbers = &mut Numbers::new(11);
    let parameters = variables(&form, numbers);
    let x = Var::from_tensor(&numbers.tensor(&[6, 8]))?;
    // W1 comes out of an operation that fails after the block's backward pass and before the gradients are handed out.
    let mut broken = tensors(&parameters);
    broken[0] = parameters[0].apply_op1(Fails)?;
    let block = Fused::new(form, broken)?;
    let shared = loss(&block.forward(&x)?)?;
    for _ in 0..40 {
        assert!(shared.backward().unwrap_err().to_string().contains("fails"));
    }
    let good = fused(&form, &parameters);
    let y = good.forward(&x)?;
    let bits = |y: &Tensor| loss(y)?.backward().map(|grads| floats(grads.get(&parameters[2]).expect("a gradient")));
    let expected = bits(&y)?;
    assert_eq!(bits(&good.forward(&x)?)?, expected);
    Ok(())
}

#[test]
fn nan_rows_stay_in_their_rows() -> Result<()> {
    for (name, form) in forms(8, 12).into_iter().filter(|(name, _)| !name.contains("resnet") && *name != "tabular") {
        let numbers = &mut Numbers::new(12);
        let parameters = variables(&form, numbers);
        let mut values = floats(&numbers.tensor(&[6, 8]));
        values[2 * 8 + 3] = f32::NAN;
        let x = Var::from_tensor(&Tensor::from_vec(values, (6, 8), &Device::Cpu)?)?;
        let y = fused(&form, &parameters).forward(&x)?;
        let dx = loss(&y)?.backward()?.get(&x).expect("a gradient").clone();
        let nan = |tensor: &Tensor| -> Result<Vec<usize>> {
            let rows = tensor.to_vec2::<f32>()?;
            Ok((0..rows.len()).filter(|&row| rows[row].iter().any(|v| v.is_nan())).collect())
        };
        assert_eq!(nan(&y)?, [2], "{name}");
        assert!(nan(&dx)?.iter().all(|&row| row == 2), "{name}");
    }
    Ok(())
}

#[test]
fn empty_batches() -> Result<()> {
    let form = BlockForm::gpt2(8, 12);
    let parameters = variables(&form, &mut Numbers::new(13));
    let x = Tensor::zeros((0, 8), DType::F32, &Device::Cpu)?;
    assert_eq!(fused(&form, &parameters).forward(&x)?.dims(), [0, 8]);
    Ok(())
}

#[test]
fn our_backward_pass_stores_what_candles_does() -> Result<()> {
    let form = BlockForm::llama(8, 12);
    let numbers = &mut Numbers::new(14);
    let parameters = variables(&form, numbers);
    let x = Var::from_tensor(&numbers.tensor(&[6, 8]))?;
    // x and W1 have other consumers, too, and the block is used twice.
    let block = fused(&form, &parameters);
    let y = block.forward(&block.forward(&x)?)?.add(&x.sqr()?)?;
    let loss = loss(&y)?.add(&parameters[0].sqr()?.sum_all()?)?;
    let (ours, candles) = (resblock_candle::backward(&loss)?, loss.backward()?);
    for (at, v) in all(&x, &parameters).into_iter().enumerate() {
        assert_close(&format!("gradient {at}"), ours.get(v).expect("a gradient"), candles.get(v).expect("a gradient"));
    }
    // One consumer: the same bits. And what fails leaves nothing for the next.
    let loss = self::loss(&block.forward(&x)?)?;
    let failing = self::loss(&x.apply_op1(Fails)?)?;
    assert!(resblock_candle::backward(&failing).is_err());
    let (ours, candles) = (resblock_candle::backward(&loss)?, loss.backward()?);
    for v in all(&x, &parameters) {
        assert_eq!(ours.get(v).map(floats), candles.get(v).map(floats));
    }
    Ok(())
}
