//! Running other programs: a failure always tells which command it was.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// What every task does with a command.
pub trait CommandExt {
    /// Runs it with this terminal; an error if it can't be started or fails.
    fn checked(&mut self) -> Result<()>;
    /// Runs it and returns its standard output; the error carries its standard error.
    fn captured(&mut self) -> Result<String>;
    /// Runs it, whatever its exit status; both outputs as text.
    fn outcome(&mut self) -> Result<Outcome>;
    /// The command line as a person would type it.
    fn line(&self) -> String;
}

/// What a program that ended has said.
#[derive(Debug)]
pub struct Outcome {
    /// Whether its exit status was 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl CommandExt for Command {
    fn checked(&mut self) -> Result<()> {
        let status = self.status().with_context(|| format!("can't start `{}`", self.line()))?;
        ensure!(status.success(), "`{}` failed ({status})", self.line());
        Ok(())
    }

    fn captured(&mut self) -> Result<String> {
        let outcome = self.outcome()?;
        if !outcome.success {
            bail!("`{}` failed: {}", self.line(), outcome.stderr.trim());
        }
        Ok(outcome.stdout)
    }

    fn outcome(&mut self) -> Result<Outcome> {
        let Output { status, stdout, stderr } =
            self.output().with_context(|| format!("can't start `{}`", self.line()))?;
        Ok(Outcome {
            success: status.success(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    fn line(&self) -> String {
        let mut line = self.get_program().to_string_lossy().into_owned();
        for argument in self.get_args() {
            let argument = argument.to_string_lossy();
            let quote = if argument.contains(char::is_whitespace) { "'" } else { "" };
            // Writing to a String can't fail.
            let _ = write!(line, " {quote}{argument}{quote}");
        }
        line
    }
}

/// The first of `PATH` and the system's administration directories (which a user's `PATH` may lack) that has
/// `name`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]).captured().unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'echo no luck >&2; exit 3'` failed: no luck");
        let error = Command::new("/nonexistent/program").checked().unwrap_err();
        assert_eq!(error.to_string(), "can't start `/nonexistent/program`");
    }

    #[test]
    fn finds_programs_and_only_programs() {
        assert!(find_program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }
}
