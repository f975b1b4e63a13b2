//! A network namespace: opened, known by its cookie, and entered for a piece of work.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::abort;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

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

/// Returns the cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
fn netns_cookie() -> io::Result<u64> {
    /// Value of `asm-generic/socket.h`, which the libraries do not have yet.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = [0; 8];
    read_option(&socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// Reads a socket option that the libraries do not have.
fn read_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the length of the call, `value` is valid for writing the `length`
    // bytes that the kernel is told of, and `length` itself is. There is no safe way: no library wraps these
    // options.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
