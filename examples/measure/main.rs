//! How fast this crate is on this CPU: one measurement as a CSV row, or a server that is raced against other libraries.
//!
//! ```text
//! cargo run --release --example measure -- --batch 256 --features 256 --hidden 1024 --activation gelu --mode train
//! ```
//!
//! `measure --help` lists everything. Rows of several runs go into one file with `--no-header`.

mod cli;
mod one_shot;
#[path = "../shared/output.rs"]
mod output;
mod serve;
#[path = "../../benches/support/mod.rs"]
mod support;
mod threads;
mod timing;

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    output::exit("measure", run(&cli::Args::parse()))
}

fn run(args: &cli::Args) -> Result<(), Box<dyn Error>> {
    if args.serve { serve::serve(args, threads::from_environment(args.threads[0])?) } else { one_shot::one_shot(args) }
}
