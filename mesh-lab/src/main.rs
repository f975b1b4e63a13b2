//! `mesh-lab`: see `docs/lab.md`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_lab::cli::main()
}
