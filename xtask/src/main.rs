//! Development tasks of nodemesh: `cargo xtask VERB`.
//!
//! Each verb reads as the list of commands that a person would type; nothing here is needed to run a mesh.
#![forbid(unsafe_code)]

#[macro_use]
mod say;

mod bench;
mod build;
mod cache;
mod cluster;
mod command;
mod demo;
mod e2e;
mod ebpf;
mod fuzz;
mod image;
mod lab;
mod oci;
mod setup;
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Development tasks of nodemesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building, testing and the demo need; does nothing where nothing is missing
    Setup,
    /// Build the eBPF object that the agent embeds
    BuildEbpf,
    /// Build everything and run every test, those on labs included
    Test {
        /// Run only the tests whose name contains one of these
        filters: Vec<String>,
    },
    /// Show a mesh of two nodes on this machine, each claim checked as it is shown
    Demo {
        /// Leave the lab up afterwards, to look around in
        #[arg(long)]
        keep: bool,
    },
    /// Measure no mesh, the mesh and Envoy side by side on this machine
    Bench(bench::Options),
    /// Run a real Kubernetes of several nodes on this machine
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Install the mesh on a real Kubernetes and run the end-to-end tests there
    E2e(e2e::Options),
    /// Feed what the mesh reads from peers, users and the control plane with hostile input
    Fuzz(fuzz::Options),
    /// Build container images, without a daemon
    Image(image::Options),
    /// What a benchmark runs in a pod: requests at fixed moments
    #[command(hide = true)]
    Pace(bench::pace::Load),
    /// Build and run mesh-lab with these arguments
    #[command(disable_help_flag = true)]
    Lab {
        /// What mesh-lab gets
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match Cli::parse().verb.run() {
        Ok(code) => code,
        Err(error) => {
            remark!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Verb {
    fn run(self) -> anyhow::Result<ExitCode> {
        let workspace = Workspace::locate()?;
        match self {
            Self::Setup => setup::run()?,
            Self::BuildEbpf => ebpf::build(&workspace)?,
            Self::Test { filters } => test::run(&workspace, &filters)?,
            Self::Demo { keep } => demo::run(&workspace, keep)?,
            Self::Bench(options) => bench::run(&workspace, &options)?,
            Self::Cluster(verb) => return cluster::run(&workspace, verb),
            Self::E2e(options) => e2e::run(&workspace, &options)?,
            Self::Fuzz(options) => fuzz::run(&workspace, &options)?,
            Self::Image(options) => image::run(&workspace, &options)?,
            Self::Pace(load) => bench::pace::run(&load)?,
            Self::Lab { arguments } => return lab::run(&workspace, &arguments),
        }
        Ok(ExitCode::SUCCESS)
    }
}
