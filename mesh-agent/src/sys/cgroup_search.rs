//! Cgroups: finds the agent's own, and the processes of a pod.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Search for a pod's processes: levels below its cgroup, cgroups, and processes of each. Runtimes use two
/// levels and a cgroup for each container; a pod may make any number.
const DEPTH: usize = 8;
const MOST_CGROUPS: usize = 256;
const MOST_PROCESSES: usize = 8;

/// Levels below the root that are searched for the directory of all pods: kind has it in the second level.
const LEVELS_ABOVE_PODS: usize = 3;

/// Returns the id of this process's cgroup v2, as `bpf_get_current_cgroup_id` does: the inode number of its
/// directory.
///
/// `mount` is where cgroup v2 is mounted, or any directory below it. Errors: the cgroup is not found.
pub fn cgroup_id_of_self(mount: &Path) -> io::Result<u64> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let relative = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "/proc/self/cgroup has no cgroup v2 line"))?;
    let mount = mount_of(mount)?;
    let path = match relative {
        // A cgroup namespace of our own hides the path, but the process itself is in one of the lists.
        "/" => find_process(&mount, std::process::id()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "own cgroup not found: the agent needs the host's process ids (hostPID)",
            )
        })?,
        path => mount.join(path.trim_start_matches('/')),
    };
    Ok(fs::metadata(path)?.ino())
}

/// Whether a process is in the cgroup `root` or one below it.
pub fn cgroup_contains_process(root: &Path, pid: u32) -> bool {
    find_process(root, pid).is_some()
}

/// Returns the cgroup of a process, `root` or one below it.
fn find_process(root: &Path, pid: u32) -> Option<PathBuf> {
    let mut queue = VecDeque::from([root.to_path_buf()]);
    while let Some(directory) = queue.pop_front() {
        let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        if processes.lines().any(|line| line.parse() == Ok(pid)) {
            return Some(directory);
        }
        queue.extend(subdirectories(&directory));
    }
    None
}

/// Returns the mount point of cgroup v2 that `path` is below: the highest directory that still has
/// `cgroup.controllers`.
fn mount_of(path: &Path) -> io::Result<PathBuf> {
    path.ancestors()
        .filter(|directory| directory.join("cgroup.controllers").exists())
        .last()
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} is not in a cgroup v2 hierarchy", path.display()),
            )
        })
}

/// Finds the cgroup of a pod below `root` by its uid. It is named `pod<uid>` (`cgroupfs` driver) or ends in
/// `-pod<uid>.slice` with underscores for dashes (`systemd` driver). The whole name counts: the caller is not
/// trusted, and a part of a uid, or a container's id, is no pod. So does the place: the kubelet keeps all
/// pods below a cgroup named after it, and those that a pod or a user of the node made are not searched,
/// whatever their names.
pub(super) fn find_pod_cgroup(root: &Path, uid: &str) -> Option<PathBuf> {
    let (own, slice) = (format!("pod{uid}"), format!("-pod{}.slice", uid.replace('-', "_")));
    let mut queue = VecDeque::from([(root.to_path_buf(), root.iter().any(is_for_pods))]);
    while let Some((directory, for_pods)) = queue.pop_front() {
        for child in subdirectories(&directory) {
            let name = child.file_name().unwrap_or_default();
            let for_pods = for_pods || is_for_pods(name);
            let name = name.to_string_lossy();
            if for_pods && (*name == *own || name.ends_with(&slice)) && is_the_nodes(&child) {
                return Some(child);
            }
            // Other pods' cgroups can be many and deep, and this pod is not inside them.
            if !name.starts_with("pod") && !name.contains("-pod") {
                queue.push_back((child, for_pods));
            }
        }
    }
    None
}

/// Whether the kubelet keeps pods in a cgroup of that name.
fn is_for_pods(name: &OsStr) -> bool {
    name == "kubepods" || name.to_string_lossy().ends_with("kubepods.slice")
}

/// Whether a cgroup was made by root, and not by a user that was given one.
fn is_the_nodes(cgroup: &Path) -> bool {
    fs::metadata(cgroup).is_ok_and(|metadata| metadata.uid() == rustix::process::geteuid().as_raw())
}

/// Returns a pod's processes with their cgroups: the first few of the first many cgroups, the nearest to the
/// pod's own first. The runtime's cgroups are the nearest, and the sandbox's process is alone in one of them;
/// a pod may make any number of others.
pub(super) fn pids_with_cgroups_of_pod(pod: &Path) -> Vec<(PathBuf, u32)> {
    let (mut queue, mut members) = (VecDeque::from([(pod.to_path_buf(), 0)]), Vec::new());
    let mut left = MOST_CGROUPS;
    while let Some((cgroup, depth)) = queue.pop_front() {
        members.extend(first_pids(&cgroup).into_iter().map(|pid| (cgroup.clone(), pid)));
        if depth < DEPTH {
            let before = queue.len();
            queue.extend(subdirectories(&cgroup).take(left).map(|child| (child, depth + 1)));
            left -= queue.len() - before;
        }
    }
    members
}

/// Returns the first processes of a cgroup: the oldest that have not moved. Those of other PID namespaces are
/// 0.
pub(super) fn first_pids(cgroup: &Path) -> Vec<u32> {
    let here = File::open(cgroup.join("cgroup.procs")).map(BufReader::new);
    let lines = here.into_iter().flat_map(BufRead::lines).map_while(Result::ok).take(MOST_PROCESSES);
    lines.filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// Returns the ids of cgroups below `root` without pods, each for all that are below it. Pods are below
/// directories that the kubelet names `kubepods` (`cgroupfs` driver), or `kubepods.slice` with its parents'
/// names in front (`systemd` driver); cgroups beside these are the node's own. A process in none of them, for
/// instance one that is above the pods, is not known to be the node's.
pub fn non_pod_cgroup_ids(root: &Path) -> HashSet<u64> {
    let mut outside = HashSet::new();
    let (_, beside) = split(root, LEVELS_ABOVE_PODS, &mut outside);
    outside.extend(beside);
    outside
}

/// Returns whether pods are below a directory, and the ids of its children that no pods are below. Such
/// children of deeper directories are added to `outside`.
fn split(directory: &Path, depth: usize, outside: &mut HashSet<u64>) -> (bool, Vec<u64>) {
    let (mut has_pods, mut without) = (false, Vec::new());
    for child in subdirectories(directory) {
        let (is_of_pods, beside) = if child.file_name().is_some_and(is_for_pods) {
            (true, Vec::new())
        } else if depth > 0 {
            split(&child, depth - 1, outside)
        } else {
            (false, Vec::new())
        };
        has_pods |= is_of_pods;
        if is_of_pods {
            outside.extend(beside);
        } else if let Ok(metadata) = fs::metadata(&child) {
            without.push(metadata.ino());
        }
    }
    (has_pods, without)
}

/// Lists the children of a directory; none if it is removed meanwhile.
fn subdirectories(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_the_pods_is_the_nodes() {
        let root = tempfile::tempdir().unwrap();
        let path = |path: &str| root.path().join(path);
        for directory in [
            "system.slice/kubelet.service",
            "user.slice/user-0.slice",
            "kubepods.slice/kubepods-burstable.slice/x.scope",
            "kubelet.slice/kubelet.service",
            "kubelet.slice/kubelet-kubepods.slice/y.scope",
            "machines/node1/system",
            "machines/node1/kubepods/podx/kubepods/z",
        ] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        let expected =
            ["system.slice", "user.slice", "kubelet.slice/kubelet.service", "machines/node1/system"];
        let ids: HashSet<u64> = expected.iter().map(|it| fs::metadata(path(it)).unwrap().ino()).collect();
        assert_eq!(non_pod_cgroup_ids(root.path()), ids);
        fs::create_dir_all(path("machines/node2/kubepods")).unwrap();
        assert_eq!(non_pod_cgroup_ids(&path("machines/node2")), HashSet::new(), "none is known");
    }

    fn layout(pod: &str, container: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(pod).join(container);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.procs"), "4711\n4712\n").unwrap();
        (root, path)
    }

    /// The first process that is found of a pod.
    fn find_process_of(root: &Path, uid: &str) -> Option<u32> {
        pids_with_cgroups_of_pod(&find_pod_cgroup(root, uid)?).first().map(|(_, pid)| *pid)
    }

    #[test]
    fn finds_the_process_in_both_drivers_layouts() {
        let uid = "0a1b-22-33";
        for pod in [
            "kubepods/pod0a1b-22-33",
            "kubepods/burstable/pod0a1b-22-33",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b_22_33.slice",
        ] {
            let (root, _) = layout(pod, "cri-containerd-77.scope");
            assert_eq!(find_process_of(root.path(), uid), Some(4711), "{pod}");
        }
    }

    #[test]
    fn finds_the_process_in_other_runtimes_layouts() {
        let uid = "0a1b-22-33";
        for (pod, container) in [
            ("kubepods.slice/kubepods-pod0a1b_22_33.slice", "crio-77.scope"),
            (
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b_22_33.slice",
                "docker-77.scope",
            ),
            (
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod0a1b_22_33.slice",
                "cri-containerd-77.scope",
            ),
            ("node1/kubepods/besteffort/pod0a1b-22-33", "77"),
        ] {
            let (root, _) = layout(pod, container);
            assert_eq!(find_process_of(root.path(), uid), Some(4711), "{pod}");
        }
    }

    #[test]
    fn nothing_but_a_whole_pods_name_will_do() {
        let container = "0123456789abcdef0123456789abcdef0123";
        for (pod, uid) in [
            ("kubepods/pod0a1b-22-33", "0a1b-22"),
            ("kubepods/pod0a1b-22-33", "a1b-22-33"),
            ("kubepods.slice/kubepods-pod0a1b_22_33.slice", "0a1b-22"),
            ("kubepods.slice/kubepods-pod0a1b_22_33.slice", "22-33"),
            ("system.slice/docker-0123456789abcdef0123456789abcdef0123456789abcdef.scope", container),
            ("docker/0123456789abcdef0123456789abcdef0123", container),
        ] {
            let (root, _) = layout(pod, "77");
            assert_eq!(find_process_of(root.path(), uid), None, "{uid} in {pod}");
        }
    }

    #[test]
    fn a_process_is_found_in_its_own_cgroup() {
        let (root, container) = layout("kubepods/podabc", "c1");
        fs::write(root.path().join("cgroup.procs"), "1\n").unwrap();
        assert_eq!(find_process(root.path(), 4712), Some(container));
        assert_eq!(find_process(root.path(), 1).as_deref(), Some(root.path()));
        assert_eq!(find_process(root.path(), 471), None);
    }

    #[test]
    fn a_pod_without_processes_has_none() {
        let (root, container) = layout("kubepods/podabc", "c1");
        fs::write(container.join("cgroup.procs"), "").unwrap();
        assert_eq!(find_process_of(root.path(), "abc"), None);
        assert_eq!(find_process_of(root.path(), "other"), None);
    }

    #[test]
    fn what_is_called_like_a_pod_is_none_where_pods_and_users_make_it() {
        for path in [
            "kubepods/podother/c1/podabc",
            "kubepods/podother/kubepods/podabc",
            "user.slice/podabc",
            "docker/77/podabc",
        ] {
            let (root, _) = layout(path, "c");
            assert_eq!(find_pod_cgroup(root.path(), "abc"), None, "{path}");
        }
        let (root, _) = layout("kubepods/podabc", "c");
        let pod = root.path().join("kubepods/podabc");
        assert_eq!(find_pod_cgroup(root.path(), "abc"), Some(pod.clone()));
        assert_eq!(find_pod_cgroup(&root.path().join("kubepods"), "abc"), Some(pod.clone()), "a root below");
        std::os::unix::fs::chown(&pod, Some(1000), None).unwrap();
        assert_eq!(find_pod_cgroup(root.path(), "abc"), None, "a user of the node made it");
    }

    #[test]
    fn however_much_a_pod_makes_the_runtimes_are_looked_at() {
        let (root, _) = layout("kubepods/podabc", &"x/".repeat(DEPTH));
        assert_eq!(find_process_of(root.path(), "abc"), Some(4711));
        let (root, _) = layout("kubepods/podabc", &"x/".repeat(DEPTH + 1));
        assert_eq!(find_process_of(root.path(), "abc"), None, "too deep");
        let (root, pause) = layout("kubepods/podabc", "pause");
        let own = root.path().join("kubepods/podabc/container");
        for number in 0..2 * MOST_CGROUPS {
            fs::create_dir_all(own.join(number.to_string())).unwrap();
        }
        fs::write(own.join("cgroup.procs"), "1234\n".repeat(10_000)).unwrap();
        let found = pids_with_cgroups_of_pod(&root.path().join("kubepods/podabc"));
        assert!(found.contains(&(pause, 4711)));
        assert!(found.len() <= 2 + MOST_PROCESSES, "{found:?}");
    }
}
