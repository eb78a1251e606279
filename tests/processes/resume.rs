//! A training run killed at any moment and resumed from its last checkpoint ends with the bits of one that was never killed:
//! `digits` itself, killed with SIGKILL at random, and resumed on other instruction sets and numbers of threads.
#![cfg(unix)]

use crate::common::{self, Rng, isas};
use resblock::Checkpoint;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

const SIGKILL: i32 = 9;

/// A run with a folder for its checkpoints and pictures.
struct Run {
    digits: PathBuf,
    folder: PathBuf,
}

impl Run {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("resume-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Self { digits: common::example("digits"), folder }
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.join("residual-1.safetensors")
    }

    /// Small, so that most of it is saving, and starting again. `changed` are options to have other values, `more` further ones.
    fn command(&self, changed: &[(&str, &str)], more: &[&str]) -> Command {
        let options = [("--depth", "3"), ("--width", "16"), ("--hidden", "17"), ("--epochs", "12"), ("--batch", "96")];
        let kept = options.iter().filter(|(option, _)| changed.iter().all(|(other, _)| option != other));
        let mut command = Command::new(&self.digits);
        command.args(["--only", "residual"]).args(kept.chain(changed).flat_map(|&(option, value)| [option, value]));
        command.arg("--checkpoint").arg(&self.folder).arg("--out").arg(self.folder.join("out")).args(more);
        command
    }

    fn output(&self, changed: &[(&str, &str)], more: &[&str]) -> Output {
        self.command(changed, more).output().expect("digits")
    }

    #[track_caller]
    fn assert_refused(&self, changed: &[(&str, &str)], more: &[&str], message: &str) {
        let before = fs::read(self.checkpoint()).expect("a checkpoint");
        let output = self.output(changed, more);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(message), "{changed:?}: expected {message:?}, found {text}");
        assert_eq!(fs::read(self.checkpoint()).expect("a checkpoint"), before, "the checkpoint was touched");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What came of a run: the bytes of its last checkpoint, and its row of the table without the seconds.
fn result(run: &Run, output: &Output) -> (Vec<u8>, String) {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "digits failed: {}\n{errors}", output.status);
    let row = text.lines().find(|line| line.starts_with("residual")).expect("a row of the table");
    let (row, _seconds) = row.trim_end().rsplit_once(' ').expect("columns");
    (fs::read(run.checkpoint()).expect("a checkpoint"), row.trim_end().into())
}

/// Waits until the file has changed since `before`, or the process has ended.
fn wait_for_save(child: &mut Child, path: &Path, before: Option<SystemTime>) {
    while child.try_wait().expect("a process").is_none() && changed(path) == before {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// Kills `child`, unless it has ended by now. `None` if it was killed.
fn kill(mut child: Child) -> Option<Output> {
    child.kill().expect("a signal sent");
    let output = child.wait_with_output().expect("an end");
    (output.status.signal() != Some(SIGKILL)).then_some(output)
}

/// `RESBLOCK_KILLS` sets how many.
#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    if !common::may_start_processes("a_killed_run_resumes_to_the_same_bits") {
        return;
    }
    let run = Run::new("whole");
    let start = Instant::now();
    let output = run.output(&[], &[]);
    let (whole, duration) = (result(&run, &output), start.elapsed());

    let (wanted, isas, mut rng) = (common::kills(6), isas(), Rng::new(7));
    let (mut kills, mut early, mut runs, mut left) = (0, 0, 0, 0);
    while kills < wanted {
        let run = Run::new("killed");
        let output = loop {
            // The other sets are slow, and seldom reach another checkpoint.
            let isa = if rng.below(8) == 0 { isas[rng.below(isas.len())] } else { isas[0] };
            let threads = (1 + rng.below(3)).to_string();
            let mut command = run.command(&[], &["--resume", "--threads", &threads]);
            command.env("RESBLOCK_ISA", isa.name()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let before = changed(&run.checkpoint());
            let mut child = command.spawn().expect("digits");
            if kills == wanted {
                break child.wait_with_output().expect("an end");
            }
            // Some at any moment, start included; most while the run goes on.
            if rng.below(4) > 0 {
                wait_for_save(&mut child, &run.checkpoint(), before);
            }
            std::thread::sleep(duration.mul_f64(rng.below(1 << 20) as f64 / (3 << 20) as f64));
            if let Some(output) = kill(child) {
                break output;
            }
            kills += 1;
            match Checkpoint::load(run.checkpoint()) {
                Ok(checkpoint) => assert!(checkpoint.note().is_some()),
                Err(_) if !run.checkpoint().exists() => early += 1,
                Err(error) => panic!("after kill {kills}: {error}"),
            }
        };
        let (checkpoint, row) = result(&run, &output);
        assert_eq!(row, whole.1, "after kill {kills}");
        assert!(checkpoint == whole.0, "after kill {kills}: the last checkpoint has other bytes");
        runs += 1;
        left += fs::read_dir(&run.folder).expect("a folder").count() - 2;
    }
    println!("{kills} kills in {runs} runs, {early} before the first checkpoint; {left} temporary files left behind");
    println!(
        "proof: a killed run resumes to the same bits | digits killed at random moments, resumed on other instruction sets and \
         threads | {kills} kills in {runs} runs | ok"
    );
}

#[test]
fn checkpoints_that_do_not_fit_the_run_are_refused_and_kept() {
    if !common::may_start_processes("checkpoints_that_do_not_fit_the_run_are_refused_and_kept") {
        return;
    }
    let run = Run::new("refused");
    let short = [("--epochs", "1")];
    result(&run, &run.output(&short, &[]));
    run.assert_refused(&short, &[], "there already; --resume goes on from it");
    for (option, value, message) in [
        ("--epochs", "2", r#"its run had epochs "1", this one has "2""#),
        ("--lr", "0.5", r#"its run had lr "0.001", this one has "0.5""#),
        ("--width", "32", r#"its run had width "16", this one has "32""#),
        ("--noise", "0", r#"its run had noise "0.4", this one has "0""#),
    ] {
        let changed = [(option, value), short[0]];
        let changed = if option == "--epochs" { &changed[..1] } else { &changed };
        run.assert_refused(changed, &["--resume"], message);
    }

    let good = fs::read(run.checkpoint()).expect("a checkpoint");
    fs::write(run.checkpoint(), &good[..good.len() / 2]).expect("written");
    run.assert_refused(&short, &["--resume"], "bytes by its header, found");
    fs::write(run.checkpoint(), []).expect("written");
    run.assert_refused(&short, &["--resume"], "expected 8 bytes by its header, found 0");
    fs::write(run.checkpoint(), b"not such a file at all").expect("written");
    run.assert_refused(&short, &["--resume"], "not a safetensors file: it begins with \"not such a file at all\"");
    // A net without the text that digits writes beside it.
    let header = b"{}      ";
    fs::write(run.checkpoint(), [&8_u64.to_le_bytes()[..], header].concat()).expect("written");
    run.assert_refused(&short, &["--resume"], "not a run of this example");
    fs::write(run.checkpoint(), good).expect("written");
    result(&run, &run.output(&short, &["--resume"]));
}
