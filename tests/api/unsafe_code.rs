//! docs/unsafe.md counts the unsafe code of every file and says why each is sound: this test keeps the counts true.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Unsafe code in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    blocks: usize,
    fns: usize,
    impls: usize,
}

impl Count {
    /// Of a file as rustfmt leaves it: what is unsafe follows the word on its line. Comments do not count; a string or a comment
    /// inside of a line that had the word would be counted, and shows as a difference.
    fn of(text: &str) -> Self {
        let mut count = Self::default();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices("unsafe ") {
                match line[at..].split(' ').nth(1) {
                    Some(next) if next.starts_with('{') => count.blocks += 1,
                    Some("fn") => count.fns += 1,
                    // A trait says what its impls promise; `Send` and `Sync` say it of a type.
                    Some(next) if next == "trait" || next.starts_with("impl") => count.impls += 1,
                    next => panic!("`unsafe` before {next:?}: a kind that docs/unsafe.md has no column for"),
                }
            }
        }
        count
    }

    fn sum(self) -> usize {
        self.blocks + self.fns + self.impls
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("a file of the sources").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Counts by path, of files that have any unsafe code.
fn counted() -> BTreeMap<String, Count> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 30, "the sources were not found");
    let count = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file");
        let count = Count::of(&text);
        let parts = path.strip_prefix(root).expect("below the root").iter().map(|part| part.to_string_lossy());
        (parts.collect::<Vec<_>>().join("/"), count)
    };
    files.into_iter().map(count).filter(|(_, count)| count.sum() > 0).collect()
}

/// Rows `| src/... | blocks | fns | impls | why |` of the table.
fn documented() -> BTreeMap<String, (Count, String)> {
    let text = include_str!("../../docs/unsafe.md");
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, file, blocks, fns, impls, why, _] = cells[..] else { return None };
        let number = |cell: &str| cell.parse().expect("a number in docs/unsafe.md");
        let count = || Count { blocks: number(blocks), fns: number(fns), impls: number(impls) };
        file.starts_with("src/").then(|| (file.to_string(), (count(), why.to_string())))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_unsafe_block_function_and_impl_is_counted_in_the_documentation() {
    let (counted, documented) = (counted(), documented());
    let mut total = Count::default();
    for (file, count) in &counted {
        assert!(
            ["src/simd/", "src/gemm/", "src/team/"].iter().any(|room| file.starts_with(room)),
            "{file}: unsafe code outside of the kernels and the team"
        );
        let found = documented.get(file).map(|(count, _)| count);
        assert_eq!(found, Some(count), "{file}: docs/unsafe.md has the left, the file the right");
        total.blocks += count.blocks;
        total.fns += count.fns;
        total.impls += count.impls;
    }
    for (file, (_, why)) in &documented {
        assert!(counted.contains_key(file), "{file}: in docs/unsafe.md, but has no unsafe code");
        assert!(why.len() > 20, "{file}: docs/unsafe.md gives no reason");
    }
    let sum = format!(
        "{} blocks, {} functions, {} impls and traits in {} files",
        total.blocks,
        total.fns,
        total.impls,
        counted.len()
    );
    assert!(include_str!("../../docs/unsafe.md").contains(&sum), "the sum in docs/unsafe.md should read: {sum}");
    println!(
        "proof: unsafe code is confined to src/simd, src/gemm and src/team, counted and explained | docs/unsafe.md against the sources | {} places | ok",
        total.sum()
    );
}

#[test]
fn the_lints_that_demand_a_reason_for_every_unsafe_block_are_on() {
    let manifest = include_str!("../../Cargo.toml");
    for lint in ["undocumented_unsafe_blocks", "missing_safety_doc", "unsafe_code", "unsafe_op_in_unsafe_fn"] {
        let denied =
            |line: &str| line.strip_prefix(lint).is_some_and(|rest| rest.trim_start().starts_with("= \"deny\""));
        assert!(manifest.lines().any(denied), "Cargo.toml no longer denies {lint}");
    }
}
