//! Stacks of residual blocks, forward and a training step, on one thread: each instruction set against GEMM calls and plain loops.

#[path = "support/config.rs"]
mod config;
#[path = "support/race.rs"]
mod race;
#[allow(dead_code, reason = "a part of it serves examples/measure alone")]
mod support;

use support::problem::Shape;

/// A deep and narrow one, and one whose batch is larger than a block of rows.
const SHAPES: [Shape; 2] = [Shape::new(64, 64, 64, 50), Shape::new(256, 128, 128, 16)];

fn main() -> Result<(), resblock::Error> {
    let mut criterion = config::criterion();
    race::race(&mut criterion, "stack", &SHAPES)?;
    criterion.final_summary();
    Ok(())
}
