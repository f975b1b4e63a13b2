//! The two images that a cluster itself needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::command::CommandExt;
use crate::oci::{self, Config, Digest, Layer};

/// The first container of each pod.
pub const PAUSE_IMAGE: &str = "nodemesh.io/pause:1";
/// The name server; `coredns.yaml` says the same.
const COREDNS_IMAGE: &str = "nodemesh.io/coredns:1.12.4";

/// Nobody in particular, as images without a user database call it.
const NOBODY: &str = "65532:65532";

/// The image of the program in `source`, compiled statically.
pub fn pause(source: &Path) -> Result<PathBuf> {
    let text = fs::read(source).with_context(|| format!("can't read {}", source.display()))?;
    let name = format!("pause-{}", &Digest::of(&text).hex()[..12]);
    let root = cache::directory(&name, |fresh| {
        let program = fresh.join("pause");
        Command::new("cc")
            .args(["-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&program, source])
            .checked()?;
        write(&fresh.join("pause.tar"), PAUSE_IMAGE, &program, "65535:65535")
    })?;
    Ok(root.join("pause.tar"))
}

/// The image of the program in the directory `programs`.
pub fn coredns(programs: &Path, version: &str) -> Result<PathBuf> {
    let root = cache::directory(&format!("coredns-image-{version}"), |fresh| {
        write(&fresh.join("coredns.tar"), COREDNS_IMAGE, &programs.join("coredns"), NOBODY)
    })?;
    Ok(root.join("coredns.tar"))
}

/// An image of one static program, which is what a container of it runs.
fn write(path: &Path, name: &str, program: &Path, user: &str) -> Result<()> {
    let file = program.file_name().and_then(|name| name.to_str()).context("a program has a name")?;
    let content = fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    let mut layer = Layer::new();
    layer.file(file, 0o755, &content)?;
    let config = Config { entrypoint: vec![format!("/{file}")], user: user.into(), ..Config::default() };
    oci::write(path, name, &[layer], &config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_name_the_image_that_is_built() {
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cluster/coredns.yaml");
        let manifests = fs::read_to_string(manifests).unwrap();
        assert!(manifests.contains(&format!("image: {COREDNS_IMAGE}\n")));
        assert!(manifests.contains(&format!("clusterIP: {}\n", crate::cluster::layout::DNS)));
        assert!(COREDNS_IMAGE.ends_with(super::super::COREDNS));
    }
}
