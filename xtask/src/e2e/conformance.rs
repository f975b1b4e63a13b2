//! The Gateway API's own conformance suite, built from `conformance` and kept in the user's cache: program,
//! definitions of the kinds, and the image that its pods run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::cluster::go;
use crate::command::CommandExt;
use crate::oci::{self, Config, Digest, Layer};
use crate::workspace::Workspace;

/// The file of `mesh-e2e/tests` that runs it.
pub const FILE: &str = "conformance";

const API: &str = "sigs.k8s.io/gateway-api";
const SUITE: &str = "sigs.k8s.io/gateway-api/conformance";
/// What is built from, below `conformance`.
const SOURCES: [&str; 8] = [
    "go.mod",
    "go.sum",
    "run_test.go",
    "echo/certificate.go",
    "echo/client.go",
    "echo/grpc.go",
    "echo/main.go",
    "echo/server.go",
];

/// The directory with all of it: `conformance.test`, `definitions`, `echo.tar`, and `image`, a file that says
/// the image's name.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let sources = workspace.root().join("conformance");
    cache::directory(&format!("conformance-{}", key(&sources)?), |fresh| {
        remark!("building   the Gateway API's conformance suite (2 minutes)");
        build(&sources, fresh)
    })
}

/// The image that pods of the suite run, as a file.
pub fn image(directory: &Path) -> PathBuf {
    directory.join("echo.tar")
}

fn build(sources: &Path, fresh: &Path) -> Result<()> {
    let program = fresh.join("conformance.test");
    go::watched(
        go(sources)?.args(["test", "-c", "-v", "-trimpath", "-ldflags=-s -w", "-o"]).arg(&program).arg("."),
    )?;
    definitions(&module(sources, API)?, &fresh.join("definitions"))?;
    let manifests = module(sources, SUITE)?.join("mesh/manifests.yaml");
    let manifests =
        fs::read_to_string(&manifests).with_context(|| format!("can't read {}", manifests.display()))?;
    let name = image_name(&manifests)?;
    fs::write(fresh.join("image"), name)?;
    let echo = fresh.join("echo");
    go::watched(
        go(sources)?.args(["build", "-v", "-trimpath", "-ldflags=-s -w", "-o"]).arg(&echo).arg("./echo"),
    )?;
    write_image(&image(fresh), name, &fs::read(&echo)?)
}

fn go(sources: &Path) -> Result<Command> {
    let mut go = go::command()?;
    go.current_dir(sources);
    Ok(go)
}

/// Where Go keeps the sources of a module.
fn module(sources: &Path, path: &str) -> Result<PathBuf> {
    let directory = go(sources)?.args(["list", "-m", "-f", "{{.Dir}}", path]).captured()?;
    Ok(directory.trim().into())
}

/// Copies the definitions of the standard channel, without the admission policy that is there with them.
fn definitions(api: &Path, target: &Path) -> Result<()> {
    let channel = api.join("config/crd/standard");
    fs::create_dir(target)?;
    for entry in fs::read_dir(&channel).with_context(|| format!("can't read {}", channel.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let Some(name) = path.file_name().filter(|_| text.contains("\nkind: CustomResourceDefinition\n"))
        else {
            continue;
        };
        fs::write(target.join(name), text)?;
    }
    Ok(())
}

/// The one image that the suite's manifests name.
fn image_name(manifests: &str) -> Result<&str> {
    let names: BTreeSet<_> =
        manifests.lines().filter_map(|line| line.trim().strip_prefix("image: ")).map(str::trim).collect();
    ensure!(names.len() == 1, "the suite's pods have the images {names:?}, not one");
    names.first().copied().context("there is one")
}

/// An image of the program, which is `client` under another name.
fn write_image(path: &Path, name: &str, program: &[u8]) -> Result<()> {
    let mut layer = Layer::new();
    layer.file("bin/echo", 0o755, program)?;
    layer.link("bin/client", "echo")?;
    let config = Config {
        entrypoint: vec!["/bin/echo".into()],
        environment: vec!["PATH=/bin".into()],
        user: "65532:65532".into(),
        ..Config::default()
    };
    oci::write(path, name, &[layer], &config)
}

/// Another directory for other sources.
fn key(sources: &Path) -> Result<String> {
    let mut all = Vec::new();
    for name in SOURCES {
        let path = sources.join(name);
        all.extend(fs::read(&path).with_context(|| format!("can't read {}", path.display()))?);
    }
    Ok(Digest::of(&all).hex()[..12].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_read_from_the_manifests() {
        let one = "spec:\n  containers:\n  - image: a/b:1\n---\n    image: a/b:1\n";
        assert_eq!(image_name(one).unwrap(), "a/b:1");
        assert!(image_name(&format!("{one}    image: c:2\n")).is_err());
        assert!(image_name("kind: Pod\n").is_err());
    }

    #[test]
    fn other_sources_have_another_key() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance");
        let mut found = BTreeSet::new();
        for below in ["", "echo/"] {
            for entry in fs::read_dir(sources.join(below)).unwrap().map(Result::unwrap) {
                let name = entry.file_name().into_string().unwrap();
                if [".go", ".mod", ".sum"].iter().any(|end| name.ends_with(end)) {
                    found.insert(format!("{below}{name}"));
                }
            }
        }
        assert_eq!(found, SOURCES.map(str::to_owned).into(), "all count for the key");
        assert_eq!(key(&sources).unwrap().len(), 12);
    }

    #[test]
    fn definitions_come_without_the_policy_beside_them() {
        let api = tempfile::tempdir().unwrap();
        let channel = api.path().join("config/crd/standard");
        fs::create_dir_all(&channel).unwrap();
        fs::write(channel.join("a.yaml"), "apiVersion: v1\nkind: CustomResourceDefinition\nspec:\n").unwrap();
        fs::write(channel.join("b.yaml"), "apiVersion: v1\nkind: ValidatingAdmissionPolicy\n").unwrap();
        let target = api.path().join("target");
        definitions(api.path(), &target).unwrap();
        assert!(target.join("a.yaml").exists() && !target.join("b.yaml").exists());
    }
}
