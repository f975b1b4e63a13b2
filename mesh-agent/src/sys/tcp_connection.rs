//! TCP connections of pods, as the keeper's protocol and the kernel's list of sockets tell them.

use std::net::SocketAddr;

/// A TCP connection in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The kernel's cookie of the socket, so that a later connection between the same addresses is left
    /// alone; or [`ANY_COOKIE`].
    pub cookie: u64,
    /// The socket's own address and port.
    pub local: SocketAddr,
    /// The other end's.
    pub remote: SocketAddr,
}

/// A connection that was open in a pod before the mesh took the pod in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreexistingConnection {
    /// The pod's end.
    pub connection: Connection,
    /// Whether the pod listens on its port, so the other end may have opened it.
    pub taken: bool,
}

/// `INET_DIAG_NOCOOKIE` of `linux/inet_diag.h` as one number: any socket with the addresses.
pub const ANY_COOKIE: u64 = u64::MAX;
