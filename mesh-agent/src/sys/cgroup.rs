//! Cgroups: which is the agent's, and where a pod's processes are.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How far below a pod's cgroup its processes are looked for. Runtimes use two; a pod may make as many as it likes.
const DEPTH: usize = 8;

/// Id of this process's cgroup v2, as `bpf_get_current_cgroup_id` gives it: the inode number of its directory.
///
/// `mount` is where cgroup v2 is mounted, or any directory below it.
pub fn cgroup_id_of_self(mount: &Path) -> io::Result<u64> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let relative = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "/proc/self/cgroup has no cgroup v2 line"))?;
    let mount = mount_of(mount)?;
    let path = match relative {
        // A cgroup namespace of our own hides the way to it, but not the process itself, which is in one list.
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

/// The cgroup that a process is in, below `root` or `root` itself.
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

/// The mount point of cgroup v2 that `path` is below: the highest directory that still has `cgroup.controllers`.
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

/// Any process of a pod, found by the pod's uid below `root`. Its cgroup is called `pod<uid>` (`cgroupfs` driver) or ends in
/// `-pod<uid>.slice` with underscores for dashes (`systemd` driver). The whole name counts: who asks is not trusted, and a
/// part of a uid, or the id of a container, is no pod.
pub fn find_pod_process(root: &Path, uid: &str) -> Option<u32> {
    let (own, slice) = (format!("pod{uid}"), format!("-pod{}.slice", uid.replace('-', "_")));
    let mut queue = VecDeque::from([root.to_path_buf()]);
    while let Some(directory) = queue.pop_front() {
        for child in subdirectories(&directory) {
            let name = child.file_name().unwrap_or_default().to_string_lossy();
            if *name == *own || name.ends_with(&slice) {
                return first_process(&child, DEPTH);
            }
            // Other pods' cgroups can be many and deep; this pod is not inside them.
            if !name.starts_with("pod") && !name.contains("-pod") {
                queue.push_back(child);
            }
        }
    }
    None
}

/// The first process of a cgroup or of one so far below it.
fn first_process(cgroup: &Path, depth: usize) -> Option<u32> {
    let here = File::open(cgroup.join("cgroup.procs")).map(BufReader::new);
    let found =
        here.into_iter().flat_map(BufRead::lines).map_while(Result::ok).find_map(|line| line.parse().ok());
    let below = || subdirectories(cgroup).find_map(|child| first_process(&child, depth - 1));
    found.or_else(|| if depth > 0 { below() } else { None })
}

/// A directory that goes away while it is read has no children.
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

    fn layout(pod: &str, container: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(pod).join(container);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.procs"), "4711\n4712\n").unwrap();
        (root, path)
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
            assert_eq!(find_pod_process(root.path(), uid), Some(4711), "{pod}");
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
            assert_eq!(find_pod_process(root.path(), uid), Some(4711), "{pod}");
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
            assert_eq!(find_pod_process(root.path(), uid), None, "{uid} in {pod}");
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
    fn a_pod_without_processes_is_not_found() {
        let (root, container) = layout("kubepods/podabc", "c1");
        fs::write(container.join("cgroup.procs"), "").unwrap();
        assert_eq!(find_pod_process(root.path(), "abc"), None);
        assert_eq!(find_pod_process(root.path(), "other"), None);
        let (root, _) = layout("kubepods/podabc", &"x/".repeat(DEPTH));
        assert_eq!(find_pod_process(root.path(), "abc"), Some(4711));
        let (root, _) = layout("kubepods/podabc", &"x/".repeat(DEPTH + 1));
        assert_eq!(find_pod_process(root.path(), "abc"), None);
    }
}
