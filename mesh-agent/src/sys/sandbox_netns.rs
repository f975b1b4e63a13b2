//! Finds a pod's network namespace: its sandbox's, which the container runtime made.
//!
//! A process of a pod may put itself into a namespace of its own making, with the pod's addresses. It can't
//! choose who owns that: a network namespace belongs for good to the user namespace of its maker, and a user
//! namespace to the one that it was made in (kernel: `copy_net_ns`, `create_user_ns`). The runtime makes a
//! pod's network in the user namespace that this agent is in too, where it takes `CAP_SYS_ADMIN` to make one.
//! For a pod with `hostUsers: false` it makes a user namespace first; all of the pod's processes are in that
//! or below it, so none of them can make one beside it. That is why whether a pod has one has to be known: in
//! a pod without, every process can make one that looks the same.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, statat};

use super::{Netns, cgroup_search};

/// `NS_GET_USERNS` and `NS_GET_PARENT` of `linux/nsfs.h`.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const NS_GET_PARENT: libc::Ioctl = 0xb702;

/// Why a pod with processes has no namespace that is known to be its own.
#[derive(Debug, thiserror::Error)]
pub enum NoSandbox {
    /// None of its processes is in a network namespace that the runtime made.
    #[error("no process of the pod is in a network namespace that the container runtime made")]
    Foreign,
    /// Two processes are equally old, so it can't be told which is the sandbox's.
    #[error("its oldest processes started at the same moment and are in different network namespaces")]
    Ambiguous,
    /// The kernel's error.
    #[error("looking for its network namespace: {0}")]
    Io(#[from] io::Error),
}

/// Device and inode of a namespace, unique while it lives.
type Inode = (u64, u64);

/// A process of a pod.
#[derive(Clone, Debug)]
struct Process {
    cgroup: PathBuf,
    pid: u32,
    /// Start in ticks since the machine started. A process can't change it.
    started: u64,
    netns: Inode,
}

/// Finds the network namespace of the pod with this uid below the cgroup `root`: the one with the cookie
/// `known`, if a process of the pod is still in it, or else that of its oldest process in one that the
/// runtime made. `own_userns` says that the runtime makes it a user namespace of its own. None if it has no
/// process in a network namespace of its own.
///
/// Needs `CAP_SYS_PTRACE` to look, `CAP_SYS_ADMIN` to enter. Errors: see [`NoSandbox`].
pub fn find_sandbox_netns(
    root: &Path,
    uid: &str,
    own_userns: bool,
    known: Option<u64>,
) -> Result<Option<Netns>, NoSandbox> {
    let Some(pod) = cgroup_search::find_pod_cgroup(root, uid) else { return Ok(None) };
    let ours = inode(File::open("/proc/thread-self/ns/net")?.as_fd())?;
    let members = cgroup_search::pids_with_cgroups_of_pod(&pod);
    let mut processes: Vec<Process> =
        members.into_iter().filter_map(|(cgroup, pid)| Process::look(cgroup, pid)).collect();
    // Runtimes put a process into its cgroup before its namespaces, and some keep a helper of the node's
    // there.
    processes.retain(|process| process.netns != ours);
    processes.sort_by_key(|process| process.started);
    if let Some(known) = known
        && let Some(netns) = find_known(&processes, known)?
    {
        return Ok(Some(netns));
    }
    find_made_by_runtime(&processes, own_userns)
}

fn find_known(processes: &[Process], cookie: u64) -> io::Result<Option<Netns>> {
    let mut seen = Vec::new();
    for process in processes {
        if seen.contains(&process.netns) {
            continue;
        }
        seen.push(process.netns);
        let netns = process.enter()?.map(Netns::of_descriptor).transpose()?;
        if netns.as_ref().is_some_and(|netns| netns.cookie() == cookie) {
            return Ok(netns);
        }
    }
    Ok(None)
}

/// Returns the sandbox; `processes` are ordered by age.
fn find_made_by_runtime(processes: &[Process], own_userns: bool) -> Result<Option<Netns>, NoSandbox> {
    let (mut foreign, mut found) = (Vec::new(), None::<(&Process, OwnedFd)>);
    for process in processes {
        if foreign.contains(&process.netns) {
            continue;
        }
        if let Some((oldest, _)) = &found {
            match process {
                younger if younger.started > oldest.started => break,
                same if same.netns == oldest.netns => continue,
                _ => {}
            }
        }
        // It ended meanwhile: whether it was the one can't be told now.
        let Some(descriptor) = process.enter()? else { return Ok(None) };
        if !is_of_the_runtime(descriptor.as_fd(), own_userns)? {
            foreign.push(process.netns);
        } else if found.is_some() {
            return Err(NoSandbox::Ambiguous);
        } else {
            found = Some((process, descriptor));
        }
    }
    match found {
        Some((_, descriptor)) => Ok(Some(Netns::of_descriptor(descriptor)?)),
        None if foreign.is_empty() => Ok(None),
        None => Err(NoSandbox::Foreign),
    }
}

impl Process {
    /// Reads what is needed of a process of a cgroup; none if it has ended.
    fn look(cgroup: PathBuf, pid: u32) -> Option<Self> {
        let directory = open(pid).ok()?;
        let started = started(directory.as_fd())?;
        let status = statat(&directory, "ns/net", AtFlags::empty()).ok()?;
        Some(Self { cgroup, pid, started, netns: (status.st_dev, status.st_ino) })
    }

    /// Opens its network namespace; none if it has ended, left its cgroup, or gone to another namespace. The
    /// directory stands for the process, not for the number: nothing is found in it once that is another's
    /// (kernel: `get_proc_task`).
    fn enter(&self) -> io::Result<Option<OwnedFd>> {
        let look = || -> io::Result<Option<OwnedFd>> {
            let directory = open(self.pid)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let netns = openat(&directory, "ns/net", flags, Mode::empty())?;
            let same = inode(netns.as_fd())? == self.netns
                && cgroup_search::first_pids(&self.cgroup).contains(&self.pid)
                && started(directory.as_fd()) == Some(self.started);
            Ok(same.then_some(netns))
        };
        match look() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
            result => result,
        }
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(Path::new("/proc").join(pid.to_string()), flags, Mode::empty())?)
}

/// Returns when the process of a directory of `/proc` started: field 22 of `stat`, proc(5).
fn started(process: BorrowedFd<'_>) -> Option<u64> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let stat = File::from(openat(process, "stat", flags, Mode::empty()).ok()?);
    let text = io::read_to_string(stat).ok()?;
    // The second field is a name that its owner chose.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn inode(namespace: BorrowedFd<'_>) -> io::Result<Inode> {
    let status = fstat(namespace)?;
    Ok((status.st_dev, status.st_ino))
}

/// Whether a network namespace is owned by the user namespace that this agent is in, or, with `own_userns`,
/// by one that was made there.
fn is_of_the_runtime(netns: BorrowedFd<'_>, own_userns: bool) -> io::Result<bool> {
    let ours = inode(File::open("/proc/thread-self/ns/user")?.as_fd())?;
    let Some(owner) = relative(netns, NS_GET_USERNS)? else { return Ok(false) };
    if inode(owner.as_fd())? == ours {
        return Ok(true);
    }
    let parent = if own_userns { relative(owner.as_fd(), NS_GET_PARENT)? } else { None };
    parent.map_or(Ok(false), |parent| Ok(inode(parent.as_fd())? == ours))
}

/// Returns the user namespace that owns a namespace, or its parent (`ioctl_nsfs`(2)); none if that is beyond
/// this agent's own.
fn relative(namespace: BorrowedFd<'_>, which: libc::Ioctl) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the descriptor is open for the length of the call, and these two requests take no argument.
    // There is no safe way: no library that we have wraps them.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::ioctl(namespace.as_raw_fd(), which) };
    if answer < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EPERM) { Ok(None) } else { Err(error) };
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    #[allow(unsafe_code)]
    Ok(Some(unsafe { OwnedFd::from_raw_fd(answer) }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    const UID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";

    /// A pod's cgroup in a directory of its own, with what is said to be in it.
    struct Pod {
        root: tempfile::TempDir,
        processes: Vec<Child>,
    }

    impl Pod {
        fn new() -> Self {
            Self { root: tempfile::tempdir().unwrap(), processes: Vec::new() }
        }

        /// Starts a program that is in other namespaces than this one soon, in a container of that name.
        fn start(&mut self, container: &str, unshare: &[&str]) -> u32 {
            let mut command = Command::new("unshare");
            command.args(unshare).args(["sleep", "60"]).stdin(Stdio::null());
            let child = command.spawn().unwrap();
            let (pid, deadline) = (child.id(), Instant::now() + Duration::from_secs(10));
            self.processes.push(child);
            let has_become =
                || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it == "sleep\n");
            while !has_become() {
                assert!(Instant::now() < deadline, "{command:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
            self.put(container, pid);
            pid
        }

        fn put(&self, container: &str, pid: u32) {
            let cgroup = self.root.path().join(format!("kubepods/pod{UID}")).join(container);
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join("cgroup.procs"), format!("{pid}\n")).unwrap();
        }

        fn find(&self, own_userns: bool, known: Option<u64>) -> Result<Option<u64>, NoSandbox> {
            Ok(find_sandbox_netns(self.root.path(), UID, own_userns, known)?.map(|netns| netns.cookie()))
        }

        /// Later processes get another start time than earlier ones.
        fn tick() {
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    impl Drop for Pod {
        fn drop(&mut self) {
            for child in &mut self.processes {
                let _ended = child.kill().and_then(|()| child.wait());
            }
        }
    }

    fn cookie(pid: u32) -> u64 {
        Netns::of_process(pid).unwrap().cookie()
    }

    #[test]
    fn the_oldest_process_in_a_namespace_of_the_runtimes_is_the_sandbox() {
        let mut pod = Pod::new();
        assert_eq!(pod.find(false, None).unwrap(), None, "no cgroup yet");
        pod.put("helper", std::process::id());
        assert_eq!(pod.find(false, None).unwrap(), None, "no process in another namespace yet");
        let pause = pod.start("pause", &["-n"]);
        Pod::tick();
        // By name it comes first.
        let other = pod.start("a", &["-n"]);
        assert_ne!(cookie(pause), cookie(other));
        assert_eq!(pod.find(false, None).unwrap(), Some(cookie(pause)));
        assert_eq!(pod.find(false, Some(cookie(other))).unwrap(), Some(cookie(other)), "it was found before");
        assert_eq!(pod.find(false, Some(u64::MAX)).unwrap(), Some(cookie(pause)), "one that is gone is not");
    }

    #[test]
    fn a_namespace_of_the_pods_own_making_is_none() {
        let mut pod = Pod::new();
        let nested = pod.start("a", &["-Urn"]);
        assert!(matches!(pod.find(false, None), Err(NoSandbox::Foreign)));
        let netns = Netns::of_process(nested).unwrap();
        assert!(is_of_the_runtime(netns.as_fd(), true).unwrap(), "the runtime's own would look like that");
        Pod::tick();
        let pause = pod.start("pause", &["-n"]);
        assert_eq!(pod.find(false, None).unwrap(), Some(cookie(pause)), "however old the other is");
    }

    #[test]
    fn in_a_user_namespace_of_its_own_a_pod_can_make_none_like_it() {
        let mut pod = Pod::new();
        let pause = pod.start("pause", &["-Urn"]);
        assert_eq!(pod.find(true, None).unwrap(), Some(cookie(pause)));
        drop(pod);
        let mut pod = Pod::new();
        pod.start("a", &["-Ur", "unshare", "-Urn"]);
        assert!(matches!(pod.find(true, None), Err(NoSandbox::Foreign)));
    }

    #[test]
    fn who_is_not_in_the_pods_cgroup_any_more_is_not_asked() {
        let mut pod = Pod::new();
        let pause = pod.start("pause", &["-n"]);
        let process = Process::look(pod.root.path().join(format!("kubepods/pod{UID}/pause")), pause).unwrap();
        assert!(process.enter().unwrap().is_some());
        pod.put("pause", std::process::id());
        assert!(process.enter().unwrap().is_none(), "moved");
        pod.put("pause", pause);
        let reused = Process { started: process.started + 1, ..process.clone() };
        assert!(reused.enter().unwrap().is_none(), "another process has the number");
        let elsewhere = Process { netns: (0, 0), ..process };
        assert!(elsewhere.enter().unwrap().is_none(), "it went to another namespace");
    }
}
