//! The line protocol of a race: requests on standard input, one answer a line on standard output.
//!
//! ```text
//! bench B d h depth fwd|train relu|gelu secs [FORM]    R best_us median_us calls    random data
//! check DIR B d h depth relu|gelu [FORM]               OK                           numbers from and to files in DIR
//! quit
//! ```
//!
//! `E words` is an error, `S words` something that is not supported; neither ends the server. Files hold raw little-endian f32,
//! layers one after another: X, dY and the form's parameters (W1, b1, ...) are read; fY (of an inference) and Y, dX, dW1, db1, ... (of a
//! training step) are written. Weights are (inputs, outputs). `gelu` is the tanh form; without a form a block is bare.

use crate::cli::{Args, Mode, Weights, positive, seconds};
use crate::support::borrowed::{Borrowed, Orientation};
use crate::support::form::Form;
use crate::support::fused::Fused;
use crate::support::problem::{Problem, Shape};
use crate::support::unfused::Unfused;
use crate::support::{Results, Runner};
use crate::timing::{Times, time};
use crate::{output, threads};
use clap::ValueEnum;
use resblock::{Activation, Context};
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
        let Some((&[b, d, h, depth, mode, act, secs], form)) = with_form(words)? else {
            return Err(Refusal::Bad("expected: bench B d h depth fwd|train relu|gelu secs [FORM]".into()));
        };
        let (shape, phi, secs) = (shape([b, d, h, depth])?, activation(act)?, seconds(secs)?);
        let mode = match mode {
            "fwd" => Mode::Forward,
            "train" => Mode::Train,
            _ => return Err(Refusal::Unsupported(format!("mode {mode:?}"))),
        };
        let problem = Problem::random(shape, form.block(shape.features, shape.hidden, phi))?;
        self.supports(form, shape)?;
        let mut runner = runner(&self.ctx, &problem, self.args)?;
        let Times { best, median, count } = time(secs, || match mode {
            Mode::Forward => runner.forward(),
            Mode::Train => runner.train(),
        })?;
        Ok(format!("R {best:.3} {median:.3} {count}"))
    }

    fn check(&self, words: &[&str]) -> Result<String, Refusal> {
        let Some((&[dir, b, d, h, depth, act], form)) = with_form(words)? else {
            return Err(Refusal::Bad("expected: check DIR B d h depth relu|gelu [FORM]".into()));
        };
        let (shape, phi, dir) = (shape([b, d, h, depth])?, activation(act)?, Path::new(dir));
        self.supports(form, shape)?;
        let form = form.block(shape.features, shape.hidden, phi);
        let problem: Problem =
            Problem::new(shape, form, |name, len| read(dir, name, len).map_err(Box::<dyn Error>::from))?;
        let mut runner = runner(&self.ctx, &problem, self.args)?;
        runner.forward()?;
        write(dir, "fY", &runner.results()?.y)?;
        runner.train()?;
        let Results { y, dx, grads } = runner.results()?;
        write(dir, "Y", &y)?;
        write(dir, "dX", &dx)?;
        for (param, grad) in problem.params.iter().zip(&grads).filter(|(param, _)| param.role.is_learned()) {
            write(dir, &format!("d{}", param.name), grad)?;
        }
        Ok("OK".into())
    }

    /// That a form can be run as the arguments say.
    fn supports(&self, form: Form, shape: Shape) -> Result<(), Refusal> {
        if self.args.unfused && form != Form::Bare {
            return Err(Refusal::Unsupported("--unfused knows the bare block alone".into()));
        }
        if form == Form::Shortcut && shape.depth > 1 {
            return Err(Refusal::Unsupported("a block that changes the width, more than once".into()));
        }
        Ok(())
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
    let fused = Fused::new(ctx, problem)?.keeping(args.keep.into())?;
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

/// A request of `N` words, and the form that may follow.
fn with_form<'w, 'a, const N: usize>(words: &'w [&'a str]) -> Result<Option<(&'w [&'a str; N], Form)>, Refusal> {
    let Some((request, rest)) = words.split_first_chunk() else { return Ok(None) };
    match rest {
        [] => Ok(Some((request, Form::Bare))),
        [form] => match Form::from_str(form, false) {
            Ok(form) => Ok(Some((request, form))),
            Err(_) => Err(Refusal::Unsupported(format!("form {form:?}"))),
        },
        _ => Ok(None),
    }
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
