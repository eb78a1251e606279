//! Epilogues: what happens to the accumulators of a tile after the last k, before they are stored. One formula each.
//!
//! Piecewise linear activations are applied to the accumulators in registers. The others take 15 to 35 instructions a vector;
//! unrolled over 28 accumulators, for each tile size and activation, that would be megabytes of code, so they run as a rolled
//! loop over the tile that was just stored, which is still in L1: one more load and store a vector, hidden behind the arithmetic.

use crate::Activation;
use crate::activation::{self, Act, with_act};
use crate::gemm::macro_kernel::{load_cells, store_cells};
use crate::gemm::panels::{In, Out, PANEL, PanelMut, PanelRef, panels};
use crate::simd::{Isa, Kernel, Simd};

/// Applied once to every tile of the output, after the last k block.
pub(crate) trait Epilogue {
    /// Columns of the output.
    fn cols(&self) -> usize;
    /// The up to 16 output cells of row `i` in panel `p`. Chains cut into k blocks wait there too.
    fn out(&mut self, i: usize, p: usize) -> &mut [f32];
    /// Finishes the tile whose first row is `i0` and whose first panel is `p0`.
    fn finish<S: Simd, const MR: usize, const NP: usize>(&mut self, s: S, acc: Acc<S, MR, NP>, i0: usize, p0: usize);
}

/// The accumulators of a tile: `MR` rows of `NP` panels.
pub(crate) type Acc<S, const MR: usize, const NP: usize> = [[<S as Simd>::Row; NP]; MR];

/// out = acc.
#[inline(always)]
pub(crate) fn store<S: Simd, E: Epilogue, const MR: usize, const NP: usize>(
    s: S,
    epilogue: &mut E,
    acc: Acc<S, MR, NP>,
    i0: usize,
    p0: usize,
) {
    for i in 0..MR {
        for p in 0..NP {
            store_cells(s, epilogue.out(i0 + i, p0 + p), acc[i][p]);
        }
    }
}

/// f(a, b), vector by vector.
#[inline(always)]
fn zip<S: Simd>(mut a: S::Row, b: S::Row, f: impl Fn(S::V, S::V) -> S::V) -> S::Row {
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        a.as_mut()[v] = f(a.as_ref()[v], b.as_ref()[v]);
    }
    a
}

/// f(a), vector by vector.
#[inline(always)]
fn map<S: Simd>(a: S::Row, f: impl Fn(S::V) -> S::V) -> S::Row {
    zip::<S>(a, a, |x, _| f(x))
}

/// out = acc: weight gradients, layers without activation and skip.
pub(crate) struct Store<'a> {
    pub(crate) out: Out<'a>,
}

impl Epilogue for Store<'_> {
    #[inline(always)]
    fn cols(&self) -> usize {
        self.out.cols()
    }
    #[inline(always)]
    fn out(&mut self, i: usize, p: usize) -> &mut [f32] {
        self.out.at(i, p)
    }
    #[inline(always)]
    fn finish<S: Simd, const MR: usize, const NP: usize>(&mut self, s: S, acc: Acc<S, MR, NP>, i0: usize, p0: usize) {
        store(s, self, acc, i0, p0);
    }
}

/// out = acc + skip: y = f + x forward, dx = chain + dy backward.
pub(crate) struct AddSkip<'a> {
    pub(crate) out: Out<'a>,
    pub(crate) skip: In<'a>,
}

impl Epilogue for AddSkip<'_> {
    #[inline(always)]
    fn cols(&self) -> usize {
        self.out.cols()
    }
    #[inline(always)]
    fn out(&mut self, i: usize, p: usize) -> &mut [f32] {
        self.out.at(i, p)
    }
    #[inline(always)]
    fn finish<S: Simd, const MR: usize, const NP: usize>(&mut self, s: S, acc: Acc<S, MR, NP>, i0: usize, p0: usize) {
        for i in 0..MR {
            for p in 0..NP {
                let skip = load_cells(s, self.skip.at(i0 + i, p0 + p));
                store_cells(s, self.out.at(i0 + i, p0 + p), zip::<S>(acc[i][p], skip, |f, x| s.add(f, x)));
            }
        }
    }
}

/// z = acc (kept if wanted); out = phi(z) + skip.
pub(crate) struct Activate<'a> {
    pub(crate) phi: Activation,
    pub(crate) z: Option<Out<'a>>,
    pub(crate) out: Out<'a>,
    pub(crate) skip: Option<In<'a>>,
}

impl Epilogue for Activate<'_> {
    #[inline(always)]
    fn cols(&self) -> usize {
        self.out.cols()
    }
    #[inline(always)]
    fn out(&mut self, i: usize, p: usize) -> &mut [f32] {
        self.out.at(i, p)
    }
    #[inline(always)]
    fn finish<S: Simd, const MR: usize, const NP: usize>(&mut self, s: S, acc: Acc<S, MR, NP>, i0: usize, p0: usize) {
        if let (Activation::Relu, None, None) = (self.phi, &self.z, &self.skip) {
            for i in 0..MR {
                for p in 0..NP {
                    let h = map::<S>(acc[i][p], |z| activation::Relu.value(s, z));
                    store_cells(s, self.out.at(i0 + i, p0 + p), h);
                }
            }
            return;
        }
        match &mut self.z {
            None => store(s, self, acc, i0, p0),
            Some(z) => {
                for i in 0..MR {
                    for p in 0..NP {
                        store_cells(s, z.at(i0 + i, p0 + p), acc[i][p]);
                    }
                }
            }
        }
        s.call(ActivateTile { epilogue: self, tile: (i0, MR, p0, NP) });
    }
}

/// out = phi(z) + skip over a tile (first row, rows, first panel, panels) that holds z, in place or in `z`.
struct ActivateTile<'t, 'a> {
    epilogue: &'t mut Activate<'a>,
    tile: (usize, usize, usize, usize),
}

impl Kernel for ActivateTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { epilogue: Activate { phi, z, out, skip }, tile: (i0, rows, p0, panels) } = self;
        with_act!(*phi, act => for p in p0..p0 + panels {
            for i in i0..i0 + rows {
                let cells = match z {
                    Some(z) => z.at(i, p),
                    None => out.at(i, p),
                };
                let mut h = map::<S>(load_cells(s, cells), |z| act.value(s, z));
                if let Some(skip) = skip {
                    h = zip::<S>(h, load_cells(s, skip.at(i, p)), |h, x| s.add(h, x));
                }
                store_cells(s, out.at(i, p), h);
            }
        });
    }
}

/// out = acc * phi'(z): dZ = (dY W2) * phi'(Z), where `z` holds Z, or H for activations whose derivative H tells.
pub(crate) struct Derive<'a> {
    pub(crate) phi: Activation,
    pub(crate) z: In<'a>,
    pub(crate) out: Out<'a>,
}

impl Epilogue for Derive<'_> {
    #[inline(always)]
    fn cols(&self) -> usize {
        self.out.cols()
    }
    #[inline(always)]
    fn out(&mut self, i: usize, p: usize) -> &mut [f32] {
        self.out.at(i, p)
    }
    #[inline(always)]
    fn finish<S: Simd, const MR: usize, const NP: usize>(&mut self, s: S, acc: Acc<S, MR, NP>, i0: usize, p0: usize) {
        if let Activation::Relu = self.phi {
            for i in 0..MR {
                for p in 0..NP {
                    let h = load_cells(s, self.z.at(i0 + i, p0 + p));
                    let dz = zip::<S>(acc[i][p], h, |g, h| s.mul(g, activation::Relu.grad(s, h)));
                    store_cells(s, self.out.at(i0 + i, p0 + p), dz);
                }
            }
            return;
        }
        store(s, self, acc, i0, p0);
        s.call(DeriveTile { phi: self.phi, z: &self.z, out: &mut self.out, tile: (i0, MR, p0, NP) });
    }
}

/// out = out * phi'(z) over a tile (first row, rows, first panel, panels). The identity leaves out as it is.
struct DeriveTile<'t, 'a> {
    phi: Activation,
    z: &'t In<'a>,
    out: &'t mut Out<'a>,
    tile: (usize, usize, usize, usize),
}

impl Kernel for DeriveTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { phi, z, out, tile: (i0, rows, p0, panels) } = self;
        if phi == Activation::Identity {
            return;
        }
        with_act!(phi, act => for p in p0..p0 + panels {
            for i in i0..i0 + rows {
                let slope = map::<S>(load_cells(s, z.at(i, p)), |z| act.grad(s, z));
                let dz = zip::<S>(load_cells(s, out.at(i, p)), slope, |g, d| s.mul(g, d));
                store_cells(s, out.at(i, p), dz);
            }
        });
    }
}

/// dz = dy * phi'(z) over whole panels: the entry of a layer whose own output was activated.
pub(crate) fn derive_panels(isa: Isa, phi: Activation, z: PanelRef<'_>, dz: PanelMut<'_>) {
    let (rows, panels) = (z.rows(), panels(z.cols()));
    isa.run(DeriveTile { phi, z: &In::from(z), out: &mut Out::from(dz), tile: (0, rows, 0, panels) });
}
