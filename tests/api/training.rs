//! What a training loop has beside layers and losses: the table of tensors, groups of parameters, clipping by norm, schedules.

use crate::common::optimizers::{Settings, adamw_step_in, sgd_step_in};
use crate::common::{
    Grid, Layout, MapGrad, NAMES, Rng, Stage, assert_same, build_stack, contexts, fastest, gradients_of, mat, mat_mut,
    parameters_of, pool, random_grads, random_stack,
};
use proptest::prelude::*;
use resblock::{
    Activation, AdamW, Affine, Block, Checkpoint, CheckpointError, Context, Error, GradMode, Gradients, Group, Layer,
    Linear, Optimizer, Par, Part, Place, RateDecay, Role, SavedOptimizer, Schedule, Select, Sgd, Snapshot, Stack,
    TensorName, Workspace,
};
use std::collections::HashSet;
use std::fmt::Debug;

fn stages(rng: &mut Rng) -> Vec<Stage> {
    random_stack(rng, (5, 17, 33, 4), 2, Activation::Gelu, true)
}

fn stack(seed: u64) -> Stack {
    build_stack(&stages(&mut Rng::new(seed)))
}

// ----------------------------------------------------------------------------------------------- on several threads

/// Parameters after three steps by clipped and scaled gradients of several groups, and the norms on the way.
fn steps_on<O: Optimizer>(mut optimizer: O, ctx: &Context, seed: u64) -> (Vec<f32>, Vec<u64>) {
    // Tensors of many pieces, of one, and a declined one between them.
    let stages = random_stack(&mut Rng::new(seed), (300, 301, 150, 4), 2, Activation::Gelu, true);
    let mut net = build_stack(&stages);
    let mut grads = gradients_of(&net, &random_grads(&mut Rng::new(seed + 1), &stages));
    assert_eq!(grads.decline(|tensor| tensor == Part::First.in_block(1).weight()), 1);
    let mut norms = Vec::new();
    for _ in 0..3 {
        norms.push(grads.clip_norm(ctx, 1.5).expect("finite").to_bits());
        grads.scale(ctx, 0.75);
        norms.push(optimizer.step_checked(ctx, &mut net, &grads).expect("a step").to_bits());
    }
    (parameters_of(&net).concat(), norms)
}

#[test]
fn steps_on_any_number_of_threads_give_the_bits_of_one() {
    let group = Group { lr_factor: 0.5, weight_decay: Some(0.0), ..Group::new(Role::Bias) };
    let (mut adamw, mut sgd) = (AdamW::new(0.1), Sgd::new(0.1, 0.9));
    (adamw.groups, sgd.groups, sgd.weight_decay) = (vec![group], vec![group], 0.1);
    for ctx in contexts() {
        let want = (steps_on(adamw.clone(), &ctx, 3), steps_on(sgd.clone(), &ctx, 3));
        for threads in [2, 3, 8] {
            let ctx = ctx.with_par(Par::Rayon(0));
            let got = pool(threads).install(|| (steps_on(adamw.clone(), &ctx, 3), steps_on(sgd.clone(), &ctx, 3)));
            assert_same(format_args!("AdamW, {threads} threads, {ctx:?}"), &got.0.0, &want.0.0);
            assert_same(format_args!("SGD, {threads} threads, {ctx:?}"), &got.1.0, &want.1.0);
            assert_eq!((got.0.1, got.1.1), (want.0.1.clone(), want.1.1.clone()), "norms");
        }
    }
}

// ----------------------------------------------------------------------------------------------- the table of tensors

/// Parameters to read, parameters to change and gradients are the same rows, by these names; what is written to one is read from it.
fn assert_one_table<L: Layer>(mut layer: L, names: &[&str]) {
    let found: Vec<TensorName> = layer.parameters().map(|tensor| tensor.name()).collect();
    assert_eq!(found.iter().map(TensorName::to_string).collect::<Vec<_>>(), names);
    assert_eq!(found.iter().collect::<HashSet<_>>().len(), names.len());
    let mut grads = Gradients::new(&layer).expect("gradients");
    let rows: Vec<_> = layer.parameters().map(|tensor| (tensor.name(), tensor.shape())).collect();
    assert_eq!(layer.parameters_mut().map(|tensor| (tensor.name(), tensor.shape())).collect::<Vec<_>>(), rows);
    assert_eq!(grads.iter().map(|tensor| (tensor.name(), tensor.shape())).collect::<Vec<_>>(), rows);
    assert_eq!(grads.iter_mut().map(|tensor| (tensor.name(), tensor.shape())).collect::<Vec<_>>(), rows);
    let maps = (0..layer.affine_count()).map(|i| layer.affine_name(i)).collect::<Vec<_>>();
    assert_eq!(maps, found.iter().filter(|name| name.role == Role::Weight).map(|name| name.place).collect::<Vec<_>>());

    let mut rng = Rng::new(1);
    let values: Vec<Vec<f32>> = rows.iter().map(|(_, (rows, cols))| rng.vec(rows * cols)).collect();
    for (mut tensor, values) in layer.parameters_mut().zip(&values) {
        let (rows, cols) = tensor.shape();
        tensor.read_from(mat(values, rows, cols)).expect("the shape");
        assert_same("a tensor", &tensor.as_ref().iter().collect::<Vec<_>>(), values);
    }
    assert_eq!(parameters_of(&layer), values);
    for ((name, (rows, cols)), values) in rows.iter().zip(&values) {
        assert_eq!(grads.set(*name, mat(values, *rows, *cols)), Ok(true));
    }
    for (gradient, parameter) in grads.iter().zip(layer.parameters()) {
        assert_same("a gradient", gradient.as_slice(), parameter.as_slice());
        assert_eq!((gradient.to_string(), gradient.role()), (parameter.to_string(), parameter.role()));
        let mut out = Grid::new(Layout::Transposed(1), gradient.shape().0, gradient.shape().1);
        gradient.write_to(out.view_mut()).expect("the shape");
        assert_same("a copy", &out.values(), &gradient.iter().collect::<Vec<_>>());
    }
}

#[test]
fn parameters_and_gradients_are_rows_of_one_table() {
    let mut rng = Rng::new(2);
    assert_one_table::<Stack>(stack(1), &NAMES);
    let mut block = |bias| Stage::block(&mut rng, 7, 21, Activation::Relu, true, bias).build_block();
    assert_one_table::<Block>(block(true), &["first.weight", "first.bias", "second.weight", "second.bias"]);
    assert_one_table::<Block>(block(false), &["first.weight", "second.weight"]);
    assert_one_table::<Stack>(Stack::from_blocks(vec![block(true), block(true)]).expect("a stack"), &NAMES[2..10]);
    let linear = Stage::linear(&mut rng, 5, 18, Activation::Relu, true).build_linear();
    assert_one_table::<Linear>(linear, &["linear.weight", "linear.bias"]);
}

/// y, dx, the gradients of a batch and the parameters after a step of AdamW by them.
fn step(mut net: Stack, mut grads: Gradients) -> [Vec<f32>; 4] {
    let (ctx, mut ws, mut rng, n) = (fastest(), Workspace::new(), Rng::new(9), 3);
    let (x, dy, mut y, mut dx) = (rng.vec(n * 5), rng.vec(n * 4), vec![0.0; n * 4], vec![0.0; n * 5]);
    let pass = net.forward(&ctx, &mut ws, mat(&x, n, 5), mat_mut(&mut y, n, 4)).expect("forward");
    pass.backward(mat(&dy, n, 4), Some(mat_mut(&mut dx, n, 5)), &mut grads, GradMode::Overwrite).expect("backward");
    grads.clip_norm(&ctx, 0.5).expect("a norm");
    AdamW::new(0.1).step(&ctx, &mut net, &grads).expect("a step");
    [y, dx, values(&grads), parameters_of(&net).concat()]
}

#[test]
fn what_is_in_the_padding_of_parameters_and_gradients_reaches_no_result() {
    let (mut net, good) = (stack(1), stack(1));
    let mut grads = Gradients::new(&net).expect("gradients");
    net.parameters_mut().for_each(|tensor| tensor.into_slice().fill(f32::NAN));
    grads.iter_mut().for_each(|tensor| tensor.into_slice().fill(f32::NAN));
    for (mut tensor, values) in net.parameters_mut().zip(parameters_of(&good)) {
        let (rows, cols) = tensor.shape();
        tensor.read_from(mat(&values, rows, cols)).expect("the shape");
    }
    assert!(net.parameters().any(|tensor| tensor.as_slice().iter().any(|value| value.is_nan())));
    let want = step(good, Gradients::new(&net).expect("gradients"));
    for ((found, want), what) in step(net, grads).iter().zip(&want).zip(["y", "dx", "gradients", "parameters"]) {
        assert_same(what, found, want);
    }
}

/// A block of a stack and a block by itself have the same shapes, but not the same tensors.
#[test]
fn gradients_of_tensors_with_other_names_are_refused() {
    let mut block = Stage::block(&mut Rng::new(3), 7, 21, Activation::Relu, true, true).build_block();
    let stack = Stack::from_blocks(vec![block.clone()]).expect("a stack");
    let refused = Error::Mismatch { operand: "grads", tensor: "first.weight".into() };
    let grads = Gradients::new(&stack).expect("gradients");
    assert_eq!(Sgd::new(0.1, 0.0).step(&fastest(), &mut block, &grads), Err(refused));
}

// ------------------------------------------------------------------------------------------------------------- groups

fn any_select() -> impl Strategy<Value = Select> {
    let role = prop::option::of(prop::sample::select(&[Role::Weight, Role::Bias][..]));
    let part = prop::option::of(prop::sample::select(&[Part::Input, Part::First, Part::Second, Part::Output][..]));
    let blocks = prop::option::of((0..3_usize, 0..3_usize));
    (role, part, blocks).prop_map(|(role, part, blocks)| {
        let select = role.map_or(Select::all(), Select::from);
        let select = part.map_or(select, |part| select.part(part));
        blocks.map_or(select, |(start, end)| select.blocks(start..end))
    })
}

fn any_group() -> impl Strategy<Value = Group> {
    let factor = prop_oneof![Just(0.0), Just(1.0), 0.0..3.0_f32];
    let decay = prop::option::of(prop_oneof![Just(0.0), 0.0..0.5_f32]);
    (any_select(), factor, decay).prop_map(|(select, lr_factor, weight_decay)| Group {
        select,
        lr_factor,
        weight_decay,
    })
}

/// Whether `text`, as a selection is shown by `Debug`, has tensor `name`: by their texts alone.
fn has(select: &Select, name: &str) -> bool {
    let text = format!("{select:?}");
    let set = |field: &str| text.split(&format!("{field}: Some(")).nth(1).map(|rest| rest.to_lowercase());
    let holds = |field: &str, test: &dyn Fn(&str) -> bool| set(field).is_none_or(|value| test(&value));
    let block = name.strip_prefix("blocks.").map(|rest| rest[..1].parse::<usize>().expect("a digit"));
    holds("role", &|role| name.ends_with(role.split(')').next().expect("a role")))
        && holds("part", &|part| name.contains(part.split(')').next().expect("a part")))
        && holds("blocks", &|range| {
            let mut ends = range.split(|c: char| !c.is_ascii_digit()).filter_map(|end| end.parse::<usize>().ok());
            let (start, end) = (ends.next().expect("a start"), ends.next().expect("an end"));
            block.is_some_and(|block| start <= block && block < end)
        })
}

/// What the first group that has `name` says.
fn settings(groups: &[Group], name: &str, weight_decay: f32) -> Settings {
    let own = if name.ends_with("weight") { weight_decay } else { 0.0 };
    let group = groups.iter().find(|group| has(&group.select, name));
    group.map_or((1.0, own), |group| (group.lr_factor, group.weight_decay.unwrap_or(own)))
}

/// Three steps of an optimiser with groups, on every instruction set, beside `rule` for each element.
fn assert_groups<O: Optimizer + Clone>(
    start: &O,
    groups: &[Group],
    weight_decay: f32,
    rule: impl Fn(Settings, u64, &mut f32, f32, &mut [f32; 2]),
) {
    let mut rng = Rng::new(4);
    let stages = stages(&mut rng);
    let all: Vec<Vec<MapGrad<f32>>> = (0..3).map(|_| random_grads(&mut rng, &stages)).collect();
    let mut want = parameters_of(&build_stack(&stages));
    let mut moments: Vec<Vec<[f32; 2]>> = want.iter().map(|p| vec![[0.0; 2]; p.len()]).collect();
    for (grads, t) in all.iter().zip(1..) {
        let grads = grads.iter().flat_map(|map| [&map.dw, &map.db]);
        for (((name, p), g), moments) in NAMES.iter().zip(&mut want).zip(grads).zip(&mut moments) {
            let settings = settings(groups, name, weight_decay);
            for ((p, &g), moments) in p.iter_mut().zip(g).zip(moments) {
                rule(settings, t, p, g, moments);
            }
        }
    }
    for ctx in contexts() {
        let (mut stack, mut optimizer) = (build_stack(&stages), start.clone());
        for grads in &all {
            let grads = gradients_of(&stack, grads);
            optimizer.step(&ctx, &mut stack, &grads).expect("a step");
        }
        for ((found, want), name) in parameters_of(&stack).iter().zip(&want).zip(NAMES) {
            assert_same(format_args!("{name} on {ctx:?}"), found, want);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn groups_follow_the_formulas_with_the_same_bits_on_every_instruction_set(
        groups in prop::collection::vec(any_group(), 0..4),
    ) {
        let mut adam = AdamW::new(0.01);
        (adam.weight_decay, adam.groups) = (0.1, groups.clone());
        assert_groups(&adam, &groups, 0.1, |settings, t, p, g, moments| {
            adamw_step_in(&adam, settings, t, p, g, moments);
        });
        let mut sgd = Sgd::new(0.03, 0.9);
        (sgd.weight_decay, sgd.groups) = (0.07, groups.clone());
        assert_groups(&sgd, &groups, 0.07, |settings, t, p, g, moments| {
            sgd_step_in(&sgd, settings, t, p, g, moments);
        });
    }

    #[test]
    fn a_selection_has_what_its_conditions_say(select in any_select()) {
        for tensor in stack(1).parameters() {
            prop_assert_eq!(select.contains(tensor.name()), has(&select, &tensor.to_string()), "{} in {:?}", tensor, select);
            let alone = Select::from(tensor.name());
            for other in stack(1).parameters() {
                prop_assert_eq!(alone.contains(other.name()), other.name() == tensor.name());
            }
        }
    }

    /// The next steps of a resumed run are those of the run, whatever groups the optimiser had before.
    #[test]
    fn groups_are_saved_and_restored(groups in prop::collection::vec(any_group(), 0..4)) {
        let mut adam = AdamW::new(0.01);
        adam.groups = groups.clone();
        assert_resumes(adam, groups.clone(), |adam| &mut adam.groups);
        let mut sgd = Sgd::new(0.03, 0.9);
        sgd.groups = groups.clone();
        assert_resumes(sgd, groups, |sgd| &mut sgd.groups);
    }
}

fn assert_resumes<O: SavedOptimizer + Clone + PartialEq + Debug>(
    mut optimizer: O,
    groups: Vec<Group>,
    groups_of: impl Fn(&mut O) -> &mut Vec<Group>,
) {
    let (ctx, mut net, mut rng) = (fastest(), stack(1), Rng::new(5));
    let grads = gradients_of(&net, &random_grads(&mut rng, &stages(&mut Rng::new(1))));
    optimizer.step(&ctx, &mut net, &grads).expect("a step");
    let file = Snapshot::with_optimizer(&net, &optimizer).and_then(|s| s.to_bytes()).expect("bytes");
    let (mut other, mut resumed) = (stack(2), optimizer.clone());
    *groups_of(&mut resumed) = vec![Group { lr_factor: 7.0, ..Group::new(Part::Linear) }];
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    assert_eq!(checkpoint.metadata().any(|(name, _)| name == "resblock.groups"), !groups.is_empty());
    checkpoint.resume(&mut other, &mut resumed).expect("resumed");
    assert_eq!(groups_of(&mut resumed), &groups);
    assert_eq!(resumed, optimizer);
    optimizer.step(&ctx, &mut net, &grads).expect("a step");
    resumed.step(&ctx, &mut other, &grads).expect("a step");
    assert_eq!(parameters_of(&net), parameters_of(&other));
}

#[test]
fn groups_in_files_are_this_text_and_no_other() {
    let net = stack(1);
    let mut adam = AdamW::new(0.01);
    adam.groups = vec![
        Group { lr_factor: 0.1, ..Group::new(Part::Input) },
        Group { weight_decay: Some(0.0), ..Group::new(Select::from(Role::Bias).blocks(0..3)) },
        Group { lr_factor: 1e-30, weight_decay: Some(0.5), ..Group::new(Select::all()) },
    ];
    let text = "part input: lr_factor 0.1; role bias, blocks 0..3: lr_factor 1, weight_decay 0; \
                : lr_factor 0.000000000000000000000000000001, weight_decay 0.5";
    // A string of the caller's does not take its place.
    let snapshot = Snapshot::with_optimizer(&net, &adam).expect("a snapshot").metadata("resblock.groups", "none");
    let file = snapshot.to_bytes().expect("bytes");
    let checkpoint = Checkpoint::from_bytes(&file).expect("a checkpoint");
    assert_eq!(checkpoint.metadata().find(|(name, _)| *name == "resblock.groups"), Some(("resblock.groups", text)));

    for (from, to) in [
        ("part input", "port input"),
        ("part input", "part inpot"),
        ("role bias", "role biaz"),
        ("blocks 0..3", "blocks 0.43"),
        ("blocks 0..3", "blocks 0..x"),
        ("lr_factor 0.1", "lr_factor 0,1"),
        ("lr_factor 0.1", "la_factor 0.1"),
        ("weight_decay 0;", "weight_decay a;"),
        ("input: ", "input. "),
    ] {
        let mut bad = file.clone();
        let at = bad.windows(from.len()).position(|bytes| bytes == from.as_bytes()).expect("the text");
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        let (mut other, mut resumed) = (stack(2), AdamW::new(1.0));
        let error = Checkpoint::from_bytes(&bad).and_then(|c| c.resume(&mut other, &mut resumed)).expect_err("refused");
        assert_eq!(error, CheckpointError::Groups { found: text.replacen(from, to, 1) }.into());
        assert_eq!((parameters_of(&other), resumed), (parameters_of(&stack(2)), AdamW::new(1.0)));
    }
}

/// The operand that a step with these groups is refused for; that nothing has changed then.
fn refused<O: Optimizer + Clone + Debug>(mut optimizer: O) -> Option<&'static str> {
    let (mut net, before) = (stack(1), format!("{optimizer:?}"));
    let grads = gradients_of(&net, &random_grads(&mut Rng::new(6), &stages(&mut Rng::new(1))));
    match optimizer.step(&fastest(), &mut net, &grads) {
        Ok(()) => None,
        Err(Error::Setting { operand, .. }) => {
            assert_eq!((parameters_of(&net), format!("{optimizer:?}")), (parameters_of(&stack(1)), before));
            Some(operand)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn settings_of_groups_out_of_range_are_refused_and_nothing_changes() {
    let group = |lr_factor, weight_decay| {
        vec![Group::new(Role::Bias), Group { lr_factor, weight_decay, ..Group::new(Part::Input) }]
    };
    let adam = |lr, groups| {
        let mut adam = AdamW::new(lr);
        adam.groups = groups;
        refused(adam)
    };
    let sgd = |lr, groups| {
        let mut sgd = Sgd::new(lr, 0.9);
        sgd.groups = groups;
        refused(sgd)
    };
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY, -1e-3, -f32::MIN_POSITIVE] {
        for refused in [adam(1e-3, group(bad, None)), sgd(1e-3, group(bad, None))] {
            assert_eq!(refused, Some("groups.lr_factor"), "{bad}");
        }
        for refused in [adam(1e-3, group(1.0, Some(bad))), sgd(1e-3, group(1.0, Some(bad)))] {
            assert_eq!(refused, Some("groups.weight_decay"), "{bad}");
        }
    }
    // What comes of them, too.
    assert_eq!(adam(1e10, group(1e30, None)), Some("groups.lr_factor"));
    assert_eq!(sgd(1e10, group(1e30, None)), Some("groups.lr_factor"));
    assert_eq!(adam(1.0, group(1e30, Some(1e30))), Some("groups.weight_decay"));
    assert_eq!(adam(0.0, group(f32::MAX, Some(f32::MAX))), None);
    assert_eq!(sgd(0.0, group(f32::MAX, Some(0.0))), None);
    assert_eq!(adam(1e-3, group(0.0, Some(0.0))), None);
}

// ----------------------------------------------------------------------------------------------------------- clipping

/// The norm in the order that is documented: 16 chains over the columns modulo 16, panel by panel, for each tensor.
fn norm(grads: &Gradients) -> f64 {
    let squares = grads.iter().map(|tensor| {
        let ((rows, cols), is_weight) = (tensor.shape(), tensor.role() == Role::Weight);
        // Inputs run inside of a panel of 16 outputs.
        let (inner, outputs) = if is_weight { (cols, rows) } else { (rows, cols) };
        let mut chains = [0.0; 16];
        for panel in 0..outputs.div_ceil(16) {
            for i in 0..inner {
                for o in panel * 16..outputs.min(panel * 16 + 16) {
                    let g = f64::from(if is_weight { tensor.get(o, i) } else { tensor.get(i, o) }.expect("an element"));
                    chains[o % 16] += g * g;
                }
            }
        }
        chains.iter().sum::<f64>()
    });
    squares.sum::<f64>().sqrt()
}

fn values(grads: &Gradients) -> Vec<f32> {
    grads.iter().flat_map(|tensor| tensor.iter()).collect()
}

/// Gradients of `stack(1)`, random ones times `size`; those of one tensor in five are declined.
fn gradients(seed: u64, size: f32) -> Gradients {
    let mut rng = Rng::new(seed);
    let mut grads = gradients_of(&stack(1), &random_grads(&mut rng, &stages(&mut Rng::new(1))));
    grads.scale(&fastest(), size);
    let declined: HashSet<TensorName> =
        grads.iter().map(|tensor| tensor.name()).filter(|_| rng.below(5) == 0).collect();
    assert_eq!(grads.decline(|name| declined.contains(&name)), declined.len());
    grads
}

proptest! {
    #[test]
    fn clipping_scales_by_the_documented_factor(seed: u64, exponent in -44..38_i32, share in 0.0..2.0_f64) {
        let mut grads = gradients(seed, 10.0_f32.powi(exponent));
        let (before, norm) = (values(&grads), norm(&grads));
        let max = norm * share;
        prop_assert_eq!(grads.norm(&fastest()).to_bits(), norm.to_bits());
        prop_assert_eq!(grads.clip_norm(&fastest(), max), Ok(norm));
        let factor = max / norm;
        let clip = |&g: &f32| if norm > max { (f64::from(g) * factor) as f32 } else { g };
        assert_same("gradients", &values(&grads), &before.iter().map(clip).collect::<Vec<_>>());
        // The last term: an element may be rounded up by half of the smallest denormal.
        let denormals = 2.0_f64.powi(-150) * (before.len() as f64).sqrt();
        prop_assert!(grads.norm(&fastest()) <= max * (1.0 + 2.0_f64.powi(-24) + 1e-12) + denormals || norm <= max);
    }
}

#[test]
fn clipping_at_the_ends_of_the_range() {
    let same = |grads: &mut Gradients, max, norm| {
        let before = values(grads);
        assert_eq!(grads.clip_norm(&fastest(), max), Ok(norm));
        assert_same("gradients that are not clipped", &values(grads), &before);
    };
    let mut grads = gradients(7, 3.0);
    let before = grads.norm(&fastest());
    same(&mut grads, f64::INFINITY, before);
    same(&mut grads, before, before);
    let signs: Vec<f32> = values(&grads).iter().map(|g| 0.0_f32.copysign(*g)).collect();
    assert_eq!(grads.clip_norm(&fastest(), 0.0), Ok(before));
    assert_same("gradients clipped to 0", &values(&grads), &signs);
    for max in [0.0, -0.0, 1.0, f64::INFINITY] {
        same(&mut grads, max, 0.0);
    }
    // The largest and a factor far below the range of f32.
    let mut grads = Gradients::new(&stack(1)).expect("gradients");
    grads.iter_mut().for_each(|tensor| tensor.into_slice().fill(f32::MAX));
    let count = values(&grads).len() as f64;
    grads.clip_norm(&fastest(), 1e-30).expect("finite");
    assert!((grads.norm(&fastest()) / 1e-30 - 1.0).abs() < 1e-7, "{:e} of {count}", grads.norm(&fastest()));
}

#[test]
fn a_clip_that_has_no_meaning_is_refused_and_nothing_changes() {
    let mut grads = gradients(8, 1.0);
    let before = values(&grads);
    for max in [f64::NAN, -1.0, -f64::INFINITY, -f64::MIN_POSITIVE] {
        assert!(matches!(grads.clip_norm(&fastest(), max), Err(Error::Setting { operand: "max", .. })), "{max}");
    }
    assert_same("gradients", &values(&grads), &before);
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
        let mut grads = Gradients::new(&stack(1)).expect("gradients");
        assert_eq!(grads.set(Part::First.in_block(1).bias(), mat(&[bad; 33], 1, 33)), Ok(true));
        let before = values(&grads);
        let error = grads.clip_norm(&fastest(), f64::INFINITY).expect_err("no finite norm");
        let Error::Gradient { parameter, index: 0, count: 33, .. } = &error else { panic!("{error}") };
        assert_eq!(parameter, "blocks.1.first.bias");
        assert_same("gradients", &values(&grads), &before);
    }
}

// ---------------------------------------------------------------------------------------------------------- schedules

#[test]
fn rates_are_these_bits_on_every_platform() {
    let bits = |warm_up, decay| {
        let schedule = Schedule::new(3e-3, warm_up, decay).expect("a schedule");
        [0, 1, 9, 10, 333, 999, 1000].map(|step| schedule.rate(step).to_bits())
    };
    let (end, floor) = (1000, 1e-5);
    assert_eq!(Schedule::constant(3e-3).map(|schedule| schedule.rate(u64::MAX)), Ok(3e-3));
    let cases = [
        bits(0, RateDecay::None),
        bits(10, RateDecay::Linear { end, floor }),
        bits(10, RateDecay::Cosine { end, floor }),
        bits(10, RateDecay::Stairs { every: 100, factor: 0.3 }),
    ];
    let want = [
        [0x3b449ba6, 0x3b449ba6, 0x3b449ba6, 0x3b449ba6, 0x3b449ba6, 0x3b449ba6, 0x3b449ba6],
        [0x398efcd6, 0x3a0efcd6, 0x3b32bc0b, 0x3b449ba6, 0x3b04ad0d, 0x375a7157, 0x3727c5ac],
        [0x398efcd6, 0x3a0efcd6, 0x3b32bc0b, 0x3b449ba6, 0x3b157e0e, 0x3727e600, 0x3727c5ac],
        [0x398efcd6, 0x3a0efcd6, 0x3b32bc0b, 0x3b449ba6, 0x38a9de8d, 0x337d9d16, 0x337d9d16],
    ];
    assert_eq!(cases, want);
}

#[test]
fn rates_follow_their_formulas() {
    let rates = |warm_up, decay, steps: &[u64]| {
        let schedule = Schedule::new(8.0, warm_up, decay).expect("a schedule");
        steps.iter().map(|&step| schedule.rate(step)).collect::<Vec<_>>()
    };
    assert_eq!(rates(3, RateDecay::None, &[0, 1, 2, 3, 4, u64::MAX]), [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]);
    let linear = RateDecay::Linear { end: 7, floor: 2.0 };
    assert_eq!(rates(3, linear, &[2, 3, 4, 5, 6, 7, 8, u64::MAX]), [6.0, 8.0, 6.5, 5.0, 3.5, 2.0, 2.0, 2.0]);
    let cosine = RateDecay::Cosine { end: 8, floor: 0.0 };
    let root = std::f64::consts::FRAC_1_SQRT_2;
    let quarter = [4.0 + 4.0 * root, 4.0 - 4.0 * root].map(|rate| rate as f32);
    assert_eq!(rates(0, cosine, &[0, 2, 4, 6, 8, 9]), [8.0, quarter[0], 4.0, quarter[1], 0.0, 0.0]);
    let stairs = RateDecay::Stairs { every: 2, factor: 0.5 };
    assert_eq!(rates(1, stairs, &[0, 1, 2, 3, 4, 5, u64::MAX]), [4.0, 8.0, 8.0, 4.0, 4.0, 2.0, 0.0]);
}

proptest! {
    #[test]
    fn rates_rise_to_the_peak_and_fall_to_the_floor(
        peak in prop_oneof![Just(0.0), Just(f32::MAX), 1e-30..10.0_f32],
        share in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f32],
        warm_up in 0..2000_u64,
        length in 1..2000_u64,
        cosine: bool,
    ) {
        let (floor, end) = (peak * share, warm_up + length);
        let decay = if cosine { RateDecay::Cosine { end, floor } } else { RateDecay::Linear { end, floor } };
        let schedule = Schedule::new(peak, warm_up, decay).expect("a schedule");
        let rates: Vec<f32> = (0..end + 3).map(|step| schedule.rate(step)).collect();
        let (rising, falling) = rates.split_at(warm_up as usize);
        prop_assert!(rising.is_sorted() && rising.iter().all(|&rate| 0.0 <= rate && rate <= peak));
        prop_assert_eq!(falling[0].to_bits(), peak.to_bits());
        prop_assert!(falling.windows(2).all(|pair| pair[1] <= pair[0].next_up()), "but for a rounding of the cosine");
        prop_assert!(falling[length as usize..].iter().all(|rate| rate.to_bits() == floor.to_bits()));
        prop_assert!(falling.iter().all(|&rate| floor <= rate && rate <= peak));
    }
}

#[test]
fn schedules_out_of_range_are_refused() {
    let refused = |peak, warm_up, decay| match Schedule::new(peak, warm_up, decay) {
        Err(Error::Setting { operand, .. }) => Some(operand),
        other => other.map(|_| None).expect("another error"),
    };
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        assert_eq!(refused(bad, 0, RateDecay::None), Some("peak"));
        for floor in [bad, 1.0_f32.next_up()] {
            assert_eq!(refused(1.0, 0, RateDecay::Linear { end: 5, floor }), Some("floor"));
            assert_eq!(refused(1.0, 0, RateDecay::Cosine { end: 5, floor }), Some("floor"));
        }
        assert_eq!(refused(1.0, 0, RateDecay::Stairs { every: 5, factor: bad }), Some("factor"));
    }
    for end in [0, 6, 7] {
        assert_eq!(refused(1.0, 7, RateDecay::Linear { end, floor: 0.0 }), Some("end"));
        assert_eq!(refused(1.0, 7, RateDecay::Cosine { end, floor: 0.0 }), Some("end"));
    }
    assert_eq!(refused(1.0, 0, RateDecay::Stairs { every: 0, factor: 0.5 }), Some("every"));
    assert_eq!(refused(1.0, u64::MAX, RateDecay::None), None);
    assert_eq!(refused(1.0, u64::MAX - 1, RateDecay::Linear { end: u64::MAX, floor: 1.0 }), None);
}

#[test]
fn places_and_names_are_made_of_parts() {
    let place = Part::Second.in_block(3);
    assert_eq!((Part::Second.in_block(3), place.to_string()), (place, "blocks.3.second".into()));
    assert_eq!((place.bias().place, place.bias().role), (place, Role::Bias));
    assert_eq!(Place::from(Part::Input).weight(), Part::Input.weight());
    assert_eq!(format!("{:>7}|{:<7}", Role::Bias, Part::First), "   bias|first  ");
}

#[test]
fn norms_do_not_count_the_padding_of_a_second_panel() {
    let map = Affine::new(mat(&[1.0; 63], 21, 3), None).expect("a map");
    let mut layer = Linear::new(map, Activation::Identity);
    layer.parameters_mut().next().expect("weights").into_slice().fill(2.0);
    assert_eq!(layer.parameters().next().expect("weights").norm_squared(), 252.0);
}
