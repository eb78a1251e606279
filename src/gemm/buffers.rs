//! Growing scratch memory, aligned to cache lines, or to huge pages where it is large.

use crate::error::Error;
use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::ptr::NonNull;

/// A huge page on x86-64 and on most 64-bit Arm systems.
const HUGE: usize = 2 << 20;
/// A cache line.
const LINE: usize = 64;

/// Zeroed floats from a 64-byte boundary on, from a 2-MiB boundary if there are 2 MiB of them. It only ever grows: after warm-up,
/// asking for the same sizes allocates nothing.
///
/// A `Vec` cannot promise the alignment, and aligned elements could not promise that of a huge page.
pub(crate) struct Buffer {
    start: NonNull<f32>,
    /// Floats; 0 before the first `grow`, when `start` dangles.
    len: usize,
}

// SAFETY: a `Buffer` owns its memory and hands it out by the usual borrow rules, as a `Vec<f32>` does.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// The layout of `len` floats.
fn layout(len: usize) -> Result<Layout, Error> {
    let bytes = len.checked_mul(size_of::<f32>()).ok_or(Error::Memory { bytes: usize::MAX })?;
    let align = if bytes >= HUGE { HUGE } else { LINE };
    Layout::from_size_align(bytes, align).map_err(|_| Error::Memory { bytes })
}

/// A vector of `len` zeros, or an error where `vec!` would abort.
pub(crate) fn zeros(len: usize) -> Result<Vec<f32>, Error> {
    let mut values = Vec::new();
    let bytes = len.saturating_mul(size_of::<f32>());
    values.try_reserve_exact(len).map_err(|_| Error::Memory { bytes })?;
    values.resize(len, 0.0);
    Ok(values)
}

/// Empties a list and makes room for `len` elements, or an error where growing it would abort.
pub(crate) fn room<T>(list: &mut Vec<T>, len: usize) -> Result<(), Error> {
    list.clear();
    list.try_reserve(len).map_err(|_| Error::Memory { bytes: len.saturating_mul(size_of::<T>()) })
}

impl Buffer {
    /// Makes room for `len` floats. When that takes new memory, all of it is zero.
    pub(crate) fn grow(&mut self, len: usize) -> Result<(), Error> {
        if len <= self.len {
            return Ok(());
        }
        let layout = layout(len)?;
        // SAFETY: the layout is not empty, since len > self.len >= 0.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or(Error::Memory { bytes: layout.size() })?;
        advise_huge_pages(start, layout.size());
        // SAFETY: `start` is the start of layout.size() bytes of fresh memory, aligned for f32; 0.0 is all zero bytes.
        unsafe { start.write_bytes(0, layout.size()) };
        // The old memory is freed by the old value's `drop`.
        *self = Self { start: start.cast(), len };
        Ok(())
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: `start` points to `len` floats, initialised by `grow`, or dangles, aligned, with len 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (1.., Ok(layout)) = (self.len, layout(self.len)) {
            // SAFETY: `grow` allocated `start` with this layout, and `len` has not changed since.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0 }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.grow(self.len).expect("memory for a copy");
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} floats)", self.len)
    }
}

/// Asks the kernel to back fresh memory by huge pages, before it is first touched: weights beyond L2 are streamed, and with
/// pages of 4 KiB the walks of the page table show (docs/tuning.md). Only advice: nothing depends on whether it is taken.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    if bytes >= HUGE {
        // SAFETY: the range is ours and page-aligned; MADV_HUGEPAGE changes how pages are backed, not what they hold.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}
