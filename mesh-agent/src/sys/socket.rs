//! Sockets inside pods' network namespaces, and the few socket options that no library has.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Netns, SocketKind};

/// Length of the accept queues: the kernel's own default for `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Most bytes of a table of addresses or routes that are read, since a pod may fill its own.
const MOST_OF_A_PODS_TABLE: u64 = 4 << 20;

/// Opens a listening socket for both address families on `port` inside a namespace; for IPv4 alone if the
/// kernel has no IPv6. Every worker may open one on the same port (`SO_REUSEPORT`). Errors: a program of the
/// pod has the port, or descriptors are used up.
pub fn listen(netns: &Netns, port: u16) -> io::Result<std::net::TcpListener> {
    netns.run(|| match listen_on((Ipv6Addr::UNSPECIFIED, port).into()) {
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
pub fn open_sockets(netns: &Netns, kind: SocketKind, count: usize) -> io::Result<Vec<Socket>> {
    netns.run(|| {
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
        SocketKind::LoopbackV4 => packets(Domain::IPV4),
        SocketKind::LoopbackV6 => packets(Domain::IPV6),
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

/// Returns the cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
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

/// Sets a socket option that the libraries do not have.
fn set_flag(socket: &Socket, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the length of the call, and `on` is valid for reading four bytes.
    // There is no safe way: no library that we have wraps this option.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the addresses of this (the node's) network namespace, without loopback. Errors: the kernel's
/// tables can't be read.
pub fn local_addresses() -> io::Result<Vec<IpAddr>> {
    addresses_here(u64::MAX)
}

/// Returns the addresses by which others reach a pod, from its own namespace; none until its network is set
/// up. A link-local address is not a pod's: every interface has one. Errors: the kernel's tables can't be
/// read.
pub fn addresses_in(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    let mut addresses = netns.run(|| addresses_here(MOST_OF_A_PODS_TABLE))??;
    addresses.retain(|address| match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    });
    Ok(addresses)
}

/// Returns the addresses that a pod's connections leave with, from its own namespace: the sandbox's, and not
/// those of further interfaces. None of a family that has no route out. Errors: the namespace can't be
/// entered.
pub fn primary_addresses_in(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    /// Documentation addresses (RFC 5737, RFC 3849), which are behind the default route.
    const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];
    let source_to = |elsewhere: &str| {
        let unspecified = if elsewhere.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(unspecified)?;
        // Sends nothing.
        socket.connect(elsewhere)?;
        Ok::<_, io::Error>(socket.local_addr()?.ip())
    };
    netns.run(|| ELSEWHERE.into_iter().flat_map(source_to).collect())
}

/// Whether a pod has IPv6 switched off. Errors: the namespace can't be entered.
pub fn has_no_ipv6(netns: &Netns) -> io::Result<bool> {
    let says = |interface: &str, what| {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == what)
    };
    // The interface's setting counts. A kernel without IPv6 has none.
    netns.run(|| says("eth0", "1") || !says("eth0", "0") && !says("all", "0"))
}

/// Returns the addresses of the thread's network namespace that are in the first `most` bytes of the kernel's
/// tables.
fn addresses_here(most: u64) -> io::Result<Vec<IpAddr>> {
    let lines = |table: &str| {
        let file = File::open(Path::new("/proc/thread-self/net").join(table))?;
        Ok::<_, io::Error>(BufReader::new(file.take(most)).lines().map_while(Result::ok))
    };
    let mut addresses: Vec<IpAddr> = local_v4(lines("fib_trie")?).map(IpAddr::V4).collect();
    // Missing if the kernel has no IPv6.
    addresses.extend(lines("if_inet6").into_iter().flat_map(local_v6).map(IpAddr::V6));
    addresses.retain(|address| !address.is_loopback());
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Returns every address that is followed by a `/32 host LOCAL` line (kernel: `fib_trie_seq_show`).
fn local_v4(lines: impl Iterator<Item = String>) -> impl Iterator<Item = Ipv4Addr> {
    let mut last = None;
    lines.filter_map(move |line| {
        let line = line.trim();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            last = leaf.parse().ok();
        }
        if line == "/32 host LOCAL" { last } else { None }
    })
}

/// Returns the first column of each line, 32 hexadecimal digits (kernel: `if6_seq_show`).
fn local_v6(lines: impl Iterator<Item = String>) -> impl Iterator<Item = Ipv6Addr> {
    lines
        .filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok())
        .map(Ipv6Addr::from)
}

/// Raises the soft limit of open files to the hard one, and returns it. Each proxied connection takes two.
pub fn raise_open_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_address_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.244.1.0\n        /24 link UNICAST\n     |-- 10.244.1.1\n        /32 host LOCAL\n     |-- 10.244.1.255\n        /32 link BROADCAST\n";
        let lines = |text: &'static str| text.lines().map(str::to_owned);
        assert_eq!(local_v4(lines(trie)).collect::<Vec<_>>(), ["10.244.1.1".parse::<Ipv4Addr>().unwrap()]);
        let six = "fd002440000100000000000000000001 05 40 00 80 br0\n";
        assert_eq!(local_v6(lines(six)).collect::<Vec<_>>(), ["fd00:2440:1::1".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn packets_go_over_loopback_alone() {
        let socket = open(SocketKind::LoopbackV4).unwrap();
        assert_eq!(socket.device().unwrap().unwrap(), b"lo");
        let without_privilege = std::thread::spawn(move || {
            let none = rustix::thread::CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, sets).unwrap();
            socket.bind_device(None).unwrap_err().raw_os_error()
        });
        assert_eq!(without_privilege.join().unwrap(), Some(libc::EPERM));
    }

    #[test]
    fn a_table_is_read_no_further_than_is_said() {
        assert!(!addresses_here(0).is_ok_and(|addresses| !addresses.is_empty()));
        assert_eq!(addresses_here(u64::MAX).unwrap(), local_addresses().unwrap());
    }
}
