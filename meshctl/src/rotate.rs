//! `meshctl rotate-root`: a new root for the mesh, a step at a time.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::output::Format;
use crate::source::{Mesh, Source};

/// The control plane's program in its image, and the socket that the chart gives it.
const PROGRAM: &str = "/usr/bin/mesh-control";
const ADMIN_SOCKET: &str = "/var/lib/nodemesh/admin.sock";

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
    let state: State = match source.mesh().await? {
        Mesh::Local { control, .. } => {
            let control = control.context("--control says where the control plane is")?;
            control.open().await?.order(&options.path()).await?
        }
        Mesh::Cluster(cluster) => options.in_a_replica(&cluster).await?,
    };
    format.print(&state, State::in_words)
}

impl Options {
    /// Changes are made through the Unix socket in the pod, so a replica's own program asks it.
    async fn in_a_replica(&self, cluster: &Cluster) -> Result<State> {
        let replicas = cluster.control().await?;
        let Some(replica) = replicas.into_iter().find(|replica| replica.endpoint.is_ok()) else {
            if let Some(other) = cluster.other_control().await? {
                bail!("{other}, whose roots are its own to replace");
            }
            bail!("no replica of the control plane can be asked; `meshctl status` says why");
        };
        let socket = format!("--admin-socket={ADMIN_SOCKET}");
        let step = self.step.as_ref().and_then(Step::to_possible_value);
        let step = step.map(|step| format!("--step={}", step.get_name()));
        let force = self.force.then(|| "--force".to_owned());
        let mut command = vec![PROGRAM.to_owned(), "rotate-root".to_owned(), "--json".to_owned(), socket];
        command.extend(step.into_iter().chain(force));
        let said = cluster.run_in(&replica.name, &command).await?;
        serde_json::from_str(&said)
            .with_context(|| format!("pod {} answered what is not of this version", replica.name))
    }

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
