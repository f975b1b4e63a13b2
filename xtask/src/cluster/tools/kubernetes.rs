//! Kubernetes as one program, built from `deploy/cluster`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::go;
use crate::cache;
use crate::oci::Digest;

/// `go.mod` says the same.
const VERSION: &str = "1.34.2";
const PROGRAM: &str = "nodemesh-cluster";
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// The directory with the program, and with `kubectl`, a link to it.
pub fn ensure(sources: &Path) -> Result<PathBuf> {
    let root = cache::directory(&format!("kubernetes-{VERSION}-{}", key(sources)?), |fresh| {
        remark!("building   Kubernetes {VERSION} (5 minutes)");
        let bin = fresh.join("bin");
        fs::create_dir(&bin)?;
        go::watched(
            go::command()?
                .args(["build", "-v", "-trimpath", "-ldflags", &linker_flags(), "-o"])
                .arg(bin.join(PROGRAM))
                .arg(".")
                .current_dir(sources),
        )?;
        symlink(PROGRAM, bin.join("kubectl")).context("can't link kubectl")
    })?;
    let bin = root.join("bin");
    ensure!(bin.join("kubectl").exists(), "{} lacks programs: remove it and try again", root.display());
    Ok(bin)
}

/// Another program for other sources.
fn key(sources: &Path) -> Result<String> {
    let mut all = Vec::new();
    for name in SOURCES {
        let path = sources.join(name);
        all.extend(fs::read(&path).with_context(|| format!("can't read {}", path.display()))?);
    }
    all.extend(linker_flags().into_bytes());
    Ok(Digest::of(&all).hex()[..12].to_owned())
}

/// The version that it tells; a build from modules does not know it by itself.
fn linker_flags() -> String {
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion=v{VERSION} -X {package}.gitMajor=1 -X {package}.gitMinor={minor} \
         -X {package}.gitTreeState=clean"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cluster/go.mod");
        let module = fs::read_to_string(module).unwrap();
        assert!(module.contains(&format!("k8s.io/kubernetes v{VERSION}\n")));
        assert!(linker_flags().contains(".gitMinor=34 "));
    }

    #[test]
    fn other_sources_have_another_key() {
        let directory = tempfile::tempdir().unwrap();
        for name in SOURCES {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let before = key(directory.path()).unwrap();
        assert_eq!(before, key(directory.path()).unwrap());
        fs::write(directory.path().join("go.sum"), "other").unwrap();
        assert_ne!(before, key(directory.path()).unwrap());
    }
}
