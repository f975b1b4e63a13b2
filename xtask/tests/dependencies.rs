//! `docs/dependencies.md` tells of exactly the direct dependencies that there are, and each of them is used.

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

/// Dependencies whose code is used by what a build script makes: the crate, and what its `build.rs` uses.
const GENERATED: [(&str, &str); 2] = [("tonic", "tonic_prost_build"), ("tonic-prost", "tonic_prost_build")];

#[test]
fn every_dependency_of_a_crate_is_used_by_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut unused = Vec::new();
    for entry in fs::read_dir(&root).unwrap() {
        let directory = entry.unwrap().path();
        let Ok(manifest) = fs::read_to_string(directory.join("Cargo.toml")) else { continue };
        let sources = sources(&directory);
        for table in ["[dependencies]", "[dev-dependencies]", "[build-dependencies]"] {
            let is_used = |name: &String| {
                let generated = GENERATED.iter().any(|(of, by)| of == name && sources.contains(by));
                generated || mentions(&sources, &library(name))
            };
            let names = declared(&manifest, table).into_iter().filter(|name| !is_used(name));
            unused.extend(names.map(|name| format!("{}: {name}", directory.display())));
        }
    }
    assert!(unused.is_empty(), "declared and not used: {unused:#?}");
}

/// What a package's library is called in code.
fn library(package: &str) -> String {
    if package == "rustls-webpki" { "webpki".to_owned() } else { package.replace('-', "_") }
}

/// Whether code names a library: by a path, or as a whole.
fn mentions(sources: &str, library: &str) -> bool {
    sources.match_indices(library).any(|(at, _)| {
        let before = sources[..at].chars().next_back();
        let after = &sources[at + library.len()..];
        let begins = before.is_none_or(|it| !it.is_alphanumeric() && it != '_');
        begins && ["::", ";", "!", " as ", ","].iter().any(|end| after.starts_with(end))
    })
}

/// All code of a crate, and the files of others that it includes by their paths.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).expect("a directory of the workspace") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = fs::read_to_string(&path).expect("a source");
            for included in
                file.lines().filter_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"))
            {
                let included = directory.join(included);
                text += &match included.parent().filter(|_| included.ends_with("mod.rs")) {
                    Some(module) => sources(module),
                    None => fs::read_to_string(&included).expect("an included source"),
                };
            }
            text += &file;
        }
    }
    text
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
