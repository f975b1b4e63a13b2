//! The nodemesh command line: what the agents and the control plane know, and why a connection is or is not taken.
//!
//! Reading order: the command line here, [`source`] (whom to ask), [`ask`] (asking), [`listing`] (what the lists
//! show), [`status`], [`why`], and [`output`] (how answers look).
#![forbid(unsafe_code)]

mod ask;
mod listing;
mod output;
mod source;
mod status;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh_api::admin::{CertificateStatus, ConnectionStatus};

use output::Format;
use source::{Answers, Source};

/// Asks the agents and the control plane of a mesh what they know and what they would do.
#[derive(Parser)]
#[command(name = "meshctl", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    source: Source,
    /// How the answer looks
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  meshctl status                                      the lab `default`
  meshctl --lab demo connections                      open connections of all its nodes
  meshctl --agent 127.0.0.1:15000 certs -o json       one agent, for a script
  meshctl why demo/client web:80                      where it would go, and whether it would be let in";

#[derive(Subcommand)]
enum Verb {
    /// The control plane and every agent: ready, connected, how much of what
    Status,
    /// Every workload that the mesh knows, with its identity and how it is reached
    Workloads,
    /// Every service, with its addresses and how many endpoints are ready
    Services,
    /// Every policy in force, and how many workloads it applies to
    Policies,
    /// Every certificate that an agent holds for its pods
    Certs,
    /// Every connection that is open through the mesh now
    Connections,
    /// Where a connection would go, with which identity, and which policy would let it in or not
    ///
    /// Nothing is sent. The configuration of the pod's own agent is evaluated with the agent's own code. The exit
    /// status is 0 if every endpoint would take the connection, 3 if not, 1 if the question can't be answered.
    Why(why::Question),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    async fn run(self) -> Result<ExitCode> {
        let (source, format) = (&self.source, self.output);
        match self.verb {
            Verb::Status => return status::show(source, format).await,
            Verb::Why(question) => return why::answer(source, &question, format).await,
            Verb::Workloads => listing::workloads(list(source, "/workloads").await?, format)?,
            Verb::Services => listing::services(list(source, "/services").await?, format)?,
            Verb::Policies => listing::policies(list(source, "/policies").await?, format)?,
            Verb::Certs => listing::of_nodes::<CertificateStatus>(list(source, "/certs").await?, format)?,
            Verb::Connections => {
                listing::of_nodes::<ConnectionStatus>(list(source, "/connections").await?, format)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list<T: serde::de::DeserializeOwned>(source: &Source, path: &str) -> Result<Answers<Vec<T>>> {
    source::all(source.agents()?, path).await
}
