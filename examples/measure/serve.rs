//! The line protocol of a race: requests on standard input, one answer a line on standard output.
//!
//! ```text
//! bench B d h depth fwd|train relu|gelu secs     R best_us median_us calls    random data
//! check DIR B d h depth relu|gelu                OK                           numbers from and to files in DIR
//! quit
//! ```
//!
//! `E words` is an error, `S words` something that is not supported; neither ends the server. Files hold raw little-endian f32,
//! layers one after another: X, dY, W1, b1, W2, b2 are read; fY (of an inference) and Y, dX, dW1, db1, dW2, db2 (of a training
//! step) are written. Weights are (inputs, outputs). `gelu` is the tanh form.

use crate::cli::{Args, Mode, Weights, positive, seconds};
use crate::support::borrowed::{Borrowed, Orientation};
use crate::support::fused::Fused;
use crate::support::problem::{Problem, Shape};
use crate::support::unfused::Unfused;
use crate::support::{Results, Runner};
use crate::timing::{Times, time};
use crate::{output, threads};
use resblock::{Activation, Context, Skip};
use std::error::Error;
use std::io::BufRead;
use std::path::Path;

/// Floats in 4 GiB: a race, not a test of memory.
const MOST_FLOATS: usize = 1 << 30;

/// Why a request is refused.
enum Refusal {
    /// It makes no sense, or failed: `E`.
    Bad(String),
    /// It makes sense, but not here: `S`.
    Unsupported(String),
}

impl<E: Into<Box<dyn Error>>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal::Bad(error.into().to_string())
    }
}

/// Refuses shapes that need more memory than a race should.
pub(crate) fn check_size(shape: Shape) -> Result<(), String> {
    match shape.floats() {
        Some(n) if n <= MOST_FLOATS => Ok(()),
        _ => Err(format!("{shape}: more than {MOST_FLOATS} numbers to hold")),
    }
}

/// Answers requests until `quit` or the end of the input.
pub(crate) fn serve(args: &Args, threads: usize) -> Result<(), Box<dyn Error>> {
    if args.unfused && threads != 1 {
        return Err("--unfused runs on one thread".into());
    }
    let Some(&ctx) = threads::contexts(&[threads], args)?.first() else { return Err("no context".into()) };
    let server = Server { ctx, args };
    let mut input = std::io::stdin().lock();
    let mut line = Vec::new();
    say("READY")?;
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let words: Vec<&str> = text.split_whitespace().collect();
        let answer = match words[..] {
            [] => continue,
            ["quit"] => return Ok(()),
            ["bench", ref request @ ..] => server.bench(request),
            ["check", ref request @ ..] => server.check(request),
            ["gemm", ..] => Err(Refusal::Unsupported("gemm: no GEMM to offer".into())),
            [other, ..] => Err(Refusal::Bad(format!("unknown request {other:?}"))),
        };
        match answer {
            Ok(answer) => say(&answer)?,
            Err(Refusal::Bad(why)) => say(&format!("E {}", one_line(&why)))?,
            Err(Refusal::Unsupported(why)) => say(&format!("S {}", one_line(&why)))?,
        }
    }
}

fn say(answer: &str) -> Result<(), Box<dyn Error>> {
    output::print(&format!("{answer}\n"))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Server<'a> {
    ctx: Context,
    args: &'a Args,
}

impl Server<'_> {
    fn bench(&self, words: &[&str]) -> Result<String, Refusal> {
        let &[b, d, h, depth, mode, act, secs] = words else {
            return Err(Refusal::Bad("expected: bench B d h depth fwd|train relu|gelu secs".into()));
        };
        let (shape, phi, secs) = (shape([b, d, h, depth])?, activation(act)?, seconds(secs)?);
        let mode = match mode {
            "fwd" => Mode::Forward,
            "train" => Mode::Train,
            _ => return Err(Refusal::Unsupported(format!("mode {mode:?}"))),
        };
        let problem = Problem::random(shape, phi, Skip::Identity);
        let mut runner = runner(&self.ctx, &problem, self.args)?;
        let Times { best, median, count } = time(secs, || match mode {
            Mode::Forward => runner.forward(),
            Mode::Train => runner.train(),
        })?;
        Ok(format!("R {best:.3} {median:.3} {count}"))
    }

    fn check(&self, words: &[&str]) -> Result<String, Refusal> {
        let &[dir, b, d, h, depth, act] = words else {
            return Err(Refusal::Bad("expected: check DIR B d h depth relu|gelu".into()));
        };
        let (shape, phi, dir) = (shape([b, d, h, depth])?, activation(act)?, Path::new(dir));
        let problem = read_problem(dir, shape, phi)?;
        let mut runner = runner(&self.ctx, &problem, self.args)?;
        runner.forward()?;
        write(dir, "fY", &runner.results()?.y)?;
        runner.train()?;
        let Results { y, dx, dw1, db1, dw2, db2 } = runner.results()?;
        for (name, values) in [("Y", y), ("dX", dx), ("dW1", dw1), ("db1", db1), ("dW2", dw2), ("db2", db2)] {
            write(dir, name, &values)?;
        }
        Ok("OK".into())
    }
}

/// What runs a problem as the arguments say.
pub(crate) fn runner<'p>(
    ctx: &Context,
    problem: &'p Problem,
    args: &Args,
) -> Result<Box<dyn Runner + 'p>, resblock::Error> {
    if args.unfused {
        return Ok(Box::new(Unfused::new(problem)));
    }
    let fused = Fused::new(ctx, problem)?;
    let orientation = match args.weights {
        Weights::Owned => return Ok(Box::new(fused)),
        Weights::InOut => Orientation::InputsOutputs,
        Weights::OutIn => Orientation::OutputsInputs,
    };
    Ok(Box::new(Borrowed::new(ctx, problem, orientation, fused.stack())?))
}

fn shape(words: [&str; 4]) -> Result<Shape, String> {
    let [batch, features, hidden, depth] = words.map(|word| positive(word).map_err(|why| format!("{word:?}: {why}")));
    let shape = Shape::new(batch?, features?, hidden?, depth?);
    check_size(shape)?;
    Ok(shape)
}

fn activation(word: &str) -> Result<Activation, Refusal> {
    match word {
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::GeluTanh),
        _ => Err(Refusal::Unsupported(format!("activation {word:?}"))),
    }
}

fn read_problem(dir: &Path, shape: Shape, phi: Activation) -> Result<Problem, String> {
    let Shape { batch, features: d, hidden: h, depth } = shape;
    Ok(Problem {
        shape,
        phi,
        skip: Skip::Identity,
        x: read(dir, "X", batch * d)?,
        dy: read(dir, "dY", batch * d)?,
        w1: read(dir, "W1", depth * d * h)?,
        b1: read(dir, "b1", depth * h)?,
        w2: read(dir, "W2", depth * h * d)?,
        b2: read(dir, "b2", depth * d)?,
    })
}

fn read(dir: &Path, name: &str, len: usize) -> Result<Vec<f32>, String> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (floats, rest) = bytes.as_chunks::<4>();
    if floats.len() != len || !rest.is_empty() {
        return Err(format!("{}: expected {len} floats, found {} bytes", path.display(), bytes.len()));
    }
    Ok(floats.iter().map(|&float| f32::from_le_bytes(float)).collect())
}

fn write(dir: &Path, name: &str, values: &[f32]) -> Result<(), String> {
    let path = dir.join(name);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}
