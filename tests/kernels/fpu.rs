//! The floating-point environment: rounding mode and flushing of denormals are left as they are found, on the caller's thread and on
//! those of its pool; and what happens if the caller has changed them.

use crate::common::{
    self, ACTIVATIONS, Rng, Stage, THREADS, Threads, build_stack, contexts, mat, mat_mut, pool, random_stack,
};
use resblock::{AdamW, GradMode, Gradients, Layer, Optimizer, Sgd, Workspace};

/// The control bits of this thread: rounding mode, flushing, exception masks; not the sticky flags that say what has happened.
#[allow(unsafe_code, reason = "no safe way to read the register")]
#[cfg(target_arch = "x86_64")]
fn control() -> u64 {
    let mut mxcsr = 0_u32;
    // SAFETY: stores four bytes to a local variable of that size, and changes nothing.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack, preserves_flags)) };
    u64::from(mxcsr & 0xffc0)
}

#[allow(unsafe_code, reason = "no safe way to read the register")]
#[cfg(target_arch = "aarch64")]
fn control() -> u64 {
    let fpcr: u64;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
    fpcr
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn no_call_changes_rounding_or_flushing_on_any_thread() {
    let mut rng = Rng::new(41);
    let mut calls = 0;
    let before = control();
    // Not one thread of a pool, but all: each says what it has.
    let of_pool = |n| pool(n).broadcast(|_| control());
    for phi in ACTIVATIONS {
        // Denormal and huge numbers too: an implementation that flushed would do it for them.
        let stages = random_stack(&mut rng, (6, 40, 70, 5), 2, phi, true);
        let n = 67;
        let (x, dy) = (rng.wild(n * 6, 10), rng.wild(n * 5, 10));
        for ctx in contexts() {
            for threads in THREADS {
                let mut stack = build_stack(&stages);
                let pool_before = if let Threads::Rayon(n) = threads { of_pool(n) } else { Vec::new() };
                threads.run(ctx, |ctx| {
                    let (mut ws, mut grads) = (Workspace::new(), Gradients::new(&stack).expect("gradients"));
                    let (mut y, mut dx) = (vec![0.0; n * 5], vec![0.0; n * 6]);
                    stack.infer(&ctx, &mut ws, mat(&x, n, 6), mat_mut(&mut y, n, 5)).expect("infer");
                    let pass = stack.forward(&ctx, &mut ws, mat(&x, n, 6), mat_mut(&mut y, n, 5)).expect("forward");
                    let dx = Some(mat_mut(&mut dx, n, 6));
                    pass.backward(mat(&dy, n, 5), dx, &mut grads, GradMode::Overwrite).expect("backward");
                    Sgd::new(0.1, 0.9).step(&ctx, &mut stack, &grads).expect("a step");
                    AdamW::new(0.1).step(&ctx, &mut stack, &grads).expect("a step");
                });
                assert_eq!(control(), before, "{phi:?} {ctx:?} {threads:?}: the caller's thread");
                if let Threads::Rayon(n) = threads {
                    assert_eq!(of_pool(n), pool_before, "{phi:?} {ctx:?} {threads:?}: a thread of the pool");
                    assert!(pool_before.iter().all(|&c| c == before));
                }
                calls += 5;
            }
        }
    }
    println!(
        "proof: rounding mode and denormal flushing are left alone | control register of the caller's and all pool threads, before and \
         after infer, forward, backward, SGD, AdamW on every set | {calls} calls | ok"
    );
}

#[test]
fn products_that_are_denormal_are_rounded_as_ieee_754_says() {
    let mut rng = Rng::new(42);
    let (n, m, mut denormal) = (40, 37, 0);
    // From products that are just normal down to those that vanish.
    let scaled = |rng: &mut Rng| rng.unit() * 2.0_f32.powi(-60 - rng.below(16) as i32);
    let (x, w): (Vec<f32>, Vec<f32>) =
        ((0..n).map(|_| scaled(&mut rng)).collect(), (0..m).map(|_| scaled(&mut rng)).collect());
    let map = common::Map { inputs: 1, outputs: m, w: w.clone(), b: None };
    let layer = Stage::Linear { map, phi: resblock::Activation::Identity, skip: false }.build_linear();
    for ctx in contexts() {
        let (mut y, mut ws) = (vec![0.0; n * m], Workspace::new());
        layer.infer(&ctx, &mut ws, mat(&x, n, 1), mat_mut(&mut y, n, m)).expect("infer");
        for (i, &y) in y.iter().enumerate() {
            // The product is exact in f64, so this rounds once; and the chain adds it to 0.
            let want = (f64::from(x[i / m]) * f64::from(w[i % m])) as f32;
            assert!(common::same(y, want), "{} * {} on {}: {y:e}, not {want:e}", x[i / m], w[i % m], ctx.isa());
            denormal += usize::from(y != 0.0 && !y.is_normal());
        }
    }
    assert!(denormal > 100);
    println!(
        "proof: denormal results are kept and rounded once | products against f64, every set | {denormal} denormals | ok"
    );
}

/// What happens under other modes is stated (docs/math.md), not supported: Rust takes it that no code ever runs under them. So the switch,
/// the call and the way back are one piece of assembly, and nothing is computed or compared inside.
#[cfg(target_arch = "x86_64")]
mod other_modes {
    use crate::common::{Map, Stage, context, isas, mat, mat_mut};
    use resblock::{Activation, Context, Layer, Linear, Workspace};
    use std::ffi::c_void;

    const FLUSH: u32 = 0x8040;
    const UP: u32 = 0x4000;

    extern "C" fn trampoline<F: FnMut()>(call: *mut c_void) {
        #[allow(unsafe_code, reason = "the way back from a C function pointer")]
        // SAFETY: `under` passes a pointer to an F that it borrows mutably during the call.
        let call = unsafe { &mut *call.cast::<F>() };
        call();
    }

    /// Runs `call`, which must not panic, with these bits set in MXCSR; then restores it. Tells whether they were still set.
    #[allow(unsafe_code, reason = "the register can be set only in assembly")]
    fn under<F: FnMut()>(bits: u32, mut call: F) -> bool {
        let (before, mut after) = (super::control() as u32, 0_u32);
        let mode = before | bits;
        // SAFETY: a call by the C calling convention, whose clobbers are declared; r12, r13 and r14 survive it. The register has its old
        // value when the block ends.
        unsafe {
            std::arch::asm!(
                "ldmxcsr [r13]",
                "call {call}",
                "stmxcsr [r14]",
                "ldmxcsr [r12]",
                call = in(reg) trampoline::<F> as extern "C" fn(*mut c_void),
                in("rdi") (&raw mut call).cast::<c_void>(),
                in("r12") &before,
                in("r13") &mode,
                in("r14") &mut after,
                clobber_abi("C"),
            );
        }
        after & 0xffc0 == mode
    }

    fn chain(start: f32, x: &[f32], w: &[f32]) -> (Linear, Vec<f32>) {
        let map = Map { inputs: x.len(), outputs: 1, w: w.to_vec(), b: Some(vec![start]) };
        (Stage::Linear { map, phi: Activation::Identity, skip: false }.build_linear(), x.to_vec())
    }

    fn infer(ctx: &Context, layer: &Linear, ws: &mut Workspace, x: &[f32], y: &mut [f32]) {
        // An error would leave y as it is, and be seen there.
        let _ = layer.infer(ctx, ws, mat(x, 1, x.len()), mat_mut(y, 1, 1));
    }

    #[test]
    fn a_mode_that_the_caller_has_set_holds_for_its_thread_and_is_left_alone() {
        let mut cases = 0;
        for ctx in isas().into_iter().map(context).filter(|ctx| ctx.isa().name().starts_with("avx")) {
            let tables = [
                // Denormals are flushed: results, and operands, which count as 0.
                (FLUSH, chain(0.0, &[2.0_f32.powi(-100)], &[2.0_f32.powi(-30)]), f32::MIN_POSITIVE / 16.0, 0.0),
                (FLUSH, chain(0.0, &[1e-40], &[1e10]), 1e-40 * 1e10, 0.0),
                // Every step of a chain rounds up: 1 + 2^-30 is lost to nearest.
                (UP, chain(1.0, &[2.0_f32.powi(-30); 3], &[1.0; 3]), 1.0, 1.0 + 3.0 * f32::EPSILON),
            ];
            for (bits, (layer, x), nearest, other) in tables {
                let (mut ws, mut y) = (Workspace::new(), [7.0]);
                infer(&ctx, &layer, &mut ws, &x, &mut y);
                assert_eq!(y, [nearest]);
                let kept = under(bits, || infer(&ctx, &layer, &mut ws, &x, &mut y));
                assert!(kept, "the mode was changed on {}", ctx.isa());
                assert_eq!(y, [other], "mode {bits:x} on {}", ctx.isa());
                infer(&ctx, &layer, &mut ws, &x, &mut y);
                assert_eq!(y, [nearest], "after the mode was restored");
                cases += 3;
            }
        }
        println!(
            "proof: a rounding mode or flushing that the caller has set acts on its thread and is not \
             reset (stated, not supported) | chains under flush and round-up, AVX sets | {cases} results | ok"
        );
    }
}
