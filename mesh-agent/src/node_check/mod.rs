//! `mesh-agent check`: checks whether this node has what the agent needs.

mod node_event;
mod requirements;

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// Something that the agent needs, and whether it was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedRequirement {
    /// Its name.
    pub name: &'static str,
    /// Whether the agent can't run without it.
    pub required: bool,
    /// Whether it is there.
    pub found: bool,
    /// What was found, or why it was not.
    pub detail: String,
    /// What does not work without it.
    pub without: &'static str,
}

/// Checks, prints the result, and makes an event on the Kubernetes node about what is required and missing,
/// if there is a node to tell. Returns failure then. Errors: the result can't be printed.
pub fn check_and_report(
    cgroup_root: &Path,
    format: OutputFormat,
    node: Option<&str>,
) -> io::Result<ExitCode> {
    let needs = requirements::check_all(cgroup_root, node.is_some());
    let said = mesh_log::write(&match format {
        OutputFormat::Table => table(&needs),
        OutputFormat::Json => serde_json::json!(needs).to_string() + "\n",
    });
    let missing: Vec<_> = needs.iter().filter(|need| need.required && !need.found).collect();
    if missing.is_empty() {
        return said.map(|()| ExitCode::SUCCESS);
    }
    if let Some(node) = node {
        leave_last_words(&node_event::describe_missing(&missing));
        node_event::publish_missing(node, &missing);
    }
    said.map(|()| ExitCode::FAILURE)
}

/// Writes what is missing to the container's termination message, which Kubernetes shows.
fn leave_last_words(text: &str) {
    const TERMINATION_LOG: &str = "/dev/termination-log";
    // The file is missing outside of Kubernetes; the whole result is on standard output.
    let file = std::fs::OpenOptions::new().write(true).truncate(true).open(TERMINATION_LOG);
    let _not_in_a_pod = file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
}

fn table(needs: &[CheckedRequirement]) -> String {
    let width = needs.iter().map(|need| need.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for need in needs {
        let state = match (need.found, need.required) {
            (true, _) => "found",
            (false, true) => "MISSING",
            (false, false) => "missing",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{:width$}  {state:7}  {}", need.name, need.detail);
        if !need.found {
            let _ = writeln!(text, "{:width$}           without it: {}", "", need.without);
        }
    }
    text
}
