//! Rows and columns shared at once: whatever a plan makes of a batch, the bits are those of the oracle.

use crate::common::problem::Problem;
use crate::common::{ACTIVATIONS, Rng, Stage, assert_same, contexts, eager, narrow, pool};
use resblock::{Blocking, Layer, Machine, Par, Purpose, Sequence, Workspace};

/// (row blocks, pieces of columns, threads) of each pass that an explanation tells of.
fn shares(text: &str) -> Vec<(usize, usize, usize)> {
    let number = |text: Option<&str>| text.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(1);
    let lines = text.lines().filter(|line| line.contains(" blocks of up to "));
    let of = |line: &str| {
        let after = |word: &str| number(line.split(word).nth(1));
        (number(Some(line.trim())), after("columns in "), after("shared by "))
    };
    lines.map(of).collect()
}

#[test]
fn rows_and_columns_shared_at_once_give_the_bits_of_one() {
    let (mut rng, mut seen) = (Rng::new(41), Vec::new());
    let machines: [fn() -> Machine; 5] = [Machine::default, narrow, eager, narrow, narrow];
    for case in 0..60 {
        let phi = ACTIVATIONS[rng.below(ACTIVATIONS.len())];
        let widths = [rng.below(90) + 1, rng.below(150) + 1, rng.below(70) + 1];
        let stages = vec![
            Stage::linear(&mut rng, widths[0], widths[1], phi, case % 3 > 0),
            Stage::block(&mut rng, widths[1], widths[2], phi, case % 2 == 0, case % 5 > 0),
        ];
        let rows = [1, 4, 5, 15, 16, 17, 31, 40, 70][rng.below(9)];
        let mut problem = Problem::random(&mut rng, stages, rows);
        problem.net = crate::common::problem::Net::sequence(&problem.stages);
        let want = problem.oracle(case % 2 == 1);
        let blocking = Blocking { rows: [0, 3, 20][rng.below(3)], depth: [0, 16][rng.below(2)], ..Blocking::default() };
        for (ctx, threads) in contexts().flat_map(|ctx| [2, 3, 8, 16].map(|threads| (ctx, threads))) {
            let ctx = ctx.with_blocking(blocking).with_par(Par::Rayon(0)).with_machine(machines[case % 5]());
            let what = format!("case {case}: {rows} rows, {widths:?}, {threads} threads, {ctx:?}");
            pool(threads).install(|| {
                let mut ws = Workspace::new();
                assert_same(&what, &problem.infer(&ctx, &mut ws, &[]), &want.y);
                problem.train(&ctx, &mut ws, &[], case % 2 == 1).assert_same(&what, &want);
                // Again, with what helpers there are by now.
                problem.train(&ctx, &mut ws, &[], case % 2 == 1).assert_same(&what, &want);
                let crate::common::problem::Net::Sequence(net) = &problem.net else { panic!("a sequence") };
                seen.extend(explained(net, &ctx, rows));
            });
        }
    }
    // Otherwise this test would show less than it says.
    // Passes that went so, of a thousand and more.
    let both = seen.iter().filter(|&&(blocks, columns, threads)| blocks > 1 && columns > 1 && threads > 2).count();
    let columns = seen.iter().filter(|&&(blocks, columns, _)| blocks == 1 && columns > 1).count();
    let rows = seen.iter().filter(|&&(blocks, columns, threads)| blocks > 1 && columns == 1 && threads > 1).count();
    assert!(both >= 10 && columns >= 20 && rows >= 20, "{both}, {columns}, {rows}");
}

fn explained(net: &Sequence, ctx: &resblock::Context, rows: usize) -> Vec<(usize, usize, usize)> {
    shares(&net.explain(ctx, rows, Purpose::Training).expect("an explanation").to_string())
}

#[test]
fn plans_are_made_for_machines_that_are_not_this_one() {
    let mut rng = Rng::new(42);
    let net = Stage::block(&mut rng, 256, 256, resblock::Activation::Relu, true, true).build_block();
    let threads = |machine: Machine, rows| {
        let ctx = crate::common::fastest().with_machine(machine); // on one thread
        shares(&net.explain(&ctx, rows, Purpose::Inference).expect("an explanation").to_string())[0].2
    };
    let machine = Machine { l2_kib: 2048, ..Machine::default() };
    assert_eq!(threads(machine, 4096), 1, "as many as the context has");
    assert_eq!(threads(Machine { threads: 64, ..machine }, 4096), 64);
    assert!(threads(Machine { threads: 64, ..machine }, 1) <= 4, "one row is not worth many");
    // The dearer a phase, the fewer threads.
    let on = |thread_ns| threads(Machine { threads: 16, thread_ns, ..machine }, 8);
    let used = [0, 100, 300, 1000, 10_000].map(on);
    assert!(used.is_sorted_by(|a, b| a >= b) && used[0] > 4 && used[4] == 1, "{used:?}");
}
