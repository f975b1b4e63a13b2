//! `cargo xtask cluster …`: a real Kubernetes of several nodes on this machine, made from packages.
//!
//! `docs/cluster.md` tells how it is built. Top down: `up` and `down`; then the parts in the order in which they start.

mod access;
mod cgroup;
mod control_plane;
mod down;
mod kubectl;
mod layout;
mod load;
mod machine;
mod mesh;
mod network;
mod node;
mod process;
mod state;
mod status;
mod tools;
mod up;
mod wait;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::setup::is_root;
use crate::workspace::Workspace;

pub use state::State;
pub use tools::Tools;

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
    /// Tell what runs
    Status,
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

/// Does it.
pub fn run(workspace: &Workspace, verb: Verb) -> Result<()> {
    let state = State::new();
    match verb {
        Verb::Kubeconfig => println!("{}", kubeconfig(&state)?.display()),
        Verb::Status => status::show(&state)?,
        verb => {
            ensure!(is_root(), "a cluster has namespaces, mounts and cgroups of its own: run as root");
            // Held until the command is done.
            let _lock = state.lock()?;
            match verb {
                Verb::Up(options) => up::run(workspace, &state, &options)?,
                Verb::Load { images } => load::run(&state, &images)?,
                Verb::Down => down::run(&state)?,
                Verb::Stop { process } => status::stop(&state, &process)?,
                Verb::Start { process } => status::start(&state, &process)?,
                Verb::Kubeconfig | Verb::Status => {}
            }
        }
    }
    Ok(())
}

/// The administrator's kubeconfig; an error if there is no cluster.
pub fn kubeconfig(state: &State) -> Result<PathBuf> {
    let path = state.path(access::KUBECONFIG);
    ensure!(path.exists(), "there is no cluster. Run: cargo xtask cluster up");
    Ok(path)
}
