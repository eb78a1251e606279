//! Running averages, brought up to date with the statistics of a batch.

use crate::error::Error;
use crate::program::Program;
use crate::run::record::{open, rows};

/// [`super::Layer::update_statistics`]. `each` is given the number of every vector that is a running average, and what is to be done with it.
pub(super) fn update(
    program: &Program,
    record: &[f32],
    momentum: f32,
    mut each: impl FnMut(usize, &mut dyn FnMut(&mut [f32])),
) -> Result<(), Error> {
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Error::Setting { operand: "momentum", reason: "must be in [0, 1]" });
    }
    let n = rows(record, program)?;
    // Of one row no pass has left any: a record that says so was changed.
    let Some(statistics) = open(record, program, n, program.inputs())?.statistics.filter(|_| n > 1) else {
        return Ok(());
    };
    let line = |(vector, at): (usize, usize)| &statistics[at..][..program.vectors[vector]];
    let unbiased = (n as f64 / (n as f64 - 1.0)) as f32;
    let all = || program.running().flat_map(|(mean, variance)| [(mean, 1.0), (variance, unbiased)]);
    if all().any(|(place, factor)| line(place).iter().any(|v| !(v * factor).is_finite())) {
        return Err(Error::Record { reason: "the statistics of its batch are NaN or infinite" });
    }
    for (place, factor) in all() {
        each(place.0, &mut |running| {
            for (running, new) in running.iter_mut().zip(line(place)) {
                *running = momentum.mul_add(new * factor, (1.0 - momentum) * *running);
            }
        });
    }
    Ok(())
}
