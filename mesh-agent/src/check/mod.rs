//! `mesh-agent check`: does this node have what the agent needs?

mod event;
mod needs;

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// One thing that the agent needs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Need {
    /// What it is.
    pub name: &'static str,
    /// Whether the agent can't run without it.
    pub required: bool,
    /// Whether it is there.
    pub found: bool,
    /// What was found, or why it was not.
    pub detail: String,
    /// What it costs to lack it.
    pub without: &'static str,
}

/// Checks and prints. Fails if something that is required lacks, and says so in an event on the Kubernetes node, if there
/// is one to tell.
pub fn run(cgroup_root: &Path, format: Format, node: Option<&str>) -> ExitCode {
    let needs = needs::all(cgroup_root);
    match format {
        Format::Table => print_table(&needs),
        Format::Json => println!("{}", serde_json::json!(needs)),
    }
    let missing: Vec<_> = needs.iter().filter(|need| need.required && !need.found).collect();
    if missing.is_empty() {
        return ExitCode::SUCCESS;
    }
    if let Some(node) = node {
        event::tell(node, &missing);
    }
    ExitCode::FAILURE
}

fn print_table(needs: &[Need]) {
    let width = needs.iter().map(|need| need.name.len()).max().unwrap_or(0);
    for need in needs {
        let state = match (need.found, need.required) {
            (true, _) => "found",
            (false, true) => "MISSING",
            (false, false) => "missing",
        };
        println!("{:width$}  {state:7}  {}", need.name, need.detail);
        if !need.found {
            println!("{:width$}           without it: {}", "", need.without);
        }
    }
}
