//! Explanations: a program and its plan in words, for people who want to know where time and memory go.

use super::plan::{Plan, Plans};
use super::record::record_len;
use super::shares::Shares;
use crate::context::Context;
use crate::error::Error;
use crate::gemm::epilogue::{Aux, Epilogue, Post, Scale};
use crate::program::Program;
use crate::program::memory::Home;
use crate::program::step::{BatchStep, Beside, GemmStep, Grad, Port, Posts, Side, Step, Val};
use std::fmt::{self, Write};
use std::iter;
use std::sync::Arc;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// A forward pass that keeps nothing.
    Inference,
    /// A forward pass with its record, and a backward pass with all gradients.
    Training,
}

/// How a network runs on a batch: [`crate::Layer::explain`]. Displays as text for people; its form may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    text: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Explains a call on `n` rows.
pub(crate) fn explain(ctx: &Context, program: &Arc<Program>, n: usize, purpose: Purpose) -> Result<Explanation, Error> {
    let imagined = usize::try_from(ctx.machine().threads).ok().filter(|&threads| threads > 0);
    let mut plans = Plans::default();
    plans.imagined = imagined;
    let mut text = String::new();
    let training = purpose == Purpose::Training;
    let forward = plans.forward(ctx, program, n, (training, false))?;
    let shares = forward.shares;
    // Writing to a string does not fail.
    let _ = Page { ctx, program, plan: forward, text: &mut text }.forward(n, training);
    if training {
        let record = record_len(program, n, program.inputs())?;
        let _ = writeln!(text, "record: {} for the batch", bytes(record));
        let backward = plans.backward(ctx, program, (n, shares.rows), (true, !ctx.has_frozen_statistics()))?;
        let _ = Page { ctx, program, plan: backward, text: &mut text }.backward(n);
    }
    Ok(Explanation { text })
}

/// What a forward pass is called that leaves a record.
const RECORDED: &str = "forward, recorded";

/// A pass, being written down.
struct Page<'a> {
    ctx: &'a Context,
    program: &'a Program,
    plan: &'a Plan,
    text: &'a mut String,
}

impl Page<'_> {
    fn forward(&mut self, n: usize, recorded: bool) -> fmt::Result {
        self.head(if recorded { RECORDED } else { "forward" }, n, 1)?;
        let program = self.program;
        for (index, part) in program.parts.iter().enumerate() {
            let flops = flops(n, part.work, 1);
            writeln!(self.text, "  part {index}: {}; {flops}", part.form.formula())?;
            for step in &part.forward {
                self.step(step)?;
            }
        }
        Ok(())
    }

    fn backward(&mut self, n: usize) -> fmt::Result {
        self.head("backward", n, 2)?;
        let (program, plan) = (self.program, self.plan);
        writeln!(
            self.text,
            "  slabs of {} rows, through {} groups of parts",
            plan.slab_rows.min(n),
            plan.groups.len()
        )?;
        for group in &plan.groups {
            for index in group.parts.clone().rev() {
                let part = &program.parts[index];
                writeln!(self.text, "  part {index}: {}", flops(n, part.work, 2))?;
                if part.recompute {
                    writeln!(self.text, "    again, from what entered:")?;
                }
                for step in part.again.iter().chain(&part.backward) {
                    self.step(step)?;
                }
            }
            for index in group.parts.clone().rev() {
                for grad in &program.parts[index].grads {
                    self.grad(grad)?;
                }
            }
        }
        Ok(())
    }

    /// What holds for the whole pass.
    fn head(&mut self, pass: &str, n: usize, times: usize) -> fmt::Result {
        let Shares { rows, threads, across, .. } = self.plan.shares;
        let (isa, depth) = (self.ctx.isa().name(), self.ctx.k_block());
        writeln!(self.text, "{pass} of {n} rows on {isa}: {}", flops(n, self.program.work, times))?;
        let blocks = n.div_ceil(rows);
        // The row blocks of a record are chosen for both passes.
        let also = if pass == RECORDED { ", with the backward pass" } else { "" };
        let how = match (threads, across) {
            (1, _) => "on one thread".to_owned(),
            (_, 1) => format!("shared by {threads} threads"),
            _ => format!("each GEMM's columns in {across} pieces, shared by {threads} threads"),
        };
        writeln!(self.text, "  expected: {:.1} us{also}", self.plan.predicted_ns / 1e3)?;
        if threads > 1 {
            self.shared(n)?;
        }
        writeln!(self.text, "  {blocks} blocks of up to {rows} rows, {how}; chains in pieces of {depth}")?;
        let local = self.plan.memory.local_width.saturating_mul(rows.min(n));
        writeln!(self.text, "  local memory of a block: {}", bytes(local))
    }

    /// How even the work of several threads is, how often they meet, and what each reads of the weights.
    fn shared(&mut self, n: usize) -> fmt::Result {
        let Plan { shares, steps, sums, groups, slab_rows, .. } = self.plan;
        let Shares { rows, threads, across, .. } = *shares;
        // Forward, all rows are one slab, without sums.
        let (slabs, slab_rows) = if sums.is_empty() { (1, n) } else { (n.div_ceil(*slab_rows), n.min(*slab_rows)) };
        let blocks = slab_rows.div_ceil(rows);
        // Pieces of a phase are of about equal length: the longest thread has one more than others.
        let uneven = |pieces: usize| pieces.div_ceil(threads) as f64 * threads as f64 / pieces.max(1) as f64;
        let gemms = steps.iter().filter(|lowered| matches!(lowered.step, Step::Gemm(_)));
        let of_steps = gemms.map(|lowered| shares.grid(blocks, &lowered.step).pieces());
        let (phases, longest) = if across == 1 {
            (groups.len(), uneven(blocks))
        } else {
            (steps.len(), of_steps.map(uneven).fold(1.0, f64::max))
        };
        let of_groups = groups.iter().filter_map(|group| sums[group.sums.clone()].last());
        let sum_pieces = of_groups.map(|last| last.before + last.grid.pieces());
        let summed = sum_pieces.clone().count();
        let longest_sum = sum_pieces.map(uneven).fold(1.0, f64::max);
        write!(self.text, "  {} phases; longest thread over the mean: {longest:.2}", slabs * (phases + summed))?;
        if summed > 0 {
            write!(self.text, ", in sums {longest_sum:.2}")?;
        }
        let weights: usize = self.program.affines.iter().map(|&(inputs, outputs)| inputs.saturating_mul(outputs)).sum();
        let mine = weights / across.min(threads);
        let l2 = self.ctx.machine().l2_kib as usize * 1024 / size_of::<f32>();
        let level = if mine <= l2 { "which its L2 holds" } else { "from beyond its L2" };
        writeln!(self.text, "; weights: {} a thread of {}, {level}", bytes(mine), bytes(weights))
    }

    fn grad(&mut self, grad: &Grad) -> fmt::Result {
        match *grad {
            Grad::Affine { affine, a, b } => {
                let (a, b) = (self.name(a), self.name(b));
                writeln!(self.text, "    dW[{affine}] = sum over rows of {b}ᵀ {a}, db[{affine}] = that of {b}")
            }
            Grad::Columns { vector, b, times } => {
                let times = times.map(|v| format!(" ⊙ {}", self.name(v))).unwrap_or_default();
                let b = self.name(b);
                writeln!(self.text, "    dv[{vector}] = sum over rows of {b}{times}")
            }
            Grad::Rows { vector, b, times } => {
                let (b, times) = (self.name(b), self.name(times));
                writeln!(self.text, "    dv[{vector}] = sum over rows and columns of {b} ⊙ {times}")
            }
        }
    }

    fn step(&mut self, step: &Step<Val>) -> fmt::Result {
        match step {
            Step::Load { port, out } if self.plan.memory.home(*out) != Home::None => {
                let what = match port {
                    Port::X => "x",
                    Port::Skip => "the caller's skip",
                    Port::Dy => "dy",
                };
                let out = self.place(*out);
                writeln!(self.text, "    {out} = {what} in panels: a pass of its own")
            }
            Step::Gemm(g) => self.gemm(g),
            Step::Chunks { first, second, last } => {
                for g in iter::once(first).chain(second).chain(last) {
                    self.gemm(g)?;
                }
                let (name, width) = (self.name(first.out), self.program.value(first.out).cols);
                let chunk = self.ctx.blocking().hidden_chunk();
                if self.plan.shares.across > 1 {
                    writeln!(
                        self.text,
                        "      not fused: threads share the columns of each GEMM, with a barrier between"
                    )
                } else {
                    writeln!(
                        self.text,
                        "      fused: {name} by {} chunks of {} columns",
                        width.div_ceil(chunk).max(1),
                        chunk.min(width)
                    )
                }
            }
            Step::Each { a, posts, aux, out } if self.plan.memory.home(*out) != Home::None => {
                let (out, a) = (self.place(*out), self.name(*a));
                write!(self.text, "    {out} = {a}")?;
                self.posts(posts)?;
                self.aux(aux.as_ref())?;
                writeln!(self.text, ": a pass of its own")
            }
            Step::Norm(step) => {
                let what = format!("{} of {}", step.norm.formula(), self.name(step.a));
                self.norm(step.out, &what, step.normal)
            }
            Step::BatchNorm(step) => {
                let (norm, a, from) = (step.norm.formula(), self.name(step.a), self.place(step.mean));
                self.norm(step.out, &format!("{norm} of {a} by {from}"), step.normal)
            }
            Step::NormAdjoint(step) => self.norm_adjoint(step.out, step.dn, step.normal, step.skip),
            Step::BatchNormAdjoint(step) => self.norm_adjoint(step.out, step.dn, step.normal, step.skip),
            Step::Batch(BatchStep::Moments { a, mean, .. }) if self.is_taken(*mean) => {
                let a = self.name(*a);
                writeln!(self.text, "    mean and variance of {a} over the batch: all rows wait for it")
            }
            Step::Batch(BatchStep::Slopes { dn, normal, mean, .. }) if self.is_taken(*mean) => {
                let (dn, normal) = (self.name(*dn), self.name(*normal));
                writeln!(self.text, "    means of {dn} and {dn} ⊙ {normal} over the batch: all rows wait for it")
            }
            Step::Load { .. } | Step::Probe { .. } | Step::Each { .. } | Step::Batch(_) => Ok(()),
        }
    }

    /// A norm, and where its result goes before γ and β.
    fn norm(&mut self, out: Val, what: &str, normal: Option<Val>) -> fmt::Result {
        let out = self.place(out);
        let normal = normal.filter(|&v| self.plan.memory.home(v) != Home::None);
        let normal = normal.map(|v| format!(", and without γ and β to {}", self.place(v))).unwrap_or_default();
        writeln!(self.text, "    {out} = {what}{normal}: a pass of its own")
    }

    /// The gradient through a norm, if it is wanted.
    fn norm_adjoint(&mut self, out: Val, dn: Val, normal: Val, skip: Option<(f32, Val)>) -> fmt::Result {
        if self.plan.memory.home(out) == Home::None {
            return Ok(());
        }
        let (out, dn, normal) = (self.place(out), self.name(dn), self.name(normal));
        let skip = skip.map(|(factor, v)| format!(", + {factor} {}", self.name(v))).unwrap_or_default();
        writeln!(self.text, "    {out} = gradient through the norm of {dn} by {normal}{skip}: a pass of its own")
    }

    /// Whether a statistic of the batch is taken.
    fn is_taken(&self, val: Val) -> bool {
        matches!(self.plan.memory.home(val), Home::Statistic(_))
    }

    fn gemm(&mut self, g: &GemmStep<Val>) -> fmt::Result {
        if self.plan.memory.home(g.out) == Home::None {
            return Ok(());
        }
        let (out, a) = (self.place(g.out), self.name(g.a));
        let map = match g.side {
            Side::Forward => format!("{a} W[{}]ᵀ + b[{}]", g.affine, g.affine),
            Side::Adjoint => format!("{a} W[{}]", g.affine),
        };
        let onto = if g.onto { format!("{} + ", self.name(g.out)) } else { String::new() };
        write!(self.text, "    {out} = {onto}{map}")?;
        let posts = self.posts(&g.posts)?;
        let beside = self.aux(g.aux.as_ref())?;
        let registers = Epilogue::in_registers(&posts, beside);
        writeln!(self.text, "{}", if registers { "" } else { " (in L1, after each tile)" })
    }

    /// A list of posts, which is given back without what has no operand.
    fn posts(&mut self, posts: &Posts<Val>) -> Result<Vec<Post<Val>>, fmt::Error> {
        let posts = posts.map(&mut |v| (self.plan.memory.home(v) != Home::None).then_some(v));
        let posts: Vec<_> = posts.iter().collect();
        let scale = |page: &Self, scale: &Scale<Val>| match scale {
            Scale::Number(c) => c.to_string(),
            Scale::Row(v) => page.name(*v),
        };
        for post in &posts {
            match post {
                Post::Act(phi) => write!(self.text, ", {}", phi.name())?,
                Post::Times(v) => write!(self.text, ", ⊙ {}", self.name(*v))?,
                Post::Mask(v) => write!(self.text, ", where {} > 0", self.name(*v))?,
                Post::Add(v) => write!(self.text, ", + {}", self.name(*v))?,
                Post::Scale(by) => write!(self.text, ", times {}", scale(self, by))?,
                Post::ScaleAdd(by, v) => write!(self.text, ", times {} + {}", scale(self, by), self.name(*v))?,
                Post::AddScaled(c, v) => write!(self.text, ", + {c} {}", self.name(*v))?,
                Post::Drop(mask) if mask.of_rows => write!(self.text, ", rows dropped")?,
                Post::Drop(_) => write!(self.text, ", elements dropped")?,
            }
        }
        Ok(posts)
    }

    /// What is beside a result, and whether there is something.
    fn aux(&mut self, aux: Option<&Beside<Val>>) -> Result<bool, fmt::Error> {
        let Some(Beside { what, to }) = aux.filter(|aux| self.plan.memory.home(aux.to) != Home::None) else {
            return Ok(false);
        };
        let what = match what {
            Aux::Slope => "its slope".into(),
            Aux::Chains => "the sum itself".into(),
            Aux::Product(v) => format!("the sum ⊙ {}", self.name(*v)),
        };
        let to = self.place(*to);
        write!(self.text, ", and {what} to {to}")?;
        Ok(true)
    }

    /// A value by its name and the part that makes it.
    fn name(&self, val: Val) -> String {
        let value = self.program.value(val);
        format!("{}{}", value.name, value.part)
    }

    /// A value, and where it lives.
    fn place(&self, val: Val) -> String {
        let (name, width) = (self.name(val), self.program.value(val).width());
        match self.plan.memory.home(val) {
            Home::None => name,
            Home::Caller => format!("{name} [caller]"),
            Home::Parameter(_) => format!("{name} [parameters]"),
            Home::Statistic(_) => format!("{name} [of the batch]"),
            Home::Record(at) => format!("{name} [record {at}..{}]", at + width),
            Home::Local(at) => format!("{name} [local {at}..{}]", at + width),
            Home::Chunk(at) => format!("{name} [local {at}.., by chunks]"),
        }
    }
}

fn flops(n: usize, work: usize, times: usize) -> String {
    format!("{:.3} Mflop", 2e-6 * n as f64 * work as f64 * times as f64)
}

fn bytes(floats: usize) -> String {
    format!("{:.1} KiB", floats as f64 * 4.0 / 1024.0)
}
