//! Every row of the tables in `docs/fail-modes.md` and `docs/threat-model.md` names tests that exist.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_fail_mode_names_tests_that_there_are() {
    every_row_names_tests("docs/fail-modes.md", 30);
}

#[test]
fn every_threat_names_tests_that_there_are() {
    every_row_names_tests("docs/threat-model.md", 30);
}

/// Fails unless the document has at least `fewest` rows, each of which names at least one test that the
/// workspace has.
fn every_row_names_tests(document: &str, fewest: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join(document)).unwrap();
    let sources = sources(root);
    let rows = rows(&text);
    assert!(rows.len() >= fewest, "{document}: only {} rows were found", rows.len());
    for row in rows {
        let (what, tests) = named(row);
        assert!(!tests.is_empty(), "{document}: no test: {what}");
        for test in tests {
            let declared = format!("fn {test}()");
            assert!(sources.iter().any(|source| source.contains(&declared)), "no test {test}, of: {what}");
        }
    }
}

/// The rows of all tables whose last column is `test`.
fn rows(text: &str) -> Vec<&str> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if !line.starts_with('|') {
            inside = false;
        } else if line.ends_with("| test |") {
            inside = true;
        } else if inside && !line.starts_with("|---") {
            rows.push(line);
        }
    }
    rows
}

/// The first column, and the tests in the last one.
fn named(row: &str) -> (&str, Vec<&str>) {
    let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
    (cells[0], cells[cells.len() - 1].split('`').skip(1).step_by(2).collect())
}

/// All Rust sources of the workspace's crates.
fn sources(root: &Path) -> Vec<String> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("mesh") {
            for folder in ["src", "tests"] {
                read(&entry.path().join(folder), &mut sources);
            }
        }
    }
    sources
}

fn read(folder: &Path, sources: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    for path in paths {
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(fs::read_to_string(path).unwrap());
        }
    }
}
