//! Programs of the machine that do one thing and end: `ip` and `nft`, fed with a script.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{During, HostError};

/// Runs an `ip` script in this thread's network namespace.
pub fn ip_batch(script: &str) -> Result<(), HostError> {
    feed("ip", Command::new("ip").args(["-batch", "-"]), script)
}

/// Loads packet rules into this thread's network namespace: all of the script or, on an error, nothing of it.
pub fn nft(script: &str) -> Result<(), HostError> {
    feed("nft", Command::new("nft").args(["-f", "-"]), script)
}

/// Runs a program with `script` as its input; it has to end with success.
pub fn feed(program: &'static str, command: &mut Command, script: &str) -> Result<(), HostError> {
    let start = || format!("start `{program}` (is it installed?)");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().during(start)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends early says why on its standard error, which is read below.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().during(|| format!("wait for `{program}`"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(HostError::Program { program, status: output.status, stderr })
}
