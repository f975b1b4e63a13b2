//! The nodemesh command line: puts the mesh on a cluster, says what agents and control plane know, and why a
//! connection is or is not taken.
//!
//! Reading order: the command line here, [`source`] (whom to ask) and [`cluster`] (how a cluster is reached),
//! [`ask`] (asking), [`listing`] (what the lists show), [`status`], [`why`]; then what changes a cluster; and
//! [`output`] (how answers look).
#![forbid(unsafe_code)]

/// Writes a line to standard error. `eprintln!` would panic when nobody reads any more.
macro_rules! remark {
    ($($words:tt)*) => { mesh_log::remark(format_args!($($words)*)) };
}

mod ask;
mod check;
mod cluster;
mod complete;
mod enrol;
mod install;
mod labels;
mod listing;
mod output;
mod policies;
mod reason;
mod resources;
mod rotate;
mod selection;
mod source;
mod standing;
mod status;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use mesh_api::admin::{CertificateStatus, ConnectionStatus};

use enrol::Way;
use output::Format;
use reason::reason;
use selection::{Named, Selection};
use source::{Answers, Source};

/// Installs a mesh, and asks its agents and its control plane what they know and what they would do.
#[derive(Parser)]
#[command(name = "meshctl", version, subcommand_precedence_over_arg = true, after_help = EXAMPLES)]
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
  meshctl check --pre && meshctl install              put a mesh on the kubeconfig's cluster
  meshctl enroll shop                                 take the pods of a namespace in, live
  meshctl status                                      is everything there, and ready?
  meshctl connections --node node1                    open connections of one node
  meshctl --lab demo certs -o json                    a lab of this machine, for a script
  meshctl why demo/client web:80                      where it would go, and whether it would be let in";

#[derive(Subcommand)]
enum Verb {
    /// The control plane and every agent: ready, connected, how much of what
    #[command(after_help = STATUS_EXAMPLES)]
    Status,
    /// Every workload that the mesh knows, with its identity and how it is reached
    #[command(after_help = WORKLOADS_EXAMPLES)]
    Workloads(Selection),
    /// Every service, with its addresses and how many endpoints are ready
    #[command(after_help = SERVICES_EXAMPLES)]
    Services(Selection),
    /// Every policy as it was written, how much of it is in force, and how many workloads it applies to
    #[command(after_help = POLICIES_EXAMPLES)]
    Policies(Selection),
    /// Every certificate that an agent holds for its pods
    #[command(after_help = CERTS_EXAMPLES)]
    Certs(Selection),
    /// Every connection that is open through the mesh now
    #[command(after_help = CONNECTIONS_EXAMPLES)]
    Connections(Selection),
    /// Where a connection would go, with which identity, and which policy would let it in or not
    ///
    /// Nothing is sent. The configuration of the pod's own agent is evaluated with the agent's own code. Pods
    /// that should be in the mesh and are not come first. The exit status is 0 if every endpoint would take
    /// the connection, 3 if not, 1 if the question can't be answered.
    #[command(after_help = WHY_EXAMPLES)]
    Why(why::Question),
    /// What keeps a mesh from being installed, or an installed one from working, and what to do about it
    ///
    /// The exit status is 1 if something fails.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(check::Options),
    /// Put the mesh on the cluster, or bring it to this version and these values
    ///
    /// The chart is part of this program; `helm` on PATH renders it. Its objects are applied on the server's
    /// side, so what others set in them stays. What it consists of is recorded in the cluster, for
    /// `uninstall`.
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(install::Options),
    /// Take away what `install` put there; the agents clean up their nodes as they go
    #[command(after_help = UNINSTALL_EXAMPLES)]
    Uninstall(install::UninstallOptions),
    /// Take namespaces or pods into the mesh, live, and wait until they are in
    #[command(after_help = ENROLL_EXAMPLES)]
    Enroll(enrol::Options),
    /// Let namespaces or pods go, live, and wait until they are out
    #[command(after_help = UNENROLL_EXAMPLES)]
    Unenroll(enrol::Options),
    /// Take a step towards a new root certificate for the mesh
    ///
    /// There are three, with one certificate lifetime between them: add, sign, drop. No connection is cut.
    #[command(after_help = ROTATE_ROOT_EXAMPLES)]
    RotateRoot(rotate::Options),
    /// Print a script that completes meshctl's verbs and flags in a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(complete::Options),
    /// The version of this program
    #[command(after_help = VERSION_EXAMPLES)]
    Version,
}

const STATUS_EXAMPLES: &str = "Examples:
  meshctl status                                      exit status 1 if something is missing or not ready,
                                                      3 if a pod that should be in the mesh is not
  meshctl status -o json | jq '.nodes[].status.ready'";

const WORKLOADS_EXAMPLES: &str = "Examples:
  meshctl workloads                                   of every namespace
  meshctl workloads -n shop
  meshctl workloads shop/web-1 client                 these alone
  meshctl workloads -l 'app=web,!canary'              of pods with these labels";

const SERVICES_EXAMPLES: &str = "Examples:
  meshctl services -n shop
  meshctl services web store.shop.svc.cluster.local   by name or host";

const POLICIES_EXAMPLES: &str = "Examples:
  meshctl policies -n shop
  meshctl policies shop/frontend -o yaml
  meshctl policies -A -l team=payments                those that have the label themselves";

const CERTS_EXAMPLES: &str = "Examples:
  meshctl certs -n shop                               of the namespace's service accounts
  meshctl certs shop/web --node node1";

const CONNECTIONS_EXAMPLES: &str = "Examples:
  meshctl connections -n shop                         at one end or both
  meshctl connections shop/web-1                      those of a pod
  meshctl connections -l app=web                      those of pods with this label
  meshctl connections --node node1 -o json";

const ROTATE_ROOT_EXAMPLES: &str = "Examples:
  meshctl rotate-root                                 the step that is due
  meshctl rotate-root --step add";

const VERSION_EXAMPLES: &str = "Examples:
  meshctl version
  meshctl version -o json";

const WHY_EXAMPLES: &str = "Examples:
  meshctl why shop/client web:80                      a service's name, as a pod of the namespace would say it
  meshctl why client store.shop.svc.cluster.local:6379
  meshctl why shop/client '[fd00::7]:80' -o json      an address";

const CHECK_EXAMPLES: &str = "Examples:
  meshctl check --pre                                 before an installation
  meshctl check                                       after it, or any time
  meshctl check -o json | jq '.[] | select(.result != \"ok\")'";

const INSTALL_EXAMPLES: &str = "Examples:
  meshctl install                                     into the namespace nodemesh-system
  meshctl install --set control.replicas=3 -f mine.yaml
  meshctl install --dry-run                           print the manifests
  meshctl install --dry-run=server                    have the API server look at each of them";

const UNINSTALL_EXAMPLES: &str = "Examples:
  meshctl uninstall                                   all but the definitions of Istio's kinds
  meshctl uninstall --crds                            those as well, and every policy with them";

const ENROLL_EXAMPLES: &str = "Examples:
  meshctl enroll shop                                 every pod of the namespace
  meshctl enroll --pod shop/client                    one pod
  meshctl enroll shop --dry-run                       who would be in and who would not";

const UNENROLL_EXAMPLES: &str = "Examples:
  meshctl unenroll shop                               every pod of the namespace
  meshctl unenroll --pod shop/client                  one pod of a namespace that stays in";

const COMPLETIONS_EXAMPLES: &str = "Examples:
  meshctl completions bash > ~/.local/share/bash-completion/completions/meshctl
  source <(meshctl completions zsh)
  meshctl completions fish > ~/.config/fish/completions/meshctl.fish";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run().await {
        Ok(code) => code,
        Err(error) => {
            remark!("error: {}", reason(&error));
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    async fn run(self) -> Result<ExitCode> {
        let (source, format) = (&self.source, self.output);
        match self.verb {
            Verb::Status => return status::run(source, format).await,
            Verb::Why(question) => return why::answer(source, &question, format).await,
            Verb::Check(options) => return check::run(source, &options, format).await,
            Verb::Install(options) => return install::run(source, &options, format).await,
            Verb::Uninstall(options) => return install::uninstall(source, &options, format).await,
            Verb::Enroll(options) => return enrol::run(source, Way::In, &options, format).await,
            Verb::Unenroll(options) => return enrol::run(source, Way::Out, &options, format).await,
            Verb::RotateRoot(options) => rotate::run(source, &options, format).await?,
            Verb::Completions(options) => complete::run(&options, Self::command())?,
            Verb::Version => version(format)?,
            Verb::Workloads(on) => listing::workloads(list(source, &on, "/workloads").await?, format)?,
            Verb::Services(on) => listing::services(list(source, &on, "/services").await?, format)?,
            Verb::Policies(on) => {
                let mesh = source.mesh().await?;
                let bearers = on.bearers::<policies::Policy>(&mesh).await?;
                let written = resources::if_known(&mesh).await;
                let joined = listing::policies(mesh.ask(&on.nodes, "/policies").await?, written.as_ref());
                format.print(&on.among(joined, bearers.as_ref())?, |all| policies::table(all))?;
            }
            Verb::Certs(on) => {
                listing::of_nodes::<CertificateStatus>(list(source, &on, "/certs").await?, format)?;
            }
            Verb::Connections(on) => {
                listing::of_nodes::<ConnectionStatus>(list(source, &on, "/connections").await?, format)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn version(format: Format) -> Result<()> {
    let version = serde_json::json!({"version": env!("CARGO_PKG_VERSION")});
    format.print(&version, |_| format!("meshctl {}\n", env!("CARGO_PKG_VERSION")))
}

async fn list<T: Named + serde::de::DeserializeOwned>(
    source: &Source,
    of: &Selection,
    path: &str,
) -> Result<Answers<Vec<T>>> {
    let mesh = source.mesh().await?;
    let bearers = of.bearers::<T>(&mesh).await?;
    of.choose(mesh.ask(&of.nodes, path).await?, bearers.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_examples() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{help}");
        }
    }

    #[test]
    fn a_list_takes_a_namespace_as_kubectl_does() {
        for verb in ["workloads", "services", "policies", "certs", "connections"] {
            for rest in [
                &["-n", "shop"][..],
                &["--namespace=shop", "web"],
                &["-A"],
                &["--all-namespaces"],
                &["a", "b/c"],
                &["-l", "app=x,tier!=y,env in (a,b),!z"],
                &["--selector=app", "-n", "shop", "web"],
            ] {
                let arguments = [&["meshctl", "--mesh-namespace", "mesh", verb][..], rest].concat();
                let cli = Cli::try_parse_from(&arguments).unwrap();
                assert_eq!(cli.source.mesh_namespace(), "mesh", "{arguments:?}");
            }
            assert!(Cli::try_parse_from(["meshctl", verb, "-A", "-n", "shop"]).is_err(), "{verb}");
            assert!(Cli::try_parse_from(["meshctl", verb, "-l", "app in a"]).is_err(), "{verb}");
        }
    }
}
