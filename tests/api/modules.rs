//! No circle of imports: what a file of the sources uses does not, by any way, use that file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Modules by path (`gemm::micro`), with their code up to their own tests, comments left out.
fn modules(folder: &Path, path: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let file = entry.expect("a file of the sources").path();
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let inside = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}::{name}") };
        if file.is_dir() {
            modules(&file, &inside(&name), found);
        } else if name != "lib" {
            let text = fs::read_to_string(&file).expect("a source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines();
            let code: Vec<&str> = code.map(|line| line.split("//").next().unwrap_or_default()).collect();
            found.insert(if name == "mod" { path.to_string() } else { inside(&name) }, code.join(" "));
        }
    }
}

/// The paths that begin with `crate` or `super` in some code, braces multiplied out.
fn paths(code: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (at, _) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        expand(&code[at..], &mut all);
    }
    all
}

/// One path, which may branch; returns what follows it.
fn expand<'c>(code: &'c str, all: &mut Vec<String>) -> &'c str {
    let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(code.len());
    let (stem, mut rest) = code.split_at(end);
    if !(stem.ends_with("::") && rest.starts_with('{')) {
        all.push(stem.trim_end_matches(':').to_string());
        return rest;
    }
    rest = &rest[1..];
    loop {
        rest = rest.trim_start_matches([' ', ',', '\n']);
        if let Some(after) = rest.strip_prefix('}') {
            return after;
        }
        let mut branches = Vec::new();
        let after = expand(rest, &mut branches);
        if after.len() == rest.len() {
            return rest; // nothing that this reads
        }
        all.extend(branches.iter().map(|branch| format!("{stem}{branch}")));
        rest = after;
    }
}

/// The module that a path leads to, seen from `from`: the longest beginning of it that is one.
fn target(modules: &BTreeMap<String, String>, from: &str, path: &str) -> Option<String> {
    let mut steps: Vec<&str> = path.split("::").filter(|&step| step != "self").collect();
    let mut base: Vec<&str> = from.split("::").collect();
    if steps.first() == Some(&"crate") {
        base.clear();
        steps.remove(0);
    }
    while steps.first() == Some(&"super") {
        base.pop();
        steps.remove(0);
    }
    base.extend(steps);
    let all = (1..=base.len()).rev().map(|len| base[..len].join("::"));
    all.into_iter().find(|path| modules.contains_key(path)).filter(|to| to != from)
}

/// A way from `at` back to `start`, if there is one.
fn way<'g>(
    graph: &'g BTreeMap<String, BTreeSet<String>>,
    start: &str,
    at: &'g str,
    seen: &mut BTreeSet<&'g str>,
) -> Option<Vec<&'g str>> {
    for next in graph.get(at)? {
        if next == start {
            return Some(vec![at]);
        }
        if seen.insert(next)
            && let Some(mut rest) = way(graph, start, next, seen)
        {
            rest.insert(0, at);
            return Some(rest);
        }
    }
    None
}

#[test]
fn no_module_uses_one_that_uses_it() {
    let mut all = BTreeMap::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    assert!(all.len() > 50, "the sources were not found: {:?}", all.keys());
    let graph: BTreeMap<String, BTreeSet<String>> = all
        .iter()
        .map(|(name, code)| (name.clone(), paths(code).iter().filter_map(|path| target(&all, name, path)).collect()))
        .collect();
    let uses: usize = graph.values().map(BTreeSet::len).sum();
    assert!(uses > 150, "too few uses were found: {uses}");
    for module in graph.keys() {
        let circle = way(&graph, module, module, &mut BTreeSet::new());
        assert_eq!(circle, None, "a circle of imports");
    }
}

#[test]
fn the_reader_of_paths_sees_branches_and_parents() {
    let code = "use crate::a::{b::{C, d}, e}; fn f(x: super::g::H) { mycrate::no(); crate::i::j() }";
    let found: BTreeSet<String> = paths(code).into_iter().collect();
    let want = ["crate::a::b::C", "crate::a::b::d", "crate::a::e", "super::g::H", "crate::i::j"];
    assert_eq!(found, want.map(String::from).into());
}
