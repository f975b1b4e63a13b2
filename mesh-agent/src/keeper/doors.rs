//! The node's own listeners: admin, metrics, health. The keeper opens them and holds them, so that they wait while a proxy
//! is started again; it never takes a connection from them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::Config;

/// As many connections as may wait.
const BACKLOG: i32 = 1024;

/// How long an address may be taken by one who is about to end, and how often is looked.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

/// The listeners, in the order in which they are handed over.
pub(super) struct Doors {
    pub admin: TcpListener,
    pub metrics: TcpListener,
    pub health: TcpListener,
    pub admin_socket: Option<UnixListener>,
}

/// What a predecessor has handed over.
#[derive(Default)]
pub(super) struct Inherited(pub Vec<OwnedFd>);

impl Doors {
    /// Opens them as the settings say, or takes those that a predecessor had there. Errors: an address is taken or not
    /// allowed.
    pub fn open(config: &Config, inherited: Inherited) -> io::Result<Self> {
        let mut sockets: Vec<Socket> = inherited.0.into_iter().map(Socket::from).collect();
        let mut at = |address: SocketAddr| {
            let wanted = SockAddr::from(address);
            let there = sockets.iter().position(|socket| socket.local_addr().is_ok_and(|at| at == wanted));
            let socket = there.map_or_else(|| bind(address), |index| Ok(sockets.swap_remove(index)));
            socket.map(TcpListener::from).map_err(|error| named(&error, address))
        };
        let (admin, metrics, health) = (at(config.admin)?, at(config.metrics)?, at(config.health)?);
        let admin_socket = match &config.admin_socket {
            None => None,
            Some(path) => {
                let is_there = |at: &SockAddr| at.as_pathname() == Some(path);
                let there =
                    sockets.iter().position(|socket| socket.local_addr().is_ok_and(|at| is_there(&at)));
                Some(match there {
                    Some(index) => UnixListener::from(OwnedFd::from(sockets.swap_remove(index))),
                    None => bind_unix(path).map_err(|error| named(&error, path.display()))?,
                })
            }
        };
        Ok(Self { admin, metrics, health, admin_socket })
    }

    /// Their descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.admin.as_fd(), self.metrics.as_fd(), self.health.as_fd()];
        all.extend(self.admin_socket.as_ref().map(AsFd::as_fd));
        all
    }
}

/// Binds to an address; if it is taken, again after a moment: a proxy whose keeper was killed is about to end too.
fn bind(address: SocketAddr) -> io::Result<Socket> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind_once(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(LOOK);
            }
            result => return result,
        }
    }
}

fn bind_once(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn named(error: &io::Error, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("listening on {what}: {error}"))
}
