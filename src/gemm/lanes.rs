//! Lanes: 16 columns of a panel as the vectors of an instruction set, to and from memory.

use super::panels::PANEL;
use crate::simd::Simd;

/// Up to 16 cells as a panel row; lanes past the end are 0.
#[inline(always)]
pub(crate) fn load_cells<S: Simd>(s: S, cells: &[f32]) -> S::Row {
    let mut row = s.row(s.splat(0.0));
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        row.as_mut()[v] = s.load(&cells[(v * S::LANES).min(cells.len())..((v + 1) * S::LANES).min(cells.len())]);
    }
    row
}

/// Writes a panel row to up to 16 cells.
#[inline(always)]
pub(crate) fn store_cells<S: Simd>(s: S, cells: &mut [f32], row: S::Row) {
    let len = cells.len();
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        s.store(&mut cells[(v * S::LANES).min(len)..((v + 1) * S::LANES).min(len)], row.as_ref()[v]);
    }
}

/// The 16 columns at `src` as vectors. A set whose lanes do not divide 16 reads its last vector in part.
///
/// # Safety
/// 16 floats can be read at `src`.
#[inline(always)]
pub(crate) unsafe fn load_row<S: Simd>(s: S, src: *const f32) -> S::Row {
    let mut row = s.row(s.splat(0.0));
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        let rest = PANEL - v * S::LANES;
        row.as_mut()[v] = if rest >= S::LANES {
            // SAFETY: lanes v * LANES .. (v + 1) * LANES are among the 16.
            unsafe { s.load_ptr(src.add(v * S::LANES)) }
        } else {
            // SAFETY: the rest of the 16 floats, as a slice.
            s.load(unsafe { std::slice::from_raw_parts(src.add(v * S::LANES), rest) })
        };
    }
    row
}

/// Writes a panel row to the 16 columns at `dst`.
///
/// # Safety
/// 16 floats can be written at `dst`, and nothing else accesses them meanwhile.
#[inline(always)]
pub(crate) unsafe fn store_row<S: Simd>(s: S, dst: *mut f32, row: S::Row) {
    for v in 0..const { PANEL.div_ceil(S::LANES) } {
        let rest = PANEL - v * S::LANES;
        // SAFETY: lanes v * LANES .. of the 16 floats. The length is a constant, so `store` has no branch left.
        let cells = unsafe { std::slice::from_raw_parts_mut(dst.add(v * S::LANES), rest.min(S::LANES)) };
        s.store(cells, row.as_ref()[v]);
    }
}

/// Operations on the 16 columns of a panel's row, vector by vector. Functions, not closures: those are not sure to be inlined.
macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident($($v:ident),*) = $op:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name<S: Simd>(s: S, $($v: S::Row),*) -> S::Row {
            let mut out = s.row(s.splat(0.0));
            for v in 0..const { PANEL.div_ceil(S::LANES) } {
                out.as_mut()[v] = s.$op($($v.as_ref()[v]),*);
            }
            out
        }
    )*};
}

rows! {
    /// a + b
    add_rows(a, b) = add;
    /// a - b
    sub_rows(a, b) = sub;
    /// a b
    mul_rows(a, b) = mul;
    /// a b + c, rounded once
    fma_rows(a, b, c) = fma;
    /// c - a b, rounded once
    fnma_rows(a, b, c) = fnma;
}
