//! What an example prints, and how it ends.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Whoever was to read standard output has closed it.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standard output: closed")
    }
}

impl Error for Closed {}

/// Writes `text` to standard output, now. `println!` panics where that fails.
#[allow(dead_code, reason = "not every example prints")]
pub(crate) fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(e) => Err(format!("standard output: {e}").into()),
    }
}

/// The exit code, after the error has been told on standard error. Output that nobody reads any more is no failure: the example ends,
/// as other tools do before `| head`.
pub(crate) fn exit(example: &str, result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Err(error) if !error.is::<Closed>() => {
            // There is nobody to tell if this fails.
            let _ = writeln!(io::stderr(), "{example}: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
