//! Pools that are not to be had, that are busy, that a fork left without threads, or whose tasks pile up on one stack: a call has the
//! right bits all the same, on the calling thread where it must.
//!
//! A process has one global pool, and a limit once set stays: each case runs an ignored test of this binary in a process of its own.
#![cfg(unix)]
#![allow(unsafe_code, reason = "limits, users and forks are the operating system's")]

use crate::common::problem::{Net, Problem, Trained};
use crate::common::watchdog::Watchdog;
use crate::common::{
    Rng, Stage, assert_same, fastest, gradients_of, mat, mat_mut, may_start_processes, pool, values_of,
};
use resblock::{Activation, GradMode, Layer, Par, Workspace, fma_peak, read_bandwidth};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

/// One row of eight features, rows for several threads, and columns for several threads, each with what the oracle makes of it.
static CASES: LazyLock<[(Problem, Trained); 3]> = LazyLock::new(|| {
    let mut rng = Rng::new(8);
    let mut case = |(inputs, hidden): (usize, usize), rows: usize| {
        let stages = vec![Stage::block(&mut rng, inputs, hidden, Activation::Relu, true, true)];
        let problem = Problem::random(&mut rng, stages, rows);
        let want = problem.oracle(false);
        (problem, want)
    };
    [case((8, 8), 1), case((80, 112), 130), case((400, 420), 6)]
});

const PARS: [Par; 5] = [Par::Seq, Par::Rayon(0), Par::Rayon(1), Par::Rayon(2), Par::Rayon(usize::MAX)];

/// Every case, forward and trained.
fn all(par: Par) {
    let (ctx, mut ws) = (fastest().with_par(par), Workspace::new());
    for (problem, want) in CASES.iter() {
        assert_same(format_args!("{ctx:?}"), &problem.infer(&ctx, &mut ws, &[]), &want.y);
        problem.train(&ctx, &mut ws, &[], false).assert_same(format_args!("{ctx:?}"), want);
    }
}

/// Runs one of the ignored tests below in a process of its own, which must pass without a word of a panic.
#[track_caller]
fn passes(test: &str, environment: &[(&str, &str)]) {
    let this = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(this);
    command.args([&format!("pools::{test}"), "--exact", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env_remove("RAYON_NUM_THREADS").envs(environment.iter().copied());
    let output = command.output().expect("a second run of this test");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed") && !text.contains("panicked"),
        "{environment:?}: {text}"
    );
}

/// Address space for the program itself and for the cases, but not for the stacks of many threads.
fn limit_memory() {
    let limit = libc::rlimit { rlim_cur: 150_000 << 10, rlim_max: 150_000 << 10 };
    // SAFETY: `limit` outlives the call, which reads it.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

/// No further thread for this user, whom the limit holds for, as it does not for root.
fn limit_processes() {
    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: `limit` outlives the call, which reads it; the other call changes nothing but who this process is.
    let limited = unsafe {
        libc::setrlimit(libc::RLIMIT_NPROC, &limit) == 0 && (libc::getuid() != 0 || libc::setuid(65534) == 0)
    };
    assert!(limited);
}

#[test]
#[ignore = "run by a test below: it limits its process"]
fn child_calls_where_no_pool_can_be_built() {
    let _ = CASES[0];
    let limit = std::env::var("LIMIT");
    match limit.as_deref() {
        Ok("memory") => limit_memory(),
        Ok("processes") => limit_processes(),
        other => panic!("LIMIT={other:?}"),
    }
    for par in PARS {
        all(par);
        assert_eq!(par.threads(), 1, "{par:?}");
    }
    let ctx = fastest().with_par(Par::Rayon(0));
    assert_eq!(fma_peak(&ctx, Duration::ZERO).expect("a clock").threads, 1);
    assert!(read_bandwidth(&ctx, 1 << 20, Duration::ZERO).expect("memory") > 0.0);
}

#[test]
fn where_no_pool_can_be_built_calls_run_on_the_calling_thread() {
    if !may_start_processes("calls where no pool can be built") {
        return;
    }
    // Threads that the address space has no room for, and any at all. The stacks are large, so that the one that does not fit leaves
    // room for what the threads before it still allocate as they start: without it the standard library aborts.
    for (limit, threads) in [("memory", "64"), ("processes", "2"), ("processes", "64")] {
        let stack = (40 << 20).to_string();
        let environment = [("LIMIT", limit), ("RAYON_NUM_THREADS", threads), ("RUST_MIN_STACK", &stack)];
        passes("child_calls_where_no_pool_can_be_built", &environment);
    }
}

#[test]
#[ignore = "run by a test below: the global pool is made once in a process"]
fn child_makes_small_calls_alone() {
    limit_processes();
    let problem = &CASES[0];
    for par in PARS {
        let (ctx, mut ws) = (fastest().with_par(par), Workspace::new());
        problem.0.train(&ctx, &mut ws, &[], false).assert_same(format_args!("{ctx:?}"), &problem.1);
    }
    all(Par::Rayon(1));
    all(Par::Seq);
    assert_eq!((Par::Rayon(1).threads(), Par::Seq.threads()), (1, 1));
    // Rayon was not asked: this is its first attempt, and it says why the system refused.
    let refused = rayon::ThreadPoolBuilder::new().num_threads(2).build_global().expect_err("no threads");
    assert!(std::error::Error::source(&refused).is_some(), "{refused}");
    // What a program of its own tried in vain is not tried again, and rayon's panic is not passed on.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    all(Par::Rayon(0));
    std::panic::set_hook(hook);
    assert_eq!(Par::Rayon(0).threads(), 1);
}

#[test]
fn rayon_is_asked_only_for_work_of_several_threads_and_may_have_failed_before() {
    if may_start_processes("small calls and rayon") {
        passes("child_makes_small_calls_alone", &[]);
    }
}

/// What `par` should come to in a pool of so many threads.
fn expected(par: Par, threads: usize) -> usize {
    match par {
        Par::Seq => 1,
        Par::Rayon(0) => threads,
        Par::Rayon(n) => n.min(threads),
        other => panic!("{other:?}: unknown to this test"),
    }
}

#[test]
#[ignore = "run by a test below: the global pool is made once in a process"]
fn child_counts_the_threads_of_the_global_pool() {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = std::env::var("THREADS").expect("THREADS").parse().unwrap_or(cores);
    if std::env::var_os("OWN").is_some() {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("a pool");
    }
    for par in PARS {
        assert_eq!(par.threads(), expected(par, threads), "{par:?}");
        all(par);
        pool(3).install(|| assert_eq!(par.threads(), expected(par, 3), "{par:?}"));
    }
}

#[test]
fn threads_are_those_of_the_global_pool_whoever_makes_it() {
    if !may_start_processes("counts of threads") {
        return;
    }
    let test = "child_counts_the_threads_of_the_global_pool";
    for threads in ["1", "3", "40"] {
        passes(test, &[("THREADS", threads), ("RAYON_NUM_THREADS", threads)]);
        passes(test, &[("THREADS", threads), ("RAYON_NUM_THREADS", "2"), ("OWN", "1")]);
    }
    for text in ["0", "", "-1", "many"] {
        passes(test, &[("THREADS", "as many as there are cores"), ("RAYON_NUM_THREADS", text)]);
    }
}

/// Runs `test` in a forked process: whether it passed. One that waits for ever is ended by a signal.
fn forked(test: impl FnOnce()) -> bool {
    // SAFETY: the child runs `test`, which takes no lock that another thread of this process may hold, and ends without returning.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the signal ends this process, which is nobody's but this test's.
            unsafe { libc::alarm(300) };
            let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(!passed)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` is ours and outlives the call.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child, "a child");
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}

#[test]
#[ignore = "run by a test below: it forks"]
fn child_forks() {
    let each = || PARS.into_iter().for_each(all);
    assert!(forked(each), "before there is a pool: the child makes its own");
    each();
    let alone = || {
        each();
        assert_eq!(Par::Rayon(0).threads(), 1);
    };
    assert!(forked(alone), "the pool's threads are not there");
    assert!(forked(|| assert!(forked(alone))), "nor in the child of a child");
    assert!(forked(|| pool(3).install(|| PARS.into_iter().for_each(all))), "a pool of the child's own");
    // A pool that the parent made and the child calls in: on the calling thread alone.
    pool(2).install(each);
    assert!(forked(|| all(Par::Seq)));
    each();
    assert_eq!(Par::Rayon(0).threads(), 4, "this process has them still");
}

#[test]
fn a_forked_process_computes_on_the_calling_thread_where_the_pool_is_its_parents() {
    if may_start_processes("a forked process") {
        passes("child_forks", &[("RAYON_NUM_THREADS", "4")]);
    }
}

#[test]
#[ignore = "run by a test below: it limits its process"]
fn child_leaves_its_pool_with_a_pass() {
    let _ = CASES[0];
    let pool = pool(8); // while threads can be had
    limit_processes();
    let (ctx, mut ws) = (fastest().with_par(Par::Rayon(0)), Workspace::new());
    for (problem, want) in CASES.iter() {
        let Net::Block(net) = &problem.net else { panic!("a block") };
        let (n, d) = (problem.rows, net.inputs());
        let (mut y, mut dx) = (vec![f32::NAN; n * d], vec![f32::NAN; n * d]);
        let mut grads = gradients_of(net, &problem.preset);
        let (x, out) = (mat(&problem.x, n, d), mat_mut(&mut y, n, d));
        let pass = pool.install(|| net.forward(&ctx, &mut ws, x, out)).expect("forward");
        pass.backward(mat(&problem.dy, n, d), Some(mat_mut(&mut dx, n, d)), &mut grads, GradMode::Overwrite)
            .expect("backward");
        Trained { y, dx, grads: values_of(net, &grads) }.assert_same("a pass that left its pool", want);
    }
}

#[test]
fn a_recorded_pass_may_go_on_where_there_is_no_pool() {
    if may_start_processes("a pass that leaves its pool") {
        passes("child_leaves_its_pool_with_a_pass", &[]);
    }
}

#[test]
fn a_call_goes_on_without_the_busy_threads_of_its_pool_and_has_the_right_bits() {
    let _watchdog = Watchdog::new("a call into a busy pool", Watchdog::GENEROUS);
    let busy = &AtomicUsize::new(0);
    pool(2).in_place_scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move |_| {
                busy.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(300));
                busy.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while busy.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        // In that pool, by a thread that has become free; and outside of it, beside it.
        pool(2).install(|| all(Par::Rayon(0)));
        all(Par::Rayon(0));
        all(Par::Seq);
    });
}

#[test]
fn while_the_threads_of_a_pool_wait_for_the_caller_it_calls_without_them() {
    let _watchdog = Watchdog::new("a pool that waits for the caller", Watchdog::GENEROUS);
    if !may_start_processes("a pool that waits for the caller") {
        return;
    }
    passes("child_calls_while_the_global_pool_waits_for_it", &[("RAYON_NUM_THREADS", "2")]);
}

#[test]
#[ignore = "run by a test above: it blocks the global pool"]
fn child_calls_while_the_global_pool_waits_for_it() {
    let (go_on, wait) = channel::<()>();
    let (wait, waiting) = (&Mutex::new(wait), &AtomicUsize::new(0));
    rayon::in_place_scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move |_| {
                waiting.fetch_add(1, Ordering::SeqCst);
                let _ = wait.lock().map(|wait| wait.recv());
            });
        }
        while waiting.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        // With Rayon, too: helpers that do not come are not waited for.
        PARS.into_iter().for_each(all);
        pool(2).install(|| all(Par::Rayon(0)));
        drop(go_on);
    });
    all(Par::Rayon(0));
}

thread_local! {
    /// Tasks that this thread is in, one on top of the other.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Has so many tasks of a pool call; how many lay on one stack.
fn deepest(tasks: usize, threads: usize, call: impl Fn() + Sync) -> usize {
    let (deepest, call) = (&AtomicUsize::new(0), &call);
    pool(threads).in_place_scope(|scope| {
        for _ in 0..tasks {
            scope.spawn(move |_| {
                DEPTH.set(DEPTH.get() + 1);
                deepest.fetch_max(DEPTH.get(), Ordering::Relaxed);
                call();
                DEPTH.set(DEPTH.get() - 1);
            });
        }
    });
    deepest.load(Ordering::Relaxed)
}

#[test]
fn tasks_that_call_do_not_pile_up_on_one_stack() {
    let _watchdog = Watchdog::new("tasks that call", Watchdog::GENEROUS);
    let (problem, want) = &CASES[1];
    let call = || {
        let ctx = fastest().with_par(Par::Rayon(0));
        assert_same("a task", &problem.infer(&ctx, &mut Workspace::new(), &[]), &want.y);
    };
    for threads in [2, 3, 8] {
        let depth = deepest(1000, threads, call);
        assert_eq!(depth, 1, "pool of {threads}: a call runs no other tasks");
        // The pool is installed first.
        let depth = pool(16).install(|| deepest(300, threads, call));
        assert_eq!(depth, 1, "pool of {threads}");
    }
    // Into another pool: rayon's own wait runs further tasks meanwhile, at most all of them.
    assert!(deepest(200, 2, || pool(3).install(call)) <= 200);
}
