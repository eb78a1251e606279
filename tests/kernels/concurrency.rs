//! Threads around us: callers that share a network, calls from inside a caller's pools and tasks, pools inside pools, and panics
//! in the caller's code. Nothing deadlocks, everything stays usable, and every bit stays right.

use crate::common::problem::{Net, Problem, Trained};
use crate::common::watchdog::Watchdog;
use crate::common::{POOLS, Rng, Stage, assert_same, context, fastest, isas, mat, mat_mut, pool, random_stack};
use rayon::prelude::*;
use resblock::{Activation, Context, Layer, Par, Workspace};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

/// A network and a batch with what the oracle makes of them.
struct Case {
    problem: Problem,
    want: Trained,
}

impl Case {
    fn new(rng: &mut Rng, stages: Vec<Stage>, rows: usize) -> Self {
        let problem = Problem::random(rng, stages, rows);
        let want = problem.oracle(false);
        Self { problem, want }
    }

    #[track_caller]
    fn infer(&self, ctx: &Context, ws: &mut Workspace) {
        assert_same(format_args!("{ctx:?}"), &self.problem.infer(ctx, ws, &[]), &self.want.y);
    }

    #[track_caller]
    fn train(&self, ctx: &Context, ws: &mut Workspace) {
        self.problem.train(ctx, ws, &[], false).assert_same(format_args!("{ctx:?}"), &self.want);
    }
}

/// Work for one thread, for several that share rows, and for several that share columns.
static CASES: LazyLock<[Case; 3]> = LazyLock::new(|| {
    let mut rng = Rng::new(1);
    let stack = random_stack(&mut rng, (5, 20, 33, 4), 2, Activation::Gelu, true);
    let rows = vec![Stage::block(&mut rng, 80, 112, Activation::Relu, true, true)];
    let columns = vec![Stage::block(&mut rng, 400, 420, Activation::Silu, true, true)];
    [Case::new(&mut rng, stack, 9), Case::new(&mut rng, rows, 130), Case::new(&mut rng, columns, 6)]
});

/// As many threads as the pool has that the call is made in.
fn parallel() -> Context {
    fastest().with_par(Par::Rayon(0))
}

/// Every case, forward and trained, in a workspace that has seen nothing.
fn all(ctx: &Context) {
    let mut ws = Workspace::new();
    for case in CASES.iter() {
        case.infer(ctx, &mut ws);
        case.train(ctx, &mut ws);
    }
}

/// What user code does: a panic without the noise of the hook.
fn panic_quietly() {
    resume_unwind(Box::new("a panic in user code"));
}

fn caught(user_code: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(user_code)).expect_err("the panic comes through");
    assert_eq!(panic.downcast_ref(), Some(&"a panic in user code"), "no other panic");
}

fn proof(promise: &str, how: &str, cases: usize) {
    println!("proof: {promise} | tests/kernels/concurrency.rs: {how} | {cases} | ok");
}

#[test]
fn many_callers_share_one_network_each_with_a_workspace() {
    let _watchdog = Watchdog::new("callers that share a network", Watchdog::GENEROUS);
    let calls = AtomicUsize::new(0);
    let callers = 12;
    std::thread::scope(|scope| {
        for caller in 0..callers {
            let calls = &calls;
            scope.spawn(move || {
                let mut ws = Workspace::new();
                for round in 0..4 {
                    for (i, case) in CASES.iter().enumerate() {
                        let isa = isas()[(caller + round) % isas().len()];
                        let ctx = context(isa);
                        // Alone, in the global pool (its threads are shared by all callers), or in a pool of several callers.
                        match (caller + i) % 3 {
                            0 => case.infer(&ctx, &mut ws),
                            1 => case.infer(&ctx.with_par(Par::Rayon(0)), &mut ws),
                            _ => pool(3).install(|| case.infer(&ctx.with_par(Par::Rayon(3)), &mut ws)),
                        }
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    proof("a network is shared", &format!("{callers} caller threads at once"), calls.into_inner());
}

#[test]
fn training_works_inside_a_pool_a_scope_a_task_and_a_join_of_any_size_of_pool() {
    let _watchdog = Watchdog::new("training inside the caller's pool", Watchdog::GENEROUS);
    for pool in POOLS.map(pool) {
        pool.install(|| all(&parallel()));
        pool.scope(|scope| scope.spawn(|scope| scope.spawn(|_| all(&parallel()))));
        pool.join(|| all(&parallel()), || pool.join(|| all(&parallel()), || all(&parallel())));
        pool.broadcast(|_| all(&parallel()));
        let (done, wait) = channel();
        pool.spawn(move || {
            all(&parallel());
            done.send(()).expect("a receiver");
        });
        wait.recv().expect("a task that finished");
    }
    let broadcasts: usize = POOLS.iter().sum();
    let cases = CASES.len() * (6 * POOLS.len() + broadcasts);
    proof(
        "calls work in a caller's pool",
        &format!("install, scope, join, broadcast, spawn; pools of {POOLS:?}"),
        cases,
    );
}

#[test]
fn parallel_calls_inside_parallel_loops_do_not_deadlock() {
    let _watchdog = Watchdog::new("nested parallel calls", Watchdog::GENEROUS);
    let calls = AtomicUsize::new(0);
    for pool in POOLS.map(pool) {
        pool.install(|| {
            (0..6).into_par_iter().for_each(|_| {
                // With a workspace for each task of the pool, and the loop itself nested.
                CASES.par_iter().for_each_init(Workspace::new, |ws, case| {
                    case.train(&parallel(), ws);
                    calls.fetch_add(1, Ordering::Relaxed);
                });
            });
        });
    }
    proof("nested parallel calls", &format!("loops in loops, pools of {POOLS:?}"), calls.into_inner());
}

#[test]
fn several_pools_at_once_and_pools_inside_pools_do_not_deadlock() {
    let _watchdog = Watchdog::new("several pools", Watchdog::GENEROUS);
    let calls = AtomicUsize::new(0);
    let count = || calls.fetch_add(1, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for outer in POOLS {
            scope.spawn(move || {
                for inner in POOLS {
                    // Into another pool and back again: the outer pool's only thread may be the one that waits.
                    pool(outer).install(|| {
                        pool(inner).install(|| {
                            all(&parallel());
                            pool(outer).install(|| all(&parallel()));
                        });
                        all(&parallel());
                    });
                    count();
                }
            });
        }
    });
    let cases = 3 * CASES.len() * calls.into_inner();
    proof("pools inside pools", &format!("{0} x {0} pools at once, in and back", POOLS.len()), cases);
}

#[test]
fn a_panic_in_a_sibling_task_leaves_the_pool_and_the_workspace_usable() {
    let _watchdog = Watchdog::new("a panic in a sibling task", Watchdog::GENEROUS);
    let mut cases = 0;
    for pool in POOLS.map(pool) {
        let mut ws = Workspace::new();
        for case in CASES.iter() {
            let finished = AtomicUsize::new(0);
            caught(|| {
                pool.scope(|scope| {
                    scope.spawn(|_| panic_quietly());
                    scope.spawn(|_| {
                        case.train(&parallel(), &mut ws);
                        finished.fetch_add(1, Ordering::Relaxed);
                    });
                    scope.spawn(|_| panic_quietly());
                });
            });
            assert_eq!(finished.into_inner(), 1, "a scope waits for every task");
            pool.install(|| case.train(&parallel(), &mut ws));
            // A loop stops early, but what ran ran right.
            caught(|| {
                pool.install(|| {
                    (0..8).into_par_iter().for_each_init(Workspace::new, |ws, i| {
                        case.infer(&parallel(), ws);
                        if i % 4 == 1 {
                            panic_quietly();
                        }
                    });
                });
            });
            pool.install(|| case.train(&parallel(), &mut ws));
            cases += 1;
        }
    }
    proof("a panic in a sibling task harms nothing", &format!("scopes and loops, pools of {POOLS:?}"), 4 * cases);
}

#[test]
fn a_panic_between_forward_and_backward_leaves_the_workspace_usable() {
    let _watchdog = Watchdog::new("a panic between forward and backward", Watchdog::GENEROUS);
    let mut cases = 0;
    for pool in POOLS.map(pool) {
        let mut ws = Workspace::new();
        for case in CASES.iter() {
            let rows = case.problem.rows;
            let forward = |ws: &mut Workspace, then: &(dyn Fn() + Sync)| match &case.problem.net {
                Net::Block(net) => interrupted(net, ws, &case.problem.x, rows, then),
                Net::Stack(net) => interrupted(net, ws, &case.problem.x, rows, then),
                Net::Linear(net) => interrupted(net, ws, &case.problem.x, rows, then),
                Net::Sequence(net) => interrupted(net, ws, &case.problem.x, rows, then),
            };
            caught(|| pool.install(|| forward(&mut ws, &panic_quietly)));
            pool.install(|| case.train(&parallel(), &mut ws));
            pool.install(|| forward(&mut ws, &|| ()));
            pool.install(|| case.train(&parallel(), &mut ws));
            cases += 2;
        }
    }
    proof("a pass that a panic interrupts harms nothing", "dropped by unwinding, or by its owner", cases);
}

/// A forward pass that nobody differentiates, because of what happens then.
fn interrupted<L: Layer>(net: &L, ws: &mut Workspace, x: &[f32], rows: usize, then: &dyn Fn()) {
    let mut y = vec![0.0; rows * net.outputs()];
    let y = mat_mut(&mut y, rows, net.outputs());
    let pass = net.forward(&parallel(), ws, mat(x, rows, net.inputs()), y).expect("forward");
    then();
    drop(pass);
}

#[test]
fn a_caller_that_panics_does_not_disturb_the_others() {
    let _watchdog = Watchdog::new("a caller that panics", Watchdog::GENEROUS);
    std::thread::scope(|scope| {
        let callers = Vec::from_iter((0..8).map(|caller| {
            scope.spawn(move || {
                pool(2).install(|| {
                    all(&parallel());
                    if caller % 2 == 0 {
                        panic_quietly();
                    }
                    all(&parallel());
                });
            })
        }));
        for (caller, handle) in callers.into_iter().enumerate() {
            assert_eq!(handle.join().is_err(), caller % 2 == 0, "caller {caller}");
        }
    });
    pool(2).install(|| all(&parallel()));
    proof("a caller that panics disturbs no other", "8 callers of one pool, 4 of which panic", 13 * CASES.len());
}
