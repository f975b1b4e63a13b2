//! `cluster down`: nothing of a cluster is left, even if parts of it had crashed or `up` was interrupted.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

use super::cgroup::Hierarchies;
use super::layout::STATE;
use super::state::State;
use super::{machine, network};

/// Ends what runs, then removes what is left of it.
pub fn run(state: &State) -> Result<()> {
    let cgroups = Hierarchies::of_this_machine()?;
    cgroups.kill()?;
    state.kill_all()?;
    cgroups.remove()?;
    network::remove()?;
    machine::restore(state)?;
    remove_state()
}

/// The mounts of a node were in a namespace of its own and went with its processes.
fn remove_state() -> Result<()> {
    for mount in mounts_below(STATE)?.iter().rev() {
        unmount(mount.as_str(), UnmountFlags::DETACH).with_context(|| format!("can't unmount {mount}"))?;
    }
    let left = mounts_below(STATE)?;
    // Removing a tree would go on into whatever is mounted there.
    ensure!(left.is_empty(), "still mounted: {}", left.join(", "));
    match fs::remove_dir_all(STATE) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {STATE}"))
        }
        _ => Ok(()),
    }
}

fn mounts_below(directory: &str) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts")?;
    Ok(targets(&mounts)
        .filter(|target| Path::new(target).starts_with(directory))
        .map(str::to_owned)
        .collect())
}

fn targets(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| line.split(' ').nth(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_targets_of_mounts() {
        let mounts = "overlay /run/nodemesh-cluster/a overlay rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(targets(mounts).collect::<Vec<_>>(), ["/run/nodemesh-cluster/a", "/proc"]);
    }
}
