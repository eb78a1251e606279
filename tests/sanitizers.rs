//! Planted faults: each is what a sanitizer is there to find, so that `.ci/sanitize`, `.ci/tsan` and `.ci/valgrind` fail where one
//! is silently off. They do nothing unless RESBLOCK_PLANT is set.
#![allow(unsafe_code, reason = "faults that safe code cannot have")]

use resblock::{Activation, Context, Init, Layer, Linear, MatMut, MatRef, Workspace};
use std::hint::black_box;

fn wanted() -> bool {
    std::env::var_os("RESBLOCK_PLANT").is_some()
}

#[test]
#[ignore = "a fault that .ci/sanitize and .ci/valgrind must find"]
fn planted_over_read() {
    let seven = black_box(vec![1.0_f32; 7]);
    if wanted() {
        // SAFETY: there is none.
        let eighth = unsafe { seven.as_ptr().add(7).read_volatile() };
        println!("read {eighth}");
    }
}

/// A vector load that reaches past the end, as a kernel would have it that takes a tail for a whole vector.
#[test]
#[ignore = "a fault that .ci/sanitize and .ci/valgrind must find"]
#[cfg(target_arch = "x86_64")]
fn planted_vector_over_read() {
    use std::arch::x86_64::_mm_loadu_ps;
    let seven = black_box(vec![1.0_f32; 7]);
    if wanted() {
        // SAFETY: there is none.
        let last = black_box(unsafe { _mm_loadu_ps(seven.as_ptr().add(4)) });
        println!("read {last:?}");
    }
}

/// A store past the end of one row of an output into memory that is not its own.
#[test]
#[ignore = "a fault that .ci/sanitize and .ci/valgrind must find"]
fn planted_over_write() {
    let mut seven = black_box(vec![1.0_f32; 7]);
    if wanted() {
        // SAFETY: there is none.
        unsafe { seven.as_mut_ptr().add(7).write_volatile(2.0) };
    }
    black_box(seven);
}

struct Shared(*mut f32);
// SAFETY: there is none.
unsafe impl Sync for Shared {}

/// Two threads of a rayon pool that compute into outputs which overlap by one row, as tiles would that are cut wrongly. Nothing of
/// this file touches them meanwhile: it is the kernels' own stores that race.
#[test]
#[ignore = "a fault that .ci/tsan must find"]
fn planted_race() {
    let (rows, width) = (8, 24);
    let layer = Linear::with_init(width, width, Activation::Relu, &mut Init::he(1)).expect("a layer");
    let ctx = Context::new().expect("a usable RESBLOCK_ISA, or none");
    let x = vec![1.0; rows * width];
    let mut y = vec![0.0; 2 * rows * width];
    let shared = Shared(y.as_mut_ptr());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    let overlap = if wanted() { width } else { 0 };
    let together = std::sync::Barrier::new(2);
    pool.broadcast(|thread| {
        let shared = &shared;
        // Else one might be done before the other is awake, and what wakes it puts them in order.
        together.wait();
        let begin = thread.index() * (rows * width - overlap);
        // SAFETY: inside of `y`, and apart unless the fault is wanted.
        let y = unsafe { std::slice::from_raw_parts_mut(shared.0.add(begin), rows * width) };
        let x = MatRef::new(&x, rows, width).expect("x");
        let y = MatMut::new(y, rows, width).expect("y");
        layer.infer(&ctx, &mut Workspace::new(), x, y).expect("infer");
    });
    println!("last: {:?}", y.last());
}
