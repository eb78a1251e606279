//! What is dropped is freed: a counting allocator watches. One test in a binary of its own, because every thread of the process
//! counts.

mod common;

use common::{Rng, build_stack, fastest, mat, mat_mut, random_stack};
use resblock::{Activation, GradMode, Gradients, Layer, Workspace};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

struct Counting;

/// Bytes allocated and not yet freed.
static LIVE: AtomicIsize = AtomicIsize::new(0);

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; this one counts and passes on")]
// SAFETY: every call goes to the system's allocator as it came. (`realloc` and `alloc_zeroed` have defaults made of these two.)
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A network, a training step through it and everything that this needs, made and dropped.
fn live_and_die() {
    let mut rng = Rng::new(1);
    let stack = build_stack(&random_stack(&mut rng, (20, 40, 60, 10), 2, Activation::Gelu, true));
    let (n, mut ws, mut y) = (30, Workspace::new(), vec![0.0; 300]);
    let (x, dy) = (rng.vec(n * 20), rng.vec(n * 10));
    let mut grads = Gradients::new(&stack).expect("gradients");
    let pass = stack.forward(&fastest(), &mut ws, mat(&x, n, 20), mat_mut(&mut y, n, 10)).expect("forward");
    pass.backward(mat(&dy, n, 10), None, &mut grads, GradMode::Overwrite).expect("backward");
}

#[test]
fn networks_gradients_and_workspaces_give_their_memory_back() {
    live_and_die(); // what is made once for the process is made here
    let before = LIVE.load(Ordering::SeqCst);
    for _ in 0..10 {
        live_and_die();
    }
    let left = LIVE.load(Ordering::SeqCst) - before;
    // The test harness may note a few bytes meanwhile; a network is some 100 KiB.
    assert!(left < 10_000, "{left} bytes are left of ten networks");
    println!("proof: what is dropped is freed | live bytes, before and after ten networks and workspaces | 10 | ok");
}
