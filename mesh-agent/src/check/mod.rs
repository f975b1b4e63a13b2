//! `mesh-agent check`: does this node have what the agent needs?

mod event;
mod needs;

use std::fmt::Write;
use std::io;
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

/// Checks and prints. Fails if something that is required lacks, and says so in an event on the Kubernetes
/// node, if there is one to tell.
pub fn run(cgroup_root: &Path, format: Format, node: Option<&str>) -> io::Result<ExitCode> {
    let needs = needs::all(cgroup_root, node.is_some());
    let said = mesh_log::write(&match format {
        Format::Table => table(&needs),
        Format::Json => serde_json::json!(needs).to_string() + "\n",
    });
    let missing: Vec<_> = needs.iter().filter(|need| need.required && !need.found).collect();
    if missing.is_empty() {
        return said.map(|()| ExitCode::SUCCESS);
    }
    if let Some(node) = node {
        leave_last_words(&event::in_words(&missing));
        event::tell(node, &missing);
    }
    said.map(|()| ExitCode::FAILURE)
}

/// What Kubernetes shows of a container that ended: what is missing, instead of all that was looked for.
fn leave_last_words(text: &str) {
    const TERMINATION_LOG: &str = "/dev/termination-log";
    // Not there outside of Kubernetes; the whole answer is on standard output.
    let file = std::fs::OpenOptions::new().write(true).truncate(true).open(TERMINATION_LOG);
    let _not_in_a_pod = file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
}

fn table(needs: &[Need]) -> String {
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
