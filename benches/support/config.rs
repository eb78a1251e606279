//! What every bench runs on, and for how long.

use criterion::Criterion;
use resblock::{Context, Error, Isa};
use std::time::Duration;

/// One thread of every instruction set of this CPU. The portable sets, for checking rather than for speed, take part only if
/// `RESBLOCK_ISA` names them.
pub(crate) fn contexts() -> Result<Vec<Context>, Error> {
    let (ctx, chosen) = (Context::new()?, Isa::detect()?);
    let fast = |isa: &Isa| *isa == chosen || !matches!(isa, Isa::Scalar | Isa::Odd);
    Isa::available().into_iter().filter(fast).map(|isa| ctx.with_isa(isa)).collect()
}

/// Short runs: shapes are many, and single times of these loops are steady. The command line may ask for others.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}
