//! `meshctl rotate-root`: a new root for the mesh, a step at a time.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::ask::Endpoint;
use crate::output::Format;
use crate::source::{Mesh, Source};

/// Which step, and how sure.
#[derive(Args)]
pub struct Options {
    /// Refuse unless this is the step that is due; without it, the step that is due is taken
    #[arg(long, value_enum)]
    step: Option<Step>,
    /// Do not wait until every certificate was renewed since the last step: connections may fail
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Step {
    /// Make a new root and have everybody trust it; the old one goes on signing
    Add,
    /// Sign with the new root; certificates under the old one stay good
    Sign,
    /// Stop trusting the old root and delete its key
    Drop,
}

/// Where the rotation is, as the control plane answers it.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    /// The root that signs.
    signing: String,
    phase: Phase,
    /// Seconds that a certificate lives at most.
    leaf_lifetime: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Phase {
    Steady,
    Added { next: String },
    Signing { previous: String },
}

/// Takes a step at one replica; the others follow.
pub async fn run(source: &Source, options: &Options, format: Format) -> Result<()> {
    let control = one_replica(&source.mesh().await?).await?;
    let state: State = control.open().await?.order(&options.path()).await?;
    format.print(&state, State::in_words)
}

async fn one_replica(mesh: &Mesh) -> Result<Endpoint> {
    match mesh {
        Mesh::Local { control, .. } => control.clone().context("--control says where the control plane is"),
        Mesh::Cluster(cluster) => {
            let replicas = cluster.control().await?;
            match replicas.into_iter().find_map(|replica| replica.endpoint.ok()) {
                Some(endpoint) => Ok(endpoint),
                None => bail!("no replica of the control plane can be asked; `meshctl status` says why"),
            }
        }
    }
}

impl Options {
    fn path(&self) -> String {
        let step = self.step.as_ref().and_then(Step::to_possible_value);
        let step = step.map(|step| format!("&step={}", step.get_name())).unwrap_or_default();
        format!("/rotate-root?force={}{step}", self.force)
    }
}

impl State {
    fn in_words(&self) -> String {
        let signing = &self.signing;
        let hours = self.leaf_lifetime.div_ceil(3600);
        let then = |step| {
            format!("When all certificates were renewed, in {hours} h: meshctl rotate-root --step {step}\n")
        };
        match &self.phase {
            Phase::Steady => format!("root {signing} is the only one; the rotation is complete\n"),
            Phase::Added { next } => format!("added root {next}; {signing} still signs.\n{}", then("sign")),
            Phase::Signing { previous } => {
                format!("root {signing} signs; {previous} is still trusted.\n{}", then("drop"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_says_what_comes_next() {
        let read = |phase| -> State {
            let text = format!(r#"{{"signing":"a1","phase":{phase},"changedAt":7,"leafLifetime":86400}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert!(
            read(r#"{"added":{"next":"b2"}}"#).in_words().contains("24 h: meshctl rotate-root --step sign")
        );
        assert!(read(r#"{"signing":{"previous":"a0"}}"#).in_words().contains("a0 is still trusted"));
        assert!(read(r#""steady""#).in_words().contains("complete"));
    }

    #[test]
    fn the_step_is_named_only_if_it_was_given() {
        assert_eq!(Options { step: None, force: false }.path(), "/rotate-root?force=false");
        let drop = Options { step: Some(Step::Drop), force: true };
        assert_eq!(drop.path(), "/rotate-root?force=true&step=drop");
    }
}
