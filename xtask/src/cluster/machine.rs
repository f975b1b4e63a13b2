//! What a cluster changes on this machine beyond its own files, so that `down` can undo it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::layout::BPF;
use super::node;
use super::state::State;
use crate::command::CommandExt;

/// What a kubelet sets to values of its own.
const TUNABLES: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];
const SAVED_TUNABLES: &str = "tunables";
const MADE_DIRECTORIES: &str = "made-directories";
const BPFFS: &str = "/sys/fs/bpf";

/// Remembers what kubelets will change, makes the mount points of nodes, and mounts bpffs where it is not.
pub fn prepare(state: &State) -> Result<()> {
    state.write(SAVED_TUNABLES, &tunables())?;
    let made = make_mount_points()?;
    state.write(MADE_DIRECTORIES, &made)?;
    mount_bpffs()
}

/// Undoes it. A mounted bpffs stays: programs other than the cluster's may have come to use it.
pub fn restore(state: &State) -> Result<()> {
    let read = |name| fs::read_to_string(state.path(name)).unwrap_or_default();
    for (name, value) in read(SAVED_TUNABLES).lines().filter_map(|line| line.split_once('=')) {
        let path = Path::new("/proc/sys").join(name);
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
            fs::write(&path, value).with_context(|| format!("can't write {}", path.display()))?;
        }
    }
    for directory in read(MADE_DIRECTORIES).lines().rev() {
        // Something else may have put a file there meanwhile: then it stays.
        let _ = fs::remove_dir(directory);
    }
    if Path::new(BPF).exists() {
        fs::remove_dir_all(BPF).with_context(|| format!("can't remove {BPF}"))?;
    }
    Ok(())
}

fn tunables() -> String {
    let values = TUNABLES.iter().filter_map(|name| {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        Some(format!("{name}={}\n", value.trim()))
    });
    values.collect()
}

/// One directory a line that was not there, parents first.
fn make_mount_points() -> Result<String> {
    let mut made = String::new();
    for target in node::mount_points() {
        let ancestors: Vec<_> = target.ancestors().collect();
        for directory in ancestors.into_iter().rev().filter(|directory| !directory.exists()) {
            fs::create_dir(directory).with_context(|| format!("can't make {}", directory.display()))?;
            made += &directory.to_string_lossy();
            made.push('\n');
        }
    }
    Ok(made)
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts")?;
    if !mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).checked()?;
    }
    Ok(())
}
