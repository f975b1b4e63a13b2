//! What the command line takes.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    api::Action,
    enter::{Place, Sandbox},
    layout::{LabName, MAX_NODES},
};

/// A cluster on one machine: nodes and pods as network namespaces running programs of this machine.
#[derive(Debug, Parser)]
#[command(name = "mesh-lab", version)]
pub struct Arguments {
    /// Name of the lab; several may run side by side.
    #[arg(long, global = true, env = "NODEMESH_LAB", default_value = "default")]
    pub name: LabName,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the lab up.
    Up(Up),
    /// Take the lab down, also after a crash.
    Down,
    /// Apply manifests; the status is 1 if any was left out.
    Apply {
        /// File or directory of YAML or JSON manifests, or `-`.
        #[arg(short, long = "filename", required = true)]
        file: Vec<PathBuf>,
    },
    /// Delete objects and wait until they are gone.
    Delete {
        /// File or directory of manifests whose objects are to go, or `-`.
        #[arg(short, long = "filename", required_unless_present = "kind")]
        file: Vec<PathBuf>,
        /// Kind of an object, such as `pod`.
        #[arg(requires = "object", conflicts_with = "file")]
        kind: Option<KindName>,
        /// Name of the object.
        object: Option<String>,
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Run a program in a pod; its exit status is passed on.
    Exec {
        #[command(flatten)]
        namespace: Namespace,
        /// Container; the first if not given.
        #[arg(short, long)]
        container: Option<String>,
        /// Pod.
        pod: String,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Run a program in a node's network namespace; its exit status is passed on.
    Node {
        /// Node, or `fabric` for the namespace between the nodes.
        node: String,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Show what a container wrote.
    Logs {
        #[command(flatten)]
        namespace: Namespace,
        /// Container; the first if not given.
        #[arg(short, long)]
        container: Option<String>,
        /// Go on until the pod is gone.
        #[arg(short, long)]
        follow: bool,
        /// Pod.
        pod: String,
    },
    /// Show objects.
    Get {
        /// Kind, such as `pods`, `services`, `deployments`.
        kind: KindName,
        /// One object only.
        object: Option<String>,
        #[command(flatten)]
        namespace: Namespace,
        /// All namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Form of the answer.
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Wait until every deployment and pod is ready.
    Wait {
        /// Namespace; all if not given.
        #[arg(short, long)]
        namespace: Option<String>,
        /// How long.
        #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Start, stop, kill, restart or upgrade a node's agent.
    Agent {
        /// What to do.
        action: AgentAction,
        /// Kill the proxy alone; its keeper starts the next.
        #[arg(long)]
        proxy: bool,
        /// Node.
        node: String,
    },
    /// Start, stop, kill or restart the control plane.
    Control {
        /// What to do.
        action: ActionName,
    },
    /// Show the lab, its nodes and the mesh's programs.
    Status {
        /// Form of the answer.
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    #[command(flatten)]
    Internal(Internal),
}

/// How this program starts itself again.
#[derive(Debug, Subcommand)]
pub enum Internal {
    /// Become a program in other namespaces.
    #[command(name = "internal-exec", hide = true)]
    Exec {
        #[command(flatten)]
        place: Place,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Become a pod's sandbox.
    #[command(name = "internal-sandbox", hide = true)]
    Sandbox(Sandbox),
    /// Become a lab's daemon.
    #[command(name = "internal-daemon", hide = true)]
    Daemon { options: String },
    /// Become a node's prober.
    #[command(name = "internal-prober", hide = true)]
    Prober,
}

#[derive(Debug, Args)]
pub struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    pub nodes: u8,
    /// Pods and Services only: no agents, no control plane.
    #[arg(long)]
    pub no_mesh: bool,
    /// The agent's program; beside this one if not given.
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// The control plane's program; beside this one if not given.
    #[arg(long, value_name = "FILE")]
    pub control: Option<PathBuf>,
    /// Lifetime of workload certificates, such as `60s`.
    #[arg(long)]
    pub workload_cert_ttl: Option<String>,
    /// One more argument for every agent; may be repeated: `--agent-arg=--workers=1`.
    #[arg(long = "agent-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub agent_arguments: Vec<String>,
    /// One more argument for the control plane; may be repeated.
    #[arg(long = "control-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub control_arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Namespace {
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ActionName {
    Start,
    Stop,
    Kill,
    Restart,
}

/// What can be done to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AgentAction {
    Start,
    Stop,
    Kill,
    Restart,
    Upgrade,
}

impl AgentAction {
    /// The same for the daemon. Errors: nothing but a kill is for the proxy alone.
    pub fn of(self, proxy: bool) -> Result<Action, String> {
        match (self, proxy) {
            (Self::Kill, true) => Ok(Action::KillProxy),
            (_, true) => Err("--proxy goes with kill only".to_owned()),
            (Self::Start, false) => Ok(Action::Start),
            (Self::Stop, false) => Ok(Action::Stop),
            (Self::Kill, false) => Ok(Action::Kill),
            (Self::Restart, false) => Ok(Action::Restart),
            (Self::Upgrade, false) => Ok(Action::Upgrade),
        }
    }
}

impl From<ActionName> for Action {
    fn from(name: ActionName) -> Self {
        match name {
            ActionName::Start => Self::Start,
            ActionName::Stop => Self::Stop,
            ActionName::Kill => Self::Kill,
            ActionName::Restart => Self::Restart,
        }
    }
}

/// A kind as users type it: singular, plural or short.
#[derive(Clone, Copy, Debug)]
pub struct KindName(pub mesh_api::manifest::Kind);

impl std::str::FromStr for KindName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use mesh_api::manifest::Kind;
        let text = text.to_ascii_lowercase();
        let short = match text.as_str() {
            "po" => Some(Kind::Pod),
            "svc" => Some(Kind::Service),
            "ns" => Some(Kind::Namespace),
            "sa" => Some(Kind::ServiceAccount),
            "deploy" => Some(Kind::Deployment),
            "no" => Some(Kind::Node),
            _ => None,
        };
        let named = || Kind::ALL.into_iter().find(|kind| forms(*kind).contains(&text));
        short.or_else(named).map(Self).ok_or_else(|| {
            let known: Vec<String> = Kind::ALL.into_iter().map(|kind| forms(kind)[1].clone()).collect();
            format!("unknown kind; use one of {}", known.join(", "))
        })
    }
}

/// Singular and plural.
fn forms(kind: mesh_api::manifest::Kind) -> [String; 2] {
    [kind.as_str().to_ascii_lowercase(), kind.table_row().plural.to_owned()]
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use mesh_api::manifest::Kind;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn kinds_have_the_names_that_people_type() {
        for (text, kind) in [
            ("pods", Kind::Pod),
            ("Pod", Kind::Pod),
            ("svc", Kind::Service),
            ("authorizationpolicies", Kind::AuthorizationPolicy),
            ("endpointslices", Kind::EndpointSlice),
        ] {
            assert_eq!(text.parse::<KindName>().unwrap().0, kind, "{text}");
        }
        assert!("pots".parse::<KindName>().unwrap_err().contains("pods"));
    }
}
