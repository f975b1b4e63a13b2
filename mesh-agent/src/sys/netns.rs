//! Network namespaces.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::abort;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::pod_sockets::netns_cookie;

/// A network namespace that is held open.
#[derive(Debug)]
pub struct Netns {
    namespace: OwnedFd,
    cookie: u64,
}

impl Netns {
    /// Opens the network namespace of a running process. Errors: the process is gone, or there is no
    /// permission (`CAP_SYS_PTRACE` to look, `CAP_SYS_ADMIN` to enter).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::of_descriptor(open(Path::new(&format!("/proc/{pid}/ns/net")))?)
    }

    /// Takes the network namespace of a descriptor. Errors: it is something else, or there is no permission.
    pub fn of_descriptor(namespace: OwnedFd) -> io::Result<Self> {
        let cookie = inside(&namespace, netns_cookie)??;
        Ok(Self { namespace, cookie })
    }

    /// Returns the kernel's cookie of the namespace (`SO_NETNS_COOKIE`), by which the eBPF programs know it.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` on this thread inside the namespace. A socket stays in the namespace that it was opened
    /// in, so only the opening has to happen here; keep `work` short and free of `await`. Errors: it can't be
    /// entered.
    pub fn run_inside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        inside(&self.namespace, work)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

thread_local! {
    /// The namespace that the thread started in: the agent's own.
    static HOME: io::Result<OwnedFd> = open(Path::new("/proc/thread-self/ns/net"));
}

fn inside<T>(namespace: &OwnedFd, work: impl FnOnce() -> T) -> io::Result<T> {
    HOME.with(|home| {
        let home = home.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
        enter(namespace)?;
        let result = work();
        if enter(home).is_err() {
            // A thread that stayed in a pod's namespace would open the next pod's sockets there: identities
            // would mix. There is no way on.
            abort();
        }
        Ok(result)
    })
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
