//! Running averages, brought up to date with the statistics of a batch.

use super::Layer;
use crate::error::Error;
use crate::run::record::{open, rows};
use std::sync::Arc;

/// [`Layer::update_statistics`].
pub(super) fn update(layer: &mut impl Layer, record: &[f32], momentum: f32) -> Result<(), Error> {
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Error::Setting { operand: "momentum", reason: "must be in [0, 1]" });
    }
    let program = Arc::clone(layer.program());
    let n = rows(record, &program)?;
    // Of one row no pass has left any: a record that says so was changed.
    let Some(statistics) = open(record, &program, n, layer.inputs())?.statistics.filter(|_| n > 1) else {
        return Ok(());
    };
    let line = |(vector, at): (usize, usize)| &statistics[at..][..program.vectors[vector]];
    if program.running().flat_map(|(mean, variance)| [mean, variance]).flat_map(line).any(|v| !v.is_finite()) {
        return Err(Error::Record { reason: "the statistics of its batch are NaN or infinite" });
    }
    let unbiased = (n as f64 / (n as f64 - 1.0)) as f32;
    for (mean, variance) in program.running() {
        for (place, factor) in [(mean, 1.0), (variance, unbiased)] {
            let Some(running) = layer.vector_mut(place.0) else { continue };
            for (running, new) in running.as_mut_slice().iter_mut().zip(line(place)) {
                *running = momentum.mul_add(new * factor, (1.0 - momentum) * *running);
            }
        }
    }
    Ok(())
}
