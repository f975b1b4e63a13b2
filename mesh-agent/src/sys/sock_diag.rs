//! Lists and closes connections of other processes (`sock_diag`(7), `SOCK_DESTROY`).
//!
//! The work is bounded, whatever a pod has made: searching the kernel's one table of connections takes as
//! long for each pod, and at most [`MOST_LISTED`] of those found are kept.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use mesh_common::HBONE_PORT;
use mesh_common::redirect_rules::LOOPBACK_V6_PREFIX;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::{ANY_COOKIE, Connection, Netns, PreexistingConnection};

/// Most connections of one pod that are listed.
pub const MOST_LISTED: usize = 65_536;

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `NLM_F_REQUEST | NLM_F_ACK`, and `NLM_F_REQUEST | NLM_F_DUMP` of `linux/netlink.h`.
const REQUEST_AND_ACK: u16 = 1 | 4;
pub(super) const REQUEST_AND_DUMP: u16 = 1 | 0x300;
/// `NLMSG_ERROR`, which an acknowledgement is too, and `NLMSG_DONE`.
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
/// A socket that is bound to no interface.
const UNBOUND: u32 = 0;
/// A netlink header, `struct inet_diag_req_v2`, and `struct inet_diag_msg` of `linux/inet_diag.h`.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
const MESSAGE: usize = 72;
/// `INET_DIAG_CGROUP_ID` of `linux/inet_diag.h`: the cgroup v2 of who opened the socket, or its listener.
/// Linux 5.8.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Sets of TCP states (`include/net/tcp_states.h`): all but the first that have another end and may carry
/// anything, which leaves out `TIME_WAIT`, `CLOSE` and `LISTEN`.
mod states {
    pub(super) const ANY: u32 = u32::MAX;
    pub(super) const LISTENING: u32 = 1 << 10;
    /// `ESTABLISHED` to `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`; the kernel takes handshakes whose
    /// socket is not made yet for `SYN_RECV`.
    pub(super) const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
}

/// The open connections of a pod.
#[derive(Debug, Default)]
pub struct PreexistingConnections {
    /// Up to [`MOST_LISTED`] connections.
    pub found: Vec<PreexistingConnection>,
    /// Whether there are more.
    pub more: bool,
}

/// Closes a connection as if the other end had reset it; the other end gets a reset too. Returns false if it
/// is gone already. Errors: there is no permission (`CAP_NET_ADMIN`), the kernel can't
/// (`CONFIG_INET_DIAG_DESTROY`), or its program binds it to another interface as fast as it is looked for.
///
/// The kernel finds a socket that is bound to an interface (`SO_BINDTODEVICE`, which needs no privilege) only
/// by that interface (`inet_bound_dev_eq`), and a pod may have thousands: so the socket is asked for it
/// first. Without such a connection the kernel finds the port's listener (`inet_lookup`): so it is always
/// told the cookie.
pub fn destroy_connection(netns: &Netns, connection: &Connection) -> io::Result<bool> {
    /// Tries. Binding a socket twice needs `CAP_NET_RAW`, and luck.
    const TRIES: usize = 8;
    netns.run_inside(|| {
        let socket = open()?;
        if connection.cookie != ANY_COOKIE && destroy_on(&socket, connection, UNBOUND)? {
            return Ok(true);
        }
        for _ in 0..TRIES {
            let Some((cookie, interface)) = find(&socket, connection)? else { return Ok(false) };
            if destroy_on(&socket, &Connection { cookie, ..*connection }, interface)? {
                return Ok(true);
            }
        }
        Err(io::Error::other("the connection is bound to ever other interfaces"))
    })?
}

/// Closes a connection that most likely is closed already: a socket that is bound to an interface is not
/// looked for. Returns and errors as [`destroy_connection`].
pub fn destroy_unbound_connection(netns: &Netns, connection: &Connection) -> io::Result<bool> {
    netns.run_inside(|| destroy_on(&open()?, connection, UNBOUND))?
}

/// Lists the connections of a namespace, without those to itself and the sockets of the cgroup `ours`, which
/// the mesh opened. Errors: the kernel can't list them.
pub fn list_preexisting_connections(netns: &Netns, ours: u64) -> io::Result<PreexistingConnections> {
    netns.run_inside(|| {
        let (mut listening, mut left) = (HashSet::new(), PreexistingConnections::default());
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            dump(&open()?, &request_for(family, states::LISTENING), |found| {
                if found.cgroup != Some(ours) {
                    listening.insert(found.connection.local.port());
                }
                true
            })?;
        }
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            dump(&open()?, &request_for(family, states::CONNECTED), |found| {
                let Connection { local, remote, .. } = found.connection;
                let itself = local.ip() == remote.ip() || is_loopback(remote.ip());
                // A handshake has no cgroup yet; at this port it can only be with the mesh's own listener.
                let meshs =
                    found.cgroup == Some(ours) || found.cgroup.is_none() && local.port() == HBONE_PORT;
                if itself || meshs {
                    return true;
                }
                left.more |= left.found.len() >= MOST_LISTED;
                if !left.more {
                    let taken = listening.contains(&local.port());
                    left.found.push(PreexistingConnection { connection: found.connection, taken });
                }
                !left.more
            })?;
        }
        Ok(left)
    })?
}

/// Whether an address is one that a pod has for itself; the proxy's listener is at one of them.
fn is_loopback(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.octets().starts_with(&LOOPBACK_V6_PREFIX),
    }
}

fn open() -> io::Result<OwnedFd> {
    let kind = (SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
    Ok(socket_with(AddressFamily::NETLINK, kind.0, kind.1, kind.2)?)
}

fn destroy_on(socket: &OwnedFd, connection: &Connection, interface: u32) -> io::Result<bool> {
    let family = family_of(connection.local.ip());
    let kind = (SOCK_DESTROY, REQUEST_AND_ACK);
    send(socket, &request(kind, family, states::ANY, Some((connection, interface))), SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = recv(socket, &mut answer, RecvFlags::empty())?;
    outcome(answer.get(..length).unwrap_or_default())
}

/// Returns a connection's cookie and the interface that it is bound to, if it is there. A socket for IPv6 may
/// have a connection over IPv4.
fn find(socket: &OwnedFd, connection: &Connection) -> io::Result<Option<(u64, u32)>> {
    let wanted = |found: &Connection| {
        let same_cookie = connection.cookie == ANY_COOKIE || connection.cookie == found.cookie;
        same_cookie && (found.local, found.remote) == (connection.local, connection.remote)
    };
    let mut place = None;
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let kind = (SOCK_DIAG_BY_FAMILY, REQUEST_AND_DUMP);
        // Only the ports count in a dump.
        let request = request(kind, family, states::CONNECTED, Some((connection, UNBOUND)));
        dump(socket, &request, |found| {
            if wanted(&found.connection) {
                place = Some((found.connection.cookie, found.interface));
            }
            true
        })?;
    }
    Ok(place)
}

/// A socket in a dump.
struct Found {
    connection: Connection,
    interface: u32,
    cgroup: Option<u64>,
}

/// Dumps sockets and calls `each`, until that returns false. Then the socket is of no more use.
fn dump(socket: &OwnedFd, request: &[u8], mut each: impl FnMut(Found) -> bool) -> io::Result<()> {
    send(socket, request, SendFlags::empty())?;
    let mut answer = vec![0; 64 * 1024];
    loop {
        let (length, _) = recv(socket, &mut answer, RecvFlags::empty())?;
        let mut rest = answer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(invalid());
        }
        while let Some((kind, body)) = next_netlink_message(&mut rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(netlink_error(body).unwrap_or_else(invalid)),
                _ if read(body).is_some_and(|found| !each(found)) => return Ok(()),
                _ => {}
            }
        }
    }
}

/// Returns the kind and the body of the next message. Each begins at a multiple of four bytes.
pub(super) fn next_netlink_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = usize::try_from(u32::from_ne_bytes(field(rest, 0)?)).ok()?;
    let kind = u16::from_ne_bytes(field(rest, 4)?);
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// Parses a `struct inet_diag_msg` and the attribute with the cgroup.
fn read(message: &[u8]) -> Option<Found> {
    let port = |at| Some(u16::from_be_bytes(field(message, at)?));
    let address = |at: usize| {
        let words: [u8; 16] = field(message, at)?;
        Some(match i32::from(*message.first()?) {
            libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(words.get(..4)?).ok()?).into(),
            _ => IpAddr::from(Ipv6Addr::from(words)).to_canonical(),
        })
    };
    let local = SocketAddr::new(address(8)?, port(4)?);
    let remote = SocketAddr::new(address(24)?, port(6)?);
    let (low, high) = (u32::from_ne_bytes(field(message, 44)?), u32::from_ne_bytes(field(message, 48)?));
    let cookie = u64::from(low) | u64::from(high) << 32;
    let interface = u32::from_ne_bytes(field(message, 40)?);
    let cgroup = attribute(message.get(MESSAGE..)?, INET_DIAG_CGROUP_ID);
    let cgroup = cgroup.and_then(|value| field(value, 0)).map(u64::from_ne_bytes);
    Some(Found { connection: Connection { cookie, local, remote }, interface, cgroup })
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (u16::from_ne_bytes(field(rest, 0)?), u16::from_ne_bytes(field(rest, 2)?));
        let value = rest.get(4..length.into())?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..)?;
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn request_for(family: AddressFamily, states: u32) -> Vec<u8> {
    request((SOCK_DIAG_BY_FAMILY, REQUEST_AND_DUMP), family, states, None)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of the kernel's headers, in fields that they fit into"
)]
fn request(
    (kind, flags): (u16, u16),
    family: AddressFamily,
    states: u32,
    of: Option<(&Connection, u32)>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend((REQUEST as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and sender: the socket has only one request, and the kernel knows who asks.
    bytes.extend([0; 8]);
    bytes.extend([family.as_raw() as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    if let Some((Connection { cookie, local, remote }, interface)) = of {
        bytes.extend(local.port().to_be_bytes());
        bytes.extend(remote.port().to_be_bytes());
        bytes.extend(words(local.ip()));
        bytes.extend(words(remote.ip()));
        bytes.extend(interface.to_ne_bytes());
        bytes.extend(((cookie & u64::from(u32::MAX)) as u32).to_ne_bytes());
        bytes.extend(((cookie >> 32) as u32).to_ne_bytes());
    }
    bytes.resize(REQUEST, 0);
    bytes
}

/// Returns an address as four words in network order; IPv4 takes the first.
fn words(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut words = [0; 16];
            words[..4].copy_from_slice(&address.octets());
            words
        }
    }
}

fn outcome(mut answer: &[u8]) -> io::Result<bool> {
    match next_netlink_message(&mut answer) {
        Some((NLMSG_ERROR, body)) => match netlink_error(body) {
            None if body.len() >= 4 => Ok(true),
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            error => Err(error.unwrap_or_else(invalid)),
        },
        _ => Err(invalid()),
    }
}

/// Returns the error of a `NLMSG_ERROR`, or of a dump that ends with one.
pub(super) fn netlink_error(body: &[u8]) -> Option<io::Error> {
    let error = i32::from_ne_bytes(field(body, 0)?);
    (error != 0).then(|| io::Error::from_raw_os_error(error.saturating_neg()))
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "sock_diag gave no answer that can be read")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::ANY_COOKIE;

    fn pair(address: &str) -> (TcpStream, TcpStream, Connection) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let connection = Connection {
            cookie: rustix::net::sockopt::socket_cookie(client.as_fd()).unwrap(),
            local: client.local_addr().unwrap(),
            remote: client.peer_addr().unwrap(),
        };
        (client, server, connection)
    }

    #[test]
    fn both_ends_see_a_reset_and_no_other_connection_does() {
        let here = Netns::of_process(std::process::id()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, mut server, connection) = pair(address);
            let (_untouched, mut other, same_place) = pair(address);
            assert!(
                !destroy_connection(&here, &Connection { cookie: same_place.cookie, ..connection }).unwrap()
            );
            assert!(destroy_connection(&here, &connection).unwrap());
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            other.set_nonblocking(true).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(!destroy_connection(&here, &connection).unwrap(), "it is gone");
        }
    }

    #[test]
    fn one_that_is_bound_to_an_interface_is_found_too() {
        let here = Netns::of_process(std::process::id()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (client, mut server, connection) = pair(address);
            // Possible at any time, for anybody.
            socket2::SockRef::from(&client).bind_device(Some(b"lo")).unwrap();
            assert!(destroy_connection(&here, &connection).unwrap(), "{address}");
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert!(!destroy_connection(&here, &connection).unwrap(), "it is gone");
        }
    }

    #[test]
    fn the_other_end_does_as_well() {
        let here = Netns::of_process(std::process::id()).unwrap();
        let (mut client, _server, Connection { local, remote, .. }) = pair("127.0.0.1:0");
        let other = Connection { cookie: ANY_COOKIE, local: remote, remote: local };
        assert!(destroy_connection(&here, &other).unwrap());
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(!destroy_connection(&here, &other).unwrap(), "it is gone");
    }

    #[test]
    fn the_listener_is_never_taken_for_a_connection() {
        let here = Netns::of_process(std::process::id()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut at = listener.local_addr().unwrap();
            if at.ip().is_unspecified() {
                at.set_ip(Ipv4Addr::LOCALHOST.into());
            }
            let (client, server) = (TcpStream::connect(at).unwrap(), listener.accept().unwrap().0);
            let of_server =
                Connection { cookie: ANY_COOKIE, local: at, remote: client.local_addr().unwrap() };
            assert!(destroy_connection(&here, &of_server).unwrap(), "{address}");
            drop((client, server));
            assert!(!destroy_connection(&here, &of_server).unwrap(), "it is gone");
            TcpStream::connect(at).expect("the listener is not");
        }
    }

    #[test]
    fn what_a_pod_has_open_is_found_and_how_it_came_to_be() {
        let here = Netns::of_process(std::process::id()).unwrap();
        let own = cgroup_of_sockets();
        // Loopback is the pod's talk to itself, so these are told apart by what is left out.
        let (_client, _server, _) = pair("127.0.0.1:0");
        let all = list_preexisting_connections(&here, u64::MAX).unwrap();
        assert!(all.found.iter().all(|it| !it.connection.remote.ip().is_loopback()), "{all:?}");
        let mut cgroups = Vec::new();
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
        for states in [states::LISTENING, states::CONNECTED] {
            for family in [AddressFamily::INET, AddressFamily::INET6] {
                dump(&open().unwrap(), &request_for(family, states), |found| {
                    if [found.connection.local.port(), found.connection.remote.port()].contains(&port) {
                        cgroups.push((found.cgroup, found.connection.cookie));
                    }
                    true
                })
                .unwrap();
            }
        }
        // The listener, the client, and the one that nobody has accepted yet.
        assert_eq!(cgroups.len(), 3, "{cgroups:?}");
        assert!(cgroups.iter().all(|(cgroup, cookie)| *cgroup == own && *cookie != 0), "{cgroups:?} {own:?}");
        let cookie = rustix::net::sockopt::socket_cookie(waiting.as_fd()).unwrap();
        assert!(cgroups.iter().any(|(_, it)| *it == cookie));
    }

    /// The cgroup v2 that this test runs in.
    fn cgroup_of_sockets() -> Option<u64> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
        crate::sys::cgroup_id_of_self(std::path::Path::new(mount.split(' ').nth(1).unwrap())).ok()
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        for answer in [&[][..], &[0; 4], &[0; 36]] {
            assert!(outcome(answer).is_err());
        }
        for length in 0..MESSAGE {
            assert!(read(&vec![2; length]).is_none(), "{length} bytes");
        }
        for strange in [vec![0; 200], vec![255; 200]] {
            assert!(next_netlink_message(&mut &strange[..]).is_none());
            let _total = read(&strange);
        }
    }
}
