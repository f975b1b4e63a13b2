//! Opens sockets inside pods' network namespaces: listening ones, and unconnected ones to connect or send
//! with.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Netns, SocketKind};

/// Length of the accept queues: the kernel's own default for `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens a listening socket for both address families on `port` inside a namespace; for IPv4 alone if the
/// kernel has no IPv6. Every worker may open one on the same port (`SO_REUSEPORT`). Errors: a program of the
/// pod has the port, or descriptors are used up.
pub fn listen_in_netns(netns: &Netns, port: u16) -> io::Result<std::net::TcpListener> {
    netns.run_inside(|| match listen_on((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            listen_on((Ipv4Addr::UNSPECIFIED, port).into())
        }
        result => result,
    })?
}

fn listen_on(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = tcp(Domain::for_address(address))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted connections inherit it (`inet_csk_clone_lock`). Small writes are the application's business;
    // the proxy adds no delay of its own.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens unconnected, non-blocking TCP sockets inside a namespace: fewer than `count` if there is no room for
/// more. Errors: there is none for a single one.
pub fn open_unconnected_sockets(netns: &Netns, kind: SocketKind, count: usize) -> io::Result<Vec<Socket>> {
    netns.run_inside(|| {
        let first = open(kind)?;
        let more = (1..count).map_while(|_| open(kind).ok());
        Ok(std::iter::once(first).chain(more).collect())
    })?
}

fn open(kind: SocketKind) -> io::Result<Socket> {
    match kind {
        SocketKind::OutboundV4 => tcp(Domain::IPV4),
        SocketKind::OutboundV6 => tcp(Domain::IPV6),
        SocketKind::DeliveryV4 => delivery(Domain::IPV4),
        SocketKind::DeliveryV6 => delivery(Domain::IPV6),
        SocketKind::LoopbackPacketsV4 => packets(Domain::IPV4),
        SocketKind::LoopbackPacketsV6 => packets(Domain::IPV6),
    }
}

/// Opens a socket that can be bound to the address that a delivery comes from. The port is chosen at
/// `connect()`, so that ports are shared between destinations (`IP_BIND_ADDRESS_NO_PORT`).
fn delivery(domain: Domain) -> io::Result<Socket> {
    let socket = tcp(domain)?;
    set_flag(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
    Ok(socket)
}

/// Opens a socket that sends whole packets, with header (raw(7)), and to loopback alone: undoing that needs
/// `CAP_NET_RAW`. It receives nothing.
fn packets(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.bind_device(Some(b"lo"))?;
    Ok(socket)
}

/// Opens a socket of the data path. Urgent data stays in line: a byte that is taken out of the stream could
/// not be passed on to another node, and would be lost.
fn tcp(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_out_of_band_inline(true)?;
    Ok(socket)
}

/// Sets a socket option that the libraries do not have.
fn set_flag(socket: &Socket, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the length of the call, and `on` is valid for reading four bytes.
    // There is no safe way: no library that we have wraps this option.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_go_over_loopback_alone() {
        let socket = open(SocketKind::LoopbackPacketsV4).unwrap();
        assert_eq!(socket.device().unwrap().unwrap(), b"lo");
        let without_privilege = std::thread::spawn(move || {
            let none = rustix::thread::CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, sets).unwrap();
            socket.bind_device(None).unwrap_err().raw_os_error()
        });
        assert_eq!(without_privilege.join().unwrap(), Some(libc::EPERM));
    }
}
