//! The examples end as they should: quietly where nobody reads their output, with a message where it cannot be written, and with a
//! failure where a net has become NaN.
#![cfg(unix)]

use crate::common;
use resblock::Checkpoint;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder of its own for each test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("examples-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

const SMALL: [&str; 10] = ["--only", "residual", "--depth", "3", "--width", "16", "--hidden", "17", "--threads", "1"];

fn digits(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(common::example("digits"));
    command.args(SMALL).args(more).arg("--out").arg(folder.join("out"));
    command
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (_, writer) = std::io::pipe().expect("a pipe");
    writer.into()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Commands that print something, each time made anew.
fn printing(folder: &Path) -> Vec<Command> {
    let mut commands = vec![digits(folder, &["--epochs", "1", "--seeds", "2"]), digits(folder, &["--help"])];
    let mut flow = Command::new(common::example("flow"));
    flow.args(["--steps", "50", "--out"]).arg(folder);
    commands.push(flow);
    let mut table = Command::new(common::example("table"));
    table.args(["--depth", "2", "--width", "16", "--hidden", "17", "--epochs", "1", "--seeds", "1"]);
    commands.push(table);
    for args in [&["--batch", "1", "--features", "3", "--seconds", "0"][..], &["--serve"], &["--help"], &["--version"]]
    {
        let mut command = Command::new(common::example("measure"));
        command.args(args);
        commands.push(command);
    }
    let mut command = Command::new(common::example("benchmarks"));
    command.arg("--help");
    commands.push(command);
    for command in &mut commands {
        command.stdin(Stdio::null());
    }
    commands
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    if !common::may_start_processes("a_reader_that_has_gone_is_no_failure") {
        return;
    }
    let folder = folder("closed");
    for mut command in printing(&folder) {
        let output = command.stdout(closed()).output().expect("an example");
        assert!(output.status.success() && text(&output).is_empty(), "{command:?}: {output:?}");
    }
    fs::remove_dir_all(folder).expect("removed");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    if !common::may_start_processes("output_that_cannot_be_written_is_a_failure") {
        return;
    }
    let folder = folder("full");
    let is_help = |command: &Command| command.get_args().any(|arg| arg == "--help" || arg == "--version");
    for mut command in printing(&folder).into_iter().filter(|command| !is_help(command)) {
        let full = fs::File::options().write(true).open("/dev/full").expect("a device that is full");
        let output = command.stdout(full).output().expect("an example");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
        assert!(text(&output).contains("standard output: No space left"), "{command:?}: {}", text(&output));
    }
    fs::remove_dir_all(folder).expect("removed");
}

/// A message that cannot be told is no panic.
#[test]
fn an_error_that_nobody_reads_is_the_same_failure() {
    if !common::may_start_processes("an_error_that_nobody_reads_is_the_same_failure") {
        return;
    }
    let folder = folder("errors");
    let mut commands = [
        digits(&folder, &["--seed", "18446744073709551615", "--seeds", "2"]),
        Command::new(common::example("measure")),
        Command::new(common::example("benchmarks")),
    ];
    commands[1].args(["--unfused", "--threads", "2"]);
    commands[2].args(["--csv", "no such file"]);
    for mut command in commands {
        let output = command.stderr(Stdio::piped()).output().expect("an example");
        assert!(output.status.code() == Some(1) && !text(&output).is_empty(), "{command:?}: {output:?}");
        let output = command.stderr(closed()).output().expect("an example");
        assert_eq!(output.status.code(), Some(1), "{command:?}");
    }
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn a_run_whose_net_becomes_nan_fails_and_keeps_its_last_good_checkpoint() {
    if !common::may_start_processes("a_run_whose_net_becomes_nan_fails_and_keeps_its_last_good_checkpoint") {
        return;
    }
    let folder = folder("nan");
    let diverges = |more: &[&str], epoch: &str| {
        let output = digits(&folder, more).output().expect("digits");
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {text}");
        let message = format!("residual, seed 1: epoch {epoch}");
        assert!(text.contains(&message) && text.contains("the training has diverged"), "{more:?}: {text}");
    };
    diverges(&["--epochs", "2", "--lr", "1e30"], "1: the loss");
    diverges(&["--epochs", "2", "--lr", "3e37"], "1: ");
    diverges(&["--epochs", "2", "--noise", "3e38"], "1: the loss");
    // The last step of all, which no loss tells.
    diverges(&["--epochs", "1", "--batch", "65535", "--lr", "3e37"], "1: ");

    // So slow a warm-up that some epochs are well.
    let checkpoints = folder.join("checkpoints");
    let at = checkpoints.to_str().expect("a path");
    diverges(&["--epochs", "2000", "--lr", "1e4", "--checkpoint", at], "");
    let path = checkpoints.join("residual-1.safetensors");
    let finite = Checkpoint::load(&path).and_then(Checkpoint::require_finite);
    assert!(finite.is_ok(), "{finite:?}");

    // A checkpoint whose net is NaN already, in its last tensor, is not gone on from.
    let mut bytes = fs::read(&path).expect("a checkpoint");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &bytes).expect("written");
    let resumed = ["--epochs", "2000", "--lr", "1e4", "--checkpoint", at, "--resume"];
    diverges(&resumed, "5: output.weight");
    assert!(fs::read(&path).expect("a checkpoint") == bytes, "the checkpoint was touched");
    fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn measure_takes_a_list_of_threads_and_refuses_what_is_none() {
    if !common::may_start_processes("measure_takes_a_list_of_threads_and_refuses_what_is_none") {
        return;
    }
    let run = |threads: &str| {
        let mut command = Command::new(common::example("measure"));
        command.args(["--batch", "4", "--features", "16", "--hidden", "16", "--seconds", "0", "--threads", threads]);
        command.output().expect("an end of the process")
    };
    let columns = |output: &Output| {
        assert!(output.status.success(), "{}", text(output));
        let mut reader = csv::Reader::from_reader(&output.stdout[..]);
        let header = reader.headers().expect("a header").clone();
        let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
        let column = |name: &str| header.iter().position(|column| column == name);
        let values = |at: usize| rows.iter().map(|row| row[at].to_owned()).collect::<Vec<_>>();
        (column("threads").map(values), column("speedup").map(values))
    };
    let one = |threads: &[&str]| Some(threads.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
    assert_eq!(columns(&run("1")), (one(&["1"]), None));
    assert_eq!(columns(&run("2")), (one(&["2"]), None));
    let (threads, speedups) = columns(&run("1,3,2"));
    assert_eq!(threads, one(&["1", "3", "2"]));
    let speedups = speedups.expect("speed-ups");
    assert!(speedups[0] == "1.00" && speedups.iter().all(|s| s.parse::<f64>().is_ok_and(|s| s > 0.0)), "{speedups:?}");
    for bad in ["", "0", "1,0", "1,,2", "1,two", "-1", "1,2000"] {
        let output = run(bad);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {}", text(&output));
        assert!(text(&output).contains("--threads"), "{bad:?}: {}", text(&output));
    }
}
