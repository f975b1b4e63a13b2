//! `docs/dependencies.md` tells of exactly the direct dependencies that there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_direct_dependency_is_explained() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let explained = explained(&read("../docs/dependencies.md"));
    let mut all = declared(&read("../Cargo.toml"), "[workspace.dependencies]");
    all.extend(declared(&read("../mesh-ebpf/Cargo.toml"), "[dependencies]"));
    all.extend(declared(&read("../fuzz/Cargo.toml"), "[dependencies]"));
    let missing: Vec<_> = all.difference(&explained).collect();
    let superfluous: Vec<_> = explained.difference(&all).collect();
    assert!(missing.is_empty(), "docs/dependencies.md does not explain {missing:?}");
    assert!(superfluous.is_empty(), "docs/dependencies.md explains what nothing declares: {superfluous:?}");
}

/// The names in the first column of the document's table.
fn explained(document: &str) -> BTreeSet<String> {
    document
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}

/// The keys of one table of a manifest.
fn declared(manifest: &str, table: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != table)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .collect()
}
