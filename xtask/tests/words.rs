//! Agent and data path do not use words that `docs/glossary.md` has in its last column, neither in their
//! sources nor in the names of these.

use std::fs;
use std::path::Path;

#[test]
fn words_that_the_glossary_says_no_to_are_not_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let not = refused(&fs::read_to_string(root.join("docs/glossary.md")).unwrap());
    assert!(not.len() > 3, "{not:?}");
    let mut used = Vec::new();
    for of in ["mesh-proxy/src", "mesh-agent/src"] {
        look(&root.join(of), &not, &mut used);
    }
    assert!(used.is_empty(), "see docs/glossary.md: {used:#?}");
}

/// The words in the last column, which are in backticks there.
fn refused(document: &str) -> Vec<String> {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    let last = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    last.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn look(directory: &Path, not: &[String], used: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry of it").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name that can be read");
        used.extend(found(name, not).map(|word| format!("{}: {word}", path.display())));
        if path.is_dir() {
            look(&path, not, used);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in (1..).zip(text.lines()) {
            used.extend(found(line, not).map(|word| format!("{}:{number}: {word}", path.display())));
        }
    }
}

/// The words that a line has.
fn found<'a>(line: &str, not: &'a [String]) -> impl Iterator<Item = &'a String> {
    let words: Vec<&str> = line.split(|it: char| !it.is_alphanumeric() && it != '_').collect();
    not.iter().filter(move |not| words.iter().any(|word| is(word, not)))
}

/// Whether a word is one that the glossary says no to. One with capitals is a type's name, which in other
/// cases may mean something else.
fn is(word: &str, not: &str) -> bool {
    word == not || not.chars().all(|it| !it.is_uppercase()) && word.eq_ignore_ascii_case(not)
}
