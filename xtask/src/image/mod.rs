//! `cargo xtask image`: container images of this checkout, without a daemon and without a base image.
//!
//! `docs/images.md` tells what is in each. The same checkout on the same machine gives the same bytes.

mod content;
mod crates;
mod debian;
mod libraries;
mod python;
mod recipe;
mod samples;
mod spdx;
mod tree;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::command::CommandExt;
use crate::workspace::Workspace;
use crate::{build, ebpf, oci};

pub use recipe::Name;

/// Which images, and where to.
#[derive(Args)]
pub struct Options {
    /// Images to make; all of them if none is named
    #[arg(value_enum)]
    names: Vec<Name>,
    /// Where NAME.tar and NAME.spdx.json go; target/images if absent
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Give the images to the Docker daemon as well
    #[arg(long)]
    docker: bool,
    /// Take the programs as they are in target/release
    #[arg(long)]
    no_build: bool,
}

/// Builds what the images hold, writes them, and tells their digests.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let names = if options.names.is_empty() { Name::ALL } else { options.names.as_slice() };
    if !options.no_build {
        compile(workspace, names)?;
    }
    let output = options.output.clone().unwrap_or_else(|| workspace.target().join("images"));
    for image in write(workspace, names, &output)? {
        if options.docker {
            Command::new("docker").args(["load", "--input"]).arg(image).checked()?;
        }
    }
    Ok(())
}

/// Writes the images of programs that are built, each with its bill of materials; the paths of their tar
/// files.
///
/// An error means that something that belongs into an image is not on this machine, or that a file can't be
/// written.
pub fn write(workspace: &Workspace, names: &[Name], output: &Path) -> Result<Vec<PathBuf>> {
    names.iter().map(|&name| write_one(workspace, name, output)).collect()
}

/// The programs come out of the one build that tests and the demo share, so that nothing is compiled twice.
fn compile(workspace: &Workspace, names: &[Name]) -> Result<()> {
    if names.iter().all(|name| name.program().is_none()) {
        return Ok(());
    }
    ebpf::build(workspace)?;
    if names.contains(&Name::MeshAgent) {
        build::plugin(workspace)?;
    }
    build::programs(workspace)
}

fn write_one(workspace: &Workspace, name: Name, output: &Path) -> Result<PathBuf> {
    let image = name.cook(workspace).with_context(|| format!("can't make the image {name}"))?;
    let tar = output.join(format!("{name}.tar"));
    let reference = name.reference();
    oci::write(&tar, &reference, std::slice::from_ref(image.tree.layer()), &image.config)?;
    let digest = manifest_digest(&tar)?;
    let document = spdx::document(&reference, &digest, &image.materials(workspace)?)?;
    let sbom = output.join(format!("{name}.spdx.json"));
    fs::write(&sbom, document).with_context(|| format!("can't write {}", sbom.display()))?;
    say!("{reference}  {digest}  {}", tar.display());
    Ok(tar)
}

/// What a container runtime will call the image's content: the digest of its manifest.
fn manifest_digest(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new("index.json") {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            let index: Value = serde_json::from_str(&text)?;
            let digest = index["manifests"][0]["digest"].as_str();
            return digest.map(Into::into).context("an index names its manifest");
        }
    }
    anyhow::bail!("{} has no index.json", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Config;

    #[test]
    fn nothing_of_this_machine_comes_along_but_libraries() {
        let mut tree = tree::Tree::new();
        tree.take_stripped(&std::env::current_exe().unwrap(), "usr/bin/thing").unwrap();
        let taken: Vec<_> = tree.taken().collect();
        let is_library = |path: &Path| path.file_name().unwrap().to_string_lossy().contains(".so");
        assert!(taken.len() >= 3 && taken.iter().all(|path| is_library(path)), "{taken:?}");
    }

    #[test]
    fn two_runs_give_the_same_digest() {
        let directory = tempfile::tempdir().unwrap();
        let digest = |name: &str| {
            let path = directory.path().join(name);
            let mut tree = tree::Tree::new();
            content::accounts(&mut tree).unwrap();
            tree.take_stripped(&std::env::current_exe().unwrap(), "usr/bin/thing").unwrap();
            let config = Config { entrypoint: vec!["/usr/bin/thing".into()], ..Config::default() };
            oci::write(&path, "nodemesh.io/thing:1", std::slice::from_ref(tree.layer()), &config).unwrap();
            manifest_digest(&path).unwrap()
        };
        let (first, second) = (digest("a/image.tar"), digest("b/image.tar"));
        assert!(first.starts_with("sha256:"), "{first}");
        assert_eq!(first, second);
    }
}
