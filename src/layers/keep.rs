//! What recorded passes keep for backward: memory against time.

use crate::error::Error;
use crate::parts::compile;
use crate::program::Program;
use crate::run::record::record_len;
use std::sync::Arc;

/// What recorded passes keep for backward. The gradients are the same bits in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Keep {
    /// All that backward reads.
    #[default]
    All,
    /// What enters each layer; backward computes the rest again, all but the last map of each: of a block one GEMM more beside six, of a gated one two
    /// beside nine. (Chen et al. 2016; inside blocks, where most of the memory is.)
    Inputs,
    /// As much as fits: so many bytes for the record of so many rows. Layers that save most memory for the work of computing them again come first.
    Within {
        /// Bytes of a record.
        bytes: usize,
        /// Rows that it is of.
        rows: usize,
    },
}

/// The same program, with other records.
pub(super) fn keeping(program: &Program, keep: Keep) -> Result<Arc<Program>, Error> {
    let all = |recompute| compile(program.forms().map(|form| (form, recompute)));
    let Keep::Within { bytes, rows } = keep else { return all(keep == Keep::Inputs) };
    let most = bytes / size_of::<f32>();
    let fits = |program: &Program| Ok::<_, Error>(record_len(program, rows, program.inputs())? <= most);
    let whole = all(false)?;
    if fits(&whole)? {
        return Ok(whole);
    }
    let least = all(true)?;
    if !fits(&least)? {
        return Err(Error::Setting { operand: "bytes", reason: "not even what enters each layer fits" });
    }
    let mut order: Vec<usize> = (0..least.parts.len()).collect();
    let gain = |part: usize| (least.parts[part].saves as u128, least.parts[part].work.max(1) as u128);
    order.sort_by(|&a, &b| {
        let ((a, of_a), (b, of_b)) = (gain(a), gain(b));
        (b * of_a).cmp(&(a * of_b))
    });
    // Savings add up: so many of the first as are needed, by halves.
    let first = |count: usize| {
        let mut recompute = vec![false; order.len()];
        order[..count].iter().for_each(|&part| recompute[part] = true);
        compile(program.forms().zip(recompute))
    };
    let (mut few, mut enough) = (0, order.len());
    while enough - few > 1 {
        let middle = few.midpoint(enough);
        if fits(&*first(middle)?)? { enough = middle } else { few = middle }
    }
    first(enough)
}
