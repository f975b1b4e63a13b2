//! Building the targets: coverage for libFuzzer, and `AddressSanitizer`, whose runtime comes with Rust.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::CommandExt;
use crate::workspace::{Workspace, rustc};

/// What cargo-fuzz sets too. Of these only the sanitizer is not stable.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];

/// Builds every target, into a directory of its own: the flags would have the workspace built anew.
pub fn all(workspace: &Workspace) -> Result<()> {
    workspace
        .cargo()
        .args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target", &host()?])
        .env("CARGO_TARGET_DIR", directory(workspace))
        // With a target named, they are not for build scripts and macros.
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .env("RUSTC_BOOTSTRAP", "1")
        .checked()
}

/// The program of a target.
pub fn program(workspace: &Workspace, target: &str) -> Result<PathBuf> {
    Ok(directory(workspace).join(host()?).join("release").join(target))
}

/// Where everything goes that fuzzing makes.
pub fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target().join("fuzz")
}

/// The machine that rustc builds for if nothing is said, such as `x86_64-unknown-linux-gnu`.
fn host() -> Result<String> {
    let version = rustc().arg("-vV").captured()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what it builds for")
}
