//! `Context`: on what and how a call runs.

use crate::error::Error;
use crate::gemm::blocking::Blocking;
use crate::gemm::caches::caches;
use crate::random::Draw;
use crate::simd::{Isa, IsaList};
use crate::team::{self, par::Par};
use std::time::Duration;

/// How calls run: instruction set, threads and block sizes, none of which changes a bit of any result; and what random masks are drawn
/// from, which does.
///
/// A plain value: copy it, pass it by reference, keep several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    isa: Isa,
    par: Par,
    blocking: Blocking,
    linger: Duration,
    machine: Machine,
    draw: Option<Draw>,
    frozen_statistics: bool,
}

/// A machine, as plans see it: what the choice of threads and pieces is made from ([`crate::Layer::explain`] shows it). None of it changes
/// a bit of any result. The default has this CPU's L2, what was measured of its maker's L3, and otherwise what was measured on server CPUs with AVX-512
/// (docs/tuning.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Threads, for explanations of a machine that is not this one; 0: as many as the context and its pool have.
    pub threads: u32,
    /// Fused multiply-adds of a core in a microsecond: so many at least a thread has to have.
    pub fma_per_us: u32,
    /// KiB of L2 of a core.
    pub l2_kib: u32,
    /// MB/s that a core reads from its L2.
    pub l2_mb_per_s: u32,
    /// MB/s that a core reads from the cache that all share, or from another's.
    pub l3_mb_per_s: u32,
    /// MB/s that all of them read from there together.
    pub l3_all_mb_per_s: u32,
    /// Nanoseconds that a phase of work costs.
    pub phase_ns: u32,
    /// Nanoseconds that each thread adds to a phase.
    pub thread_ns: u32,
    /// Nanoseconds that each thread adds to a call.
    pub call_ns: u32,
}

impl Default for Machine {
    fn default() -> Self {
        let (l3_mb_per_s, l3_all_mb_per_s) = caches().shared_mb_per_s;
        Self {
            threads: 0,
            fma_per_us: 80_000,
            l2_kib: u32::try_from(caches().l2 >> 10).unwrap_or(u32::MAX),
            l2_mb_per_s: 120_000,
            l3_mb_per_s,
            l3_all_mb_per_s,
            phase_ns: 500,
            thread_ns: 250,
            call_ns: 250,
        }
    }
}

/// How long helpers stay after a call, unless told otherwise: less than waking one up takes.
const LINGER: Duration = Duration::from_micros(50);

impl Context {
    /// The fastest instruction set of this CPU (or `RESBLOCK_ISA`), one thread, default block sizes.
    ///
    /// # Errors
    /// [`Error::Isa`] if `RESBLOCK_ISA` names a set that does not exist or that this CPU does not have.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            isa: Isa::detect()?,
            par: Par::Seq,
            blocking: Blocking::default(),
            linger: LINGER,
            machine: Machine::default(),
            draw: None,
            frozen_statistics: false,
        })
    }

    /// The same with another instruction set.
    ///
    /// # Errors
    /// [`Error::Isa`] if this CPU does not have it.
    pub fn with_isa(self, isa: Isa) -> Result<Self, Error> {
        // Kernels rely on this check: a `Context` never holds a set that the CPU lacks.
        if isa.is_available() {
            Ok(Self { isa, ..self })
        } else {
            Err(Error::Isa { source_name: "isa", requested: isa.name().into(), available: IsaList.to_string() })
        }
    }

    /// The same with other threads.
    pub fn with_par(self, par: Par) -> Self {
        Self { par, ..self }
    }

    /// The same with other block sizes.
    pub fn with_blocking(self, blocking: Blocking) -> Self {
        Self { blocking, ..self }
    }

    /// The same with another time that helpers wait, after a call, for the next one, on their threads of the pool, before they give
    /// these back. Calls that follow each other within it find their threads awake, and each piece of work on the thread that had it before.
    /// Meanwhile the pool's other tasks wait, so keep it short where there are any; 0 gives threads back at once. 50 microseconds, unless set.
    pub fn with_linger(self, linger: Duration) -> Self {
        Self { linger, ..self }
    }

    /// Does `f`, and keeps the helpers of its calls on their threads from one call to the next until it ends: a training step (forward, loss,
    /// backward, optimiser) then enters the pool once. It is lingering with an end of its own; meanwhile the pool's other tasks wait.
    ///
    /// ```
    /// # use resblock::*;
    /// # fn main() -> Result<(), Error> {
    /// # let ctx = Context::new()?.with_par(Par::Rayon(0));
    /// # let mut layer = Linear::with_init(2, 3, Activation::Relu, &mut Init::he(1))?;
    /// # let (mut ws, mut grads, mut adam) = (Workspace::new(), Gradients::new(&layer)?, AdamW::new(1e-3));
    /// # let (x, target, mut y, mut dy) = ([1.0; 2], [0.0; 3], [0.0; 3], [0.0; 3]);
    /// let loss = ctx.keep_helpers(|| {
    ///     let pass = layer.forward(&ctx, &mut ws, rows_of(&x, 2)?, rows_of_mut(&mut y, 3)?)?;
    ///     let loss = mean_squared_error(rows_of(&y, 3)?, rows_of(&target, 3)?, Some(rows_of_mut(&mut dy, 3)?))?;
    ///     pass.backward(rows_of(&dy, 3)?, None, &mut grads, GradMode::Overwrite)?;
    ///     adam.step(&ctx, &mut layer, &grads)?;
    ///     Ok::<_, Error>(loss)
    /// })?;
    /// # assert!(loss >= 0.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_helpers<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.par == Par::Seq { f() } else { team::kept(f) }
    }

    /// The same with another idea of the machine, from which plans are made.
    pub fn with_machine(self, machine: Machine) -> Self {
        Self { machine, ..self }
    }

    /// The same with the statistics of every BatchNorm frozen, or not: recorded passes then normalise by the running averages, as inference always
    /// does, and backward takes these for constants. Not frozen, unless set.
    pub fn with_frozen_statistics(self, frozen: bool) -> Self {
        Self { frozen_statistics: frozen, ..self }
    }

    /// The same with what the masks of recorded passes are drawn from ([`crate::BlockForm::dropout`]). Without one, nothing is dropped: a recorded pass
    /// then evaluates the network, as inference always does.
    pub fn with_draw(self, draw: Option<Draw>) -> Self {
        Self { draw, ..self }
    }

    /// What random masks are drawn from.
    pub fn draw(&self) -> Option<Draw> {
        self.draw
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn par(&self) -> Par {
        self.par
    }

    /// The block sizes.
    pub fn blocking(&self) -> Blocking {
        self.blocking
    }

    /// How long helpers wait for the next call.
    pub fn linger(&self) -> Duration {
        self.linger
    }

    /// Whether recorded passes normalise by running averages.
    pub fn has_frozen_statistics(&self) -> bool {
        self.frozen_statistics
    }

    /// The machine, as plans see it.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Length of a k block: a positive multiple of 16.
    pub(crate) fn k_block(&self) -> usize {
        self.blocking.k_block(self.isa)
    }
}
