//! One residual block, forward and a training step, on one thread: each instruction set against GEMM calls and plain loops.

#[path = "support/config.rs"]
mod config;
#[path = "support/race.rs"]
mod race;
#[allow(dead_code, reason = "a part of it serves examples/measure alone")]
mod support;

use support::problem::Shape;

/// Small, medium, and the feed-forward part of a small transformer.
const SHAPES: [Shape; 4] = [
    Shape::new(1, 128, 128, 1),
    Shape::new(64, 128, 128, 1),
    Shape::new(256, 256, 256, 1),
    Shape::new(128, 384, 1536, 1),
];

fn main() -> Result<(), resblock::Error> {
    let mut criterion = config::criterion();
    race::race(&mut criterion, "block", &SHAPES)?;
    criterion.final_summary();
    Ok(())
}
