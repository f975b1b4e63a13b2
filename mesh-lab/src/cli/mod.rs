//! The command line.

mod args;
mod get;
mod logs;
mod run;

use std::{ffi::OsString, io::Write, process::ExitCode};

use args::{Arguments, Command, Internal};
use clap::Parser;

use crate::{
    client::Client,
    daemon, enter,
    host::{During, HostError},
    layout::Layout,
    node,
};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            // Nothing can be said if standard error is closed.
            let _ = writeln!(std::io::stderr(), "mesh-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // A process must have one thread to change its namespaces, so these come before any runtime.
    let command = match arguments.command {
        Command::Internal(Internal::Exec { place, program }) => {
            return Ok(become_program(&place, &program, None));
        }
        Command::Internal(Internal::Sandbox(sandbox)) => match sandbox.hold()? {},
        Command::Internal(Internal::Daemon { options }) => {
            let layout = Layout::new(arguments.name)?;
            return run_daemon(layout, &options);
        }
        Command::Internal(Internal::Prober) => {
            runtime()?.block_on(node::serve_probes())?;
            return Ok(ExitCode::SUCCESS);
        }
        command => command,
    };
    anyhow::ensure!(rustix::process::geteuid().is_root(), "only root can make namespaces; run it with sudo");
    let layout = Layout::new(arguments.name)?;
    let client = Client::new(&layout);
    run::run(command, &layout, &client)
}

fn run_daemon(layout: Layout, options: &str) -> anyhow::Result<ExitCode> {
    let options = serde_json::from_str(options)?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    runtime()?.block_on(daemon::run(layout, options))?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime, HostError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.during(|| "start a runtime".to_owned())
}

/// Becomes a program somewhere else. A failure is told as a shell tells it: 127 not found, 126 not startable.
fn become_program(
    place: &enter::Place,
    program: &[OsString],
    environment: Option<Vec<(String, String)>>,
) -> ExitCode {
    match place.exec(program, environment) {
        Ok(never) => match never {},
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mesh-lab: {error}");
            let missing = matches!(&error, HostError::Os { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
            ExitCode::from(if missing { 127 } else { 126 })
        }
    }
}
