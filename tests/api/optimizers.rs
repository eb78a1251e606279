//! What optimisers refuse, how small a decay they keep, which steps they count, and what large and small gradients do.

use crate::common::{Map, MapGrad, Rng, Stage, contexts, fastest, gradients_of, parameters_of};
use resblock::{Activation, AdamW, Context, Error, Gradients, Layer, Linear, Optimizer, Par, Part, Sgd};
use std::fmt::Debug;

/// A layer of one input with these weights and no bias.
fn layer(w: &[f32]) -> Linear {
    let map = Map { inputs: 1, outputs: w.len(), w: w.to_vec(), b: None };
    Stage::Linear { map, phi: Activation::Identity, skip: false }.build_linear()
}

fn gradients(layer: &Linear, dw: &[f32]) -> Gradients {
    gradients_of(layer, &[MapGrad { dw: dw.to_vec(), db: Vec::new() }])
}

fn weights(layer: &Linear) -> Vec<f32> {
    parameters_of(layer).concat()
}

/// The operand that a step from `w` by `g` is refused for; that nothing has changed then.
fn refused(optimizer: &(impl Optimizer + Clone + Debug), g: f32) -> Option<&'static str> {
    let (mut optimizer, before) = (optimizer.clone(), optimizer.clone());
    let mut layer = layer(&[1.0, -2.0, 0.5]);
    let grads = gradients(&layer, &[0.25, g, -0.5]);
    match optimizer.step(&fastest(), &mut layer, &grads) {
        Ok(()) => {
            assert!(weights(&layer).iter().all(|p| p.is_finite()), "{:?}", weights(&layer));
            None
        }
        Err(Error::Setting { operand, .. }) => {
            assert_eq!(weights(&layer), [1.0, -2.0, 0.5]);
            // By their text: NaN, one of the settings, is not equal to itself.
            assert_eq!(format!("{optimizer:?}"), format!("{before:?}"), "the state of a refused step");
            Some(operand)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn settings_out_of_range_are_refused_and_nothing_changes() {
    let adam = |change: &dyn Fn(&mut AdamW)| {
        let mut adam = AdamW::new(1e-3);
        change(&mut adam);
        adam
    };
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY, -1e-3, -f32::MIN_POSITIVE] {
        assert_eq!(refused(&adam(&|a| a.lr = bad), 1.0), Some("lr"));
        assert_eq!(refused(&adam(&|a| a.eps = bad), 1.0), Some("eps"));
        assert_eq!(refused(&adam(&|a| a.weight_decay = bad), 1.0), Some("weight_decay"));
        assert_eq!(refused(&adam(&|a| a.betas.0 = bad), 1.0), Some("betas"));
        assert_eq!(refused(&adam(&|a| a.betas.1 = bad), 1.0), Some("betas"));
        assert_eq!(refused(&Sgd::new(bad, 0.5), 1.0), Some("lr"));
        assert_eq!(refused(&Sgd::new(0.1, bad), 1.0), Some("momentum"));
        let mut sgd = Sgd::new(0.1, 0.5);
        sgd.weight_decay = bad;
        assert_eq!(refused(&sgd, 1.0), Some("weight_decay"));
    }
    for one in [1.0, 1.0 + f32::EPSILON, 2.0] {
        assert_eq!(refused(&adam(&|a| a.betas.0 = one), 1.0), Some("betas"));
        assert_eq!(refused(&adam(&|a| a.betas.1 = one), 1.0), Some("betas"));
    }
    // The rate and the decay themselves, not only what they are made of.
    assert_eq!(refused(&adam(&|a| a.lr = f32::MAX), 1.0), Some("lr"));
    assert_eq!(refused(&adam(&|a| (a.lr, a.weight_decay) = (1e30, 1e30)), 1.0), Some("weight_decay"));
    // An element without a second moment, and one whose square is lost.
    for g in [0.0, -0.0, 1e-30] {
        assert_eq!(refused(&adam(&|a| a.eps = 0.0), g), Some("eps"), "{g:e}");
    }
    // All of these are legitimate.
    assert_eq!(refused(&adam(&|a| a.eps = 0.0), 1.0), None);
    assert_eq!(refused(&adam(&|a| a.eps = 0.0), 1e-18), None);
    assert_eq!(refused(&adam(&|a| (a.lr, a.weight_decay) = (0.0, 0.0)), 0.0), None);
    assert_eq!(refused(&adam(&|a| a.betas = (0.0, 0.0)), 0.0), None);
    assert_eq!(refused(&adam(&|a| a.eps = f32::MAX), 1.0), None);
    assert_eq!(refused(&Sgd::new(0.0, 0.0), 0.0), None);
}

#[test]
fn without_eps_the_padding_of_a_matrix_stays_zero() {
    for ctx in contexts() {
        let mut adam = AdamW::new(0.1);
        (adam.eps, adam.weight_decay) = (0.0, 0.0);
        let mut layer = layer(&[1.0, 2.0, 3.0]);
        let grads = gradients(&layer, &[1.0, -1.0, 4.0]);
        adam.step(&ctx, &mut layer, &grads).expect("a step");
        let stored = layer.parameters().next().expect("weights").as_slice();
        assert!(stored[3..].iter().all(|&p| p == 0.0), "{stored:?}");
    }
}

/// Decays of `lr * 0.01` for 200,000 steps, with gradients that `noise` gives: each weight beside the same in f64.
fn decays(ctx: &Context, lr: f32, noise: impl Fn(u32) -> f32) -> Vec<(f32, f64, f64)> {
    const STARTS: [f32; 8] = [1.0, 1.5, 1.99, 0.3, -0.7, 1e-3, -1.0e10, 2.0];
    let mut adam = AdamW::new(lr);
    let mut layer = layer(&STARTS);
    let mut grads = gradients(&layer, &[0.0; 8]);
    let mut exact = STARTS.map(f64::from);
    let (mut m, mut v) = (0.0f64, 0.0f64);
    let (b1, b2) = (f64::from(adam.betas.0), f64::from(adam.betas.1));
    let decay = f64::from(lr) * f64::from(adam.weight_decay);
    for t in 1..=200_000 {
        let g = noise(t);
        if g != 0.0 {
            grads = gradients(&layer, &[g; 8]);
        }
        adam.step(ctx, &mut layer, &grads).expect("a step");
        m = b1 * m + (1.0 - b1) * f64::from(g);
        v = b2 * v + (1.0 - b2) * f64::from(g) * f64::from(g);
        let correction = |b: f64| 1.0 - libm::pow(b, t.into());
        let step = m / correction(b1) / ((v / correction(b2)).sqrt() + f64::from(adam.eps));
        exact.iter_mut().for_each(|p| *p -= decay * *p + f64::from(lr) * step);
    }
    STARTS.iter().zip(weights(&layer)).zip(exact).map(|((&start, p), exact)| (start, p.into(), exact)).collect()
}

#[test]
fn a_decay_of_any_size_is_right_after_200_000_steps() {
    for lr in [1e-3, 1e-5, 2e-6, 1e-6] {
        for (start, found, exact) in decays(&fastest(), lr, |_| 0.0) {
            let (gone, should) = (f64::from(start) - found, f64::from(start) - exact);
            // A few units in the last place of the start, whatever the decay; 1e-4 of it where that is more.
            let unit = f64::from(start).abs() * f64::from(f32::EPSILON);
            let limit = (1e-4 * should.abs()).max(6.0 * unit);
            assert!((gone - should).abs() <= limit, "lr {lr:e} from {start}: {gone:e}, not {should:e} (unit {unit:e})");
        }
    }
}

#[test]
fn a_decay_is_right_beside_gradients_too() {
    let noise = |t: u32| Rng::new(t.into()).unit();
    for (start, found, exact) in decays(&fastest(), 1e-5, noise).into_iter().filter(|row| row.0.abs() > 0.1) {
        assert!((found / exact - 1.0).abs() < 1e-4, "from {start}: {found}, not {exact}");
    }
}

#[test]
fn a_decay_without_a_rate_and_a_rate_of_zero_leave_weights_as_they_are() {
    let start = [1.0, 2.0, 0.999_999_94, -1.0, f32::MIN_POSITIVE, 1e-40, 3.0, -0.0];
    let mut adam = AdamW::new(0.0);
    let mut sgd = Sgd::new(0.0, 0.9);
    sgd.weight_decay = 0.1;
    let mut layer = layer(&start);
    let grads = gradients(&layer, &[1.0; 8]);
    for _ in 0..100 {
        adam.step(&fastest(), &mut layer, &grads).expect("a step");
        sgd.step(&fastest(), &mut layer, &grads).expect("a step");
    }
    assert_eq!(weights(&layer).iter().map(|p| p.to_bits()).collect::<Vec<_>>(), start.map(f32::to_bits));
}

#[test]
fn a_parameter_counts_its_own_steps() {
    let mut adam = AdamW::new(0.01);
    adam.weight_decay = 0.0;
    let map = Map { inputs: 1, outputs: 1, w: vec![1.0], b: Some(vec![1.0]) };
    let mut layer = Stage::Linear { map, phi: Activation::Identity, skip: false }.build_linear();
    let grads = gradients_of(&layer, &[MapGrad { dw: vec![0.5], db: vec![0.5] }]);
    let mut frozen = grads.clone();
    assert_eq!(frozen.decline(|name| name == Part::Linear.weight()), 1);
    for _ in 0..1000 {
        adam.step(&fastest(), &mut layer, &frozen).expect("a step");
    }
    assert_eq!(parameters_of(&layer)[0], [1.0]);
    adam.step(&fastest(), &mut layer, &grads).expect("a step");
    let moved = 1.0 - f64::from(parameters_of(&layer)[0][0]);
    assert!((moved / 0.01 - 1.0).abs() < 1e-5, "first step of the weight: {moved}");
    assert_eq!(adam.steps(), 1001);
}

#[test]
fn a_checked_step_refuses_what_would_stop_or_poison_a_weight() {
    for (bad, by_sgd) in [(2e19, false), (-2e19, false), (f32::MAX, false), (f32::NAN, true), (f32::INFINITY, true)] {
        let mut layer = layer(&[1.0, 2.0, 3.0]);
        let grads = gradients(&layer, &[0.5, bad, bad]);
        let (mut adam, mut sgd) = (AdamW::new(0.1), Sgd::new(1e-30, 0.5));
        let before = adam.clone();
        let error = adam.step_checked(&fastest(), &mut layer, &grads).expect_err("a gradient out of range");
        let Error::Gradient { parameter, index: 1, count: 2, .. } = &error else { panic!("{error}") };
        assert_eq!((&parameter[..], weights(&layer)), ("linear.weight", vec![1.0, 2.0, 3.0]));
        assert!(adam == before, "the state of a refused step");
        assert_eq!(sgd.step_checked(&fastest(), &mut layer, &grads).is_err(), by_sgd, "{bad:e}");
        assert_eq!(grads.summary(&fastest()).not_finite, if by_sgd { 2 } else { 0 });
    }
    let mut layer = layer(&[1.0, 2.0, 3.0]);
    let grads = gradients(&layer, &[3.0, 0.0, -4.0]);
    assert_eq!(AdamW::new(0.1).step_checked(&fastest(), &mut layer, &grads), Ok(5.0));
    assert_eq!((grads.summary(&fastest()).norm, grads.summary(&fastest()).largest), (5.0, 4.0));
}

#[test]
fn no_moment_stays_denormal() {
    for ctx in contexts() {
        for g in [0.0, 1e-20, 1e-30, 1e-38, 1e-42] {
            let (mut adam, mut sgd) = (AdamW::new(1e-3), Sgd::new(1e-3, 0.9));
            let mut layer = layer(&[1.0]);
            let (first, then) = (gradients(&layer, &[1e-3]), gradients(&layer, &[g]));
            for t in 0..1500 {
                let grads = if t == 0 { &first } else { &then };
                adam.step(&ctx, &mut layer, grads).expect("a step");
                sgd.step(&ctx, &mut layer, grads).expect("a step");
            }
            // Moments show in `Debug`: the only way to them, and enough to tell.
            for shown in [format!("{adam:?}"), format!("{sgd:?}")] {
                let numbers = shown.split(|c: char| !"0123456789.e-".contains(c)).filter(|text| text.contains('e'));
                let numbers = numbers.filter_map(|text| text.parse::<f32>().ok());
                assert!(numbers.clone().all(|x| x == 0.0 || x.is_normal()), "gradient {g:e} on {}: {shown}", ctx.isa());
            }
        }
    }
}

#[test]
fn a_step_of_the_callers_own_lists_has_the_bits_of_a_layers() {
    let mut rng = Rng::new(8);
    for len in [0, 1, 15, 16, 17, 40_000, 100_003] {
        for (decay, par) in [(0.0, Par::Seq), (0.1, Par::Seq), (0.1, Par::Rayon(3))] {
            let ctx = fastest().with_par(par);
            let mut adam = AdamW::new(0.01);
            adam.weight_decay = decay;
            let (mut own, mut p) = (adam.clone(), rng.vec(len));
            let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
            let mut layer = layer(&p);
            for step in 1..4 {
                let g = rng.vec(len);
                adam.update(&ctx, step, &mut p, &g, &mut m, &mut v).expect("a step");
                let grads = gradients(&layer, &g);
                own.step(&fastest(), &mut layer, &grads).expect("a step");
            }
            assert_eq!(p, weights(&layer), "{len} weights, decay {decay}, {par:?}");
        }
    }
    let ctx = fastest();
    let (mut p, g, [mut m, mut v]) = ([1.0; 3], [1.0; 3], [[0.0; 3]; 2]);
    let length = |operand, found| Err(Error::Length { operand, expected: 3, found });
    let adam = AdamW::new(0.1);
    assert_eq!(adam.update(&ctx, 1, &mut p[..2], &g, &mut m, &mut v), length("p", 2));
    assert_eq!(adam.update(&ctx, 1, &mut p, &g, &mut m[..1], &mut v), length("m", 1));
    assert_eq!(adam.update(&ctx, 1, &mut p, &g, &mut m, &mut []), length("v", 0));
    let mut refused = |change: fn(&mut AdamW), step| {
        let mut adam = AdamW::new(0.1);
        change(&mut adam);
        match adam.update(&ctx, step, &mut p, &g, &mut m, &mut v) {
            Err(Error::Setting { operand, .. }) => operand,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|_| (), 0), "step");
    assert_eq!(refused(|adam| adam.eps = 0.0, 1), "eps");
    assert_eq!(refused(|adam| adam.lr = f32::NAN, 1), "lr");
    assert_eq!((p, m, v), ([1.0; 3], [0.0; 3], [0.0; 3]));
}
