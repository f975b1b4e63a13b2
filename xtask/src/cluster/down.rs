//! `cluster down`: nothing of a cluster is left, even if parts of it had crashed or `up` was interrupted.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

use super::cgroup::Hierarchies;
use super::layout::STATE;
use super::state::State;
use super::{machine, network, traces};

/// Ends what runs, removes what is left of it, and looks whether that was all.
pub fn run(state: &State) -> Result<()> {
    let cgroups = Hierarchies::of_this_machine()?;
    cgroups.kill()?;
    state.kill_all()?;
    cgroups.remove()?;
    network::remove()?;
    machine::restore(state)?;
    remove_state()?;
    traces::ensure_none(&cgroups)
}

/// The mounts of a node were in a namespace of its own and went with its processes.
fn remove_state() -> Result<()> {
    let read = || fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts");
    for mount in traces::ours(&read()?).collect::<Vec<_>>().into_iter().rev() {
        unmount(mount, UnmountFlags::DETACH).with_context(|| format!("can't unmount {mount}"))?;
    }
    // Removing a tree would go on into whatever is mounted there.
    ensure!(traces::ours(&read()?).next().is_none(), "something is still mounted in {STATE}");
    match fs::remove_dir_all(STATE) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {STATE}"))
        }
        _ => Ok(()),
    }
}
