//! Planted faults: each is what a sanitizer is there to find, so that `.ci/sanitize` and `.ci/valgrind` fail where one is silently
//! off. They do nothing unless RESBLOCK_PLANT is set.
#![allow(unsafe_code, reason = "faults that safe code cannot have")]

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
