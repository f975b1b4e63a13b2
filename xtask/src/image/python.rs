//! Python's own library, for the image of the samples.
//!
//! What this machine has compiled of it does not count for files with other times, and compiling it at each
//! start of a container takes most of a second. So it is compiled anew, in a way that gives the same bytes
//! each time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::Tree;
use crate::command::CommandExt;

/// Parts that a small server or client has no use for, and that are most of the library's size.
const LEFT_OUT: &[&str] = &[
    "__pycache__",
    "_curses",
    "_dbm",
    "_sqlite3",
    "_test",
    "_xx",
    "config-",
    "curses",
    "dbm",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "nis.",
    "pydoc_data",
    "readline.",
    "sqlite3",
    "test",
    "tkinter",
    "turtle",
    "unittest",
    "venv",
    "xx",
];

/// Takes the library of the Python at `program`, sources and compiled.
pub fn library(tree: &mut Tree, program: &Path) -> Result<()> {
    let real = fs::canonicalize(program)?;
    let version = real.file_name().context("python3 leads to a program")?;
    let mut sources = Vec::new();
    take(tree, &Path::new("/usr/lib").join(version), &mut sources)?;
    sources.sort();
    compile(tree, program, &sources)
}

fn take(tree: &mut Tree, directory: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if !is_of_use(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            take(tree, &path, sources)?;
        } else if has_extension(&path, "so") {
            tree.take_program(&path)?;
        } else if has_extension(&path, "py") && path.exists() {
            tree.take(&path)?;
            sources.push(path);
        }
    }
    Ok(())
}

fn is_of_use(name: &str) -> bool {
    LEFT_OUT.iter().all(|prefix| !name.starts_with(prefix))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|it| it == extension)
}

/// Adds what `sources` are compiled to, for `program` to take without a look at the source's time.
fn compile(tree: &mut Tree, program: &Path, sources: &[PathBuf]) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (list, cache) = (scratch.path().join("sources"), scratch.path().join("cache"));
    let names: Vec<_> = sources.iter().map(|path| path.to_string_lossy()).collect();
    fs::write(&list, names.join("\n"))?;
    Command::new(program)
        .arg("-X")
        .arg(format!("pycache_prefix={}", cache.display()))
        .args(["-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", "-i"])
        .arg(&list)
        // The order of sets gets into compiled files.
        .env("PYTHONHASHSEED", "0")
        .checked()?;
    let tag =
        Command::new(program).args(["-c", "import sys; print(sys.implementation.cache_tag)"]).captured()?;
    for source in sources {
        let compiled = compiled_name(source, tag.trim())?;
        let found = cache.join(source.strip_prefix("/")?).with_file_name(&compiled);
        let content = fs::read(&found).with_context(|| format!("{} is not compiled", source.display()))?;
        let place = source.strip_prefix("/")?.with_file_name("__pycache__").join(compiled);
        tree.put_made(&place.to_string_lossy(), &content)?;
    }
    Ok(())
}

fn compiled_name(source: &Path, tag: &str) -> Result<String> {
    let stem = source.file_stem().context("a source has a name")?;
    Ok(format!("{}.{tag}.pyc", stem.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_imports_is_of_use() {
        for name in ["http", "socketserver.py", "ssl.py", "_ssl.cpython-311-x86_64-linux-gnu.so", "asyncio"] {
            assert!(is_of_use(name), "{name}");
        }
        assert!(!is_of_use("__pycache__"));
    }

    #[test]
    fn compiled_files_are_named_as_python_looks_for_them() {
        let name = compiled_name(Path::new("/usr/lib/python3.11/http/server.py"), "cpython-311").unwrap();
        assert_eq!(name, "server.cpython-311.pyc");
    }
}
