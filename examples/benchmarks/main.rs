//! Writes the tables and pictures of docs/benchmarks.md from the raw numbers of a race, docs/benchmarks.csv.
//!
//! ```text
//! cargo run --release --example benchmarks
//! ```
//!
//! Lines of the CSV that start with `#` say `key: value` how it was measured; `peak_1`, `peak_2` (Gflop/s of fused multiply-adds on
//! one and two threads) and `stream` (GB/s of a streaming read that misses L2) are needed here.

#[path = "../shared/output.rs"]
mod output;
mod pictures;
mod race;
mod tables;

use clap::Parser;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
struct Args {
    /// Raw numbers: peer,version,case,mode,act,threads,best_us,median_us,gflops.
    #[arg(long, default_value = "docs/benchmarks.csv")]
    csv: PathBuf,
    /// Page whose part between the two markers is replaced.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
    /// Where pictures go.
    #[arg(long, default_value = "docs/img")]
    pictures: PathBuf,
}

const BEGIN: &str = "<!-- made by examples/benchmarks: do not edit below -->\n";
const END: &str = "<!-- end of what is made -->\n";

fn main() -> ExitCode {
    output::exit("benchmarks", run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let race = race::Race::read(&args.csv)?;
    let page = fs::read_to_string(&args.page)?;
    let (head, rest) = page.split_once(BEGIN).ok_or("the page has no line that says where tables begin")?;
    let (_, tail) = rest.split_once(END).ok_or("the page has no line that says where tables end")?;
    fs::write(&args.page, [head, BEGIN, &tables::markdown(&race)?, END, tail].concat())?;
    fs::create_dir_all(&args.pictures)?;
    pictures::write(&race, &args.pictures)
}
