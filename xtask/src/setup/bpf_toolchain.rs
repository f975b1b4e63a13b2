//! A Rust toolchain that can compile for `bpfel-unknown-none`: one of two recipes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::bpf_linker;
use crate::command::CommandExt;

/// What it is for.
pub const PURPOSE: &str = "compiles the eBPF programs";
/// Debian's packages of it. They come with `core` already built, so nothing unstable is needed but a target.
pub const PACKAGES: &[&str] =
    &["rustc-web", "libstd-rust-web-dev-bpf", "cargo-web", bpf_linker::LLVM_PACKAGE];
/// How to get one where apt does not have it.
pub const BY_HAND: &str = "\n  a Rust toolchain for BPF, to compile the eBPF programs:\n    \
    rustup toolchain install nightly --component rust-src\n    cargo install bpf-linker";

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// bpf-linker is built against this one.
const DEBIAN_LLVM: &str = "22";

/// A toolchain that was found, with the version that decides whether an object must be built anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BpfToolchain {
    /// Debian's `rustc-web`, called by its path since rustup's programs come first in `PATH`.
    Debian {
        /// The first line of `rustc --version`.
        version: String,
    },
    /// rustup's nightly, which builds `core` from `rust-src`.
    Nightly {
        /// The first line of `rustc --version`.
        version: String,
    },
}

impl BpfToolchain {
    /// Debian's if it is complete, else rustup's nightly if that is.
    pub fn detect() -> Option<Self> {
        Self::debian().or_else(Self::nightly)
    }

    /// A cargo command that compiles for BPF with this toolchain; the caller adds what to compile.
    pub fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Debian { .. } => {
                let mut command = Command::new(DEBIAN_CARGO);
                // The target's linker flags are stable in nothing but nightly; a distribution's rustc is told
                // to trust us.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command.env_remove("RUSTUP_TOOLCHAIN");
                command.args(["build"]);
                command
            }
            Self::Nightly { .. } => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command.env_remove("RUSTC");
                command
            }
        };
        // `cargo run` points this at the libraries of the workspace's toolchain, which is another one.
        command.env_remove("LD_LIBRARY_PATH").args(["--target", TARGET]);
        command
    }

    /// Whether it is the one that `setup` can complete.
    pub fn is_debian(&self) -> bool {
        matches!(self, Self::Debian { .. })
    }

    /// The bpf-linker that knows this toolchain's bitcode, if it is installed.
    pub fn linker(&self) -> Option<PathBuf> {
        match self {
            Self::Debian { .. } => bpf_linker::cached(),
            Self::Nightly { .. } => bpf_linker::in_path(),
        }
    }

    fn debian() -> Option<Self> {
        let verbose = debian_rustc(&["-vV"])?;
        let core = PathBuf::from(debian_rustc(&["--print=target-libdir", "--target", TARGET])?.trim());
        (llvm_major(&verbose) == Some(DEBIAN_LLVM) && core.is_dir() && Path::new(DEBIAN_CARGO).exists())
            .then(|| Self::Debian { version: first_line(&verbose) })
    }

    fn nightly() -> Option<Self> {
        let rustc = |argument| {
            Command::new("rustup")
                .args(["run", "nightly", "rustc", argument])
                .env_remove("LD_LIBRARY_PATH")
                .captured()
                .ok()
        };
        let sysroot = PathBuf::from(rustc("--print=sysroot")?.trim());
        let version = first_line(&rustc("-vV")?);
        sysroot.join("lib/rustlib/src/rust/library/core").is_dir().then_some(Self::Nightly { version })
    }
}

impl fmt::Display for BpfToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { version } => write!(f, "Debian's rustc-web ({version})"),
            Self::Nightly { version } => write!(f, "rustup's nightly with rust-src ({version})"),
        }
    }
}

/// After the packages were installed: an error that says what is wrong with them.
pub fn confirm() -> Result<()> {
    let verbose = debian_rustc(&["-vV"])
        .with_context(|| format!("{DEBIAN_RUSTC} of the package rustc-web does not run"))?;
    let llvm = llvm_major(&verbose).unwrap_or("of no known version");
    ensure!(
        llvm == DEBIAN_LLVM,
        "{DEBIAN_RUSTC} carries LLVM {llvm}, not {DEBIAN_LLVM}, which bpf-linker is built for; instead:{BY_HAND}"
    );
    ensure!(BpfToolchain::debian().is_some(), "{DEBIAN_RUSTC} has no core for {TARGET}; instead:{BY_HAND}");
    Ok(())
}

fn debian_rustc(arguments: &[&str]) -> Option<String> {
    Command::new(DEBIAN_RUSTC).args(arguments).env_remove("LD_LIBRARY_PATH").captured().ok()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The `22` of `LLVM version: 22.1.8` in what `rustc -vV` says.
fn llvm_major(verbose: &str) -> Option<&str> {
    verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_llvm_version_of_rustc() {
        assert_eq!(llvm_major("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some("22"));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn each_recipe_says_which_it_is() {
        let debian = BpfToolchain::Debian { version: "rustc 1.96.0".into() };
        assert_eq!(debian.to_string(), "Debian's rustc-web (rustc 1.96.0)");
        assert!(debian.cargo().line().starts_with("/usr/bin/cargo build --target bpfel-unknown-none"));
        let nightly = BpfToolchain::Nightly { version: "rustc 1.99.0-nightly".into() };
        assert!(nightly.cargo().line().contains("-Z build-std=core"));
    }
}
