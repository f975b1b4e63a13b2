//! Which shared libraries a program needs to start.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::CommandExt;

/// The libraries of `program` and theirs, the dynamic linker included; none if it is static. An error names
/// one that is not on this machine.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    // `cargo run` points LD_LIBRARY_PATH at the Rust toolchain's libraries, which no image has.
    let outcome = Command::new("ldd").arg(program).env_remove("LD_LIBRARY_PATH").outcome()?;
    if outcome.success {
        parse(&outcome.stdout)
    } else if outcome.stderr.contains("not a dynamic executable") {
        Ok(Vec::new())
    } else {
        bail!("ldd {}: {}", program.display(), outcome.stderr.trim())
    }
}

/// Lines are `name => /path (0x…)`, `/path (0x…)` for the dynamic linker, and `name (0x…)` for what the
/// kernel brings.
fn parse(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in ldd.lines() {
        let (name, found) = line.split_once("=>").unwrap_or(("", line));
        match found.split_whitespace().next() {
            Some("not") => bail!("{} is not on this machine", name.trim()),
            Some(path) if path.starts_with('/') => libraries.push(path.into()),
            _ => {}
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_paths_and_only_paths() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(text).unwrap(), expected.map(PathBuf::from));
        assert_eq!(parse("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_library_that_lacks_is_named() {
        let error = parse("\tlibodd.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libodd.so.1 is not on this machine");
    }

    #[test]
    fn a_program_of_this_workspace_needs_the_c_library() {
        let libraries = of(&std::env::current_exe().unwrap()).unwrap();
        assert!(libraries.iter().any(|path| path.ends_with("libc.so.6")), "{libraries:?}");
    }
}
