//! Which instruction set runs: the environment's choice, the list of those there are, and the guard that none is left out.

use crate::common::{isas, required_isas};
use resblock::{Blocking, Context, Error, Isa, Par};
use std::process::{Command, Output};

#[test]
fn every_required_instruction_set_is_under_test() {
    let under_test = isas(); // panics if one is missing
    for name in required_isas() {
        assert!(under_test.iter().any(|isa| isa.name() == name));
    }
    println!("under test: {under_test:?}");
}

#[test]
fn the_sets_come_fastest_first_and_always_hold_the_portable_ones() {
    let all: Vec<Isa> = Isa::available().into_iter().collect();
    assert!(all.contains(&Isa::Scalar) && all.contains(&Isa::Odd));
    assert!(all.iter().all(|isa| isa.is_available()));
    let rank = |isa: &Isa| ["avx512", "avx2", "neon", "scalar", "odd"].iter().position(|name| *name == isa.name());
    assert!(all.is_sorted_by_key(rank));
    // What is printed is what a user may choose: the set for tests is no choice.
    let names: Vec<_> = all.iter().map(|isa| isa.name()).filter(|name| *name != "odd").collect();
    assert_eq!(Isa::available().to_string(), names.join(", "));
    #[cfg(target_arch = "x86_64")]
    {
        assert_eq!(Isa::Avx2.is_available(), is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
        assert_eq!(Isa::Avx512.is_available(), Isa::Avx2.is_available() && is_x86_feature_detected!("avx512f"));
    }
    #[cfg(target_arch = "aarch64")]
    assert!(Isa::Neon.is_available());
}

/// Cargo's variable for the emulator that this binary runs in, if it does.
const RUNNER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER";

/// Runs one ignored test of this binary in a process of its own: the choice is made once in a process.
fn run(test: &str, environment: &[(&str, &str)]) -> Output {
    let this = std::env::current_exe().expect("the path of this test");
    let mut command = match std::env::var_os(RUNNER) {
        Some(emulator) if cfg!(target_arch = "aarch64") => {
            let mut command = Command::new(emulator);
            command.arg(this);
            command
        }
        _ => Command::new(this),
    };
    command.args([&format!("isa::{test}"), "--exact", "--ignored", "--nocapture"]);
    command.env_remove("RESBLOCK_ISA").env_remove("RESBLOCK_REQUIRE_ISA").envs(environment.iter().copied());
    command.output().expect("a second run of this test")
}

#[test]
#[ignore = "run by the tests below, in an environment that they choose"]
fn child_prints_its_context() {
    match Context::new() {
        Ok(ctx) => println!("chosen: {}", ctx.isa()),
        Err(error) => {
            assert!(matches!(error, Error::Isa { source_name: "RESBLOCK_ISA", .. }));
            assert_eq!(Context::new(), Err(error.clone()), "the same answer every time");
            println!("refused: {error}");
        }
    }
}

#[test]
#[ignore = "run by the tests below, in an environment that they choose"]
fn child_lists_what_is_under_test() {
    println!("under test: {:?}", isas());
}

#[track_caller]
fn assert_prints(output: &Output, text: &str) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains(text), "expected {text:?} in {output:?}");
}

#[test]
fn without_a_wish_the_fastest_set_is_chosen() {
    let fastest = Isa::available().into_iter().next().expect("a set");
    assert_prints(&run("child_prints_its_context", &[]), &format!("chosen: {fastest}\n"));
    for blank in ["", " ", "\t\n"] {
        let found = run("child_prints_its_context", &[("RESBLOCK_ISA", blank)]);
        assert_prints(&found, &format!("chosen: {fastest}\n"));
    }
}

#[test]
fn resblock_isa_chooses_any_set_that_there_is() {
    for isa in Isa::available() {
        for name in [isa.name().to_string(), isa.name().to_uppercase(), format!(" {}\n", isa.name())] {
            assert_prints(&run("child_prints_its_context", &[("RESBLOCK_ISA", &name)]), &format!("chosen: {isa}\n"));
        }
    }
}

#[test]
fn a_resblock_isa_that_is_no_set_of_this_cpu_is_refused_with_the_list() {
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    for name in ["nonsense", "avx-2", "AVX1024", foreign] {
        let list = Isa::available();
        let text = format!("refused: RESBLOCK_ISA={name:?}: not an instruction set of this CPU; it has {list}\n");
        assert_prints(&run("child_prints_its_context", &[("RESBLOCK_ISA", name)]), &text);
    }
}

#[test]
fn tests_use_all_sets_or_the_chosen_one() {
    let all: Vec<Isa> = Isa::available().into_iter().collect();
    assert_prints(&run("child_lists_what_is_under_test", &[]), &format!("under test: {all:?}\n"));
    let chosen = run("child_lists_what_is_under_test", &[("RESBLOCK_ISA", "odd")]);
    assert_prints(&chosen, "under test: [Odd]\n");
}

#[test]
fn a_required_set_that_is_not_under_test_fails_the_tests() {
    let fails = |environment| !run("child_lists_what_is_under_test", environment).status.success();
    assert!(!fails(&[("RESBLOCK_REQUIRE_ISA", "scalar, odd")]));
    assert!(!fails(&[("RESBLOCK_REQUIRE_ISA", "scalar"), ("RESBLOCK_ISA", "scalar")]));
    assert!(fails(&[("RESBLOCK_REQUIRE_ISA", "scalar,avx1024")]));
    assert!(fails(&[("RESBLOCK_REQUIRE_ISA", "scalar,odd"), ("RESBLOCK_ISA", "scalar")]));
}

#[test]
fn a_context_keeps_what_it_is_given() {
    let blocking = Blocking { rows: 3, hidden: 17, depth: 40 };
    let ctx = Context::new().expect("a context").with_par(Par::Rayon(3)).with_blocking(blocking);
    assert_eq!((ctx.blocking(), ctx.par()), (blocking, Par::Rayon(3)));
}
