//! Every fail mode of `docs/fail-modes.md` names tests that there are.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_fail_mode_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = fs::read_to_string(root.join("docs/fail-modes.md")).unwrap();
    let mut sources = Vec::new();
    let parts = [
        "mesh-agent",
        "mesh-api",
        "mesh-calm",
        "mesh-cni",
        "mesh-common",
        "mesh-control",
        "mesh-e2e",
        "mesh-lab",
        "mesh-listen",
        "mesh-log",
    ];
    for part in parts {
        for folder in ["src", "tests"] {
            read(&root.join(part).join(folder), &mut sources);
        }
    }
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 30, "the table was not found");
    for row in rows {
        let (what, tests) = named(row);
        assert!(!tests.is_empty() || row.ends_with("| none yet |"), "no test: {what}");
        for test in tests {
            let declared = format!("fn {test}()");
            assert!(sources.iter().any(|source| source.contains(&declared)), "no test {test}, of: {what}");
        }
    }
}

/// What is wrong, and the tests in the last column.
fn named(row: &str) -> (&str, Vec<&str>) {
    let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
    (cells[0], cells[cells.len() - 1].split('`').skip(1).step_by(2).collect())
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
