//! Embeds the chart, so that `meshctl install` needs no file beside it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

const CHART: &str = "../deploy/helm/nodemesh";

fn main() -> io::Result<()> {
    let chart = Path::new(&env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join(CHART);
    println!("cargo::rerun-if-changed={}", chart.display());
    let mut files = Vec::new();
    collect(&chart, &mut files)?;
    files.sort();
    let mut list = String::from("&[\n");
    for file in &files {
        let name = file.strip_prefix(&chart).map_err(io::Error::other)?;
        let (name, file) = (literal(name)?, literal(file)?);
        writeln!(list, "    ({name}, include_bytes!({file})),").map_err(io::Error::other)?;
    }
    list.push(']');
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&out).join("chart.rs"), list)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// A path as a string literal of Rust.
fn literal(path: &Path) -> io::Result<String> {
    let text = path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))?;
    Ok(format!("{text:?}"))
}
