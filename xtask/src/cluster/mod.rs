//! `cargo xtask cluster …`: a real Kubernetes of several nodes on this machine, made from packages.
//!
//! `docs/cluster.md` tells how it is built. Top down: `up` and `down`; then the parts in the order in which
//! they start.

mod access;
mod audit;
mod cgroup;
mod control_plane;
mod dns;
mod down;
mod kubectl;
mod layout;
mod load;
mod machine;
mod mesh;
mod network;
mod node;
mod node_config;
mod process;
mod state;
mod status;
mod tools;
mod traces;
mod up;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::setup::is_root;
use crate::workspace::Workspace;

pub use mesh::{images, install};
pub use state::State;
pub use tools::{Tools, go, go_program};
pub use up::Options as UpOptions;

/// What can be done with the cluster.
#[derive(Subcommand)]
pub enum Verb {
    /// Make a new cluster and wait until its nodes are ready and names resolve; one that is there goes first
    Up(up::Options),
    /// Give an image to every node
    Load {
        /// OCI layouts as tar files, as `cargo xtask image` writes them
        #[arg(required = true, value_name = "IMAGE.tar")]
        images: Vec<PathBuf>,
    },
    /// Remove the cluster and all that it left, whatever state it is in
    Down,
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Print what a shell evaluates to have kubectl and helm in PATH, and KUBECONFIG
    Env,
    /// Tell what runs
    Status,
    /// Run a program in a node's network and mount namespaces
    Node {
        /// The node's name
        node: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Kill one process of the cluster, as a crash would
    Stop {
        /// As `status` names it, for example kube-apiserver or node1-kubelet
        process: String,
    },
    /// Start a process again that has ended
    Start {
        /// As `status` names it
        process: String,
    },
}

/// Does it; the exit status is that of the program for `node`.
pub fn run(workspace: &Workspace, verb: Verb) -> Result<ExitCode> {
    let state = State::new();
    match verb {
        Verb::Up(options) => alone(&state, || up::run(workspace, &state, &options))?,
        Verb::Load { images } => alone(&state, || load::run(&state, &images))?,
        Verb::Down => alone(&state, || down::run(&state))?,
        Verb::Stop { process } => alone(&state, || status::stop(&state, &process))?,
        Verb::Start { process } => alone(&state, || status::start(&state, &process))?,
        Verb::Node { node, command } => return node::run_inside(&state, &node, &command),
        Verb::Status => status::show(&state)?,
        Verb::Kubeconfig => say!("{}", kubeconfig(&state)?.display()),
        Verb::Env => {
            let (kubeconfig, path) = (kubeconfig(&state)?, Tools::ensure(workspace)?.search_path()?);
            say!("export KUBECONFIG='{}'\nexport PATH='{}'", kubeconfig.display(), path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// While no other command changes the cluster.
fn alone(state: &State, change: impl FnOnce() -> Result<()>) -> Result<()> {
    ensure!(is_root(), "a cluster has namespaces, mounts and cgroups of its own: run as root");
    let _lock = state.lock()?;
    change()
}

/// The administrator's kubeconfig; an error if there is no cluster.
pub fn kubeconfig(state: &State) -> Result<PathBuf> {
    let path = state.path(access::KUBECONFIG);
    ensure!(path.exists(), "there is no cluster. Run: cargo xtask cluster up");
    Ok(path)
}
