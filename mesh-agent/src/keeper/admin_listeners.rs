//! The node's own listeners: admin, metrics, health. The keeper opens and holds them, so that connections
//! wait while a proxy is started again; it never accepts one.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket, Type};

use crate::config::Config;

/// Most connections that wait in a queue.
const BACKLOG: i32 = 1024;

/// How long an address in use is waited for, since its user may be about to end, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

/// The listeners, in the order in which they are handed over.
pub(super) struct AdminListeners {
    pub admin: TcpListener,
    pub metrics: TcpListener,
    pub health: TcpListener,
    pub admin_socket: Option<UnixListener>,
}

impl AdminListeners {
    /// Opens them as the settings say, or takes those that a predecessor had there and handed over. Errors:
    /// an address is in use or not allowed.
    pub fn open(config: &Config, inherited: Vec<OwnedFd>) -> io::Result<Self> {
        let mut sockets: Vec<Socket> = inherited.into_iter().map(Socket::from).collect();
        let mut at = |address: SockAddr| {
            let there = sockets.iter().position(|socket| socket.local_addr().is_ok_and(|at| at == address));
            there.map_or_else(|| bind(&address), |index| Ok(sockets.swap_remove(index)))
        };
        let mut tcp = |address: SocketAddr| at(address.into()).map(TcpListener::from);
        let (admin, metrics, health) = (tcp(config.admin)?, tcp(config.metrics)?, tcp(config.health)?);
        let admin_socket = match &config.admin_socket {
            Some(path) => Some(UnixListener::from(OwnedFd::from(at(SockAddr::unix(path)?)?))),
            None => None,
        };
        Ok(Self { admin, metrics, health, admin_socket })
    }

    /// Returns their descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.admin.as_fd(), self.metrics.as_fd(), self.health.as_fd()];
        all.extend(self.admin_socket.as_ref().map(AsFd::as_fd));
        all
    }
}

/// Binds to an address. If it is in use, tries again for a moment: a proxy whose keeper was killed is about
/// to end too.
fn bind(address: &SockAddr) -> io::Result<Socket> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind_once(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", name(address)))),
            bound => return bound,
        }
    }
}

/// Binds once. A Unix socket's file that is there already was left behind, and is replaced.
fn bind_once(address: &SockAddr) -> io::Result<Socket> {
    if let Some(path) = address.as_pathname()
        && let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let socket = Socket::new(address.domain(), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(address)?;
    if let Some(path) = address.as_pathname() {
        // Before anybody can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn name(address: &SockAddr) -> String {
    let path = || address.as_pathname().map(|path| path.display().to_string()).unwrap_or_default();
    format!("listening on {}", address.as_socket().map_or_else(path, |address| address.to_string()))
}
