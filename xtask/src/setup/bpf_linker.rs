//! bpf-linker, which links LLVM bitcode into one BPF object with BTF.
//!
//! It must be built against the LLVM major version of the rustc that made the bitcode.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cache;
use crate::command::{CommandExt, find_program};
use crate::workspace::cargo_program;

/// What it is for.
pub const PURPOSE: &str = "links the eBPF object";
/// Debian's LLVM of the version that Debian's `rustc-web` carries.
pub const LLVM_PACKAGE: &str = "llvm-22-dev";

const VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// The one that `install` made, for Debian's rustc.
pub fn cached() -> Option<PathBuf> {
    Some(cache_directory().ok()?.join("bin/bpf-linker")).filter(|path| path.exists())
}

/// The one that its user keeps, for rustup's nightly: which LLVM it needs changes with each nightly.
pub fn in_path() -> Option<PathBuf> {
    find_program("bpf-linker")
}

/// Whether the LLVM to build it against is installed.
pub fn llvm_is_there() -> bool {
    Path::new(LLVM).join("bin/llvm-config").exists()
}

/// Builds it into the user's cache, outside of the checkout and of `~/.cargo/bin`, under its version.
pub fn install() -> Result<PathBuf> {
    let root = cache_directory()?;
    Command::new(cargo_program())
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(&root)
        .env("LLVM_PREFIX", LLVM)
        .env("LLVM_SYS_221_PREFIX", LLVM)
        // LLVM's libraries are found at run time without being in the system's search path.
        .env("RUSTFLAGS", format!("-L{LLVM}/lib -Clink-arg=-Wl,-rpath,{LLVM}/lib"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // A build of its own, not part of the workspace's: cargo then uses a temporary directory.
        .env_remove("CARGO_TARGET_DIR")
        .checked()?;
    let program = root.join("bin/bpf-linker");
    ensure!(program.exists(), "cargo installed bpf-linker, but not at {}", program.display());
    Ok(program)
}

fn cache_directory() -> Result<PathBuf> {
    Ok(cache::root()?.join(format!("bpf-linker-{VERSION}")))
}
