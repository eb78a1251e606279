//! The macro-kernel: the loops over tiles around the micro-kernel, inside one instruction set.
//!
//! In the terms of BLIS and matrixmultiply, whose five loops around the micro-kernel are numbered from the outside:
//!
//! ```text
//!   loop 5, jc   none: n is a layer's width, and b, its weights, is in panels already
//!   loop 4, pc   k blocks of kc = `depth`: what a panel of them takes stays in half of L1, or streams from L2
//!   loop 3, ic   none here: m is a row block, mc rows, which `run::plan` has cut so that it stays in L2
//!   loop 2, jr   groups of np panels of b, nr = 16 np columns: read from L1 by all tiles of the group
//!   loop 1, ir   tiles of mr rows of a: broadcast from L2
//!   micro-kernel kc steps, mr x np rows of 16 accumulators in registers (`micro::chain`)
//! ```
//!
//! So jr and ir run the other way round than where a is packed for L1: here it is b, a group of panels, that stays in L1
//! (`depth` x 32 floats) or streams from L2 once for all rows of the block, while the rows stay in L2. The next group is asked for while
//! the tiles of this one run (`prefetch`). Between k blocks the chains wait in the output: loaded and stored once for every kc steps.

use super::blocking::half_l1;
use super::cells::{In, Out};
use super::epilogue::{Acc, Epilogue, Finish, Op, Store, WithFinish};
use super::factor::Factor;
use super::lanes::load_cells;
use super::micro::{AlongColumns, DownRows, Operands, Walk, chain};
use super::outer::{Outer, most_rows};
use super::panels::{PANEL, PanelRef, panels};
use super::prefetch::Ahead;
use super::start::Start;
use crate::simd::{Isa, Kernel, Simd};

/// out = epilogue(start + a b): a is `m x k`, b is `k x n` (or has more rows, which are not read), out is `m x n`.
pub(crate) struct Gemm<'a> {
    pub(crate) a: PanelRef<'a>,
    pub(crate) b: Factor<'a>,
    pub(crate) start: Start<'a>,
    /// k is taken in blocks of this many (a multiple of 16), the last of up to an eighth more: a block costs each tile a load and a
    /// store of its accumulators, which a last one of a few k is not worth. Between blocks the chains wait in the output.
    pub(crate) depth: usize,
    /// Where a `b` that does not lie in panels is put straight, a few at a time: [`PACK`] floats; empty for one that needs none.
    pub(crate) pack: &'a mut [f32],
}

/// out = start + aᵀ b: the chain runs over the rows that a and b share. Out has a row for each column of a.
pub(crate) struct GradGemm<'a> {
    pub(crate) a: PanelRef<'a>,
    pub(crate) b: PanelRef<'a>,
    pub(crate) start: Start<'a>,
    /// Whether out is so large that a few rows' gradient should go past the caches.
    pub(crate) stream: bool,
    pub(crate) out: Out<'a>,
}

/// Runs a GEMM. Operands are checked here, once, for every pointer below.
pub(crate) fn gemm(isa: Isa, job: &mut Gemm<'_>, epilogue: Epilogue<'_>) {
    let Gemm { a, b, start, depth, pack } = &*job;
    assert!(a.cols() <= b.rows(), "the vector operand has a row for each k");
    assert_eq!(epilogue.out.cols(), b.cols(), "output columns");
    if let Start::Bias(bias) = start {
        assert!(bias.len() >= panels(b.cols()) * PANEL, "a bias for each column");
    }
    assert!(*depth > 0 && depth.is_multiple_of(PANEL), "k blocks start at panel boundaries");
    assert!(!b.moves() || pack.len() >= PACK, "room for panels that are put straight");
    epilogue.compile(RunGemm { isa, job });
}

/// A GEMM whose epilogue is being compiled. By reference, as all of it: it is a few hundred bytes.
struct RunGemm<'j, 'a> {
    isa: Isa,
    job: &'j mut Gemm<'a>,
}

impl WithFinish for RunGemm<'_, '_> {
    fn with<O: Op>(self, epilogue: &mut Finish<'_, O>) {
        self.isa.run(Finishing { job: self.job, epilogue });
    }
}

/// A GEMM with its compiled epilogue.
struct Finishing<'j, 'a, 'f, 'e, O> {
    job: &'j mut Gemm<'a>,
    epilogue: &'f mut Finish<'e, O>,
}

/// Runs a weight-gradient GEMM.
pub(crate) fn grad_gemm(isa: Isa, job: &mut GradGemm<'_>) {
    assert_eq!(job.a.rows(), job.b.rows(), "both operands have a row for each k");
    assert_eq!(job.out.cols(), job.b.cols(), "output columns");
    isa.run(job);
}

/// Floats that a GEMM with a transposed operand needs to put it straight: 2 panels x 1024 rows, 128 KiB, a quarter of the
/// smallest L2 that matters.
pub(crate) const PACK: usize = 2 * PANEL * 1024;
/// Up to so many rows, tiles are wide ([`tile_panels`]).
const FEW_ROWS: usize = 4;
/// Up to so many rows of the batch, weight gradients go by tiles of [`SHORT`] rows, on sets whose tiles are one panel wide.
const SHORT_CHAIN: usize = 64;
/// Rows of a tile of short chains: a divisor of 16, so that one call does all rows of whole panels. Tiles of 6 + 5 + 5 rows, a call
/// each, took 11 % of a training step more at 6 and 8 rows (Zen 3, 256 x 256), 8 % at 16, 3 % at 64, and are as fast at 128.
const SHORT: usize = 4;

/// Cuts `total` into the fewest pieces of at most `max`, of nearly equal size: 29 by 14 is 10 + 10 + 9, not 14 + 14 + 1, whose
/// last piece would have too few accumulators to hide latency.
fn pieces(total: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = total.div_ceil(max).max(1);
    let (size, longer) = (total / count, total % count);
    (0..count).map(move |i| (i * size + i.min(longer), size + usize::from(i < longer))).filter(|&(_, len)| len > 0)
}

/// [`pieces`] as runs of equal ones: (start, size of a piece, pieces).
fn runs(total: usize, max: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let count = total.div_ceil(max).max(1);
    let (size, longer) = (total / count, total % count);
    let runs = [(0, size + 1, longer), (longer * (size + 1), size, count - longer)];
    runs.into_iter().filter(|&(_, len, count)| len * count > 0)
}

/// Panels side by side in a tile of `mr` rows. Up to 4 rows, wide tiles make up for the accumulators that rows do not give;
/// they stay within the accumulators of the full tile.
const fn tile_panels<S: Simd>(mr: usize) -> usize {
    let vectors = PANEL.div_ceil(S::LANES);
    let budget = S::MR * S::NP * vectors;
    let wide = match mr {
        1 | 2 => 8,
        3 | 4 => 4,
        _ => 0,
    };
    let fits = match budget / (mr * vectors) {
        8.. => 8,
        4..=7 => 4,
        few => few,
    };
    let panels = if wide < fits { wide } else { fits };
    if panels > S::NP { panels } else { S::NP }
}

/// What a set's tiles are like, for those who cut work into pieces of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileSizes {
    /// Most rows of a tile.
    rows: usize,
    /// Panels of a tile of 1, 2, 3, 4 and more rows.
    few: [usize; FEW_ROWS],
    pub(crate) panels: usize,
    /// Vectors of a panel.
    vectors: usize,
    /// Panels of a tile of a weight gradient.
    pub(crate) grad_panels: usize,
}

/// Multiply-adds that a core has in flight: two a cycle, done after four.
const IN_FLIGHT: f64 = 8.0;

impl TileSizes {
    /// The share of the peak that the tiles of a block of so many rows and panels could have: a tile needs chains enough to hide their
    /// latency, and not more loads than multiply-adds.
    pub(crate) fn efficiency(&self, rows: usize, panels: usize) -> f64 {
        let height = rows as f64 / rows.div_ceil(self.rows).max(1) as f64;
        let most = self.few.get(rows.wrapping_sub(1)).copied().unwrap_or(self.panels);
        let width = (panels as f64 / panels.div_ceil(most).max(1) as f64) * self.vectors as f64;
        let chains = (height * width).max(1.0); // of nothing there is none
        (chains / IN_FLIGHT).min(1.0) * (chains / (height + width).max(1.0)).min(1.0)
    }
}

/// The tiles of an instruction set.
pub(crate) fn tile_sizes(isa: Isa) -> TileSizes {
    struct Ask;
    impl Kernel for Ask {
        type Output = TileSizes;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> TileSizes {
            TileSizes {
                rows: S::MR,
                few: const { [tile_panels::<S>(1), tile_panels::<S>(2), tile_panels::<S>(3), tile_panels::<S>(4)] },
                panels: S::NP,
                vectors: PANEL.div_ceil(S::LANES),
                grad_panels: S::GRAD_NP,
            }
        }
    }
    isa.run(Ask)
}

impl<O: Op> Kernel for Finishing<'_, '_, '_, '_, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, epilogue } = self;
        let (m, k, n_panels) = (job.a.rows(), job.a.cols(), panels(job.b.cols()));
        let max_np = match m {
            1 => const { tile_panels::<S>(1) },
            2 => const { tile_panels::<S>(2) },
            3 => const { tile_panels::<S>(3) },
            4 => const { tile_panels::<S>(4) },
            _ => S::NP,
        };
        let in_group = m.div_ceil(S::MR);
        let most = if job.b.moves() {
            // Few rows do little with a panel: it should not leave L1 between being put straight and being used.
            let room = if m <= FEW_ROWS && !job.b.stays(in_group) { half_l1().min(PACK) } else { PACK };
            (room / (max_np * PANEL * PANEL)).max(1) * PANEL
        } else {
            usize::MAX
        };
        let depth = job.depth.min(most);
        let longest = (depth + depth / 8).min(most);
        let mut k0 = 0;
        // Loop 4, pc: k blocks.
        loop {
            let left = k - k0;
            let last = left <= longest;
            let kc = if last { left } else { depth };
            let start = if k0 == 0 { job.start } else { Start::Continue };
            // Loop 2, jr: groups of panels. Those that do not lie in panels are put straight here, once for all rows.
            for (p, np) in pieces(n_panels, max_np) {
                let window = job.b.window(s, (k0, kc), (p, np), in_group, job.pack);
                // Several tiles read a group of panels: meanwhile the next group comes. One alone streams through it, and would
                // find it pushed out of L1 by the next.
                let stream = in_group == 1 && job.b.stays(1);
                let next = if stream { 0 } else { np.min(n_panels - p - np) };
                let mut strip = Strip {
                    a: job.a.data().as_ptr().wrapping_add((k0 / PANEL) * job.a.stride()),
                    operands: Operands {
                        k: kc,
                        a_stride: job.a.stride(),
                        b: window.b,
                        b_panel: window.panel,
                        b_row: window.row,
                        stream,
                    },
                    ahead: job.b.ahead((k0, kc), (p + np, next), in_group),
                    start,
                    panel: p,
                    tiles: 0,
                    last,
                    epilogue: &mut *epilogue,
                };
                // Loop 1, ir: tiles of rows, those of one height in one call.
                for (i, mr, count) in runs(m, S::MR) {
                    strip.tiles = count;
                    // SAFETY: `window` gave rows k0 .. k0 + kc of panels p .. p + np of b; i + mr * count <= m = rows of a;
                    // columns k0 .. k0 + kc exist in a. `chain` reads exactly these.
                    unsafe { tiles::<S, AlongColumns, O>(s, mr, np, &mut strip, i) };
                }
            }
            k0 += kc;
            if last {
                break;
            }
        }
    }
}

impl Kernel for &mut GradGemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rows, k) = (self.a.cols(), self.a.rows());
        let few = k <= const { most_rows::<S>() };
        let mut epilogue = Finish::<Store>::store(self.out.reborrow());
        // The chain is short here, the rows of a block, and the result is large: kc = k, so no k blocks; np panels of dz or dy (24 KiB at
        // 128 rows and 3 panels) stay in L1 for all tiles below them, a line of x or h serves two tiles, and each tile of the gradient
        // is loaded and stored once. The next tile's part of it, which its chains go on from, comes from L2 or from beyond.
        let lines = (S::GRAD_MR * S::GRAD_NP).div_ceil(k.div_ceil(PANEL).max(1));
        for (p, np) in pieces(panels(self.b.cols()), if few { 1 } else { S::GRAD_NP }) {
            let done = if few {
                let out = &mut epilogue.target.out;
                Outer { a: self.a, b: self.b, start: self.start, stream: self.stream, out }.panel(s, p)
            } else {
                0
            };
            let mut strip = Strip {
                a: self.a.data().as_ptr(),
                operands: Operands {
                    k,
                    a_stride: self.a.stride(),
                    b: self.b.data().as_ptr().wrapping_add(p * self.b.stride()),
                    b_panel: self.b.stride(),
                    b_row: PANEL,
                    stream: false,
                },
                ahead: epilogue.target.out.ahead((0, p), 1, 0),
                start: self.start,
                panel: p,
                tiles: 1,
                last: true,
                epilogue: &mut epilogue,
            };
            // Of each group of panels first come the outer products of very short chains, then the equal tiles of short ones, all in
            // one call; what these leave, and all of the long ones, goes tile by tile, 16 rows of the gradient for each panel of a.
            let (mut done, whole) = (done, rows / PANEL);
            if const { S::GRAD_NP == 1 && SHORT <= S::GRAD_MR } && k <= SHORT_CHAIN && done < whole {
                let row = done * PANEL;
                strip.tiles = (whole - done) * (PANEL / SHORT);
                let lines = SHORT.div_ceil(k.div_ceil(PANEL).max(1));
                strip.ahead = strip.epilogue.target.out.ahead((row + SHORT, p), whole * PANEL - row, lines);
                // SAFETY: as below: SHORT divides 16, and all rows to whole * 16 are in panels of a.
                unsafe { tiles::<S, DownRows, Store>(s, SHORT, np, &mut strip, row) };
                (done, strip.tiles) = (whole, 1);
            }
            for q in done..panels(rows) {
                for (lane, mr) in pieces(PANEL.min(rows - q * PANEL), S::GRAD_MR) {
                    let row = q * PANEL + lane;
                    strip.ahead = strip.epilogue.target.out.ahead((row + mr, p), mr, lines);
                    // SAFETY: `grad_gemm` asserted that a and b have k rows; lane + mr <= 16 stays in panel q of a;
                    // p + np <= panels of b. `chain` reads exactly these.
                    unsafe { tiles::<S, DownRows, Store>(s, mr, np, &mut strip, row) };
                }
            }
        }
    }
}

/// What the tiles of one group of panels have in common.
///
/// Tiles get it by reference, and their first row: two registers. Arguments through memory cost a twentieth of the time of a tile that
/// had just stored its rows to a cold output: they are copied by vector loads, which cannot be served by the narrow stores before
/// them until all older stores have left for the cache.
struct Strip<'t, 'e, O> {
    /// Element (0, first k) of the broadcast operand.
    a: *const f32,
    operands: Operands,
    ahead: Ahead,
    start: Start<'t>,
    panel: usize,
    /// Tiles of equal height to do in one call, one below the other.
    tiles: usize,
    /// Whether this is the last k block: the epilogue follows.
    last: bool,
    epilogue: &'t mut Finish<'e, O>,
}

/// The tiles of `mr` rows and `np` panels from `row` on: picks the function compiled for that size.
///
/// # Safety
/// As [`chain`] for the operands of these tiles, with MR = `mr`, NP = `np`.
#[inline(always)]
unsafe fn tiles<S: Simd, W: Walk, O: Op>(s: S, mr: usize, np: usize, strip: &mut Strip<'_, '_, O>, row: usize) {
    // `const` conditions: sizes that an instruction set does not use are not compiled for it.
    macro_rules! sizes {
        ($($mr:literal x $np:literal if $wanted:expr;)*) => {$(
            if const { $wanted($mr, $np) } && mr == $mr && np == $np {
                return s.call(Tiles::<W, O, $mr, $np> { strip, row, walk: std::marker::PhantomData });
            }
        )*};
    }
    if const { W::K == 1 } {
        const fn wanted<S: Simd>(mr: usize, np: usize) -> bool {
            mr <= S::MR && np <= tile_panels::<S>(mr)
        }
        sizes! {
            14 x 2 if wanted::<S>; 13 x 2 if wanted::<S>; 12 x 2 if wanted::<S>; 11 x 2 if wanted::<S>; 10 x 2 if wanted::<S>;
            9 x 2 if wanted::<S>; 8 x 2 if wanted::<S>; 7 x 2 if wanted::<S>; 6 x 2 if wanted::<S>; 5 x 2 if wanted::<S>;
            14 x 1 if wanted::<S>; 13 x 1 if wanted::<S>; 12 x 1 if wanted::<S>; 11 x 1 if wanted::<S>; 10 x 1 if wanted::<S>;
            9 x 1 if wanted::<S>; 8 x 1 if wanted::<S>; 7 x 1 if wanted::<S>; 6 x 1 if wanted::<S>; 5 x 1 if wanted::<S>;
            4 x 1 if wanted::<S>; 4 x 2 if wanted::<S>; 4 x 3 if wanted::<S>; 4 x 4 if wanted::<S>;
            3 x 1 if wanted::<S>; 3 x 2 if wanted::<S>; 3 x 3 if wanted::<S>; 3 x 4 if wanted::<S>;
            2 x 1 if wanted::<S>; 2 x 2 if wanted::<S>; 2 x 3 if wanted::<S>; 2 x 4 if wanted::<S>;
            2 x 5 if wanted::<S>; 2 x 6 if wanted::<S>; 2 x 7 if wanted::<S>; 2 x 8 if wanted::<S>;
            1 x 1 if wanted::<S>; 1 x 2 if wanted::<S>; 1 x 3 if wanted::<S>; 1 x 4 if wanted::<S>;
            1 x 5 if wanted::<S>; 1 x 6 if wanted::<S>; 1 x 7 if wanted::<S>; 1 x 8 if wanted::<S>;
        }
    } else {
        const fn wanted<S: Simd>(mr: usize, np: usize) -> bool {
            mr <= S::GRAD_MR && np <= S::GRAD_NP
        }
        sizes! {
            8 x 3 if wanted::<S>; 8 x 2 if wanted::<S>; 8 x 1 if wanted::<S>;
            7 x 3 if wanted::<S>; 7 x 2 if wanted::<S>; 7 x 1 if wanted::<S>;
            6 x 3 if wanted::<S>; 6 x 2 if wanted::<S>; 6 x 1 if wanted::<S>;
            5 x 3 if wanted::<S>; 5 x 2 if wanted::<S>; 5 x 1 if wanted::<S>;
            4 x 3 if wanted::<S>; 4 x 2 if wanted::<S>; 4 x 1 if wanted::<S>;
            3 x 3 if wanted::<S>; 3 x 2 if wanted::<S>; 3 x 1 if wanted::<S>;
            2 x 3 if wanted::<S>; 2 x 2 if wanted::<S>; 2 x 1 if wanted::<S>;
            1 x 3 if wanted::<S>; 1 x 2 if wanted::<S>; 1 x 1 if wanted::<S>;
        }
    }
    unreachable!("no {mr} x {np} tile");
}

/// Tiles of one size as a function of its own: start, chain, epilogue, all in registers. One below the other in one call: at
/// widths of 64, a call for each tile takes a twentieth of the time.
struct Tiles<'s, 't, 'e, W, O, const MR: usize, const NP: usize> {
    strip: &'s mut Strip<'t, 'e, O>,
    row: usize,
    walk: std::marker::PhantomData<W>,
}

impl<W: Walk, O: Op, const MR: usize, const NP: usize> Kernel for Tiles<'_, '_, '_, W, O, MR, NP> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { strip, row, .. } = self;
        for t in 0..strip.tiles {
            // SAFETY: `tiles`, the only maker of `Tiles`, passes on its caller's promise for these operands and sizes.
            unsafe { tile::<S, W, O, MR, NP>(s, strip, row + t * MR) };
        }
    }
}

/// The tile at row `i0`.
///
/// # Safety
/// As [`chain`] for the operands of this tile.
#[inline(always)]
unsafe fn tile<S: Simd, W: Walk, O: Op, const MR: usize, const NP: usize>(
    s: S,
    strip: &mut Strip<'_, '_, O>,
    i0: usize,
) {
    let p0 = strip.panel;
    strip.epilogue.begin::<MR, NP>(i0, p0);
    let acc = match strip.start {
        Start::Zero => [[s.row(s.splat(0.0)); NP]; MR],
        Start::Bias(bias) => {
            // One row of bias for every row of the tile.
            let bias = In::from(PanelRef::new(bias, 1, bias.len()));
            let Some(window) = bias.window::<1, NP>(0, p0) else {
                unreachable!("`gemm` checked the length of the bias")
            };
            let mut acc = [[s.row(s.splat(0.0)); NP]; MR];
            for p in 0..NP {
                let line = window.load(s, 0, p);
                for i in 0..MR {
                    acc[i][p] = line;
                }
            }
            acc
        }
        Start::Continue => resume(s, &strip.epilogue.target.out, i0, p0),
    };
    let a = strip.a.wrapping_add(W::offset(i0, strip.operands.a_stride));
    // SAFETY: the caller vouches for the operands of this tile.
    let acc = unsafe { chain::<S, W, MR, NP>(s, a, &strip.operands, &mut strip.ahead, acc) };
    if strip.last {
        strip.epilogue.tile::<S, MR, NP>(s, acc, i0, p0);
    } else {
        let mut wait = Finish::<Store>::store(strip.epilogue.target.out.reborrow());
        wait.begin::<MR, NP>(i0, p0);
        wait.tile::<S, MR, NP>(s, acc, i0, p0);
    }
}

/// The accumulators of chains that wait in the output.
#[inline(always)]
fn resume<S: Simd, const MR: usize, const NP: usize>(s: S, out: &Out<'_>, i0: usize, p0: usize) -> Acc<S, MR, NP> {
    let mut acc = [[s.row(s.splat(0.0)); NP]; MR];
    if let Some(out) = out.as_in().window::<MR, NP>(i0, p0) {
        for i in 0..MR {
            for p in 0..NP {
                acc[i][p] = out.load(s, i, p);
            }
        }
    } else {
        let mut tile = [[[0.0; PANEL]; NP]; MR];
        copy_tile(out.as_in(), (i0, p0), NP, tile.as_flattened_mut());
        for i in 0..MR {
            for p in 0..NP {
                acc[i][p] = load_cells(s, &tile[i][p]);
            }
        }
    }
    acc
}

/// Copies the cells of a tile of `np` panels whose last panel is cut; the rest stays zero.
#[inline(never)]
fn copy_tile(cells: In<'_>, (i0, p0): (usize, usize), np: usize, tile: &mut [[f32; PANEL]]) {
    for (at, line) in tile.iter_mut().enumerate() {
        let cells = cells.at(i0 + at / np, p0 + at % np);
        line[..cells.len()].copy_from_slice(cells);
    }
}
