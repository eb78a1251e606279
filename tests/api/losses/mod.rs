//! Losses against arbitrary precision, within the bounds of `resblock::bounds::loss`; their divisors, and micro-batches.

mod exact;

use crate::common::{
    self, Grid, LAYOUTS, Layout, Rng, assert_same, build_stack, fastest, mat, mat_mut, random_stack, same,
};
use exact::Exact;
use resblock::bounds::loss::{self, LossAccuracy};
use resblock::{
    Activation, BinaryCrossEntropy, CrossEntropy, Divisor, Error, GradMode, Gradients, Huber, Layer, MatMut, MatRef,
    SquaredError, Workspace, mean_squared_error, softmax_cross_entropy,
};

/// What a loss and its gradient must be, given the exact ones of its rows or elements.
#[track_caller]
fn assert_accurate(what: &str, found: (f64, &[f32]), exact: &[Exact], divisor: f64, accuracy: LossAccuracy) {
    let want = exact.iter().map(|row| row.loss).sum::<f64>() / divisor;
    // The oracle adds its rows in f64.
    let bound = accuracy.value_error(want) + exact.len() as f64 * f64::EPSILON * want;
    assert!((found.0 - want).abs() <= bound, "{what}: loss {:e}, not {want:e} within {bound:e}", found.0);
    let terms = exact.iter().flat_map(|row| &row.gradients);
    assert_eq!(found.1.len(), terms.clone().count(), "{what}");
    for (k, (&found, &(plus, minus))) in found.1.iter().zip(terms).enumerate() {
        let (plus, minus) = (plus / divisor, minus / divisor);
        let bound = accuracy.gradient_error(plus, minus);
        // The oracle's difference of two f64, and their quotients.
        let bound = bound + 2.0 * f64::EPSILON * (plus + minus);
        let error = (f64::from(found) - (plus - minus)).abs();
        assert!(error <= bound, "{what}: gradient {k} is {found:e}, not {:e} within {bound:e}", plus - minus);
    }
}

/// The mean over `labels.len()` rows, and its gradient.
fn of_rows(loss: &CrossEntropy<'_>, logits: &[f32], labels: &[usize]) -> (f64, Vec<f32>) {
    let (n, mut d) = (labels.len(), vec![7.0; logits.len()]);
    let classes = logits.len() / n;
    let found = loss.evaluate(mat(logits, n, classes), labels, Some(mat_mut(&mut d, n, classes))).expect("a loss");
    (found, d)
}

fn one_row(logits: &[f32], label: usize) -> (f64, Vec<f32>) {
    of_rows(&CrossEntropy::default(), logits, &[label])
}

#[test]
fn equal_logits_cost_the_logarithm_of_their_number_at_any_offset() {
    let offsets = [0.0, 1e-40, 1.0, 1e8, 1e12, 1e15, 1e16, 1e30, 3e38];
    for classes in [1, 2, 3, 10, 1000, 1_000_000_usize] {
        for v in offsets.into_iter().flat_map(|v| [v, -v]) {
            let label = classes / 2;
            let (loss, d) = one_row(&vec![v; classes], label);
            let want = libm::log(classes as f64);
            assert!((loss - want).abs() <= 1e-15 * want, "{classes} classes at {v:e}: {loss}, not {want}");
            let p = 1.0 / classes as f64;
            let others = (classes - 1) as f64 / classes as f64;
            let right = |k: usize| same(d[k], if k == label { (0.0 - others) as f32 } else { p as f32 });
            assert!((0..classes).all(right), "{classes} classes at {v:e}");
            if classes == 1_000_000 && v == 1.0 {
                break;
            }
        }
    }
    assert_eq!(one_row(&[1e16, 1e16], 1), (std::f64::consts::LN_2, vec![0.5, -0.5]));
}

#[test]
fn no_gap_between_logits_loses_a_loss_or_a_gradient() {
    let (loss, d) = one_row(&[0.0, -40.0], 0);
    assert_eq!((loss, d), (4.248_354_255_291_589e-18, vec![-4.248_354e-18, 4.248_354e-18]));
    let gaps =
        (0..=1000_u16).map(f32::from).chain([1e-45, 1e-30, 1e-7, 0.5, 87.3, 103.9, 104.1, 745.1, 745.2, 1e5, 3e38]);
    let mut cases = 0;
    for gap in gaps {
        for offset in [0.0, 1024.0, -3e4, 1e6, -1e30] {
            let low = offset - gap;
            for (logits, label) in [([offset, low], 0), ([offset, low], 1), ([low, offset], 1), ([low, offset], 0)] {
                let (loss, d) = one_row(&logits, label);
                let want = exact::cross_entropy(&logits, label, None, 0.0);
                assert_accurate(&format!("{logits:?} {label}"), (loss, &d), &[want], 1.0, loss::cross_entropy(1, 2));
                assert!(d[0] == -d[1] && d[label] <= 0.0, "{logits:?} {label}: {d:?}");
                cases += 1;
            }
        }
    }
    // Many classes far below: each too small to move a sum that starts with 1.
    let mut logits = vec![-40.0; 1_000_000];
    logits[3] = 0.0;
    let (loss, d) = one_row(&logits, 3);
    let rest = 999_999.0 * libm::exp(-40.0);
    assert!(
        (loss - libm::log1p(rest)).abs() <= 1e-15 * rest && (f64::from(d[3]) + rest).abs() <= 1e-7 * rest,
        "{loss:e}"
    );
    println!(
        "proof: cross-entropy loses nothing to offset, gap or number of classes | loss and gradient within their bounds of \
         500-bit arithmetic, gaps 0 to 3e38, offsets to 1e30 | {cases} cases | ok"
    );
}

/// Settings of every kind, by number.
fn settings<'a>(index: usize, weights: &'a [f32], divisor: Divisor) -> CrossEntropy<'a> {
    CrossEntropy {
        divisor,
        ignore: (index & 1 == 1).then_some(1),
        class_weights: (index & 2 == 2).then_some(weights),
        label_smoothing: [0.0, 0.1, 1.0, 1e-9][index >> 2],
    }
}

#[test]
fn cross_entropy_with_all_its_settings_is_that_of_exact_arithmetic() {
    let (mut rng, mut cases) = (Rng::new(41), 0);
    for classes in [2, 3, 7, 12] {
        for index in 0..16 {
            for (scale, offset) in [(1.0, 0.0), (30.0, 0.0), (200.0, -1e4), (1e-3, 1e3), (3e38, 0.0), (1e-42, 1e-42)] {
                let n = 3;
                let logits: Vec<f32> = (0..n * classes).map(|_| offset + scale * rng.unit()).collect();
                let labels: Vec<usize> = (0..n).map(|_| rng.below(classes)).collect();
                let mut weights: Vec<f32> = (0..classes).map(|_| rng.unit().abs()).collect();
                (weights[0], weights[classes - 1]) = (1e-20, if scale == 30.0 { 0.0 } else { 1e-3 });
                let total = settings(index, &weights, Divisor::Mean).total_weight(&labels).expect("a total");
                for divisor in [Divisor::Mean, Divisor::Given(1e6), Divisor::Given(0.7), Divisor::Sum] {
                    let by = match divisor {
                        Divisor::Mean if total == 0.0 => continue,
                        Divisor::Mean => total,
                        Divisor::Given(by) => by,
                        Divisor::Sum => 1.0,
                    };
                    let loss = settings(index, &weights, divisor);
                    let layout = LAYOUTS[rng.below(LAYOUTS.len())];
                    let (x, mut d) = (Grid::of(layout, n, classes, &logits), Grid::new(layout, n, classes));
                    let found = loss.evaluate(x.view(), &labels, Some(d.view_mut())).expect("a loss");
                    d.assert_canaries("dlogits");
                    let exact = |(row, &label): (&[f32], &usize)| match loss.ignore == Some(label) {
                        true => Exact { loss: 0.0, gradients: vec![(0.0, 0.0); classes] },
                        false => exact::cross_entropy(row, label, loss.class_weights, loss.label_smoothing),
                    };
                    let exact: Vec<Exact> = logits.chunks(classes).zip(&labels).map(exact).collect();
                    let what = format!("{loss:?} {logits:?} {labels:?}");
                    let mut accuracy = loss::cross_entropy(n, classes);
                    accuracy.underflow *= (1.0 / by).max(1.0);
                    assert_accurate(&what, (found, &d.values()), &exact, by, accuracy);
                    cases += 1;
                }
            }
        }
    }
    println!(
        "proof: cross-entropy with ignored rows, class weights, smoothing and divisors is that of its formula | within its \
         bounds of 500-bit arithmetic | {cases} losses | ok"
    );
}

#[test]
fn losses_over_elements_are_those_of_exact_arithmetic() {
    let (mut rng, mut cases) = (Rng::new(42), 0);
    let (n, m) = (3, 4);
    for scale in [1e-42, 1e-20, 1e-3, 1.0, 40.0, 90.0, 800.0, 1e10, 4e37] {
        for (divisor, by) in [(Divisor::Mean, 12.0), (Divisor::Given(3e9), 3e9), (Divisor::Sum, 1.0)] {
            let (y, t): (Vec<f32>, Vec<f32>) = (0..n * m).map(|_| (scale * rng.unit(), scale * rng.unit())).unzip();
            let mut targets: Vec<f32> = (0..n * m).map(|_| rng.unit().abs()).collect();
            targets[..6].copy_from_slice(&[0.0, 1.0, 0.0, 1.0, 1e-40, 0.5]);
            let weights = [1.0, 0.0, 1e-30, 5.0];
            let layout = LAYOUTS[rng.below(LAYOUTS.len())];
            let (grid, of_t) = (Grid::of(layout, n, m, &y), Grid::of(Layout::Tight, n, m, &t));
            let of_targets = Grid::of(Layout::Transposed(1), n, m, &targets);
            let mut check = |what: &str,
                             accuracy,
                             evaluate: &dyn Fn(MatMut<'_>) -> Result<f64, Error>,
                             exact: &dyn Fn(usize) -> Exact| {
                let mut d = Grid::new(layout, n, m);
                let found = evaluate(d.view_mut()).expect("a loss");
                d.assert_canaries(what);
                let exact: Vec<Exact> = (0..n * m).map(exact).collect();
                assert_accurate(&format!("{what} {y:?}"), (found, &d.values()), &exact, by, accuracy);
                cases += 1;
            };
            let squared = SquaredError { divisor };
            check(
                "squared error",
                loss::squared_error(12),
                &|d| squared.evaluate(grid.view(), of_t.view(), Some(d)),
                &|k| exact::squared_or_huber(y[k], t[k], None),
            );
            for delta in [1.0, 1e-42, 1e30] {
                let huber = Huber { divisor, delta };
                check("huber", loss::huber(12), &|d| huber.evaluate(grid.view(), of_t.view(), Some(d)), &|k| {
                    exact::squared_or_huber(y[k], t[k], Some(delta))
                });
            }
            for pos_weights in [None, Some(&weights[..])] {
                let binary = BinaryCrossEntropy { divisor, pos_weights };
                let mut accuracy = loss::binary_cross_entropy(12);
                accuracy.underflow *= 5.0;
                check("binary", accuracy, &|d| binary.evaluate(grid.view(), of_targets.view(), Some(d)), &|k| {
                    exact::binary_cross_entropy(y[k], targets[k], pos_weights.map_or(1.0, |w| w[k % m]))
                });
            }
        }
    }
    // A logit and its negative with the other answer are one case.
    let of = |l: f32, t: f32| BinaryCrossEntropy::default().evaluate(mat(&[l], 1, 1), mat(&[t], 1, 1), None);
    assert_eq!((of(-40.0, 0.0), of(40.0, 1.0)), (Ok(4.248_354_255_291_589e-18), of(-40.0, 0.0)));
    println!(
        "proof: squared error, Huber and binary cross-entropy are those of their formulas | within their bounds of 500-bit \
         arithmetic, magnitudes 1e-42 to 4e37 | {cases} losses | ok"
    );
}

#[test]
fn sums_over_many_elements_lose_nothing() {
    // Ten million times the same element, by stride 0: the mean is that element.
    let n = 10_000_000;
    let all = |x: &'static [f32; 1]| MatRef::with_strides(x, n, 1, 0, 1).expect("a view");
    let found = SquaredError::default().evaluate(all(&[0.1]), all(&[0.0]), None).expect("a loss");
    let want = f64::from(0.1_f32) * f64::from(0.1_f32);
    assert!((found - want).abs() <= 4.0 * f64::EPSILON * want, "{found:e}, not {want:e}");
    let labels = vec![1; n / 10];
    let rows = MatRef::with_strides(&[0.1, 0.2, 0.4], n / 10, 3, 0, 1).expect("a view");
    let found = softmax_cross_entropy(rows, &labels, None).expect("a loss");
    let want = one_row(&[0.1, 0.2, 0.4], 1).0;
    assert!((found - want).abs() <= 4.0 * f64::EPSILON * want, "{found:e}, not {want:e}");
    // Weights that f64 would lose one by one beside a large one.
    let mut labels = vec![0; 100_000];
    labels[0] = 1;
    let loss = CrossEntropy { class_weights: Some(&[1.0, 3e16]), ..CrossEntropy::default() };
    assert_eq!(loss.total_weight(&labels), Ok(f64::from(3e16_f32) + 99_999.0));
}

#[test]
fn gradients_below_the_normal_range_are_rounded_once() {
    // Divided by so many that p is denormal, or rounds to the smallest denormal.
    for count in [1e38, 1e40, 1e44] {
        let loss = CrossEntropy { divisor: Divisor::Given(count), ..CrossEntropy::default() };
        let (_, d) = of_rows(&loss, &[0.0, 0.0, 0.0], &[1]);
        let third = (1.0 / 3.0 / count) as f32;
        assert!(third > 0.0 && !third.is_normal());
        assert_eq!(d, [third, (-2.0 / 3.0 / count) as f32, third]);
    }
    assert_eq!(one_row(&[0.0, -100.0], 1).1, [1.0, -1.0]);
    assert_eq!(one_row(&[0.0, -100.0], 0).1[1], libm::exp(-100.0) as f32);
}

/// Every loss, on a piece of a batch: rows from `start` on.
type OnRows<'a> = Box<dyn Fn(MatRef<'_>, usize, Divisor, MatMut<'_>) -> f64 + 'a>;

#[test]
fn micro_batches_with_the_divisor_of_the_batch_have_its_gradients() {
    let mut rng = Rng::new(43);
    let (n, inputs, classes) = (7, 5, 4);
    let stages = random_stack(&mut rng, (inputs, 6, 9, classes), 1, Activation::Gelu, true);
    let net = build_stack(&stages);
    let x = rng.vec(n * inputs);
    let (labels, weights) = ([2, 0, 9, 1, 3, 1, 0], [1.0, 0.3, 3.0, 0.0]);
    let targets: Vec<f32> = (0..n * classes).map(|_| rng.unit().abs()).collect();
    let plain = CrossEntropy { ignore: Some(9), ..CrossEntropy::default() };
    let weighted = CrossEntropy { class_weights: Some(&weights), label_smoothing: 0.1, ..plain };
    let elements = (n * classes) as f64;
    let rows_of = |start: usize, rows: usize| mat(&targets[start * classes..][..rows * classes], rows, classes);
    let losses: Vec<(&str, f64, OnRows<'_>)> = vec![
        (
            "cross-entropy",
            plain.total_weight(&labels).expect("a total"),
            Box::new(|y, start, divisor, dy| {
                let labels = &labels[start..start + y.rows()];
                CrossEntropy { divisor, ..plain }.evaluate(y, labels, Some(dy)).expect("a loss")
            }),
        ),
        (
            "weighted cross-entropy",
            weighted.total_weight(&labels).expect("a total"),
            Box::new(|y, start, divisor, dy| {
                let labels = &labels[start..start + y.rows()];
                CrossEntropy { divisor, ..weighted }.evaluate(y, labels, Some(dy)).expect("a loss")
            }),
        ),
        (
            "binary cross-entropy",
            elements,
            Box::new(|y, start, divisor, dy| {
                let binary = BinaryCrossEntropy { divisor, pos_weights: Some(&weights) };
                binary.evaluate(y, rows_of(start, y.rows()), Some(dy)).expect("a loss")
            }),
        ),
        (
            "squared error",
            elements,
            Box::new(|y, start, divisor, dy| {
                SquaredError { divisor }.evaluate(y, rows_of(start, y.rows()), Some(dy)).expect("a loss")
            }),
        ),
        (
            "huber",
            elements,
            Box::new(|y, start, divisor, dy| {
                Huber { divisor, delta: 0.4 }.evaluate(y, rows_of(start, y.rows()), Some(dy)).expect("a loss")
            }),
        ),
    ];
    let run = |loss: &OnRows<'_>, divisor: Divisor, rows: usize| {
        let (mut ws, mut grads) = (Workspace::new(), Gradients::new(&net).expect("gradients"));
        let (mut sum, mut all) = (0.0, Vec::new());
        for (x, start) in x.chunks(rows * inputs).zip((0..).step_by(rows)) {
            let rows = x.len() / inputs;
            let (mut y, mut dy) = (vec![0.0; rows * classes], vec![0.0; rows * classes]);
            let pass = net.forward(&fastest(), &mut ws, mat(x, rows, inputs), mat_mut(&mut y, rows, classes));
            let pass = pass.expect("forward");
            sum += loss(mat(&y, rows, classes), start, divisor, mat_mut(&mut dy, rows, classes));
            let mode = if start == 0 { GradMode::Overwrite } else { GradMode::Accumulate };
            pass.backward(mat(&dy, rows, classes), None, &mut grads, mode).expect("backward");
            all.extend(dy);
        }
        (sum, all, common::values_of(&net, &grads))
    };
    for (name, total, loss) in &losses {
        let (value, dy, grads) = run(loss, Divisor::Mean, n);
        for rows in 1..=n {
            let (sum, pieces, accumulated) = run(loss, Divisor::Given(*total), rows);
            assert_same(format_args!("{name}, {rows} rows: dy"), &pieces, &dy);
            common::assert_same_grads(format_args!("{name}, {rows} rows"), &accumulated, &grads);
            assert!((sum - value).abs() <= 2.0 * n as f64 * f64::EPSILON * value, "{name}: {sum} but {value}");
        }
    }
    println!(
        "proof: micro-batches of a loss with the divisor of the batch have the batch's gradients | every loss, 1 to {n} of {n} \
         rows, bits | {} splits | ok",
        losses.len() * n
    );
}

#[test]
fn what_does_not_count_costs_nothing_and_has_gradient_zero() {
    let nan = f32::NAN;
    let loss = CrossEntropy { ignore: Some(usize::MAX), ..CrossEntropy::default() };
    let (found, d) = of_rows(&loss, &[nan, nan, 0.0, 0.0, f32::INFINITY, 0.0], &[usize::MAX, 1, usize::MAX]);
    assert_eq!(found, std::f64::consts::LN_2, "the mean of one row");
    assert_same("gradient", &d, &[0.0, 0.0, 0.5, -0.5, 0.0, 0.0]);
    // Nothing at all.
    let (found, d) = of_rows(&loss, &[nan, 1.0, 2.0, 3.0], &[usize::MAX; 2]);
    assert_eq!(found, 0.0);
    assert_same("all ignored", &d, &[0.0; 4]);
    let weights = [0.0, 1.0];
    let loss = CrossEntropy { class_weights: Some(&weights), label_smoothing: 0.5, ..CrossEntropy::default() };
    let (found, d) = of_rows(&loss, &[nan, 1.0, 2.0, 3.0], &[0, 0]);
    assert_eq!(found, 0.0);
    assert_same("no weight", &d, &[0.0; 4]);
    // An ignored class among the classes; a class without weight, whose logit may be anything.
    let loss = CrossEntropy { ignore: Some(0), ..CrossEntropy::default() };
    assert_eq!(of_rows(&loss, &[1.0, 1.0, 5.0, 5.0], &[0, 1]), (std::f64::consts::LN_2, vec![0.0, 0.0, 0.5, -0.5]));
    let loss = CrossEntropy { class_weights: Some(&weights), ..CrossEntropy::default() };
    let (found, d) = of_rows(&loss, &[f32::NEG_INFINITY, 1.0, 0.0, 0.0], &[0, 1]);
    assert_eq!(found, std::f64::consts::LN_2);
    assert_same("gradient", &d, &[0.0, 0.0, 0.5, -0.5]);
    // No rows, no columns, no classes.
    for divisor in [Divisor::Mean, Divisor::Given(3.0), Divisor::Sum] {
        for (n, m) in [(0, 0), (0, 3), (3, 0), (usize::MAX, 0), (0, usize::MAX)] {
            let view = || MatRef::with_strides(&[], n, m, 0, 1).expect("a view");
            let mut none = [];
            let d = MatMut::with_strides(&mut none, n, m, 0, 1).expect("a view");
            assert_eq!(SquaredError { divisor }.evaluate(view(), view(), Some(d)), Ok(0.0));
            assert_eq!(Huber { divisor, ..Huber::default() }.evaluate(view(), view(), None), Ok(0.0));
            let binary = BinaryCrossEntropy { divisor, ..BinaryCrossEntropy::default() };
            assert_eq!(binary.evaluate(view(), view(), None), Ok(0.0));
        }
        let ignoring = CrossEntropy { divisor, ignore: Some(5), ..CrossEntropy::default() };
        assert_eq!(ignoring.evaluate(mat(&[], 0, 3), &[], None), Ok(0.0));
        assert_eq!(ignoring.evaluate(mat(&[], 2, 0), &[5, 5], None), Ok(0.0));
    }
    assert_eq!(loss.total_weight(&[]), Ok(0.0));
    // One class is certain: +0, not -0.
    let (found, d) = one_row(&[3.0], 0);
    assert_eq!((found.to_bits(), d[0].to_bits()), (0, 0));
}

#[test]
fn settings_do_what_pytorch_documents() {
    // Two rows of equal logits, weights 1 and 3, labels 0 and 1: every row costs w log 2, the divisor is 4.
    let weights = [1.0, 3.0];
    let loss = CrossEntropy { class_weights: Some(&weights), ..CrossEntropy::default() };
    assert_eq!(loss.total_weight(&[0, 1]), Ok(4.0));
    assert_eq!(of_rows(&loss, &[0.0; 4], &[0, 1]), (std::f64::consts::LN_2, vec![-0.125, 0.125, 0.375, -0.375]));
    // ε = 1/2 of two classes: targets 3/4 and 1/4. A sum is so many times the mean.
    let smooth = CrossEntropy { label_smoothing: 0.5, ..CrossEntropy::default() };
    assert_eq!(of_rows(&smooth, &[0.0, 0.0], &[0]), (std::f64::consts::LN_2, vec![-0.25, 0.25]));
    let sum = CrossEntropy { divisor: Divisor::Sum, ..smooth };
    assert_eq!(of_rows(&sum, &[0.0; 4], &[0, 0]), (2.0 * std::f64::consts::LN_2, vec![-0.25, 0.25, -0.25, 0.25]));
    // With weights, the targets are 3/4 of w_0 and 1/4 of w_1, and the divisor is w_0.
    let both = CrossEntropy { label_smoothing: 0.5, ..loss };
    assert_eq!(of_rows(&both, &[0.0, 0.0], &[0]), (1.5 * std::f64::consts::LN_2, vec![0.0, 0.0]));
    let (y, target) = ([0.0, 0.5, 3.0, -3.0], [0.0; 4]);
    let mut d = [7.0; 4];
    let huber = Huber { divisor: Divisor::Sum, delta: 2.0 };
    let found = huber.evaluate(mat(&y, 2, 2), mat(&target, 2, 2), Some(mat_mut(&mut d, 2, 2)));
    assert_eq!((found, d), (Ok(0.125 + 4.0 + 4.0), [0.0, 0.5, 2.0, -2.0]));
    let binary = BinaryCrossEntropy { divisor: Divisor::Mean, pos_weights: Some(&[3.0, 1.0]) };
    let found = binary.evaluate(mat(&[0.0; 4], 2, 2), mat(&[1.0, 1.0, 0.0, 0.5], 2, 2), Some(mat_mut(&mut d, 2, 2)));
    assert_eq!((found, d), (Ok(1.5 * std::f64::consts::LN_2), [-0.375, -0.125, 0.125, 0.0]));
}

#[test]
fn losses_refuse_settings_weights_and_targets_out_of_range_and_leave_gradients_untouched() {
    let mut d = Grid::new(Layout::Padded(1), 2, 2);
    let x = [0.0; 4];
    let view = || mat(&x, 2, 2);
    let setting = |operand, reason| Err(Error::Setting { operand, reason });
    for by in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let (divisor, refused) = (Divisor::Given(by), setting("divisor", "must be positive and finite"));
        let entropy = CrossEntropy { divisor, ..CrossEntropy::default() };
        assert_eq!(entropy.evaluate(view(), &[0, 1], Some(d.view_mut())), refused);
        let binary = BinaryCrossEntropy { divisor, ..BinaryCrossEntropy::default() };
        assert_eq!(binary.evaluate(view(), view(), Some(d.view_mut())), refused);
        assert_eq!(SquaredError { divisor }.evaluate(view(), view(), Some(d.view_mut())), refused);
        assert_eq!(Huber { divisor, delta: 1.0 }.evaluate(view(), view(), Some(d.view_mut())), refused);
    }
    for label_smoothing in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
        let loss = CrossEntropy { label_smoothing, ..CrossEntropy::default() };
        let found = loss.evaluate(view(), &[0, 1], Some(d.view_mut()));
        assert_eq!(found, setting("label_smoothing", "must lie in [0, 1]"));
    }
    for delta in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let found = Huber { divisor: Divisor::Mean, delta }.evaluate(view(), view(), Some(d.view_mut()));
        assert_eq!(found, setting("delta", "must be positive and finite"));
    }
    let element = |operand, row, col, reason, found: &str| {
        Err(Error::Element { operand, row, col, reason, found: found.to_string() })
    };
    for (bad, text) in [(-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let weights = [1.0, bad];
        let loss = CrossEntropy { class_weights: Some(&weights), ..CrossEntropy::default() };
        let refused = element("class_weights", 0, 1, "must be finite and not negative", text);
        assert_eq!(loss.evaluate(view(), &[0, 0], Some(d.view_mut())), refused);
        assert_eq!(loss.total_weight(&[0, 0]), refused);
        let binary = BinaryCrossEntropy { pos_weights: Some(&weights), ..BinaryCrossEntropy::default() };
        let refused = element("pos_weights", 0, 1, "must be finite and not negative", text);
        assert_eq!(binary.evaluate(view(), view(), Some(d.view_mut())), refused);
    }
    for (bad, text) in [(-1e-45, "-0.000000000000000000000000000000000000000000001"), (1.5, "1.5"), (f32::NAN, "NaN")] {
        let found =
            BinaryCrossEntropy::default().evaluate(view(), mat(&[0.0, 1.0, bad, 0.5], 2, 2), Some(d.view_mut()));
        assert_eq!(found, element("targets", 1, 0, "must lie in [0, 1]", text));
    }
    let length = |operand, expected, found| Err(Error::Length { operand, expected, found });
    let weights = [1.0; 3];
    let loss = CrossEntropy { class_weights: Some(&weights), ..CrossEntropy::default() };
    assert_eq!(loss.evaluate(view(), &[0, 1], Some(d.view_mut())), length("class_weights", 2, 3));
    let class = |index, classes, found| Err(Error::Class { operand: "labels", index, classes, found });
    assert_eq!(loss.total_weight(&[2, 3]), class(1, 3, 3));
    let binary = BinaryCrossEntropy { pos_weights: Some(&weights), ..BinaryCrossEntropy::default() };
    assert_eq!(binary.evaluate(view(), view(), Some(d.view_mut())), length("pos_weights", 2, 3));
    let loss = CrossEntropy { ignore: Some(7), ..CrossEntropy::default() };
    assert_eq!(loss.evaluate(view(), &[7, 8], Some(d.view_mut())), class(1, 2, 8));
    assert_eq!(loss.evaluate(view(), &[7], Some(d.view_mut())), length("labels", 2, 1));
    let shape = |operand, expected, found| Err(Error::Shape { operand, expected, found });
    let wide = [0.0; 6];
    let wide = || mat(&wide, 2, 3);
    assert_eq!(loss.evaluate(wide(), &[7, 1], Some(d.view_mut())), shape("dlogits", (2, 3), (2, 2)));
    let binary = BinaryCrossEntropy::default();
    assert_eq!(binary.evaluate(view(), wide(), Some(d.view_mut())), shape("targets", (2, 2), (2, 3)));
    assert_eq!(binary.evaluate(wide(), wide(), Some(d.view_mut())), shape("dlogits", (2, 3), (2, 2)));
    let huber = Huber::default();
    assert_eq!(huber.evaluate(view(), wide(), Some(d.view_mut())), shape("target", (2, 2), (2, 3)));
    assert_eq!(huber.evaluate(wide(), wide(), Some(d.view_mut())), shape("dy", (2, 3), (2, 2)));
    d.assert_untouched("gradient");
    let error = binary.evaluate(view(), mat(&[0.0, 2.0, 0.0, 0.0], 2, 2), None).expect_err("a refusal");
    assert_eq!(error.to_string(), "targets[0, 1]: must lie in [0, 1], found 2");
}

#[test]
fn the_mean_of_squares_is_over_all_elements() {
    // Of a 2 x 2 case, rows + columns are as many as rows * columns.
    let mut d = [0.0; 6];
    let (y, target) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 2.0, 3.0, 4.0, 5.0, 9.0]);
    let loss = mean_squared_error(mat(&y, 2, 3), mat(&target, 2, 3), Some(mat_mut(&mut d, 2, 3)));
    assert_eq!(loss, Ok(10.0 / 6.0));
    assert_eq!(d, [(1.0 / 3.0) as f32, 0.0, 0.0, 0.0, 0.0, -1.0]);
}
