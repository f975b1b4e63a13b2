//! Removes all of a lab, whatever state it is in.

use super::{HostError, cgroup, files, netns};
use crate::layout::{Layout, STATE_ROOT};

/// What there was to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// Something of the lab was there.
    Removed,
    /// There was no trace of it.
    Nothing,
}

/// Kills every process of the lab and removes its namespaces, cgroups, pinned objects and files. Needs no
/// daemon.
pub fn sweep(layout: &Layout) -> Result<Swept, HostError> {
    let namespaces: Vec<String> = netns::names().into_iter().filter(|name| layout.owns_netns(name)).collect();
    let found = !namespaces.is_empty()
        || [layout.cgroup(), layout.bpf(), layout.state().to_owned()].iter().any(|path| path.exists());
    cgroup::destroy(&layout.cgroup())?;
    if !namespaces.is_empty() {
        netns::remove(&namespaces)?;
    }
    files::remove_all(&layout.bpf())?;
    files::remove_all(layout.state())?;
    remove_shared_parents(layout);
    Ok(if found { Swept::Removed } else { Swept::Nothing })
}

/// The directories that all labs share go with the last one; `rmdir` refuses as long as there is another.
fn remove_shared_parents(layout: &Layout) {
    for parent in [layout.cgroup_root(), "/sys/fs/bpf/nodemesh-lab".into(), STATE_ROOT.into()] {
        let _ = std::fs::remove_dir(parent);
    }
}
