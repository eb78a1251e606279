//! Every instruction set of this crate against the unfused baseline.

use crate::config::contexts;
use crate::support::Runner;
use crate::support::fused::Fused;
use crate::support::problem::{Problem, Shape};
use crate::support::unfused::Unfused;
use criterion::{BenchmarkId, Criterion, Throughput};
use resblock::{Activation, BlockForm, Error};

/// Benches residual ReLU blocks: `<name>_forward/<set>/<shape>` and `<name>_train/<set>/<shape>`, where the set, with the number of
/// threads if these are several, is `unfused` for the baseline. The rate is in floating-point operations.
pub(crate) fn race(criterion: &mut Criterion, name: &str, shapes: &[Shape]) -> Result<(), Error> {
    for &shape in shapes {
        let problem = Problem::random(shape, BlockForm::new(shape.features, shape.hidden, Activation::Relu))?;
        let mut runners: Vec<(String, Box<dyn Runner + '_>)> = Vec::new();
        for (name, ctx) in contexts()? {
            runners.push((name, Box::new(Fused::new(&ctx, &problem)?)));
        }
        runners.push(("unfused".into(), Box::new(Unfused::new(&problem))));

        let mut group = criterion.benchmark_group(format!("{name}_forward"));
        group.throughput(Throughput::Elements(problem.flops() as u64));
        for (set, runner) in &mut runners {
            group.bench_function(BenchmarkId::new(&**set, shape), |b| b.iter(|| runner.forward().expect("shapes fit")));
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("{name}_train"));
        group.throughput(Throughput::Elements(3 * problem.flops() as u64));
        for (set, runner) in &mut runners {
            group.bench_function(BenchmarkId::new(&**set, shape), |b| b.iter(|| runner.train().expect("shapes fit")));
        }
        group.finish();
    }
    Ok(())
}
