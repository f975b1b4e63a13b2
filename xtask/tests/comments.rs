//! Comments are as wide as code, which rustfmt does not see to, and point to what is in the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// `max_width` of `rustfmt.toml`.
const WIDTH: usize = 110;

/// Files that this workspace has written, below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory of the workspace") {
        let path = entry.expect("an entry of it").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Lines of comments, as `file:line`, of which something holds.
fn comments_that(is: impl Fn(&str) -> bool) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for path in sources(&root) {
        let text = fs::read_to_string(&path).expect("a source");
        let comments = (1..).zip(text.lines()).filter(|(_, line)| line.trim_start().starts_with("//"));
        found.extend(
            comments.filter(|(_, line)| is(line)).map(|(number, _)| format!("{}:{number}", path.display())),
        );
    }
    found
}

#[test]
fn comments_are_as_wide_as_code() {
    // A row of a table can't be broken.
    let is_row = |line: &str| line.trim_start_matches(['/', '!', ' ']).starts_with('|');
    let wide = comments_that(|line| line.chars().count() > WIDTH && !is_row(line));
    assert!(wide.is_empty(), "wider than {WIDTH} columns: {wide:#?}");
}

#[test]
fn documents_that_comments_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = |line: &str| {
        let after = line.split("docs/").nth(1)?;
        let name = after.split(|it: char| !(it.is_alphanumeric() || "-_/.".contains(it))).next()?;
        Some(root.join("docs").join(name.trim_end_matches('.')))
    };
    let missing =
        comments_that(|line| named(line).is_some_and(|path| path.extension().is_some() && !path.exists()));
    assert!(missing.is_empty(), "name documents that are not there: {missing:#?}");
    let elsewhere = comments_that(|line| line.contains(concat!("wire ", "reference")));
    assert!(elsewhere.is_empty(), "name a page that is not in the repository: {elsewhere:#?}");
}
