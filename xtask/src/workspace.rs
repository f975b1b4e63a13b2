//! Where the sources are and where what is built from them goes.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::CommandExt;

/// The checkout that this xtask belongs to.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    #[serde(rename = "workspace_root")]
    root: PathBuf,
    #[serde(rename = "target_directory")]
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo, which knows about `CARGO_TARGET_DIR` and every configuration file that moves the target
    /// directory.
    pub fn locate() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let answer = Command::new(cargo_program())
            .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
            .arg(manifest)
            .captured()?;
        serde_json::from_str(&answer).context("cargo metadata answered what is not its JSON")
    }

    /// The directory of the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The target directory, absolute.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// A program of this workspace as the release profile builds it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// The CNI plugin, as [`crate::build::plugin`] builds it.
    pub fn plugin(&self) -> PathBuf {
        self.target.join(Self::target_triple()).join("release/mesh-cni")
    }

    /// What programs of this machine are compiled for.
    pub fn target_triple() -> String {
        format!("{}-unknown-linux-gnu", env::consts::ARCH)
    }

    /// Cargo at the workspace's root, building into the target directory that was found.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        // A relative CARGO_TARGET_DIR would mean another directory once the working directory is the root.
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }
}

/// The cargo that runs this xtask, so that one toolchain builds everything.
pub fn cargo_program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), Into::into)
}

/// The compiler that this cargo runs.
pub fn rustc() -> Command {
    Command::new(env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from))
}
