//! What a cluster left behind: nothing, says `down`, and looks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::cgroup::Hierarchies;
use super::layout::{BPF, BRIDGE, Node, STATE};

/// An error that lists what is left of a cluster on this machine, if there is anything.
pub fn ensure_none(cgroups: &Hierarchies) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts")?;
    let mut left: Vec<_> = paths().into_iter().filter(|path| Path::new(path).exists()).collect();
    left.extend(cgroups.remaining().into_iter().map(|path| path.display().to_string()));
    left.extend(ours(&mounts).map(|target| format!("mount {target}")));
    ensure!(left.is_empty(), "the cluster left behind: {}", left.join(", "));
    Ok(())
}

/// Files and links of which each tells of something that is still there.
fn paths() -> Vec<String> {
    let mut paths = vec![STATE.to_owned(), BPF.to_owned(), link(BRIDGE)];
    for node in Node::all() {
        paths.extend([link(&node.link()), format!("/run/netns/{}", node.namespace())]);
    }
    paths
}

fn link(name: &str) -> String {
    format!("/sys/class/net/{name}")
}

/// Where the cluster has something mounted.
pub fn ours(mounts: &str) -> impl Iterator<Item = &str> {
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    targets.filter(|target| {
        Path::new(target).starts_with(STATE)
            || Node::all().any(|node| *target == format!("/run/netns/{}", node.namespace()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_mounts_of_a_cluster_from_others() {
        let mounts = "overlay /run/nodemesh-cluster/node1/a overlay rw 0 0\nproc /proc proc rw 0 0\n\
                      nsfs /run/netns/nodemesh-cluster-node2 nsfs rw 0 0\nnsfs /run/netns/nm-lab nsfs rw 0 0\n\
                      tmpfs /run/nodemesh-cluster-other tmpfs rw 0 0\n";
        assert_eq!(
            ours(mounts).collect::<Vec<_>>(),
            ["/run/nodemesh-cluster/node1/a", "/run/netns/nodemesh-cluster-node2"]
        );
    }

    #[test]
    fn looks_for_links_and_namespaces_of_every_node() {
        let paths = paths();
        assert!(paths.contains(&"/sys/class/net/nmcl-node1".into()));
        assert!(paths.contains(&"/run/netns/nodemesh-cluster-node9".into()));
    }
}
