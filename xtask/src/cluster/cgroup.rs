//! The cgroup of each node, in every hierarchy that this machine has.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Node;
use super::wait::until;

const TO_DIE: Duration = Duration::from_secs(15);
/// Below a node's cgroup: what runs the node, as opposed to its pods.
const SYSTEM: &str = "system";
/// What runs on this machine itself, in cgroup v2 only: to find it again, not to limit it.
const CONTROL_PLANE: &str = "nodemesh-cluster";

/// Where the cgroup hierarchies of this machine are mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Hierarchies {
    v1: Vec<PathBuf>,
    v2: PathBuf,
}

impl Hierarchies {
    /// Reads them from the mounts of this process.
    pub fn of_this_machine() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts")?;
        Self::parse(&mounts).context("there is no cgroup v2 mount, which the mesh needs")
    }

    fn parse(mounts: &str) -> Option<Self> {
        let of = |kind: &str| -> Vec<PathBuf> {
            let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            mounts.filter(|fields| fields.get(2) == Some(&kind)).map(|fields| fields[1].into()).collect()
        };
        Some(Self { v1: of("cgroup"), v2: of("cgroup2").into_iter().next()? })
    }

    /// The mount of cgroup v2.
    pub fn v2(&self) -> &Path {
        &self.v2
    }

    /// Makes the cgroups of `node`; the kubelet makes those below, and expects to find these.
    pub fn create(&self, node: Node) -> Result<()> {
        for root in self.all() {
            let directory = root.join(node.name());
            fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
            inherit_cpuset(root, &directory)?;
        }
        let system = self.system(node);
        fs::create_dir_all(&system).with_context(|| format!("can't make {}", system.display()))?;
        enable_controllers(&self.v2)
    }

    /// The cgroup v2 of containerd, the kubelet and kube-proxy, and of containerd's shims.
    pub fn system(&self, node: Node) -> PathBuf {
        self.v2.join(node.name()).join(SYSTEM)
    }

    /// The cgroup v2 of the control plane; it is made if it is not there.
    pub fn control_plane(&self) -> Result<PathBuf> {
        let directory = self.v2.join(CONTROL_PLANE);
        fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
        Ok(directory)
    }

    /// Kills everything in every node, its pods included, and then the control plane.
    ///
    /// Nodes come first, and each as a whole: what runs in a node must not start anything else.
    pub fn kill(&self) -> Result<()> {
        all_groups().try_for_each(|name| self.kill_group(&name))
    }

    fn kill_group(&self, name: &str) -> Result<()> {
        let directory = self.v2.join(name);
        match fs::write(directory.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't end what runs in {}", directory.display()));
            }
            _ => {}
        }
        until(&format!("the processes of {name} to end"), TO_DIE, || {
            Ok((!is_populated(&directory)).then_some(()))
        })
    }

    /// Removes all cgroups of a cluster of which nothing runs any more.
    pub fn remove(&self) -> Result<()> {
        for name in all_groups() {
            for directory in self.all().map(|root| root.join(&name)) {
                // A process that was just killed may still be leaving.
                until(&format!("{} to go", directory.display()), TO_DIE, || {
                    remove_tree(&directory).map(Some)
                })?;
            }
        }
        Ok(())
    }

    /// The cgroups of a cluster that are there.
    pub fn remaining(&self) -> Vec<PathBuf> {
        let directories = all_groups().flat_map(|name| self.all().map(move |root| root.join(&name)));
        directories.filter(|directory| directory.exists()).collect()
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().chain([&self.v2])
    }
}

/// Nodes first: see `Hierarchies::kill`.
fn all_groups() -> impl Iterator<Item = String> {
    Node::all().map(Node::name).chain([CONTROL_PLANE.to_owned()])
}

/// `command` as a member of `cgroup` from its first instruction on, so that none of its children is
/// elsewhere.
pub fn in_cgroup(cgroup: &Path, command: impl IntoIterator<Item = String>) -> Vec<String> {
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.display());
    ["sh", "-c", &script, "sh"].map(str::to_owned).into_iter().chain(command).collect()
}

/// cgroup v1 lets no process into a cpuset until it has processors and memory nodes.
fn inherit_cpuset(root: &Path, directory: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        let Ok(current) = fs::read_to_string(&own) else { continue };
        // In cgroup v2 an empty file means the parent's, and the root has no such file.
        if let (true, Ok(parent)) = (current.trim().is_empty(), fs::read_to_string(root.join(file))) {
            fs::write(&own, parent.trim()).with_context(|| format!("can't write {}", own.display()))?;
        }
    }
    Ok(())
}

/// Where there is cgroup v2 alone, the kubelet needs its controllers; in a hybrid set-up it has none to give.
fn enable_controllers(v2: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = v2.join(name);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    };
    let enabled = read("cgroup.subtree_control")?;
    for controller in read("cgroup.controllers")?.split_whitespace() {
        if !enabled.split_whitespace().any(|other| other == controller) {
            fs::write(v2.join("cgroup.subtree_control"), format!("+{controller}"))
                .with_context(|| format!("can't enable the controller {controller} in {}", v2.display()))?;
        }
    }
    Ok(())
}

fn is_populated(directory: &Path) -> bool {
    let events = fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// A cgroup is removed by removing its directory, once no cgroup is below it; its files need no removal.
fn remove_tree(directory: &Path) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("can't read {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory).with_context(|| format!("can't remove {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies_of_a_hybrid_machine() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            Hierarchies::parse(mounts),
            Some(Hierarchies {
                v1: vec!["/sys/fs/cgroup/cpu".into(), "/sys/fs/cgroup/pids".into()],
                v2: "/sys/fs/cgroup/unified".into(),
            })
        );
    }

    #[test]
    fn finds_cgroup_v2_alone_and_wants_it() {
        let found = Hierarchies::parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").unwrap();
        assert!(found.v1.is_empty());
        assert_eq!(found.v2(), Path::new("/sys/fs/cgroup"));
        assert_eq!(Hierarchies::parse("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }

    #[test]
    fn a_node_without_a_cgroup_is_already_gone() {
        remove_tree(Path::new("/sys/fs/cgroup/no-such-node")).unwrap();
    }
}
