//! The programs and images of a cluster, each built once and kept in the user's cache under its version.

pub mod go;
mod images;
mod kubernetes;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

pub use go::program as go_program;
pub use images::PAUSE_IMAGE;

const COREDNS: &str = "1.12.4";
const HELM: &str = "3.19.2";

/// Where the programs and images of a cluster are.
pub struct Tools {
    kubernetes: PathBuf,
    helm: PathBuf,
    pause_image: PathBuf,
    coredns_image: PathBuf,
}

impl Tools {
    /// Finds them in the cache or builds them, which takes some ten minutes for all.
    pub fn ensure(workspace: &Workspace) -> Result<Self> {
        let sources = workspace.root().join("deploy/cluster");
        let kubernetes = kubernetes::ensure(&sources)?;
        let helm = go::install(&go::Package {
            name: "helm",
            version: HELM,
            path: "helm.sh/helm/v3/cmd/helm",
            linker_flags: &format!("-X helm.sh/helm/v3/internal/version.version=v{HELM}"),
        })?;
        let coredns = go::install(&go::Package {
            name: "coredns",
            version: COREDNS,
            path: "github.com/coredns/coredns",
            linker_flags: "",
        })?;
        let pause_image = images::pause(&sources.join("pause/pause.c"))?;
        let coredns_image = images::coredns(&coredns, COREDNS)?;
        Ok(Self { kubernetes, helm, pause_image, coredns_image })
    }

    /// The program of all components of Kubernetes; which one it is its first argument says.
    pub fn kubernetes(&self) -> PathBuf {
        self.kubernetes.join("nodemesh-cluster")
    }

    /// Helm.
    pub fn helm(&self) -> PathBuf {
        self.helm.join("helm")
    }

    /// Images that every node needs before its first pod.
    pub fn images(&self) -> [&Path; 2] {
        [&self.pause_image, &self.coredns_image]
    }

    /// This process's `PATH` with `kubectl` and `helm` before everything else.
    pub fn search_path(&self) -> Result<OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = [self.kubernetes.clone(), self.helm.clone()];
        env::join_paths(directories.into_iter().chain(env::split_paths(&path)))
            .context("a directory in PATH has a colon in its name")
    }
}

/// Where the standard CNI plugins are: Debian's place, and everybody else's.
pub fn cni_directory() -> Result<PathBuf> {
    ["/usr/lib/cni", "/opt/cni/bin"]
        .map(PathBuf::from)
        .into_iter()
        .find(|directory| directory.join("bridge").exists())
        .context("there are no CNI plugins")
}
