//! Closing connections of others (`sock_diag`(7), `SOCK_DESTROY`).

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netdevice::name_to_index;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::{Connection, Netns};

/// `SOCK_DESTROY` of `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// `NLM_F_REQUEST | NLM_F_ACK` of `linux/netlink.h`.
const REQUEST_AND_ACK: u16 = 1 | 4;
/// `NLMSG_ERROR`, which an acknowledgement is too.
const NLMSG_ERROR: u16 = 2;
/// A socket that is bound to no interface.
const UNBOUND: u32 = 0;
/// A netlink header and `struct inet_diag_req_v2` of `linux/inet_diag.h`.
const LENGTH: usize = 16 + 56;

/// Closes a connection as if the other end had reset it; the other end is told the same. Answers false if it is gone
/// already. Errors: there is no permission (`CAP_NET_ADMIN`), or the kernel can't (`CONFIG_INET_DIAG_DESTROY`).
///
/// A socket that its program has bound to an interface (`SO_BINDTODEVICE`, for which it needs no privilege) is found by
/// that interface alone (kernel: `inet_bound_dev_eq`): each is tried, or a pod could keep its connections from being
/// closed.
pub fn destroy(netns: &Netns, connection: &Connection) -> io::Result<bool> {
    netns.run(|| {
        let kind = (SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
        let socket = socket_with(AddressFamily::NETLINK, kind.0, kind.1, kind.2)?;
        if destroy_on(&socket, connection, UNBOUND)? {
            return Ok(true);
        }
        for interface in interfaces(&socket)? {
            if destroy_on(&socket, connection, interface)? {
                return Ok(true);
            }
        }
        Ok(false)
    })?
}

fn destroy_on(socket: &OwnedFd, connection: &Connection, interface: u32) -> io::Result<bool> {
    send(socket, &request(connection, interface), SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = recv(socket, &mut answer, RecvFlags::empty())?;
    outcome(answer.get(..length).unwrap_or_default())
}

/// The interfaces of the namespace that this thread and the socket are in. One whose name is no text is left out: then the
/// connection is found by its other end.
fn interfaces(socket: &OwnedFd) -> io::Result<Vec<u32>> {
    let table = std::fs::read("/proc/thread-self/net/dev")?;
    let table = String::from_utf8_lossy(&table);
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    Ok(names.filter_map(|name| name_to_index(socket, name).ok()).collect())
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of the kernel's headers, in fields that they fit into"
)]
fn request(connection: &Connection, interface: u32) -> Vec<u8> {
    let (local, remote) = (connection.local, connection.remote);
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend((LENGTH as u32).to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend(REQUEST_AND_ACK.to_ne_bytes());
    // Sequence and sender: there is one request on the socket, and the kernel knows who asks.
    bytes.extend([0; 8]);
    bytes.extend([family.as_raw() as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    // In any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(words(local.ip()));
    bytes.extend(words(remote.ip()));
    bytes.extend(interface.to_ne_bytes());
    bytes.extend(((connection.cookie & u64::from(u32::MAX)) as u32).to_ne_bytes());
    bytes.extend(((connection.cookie >> 32) as u32).to_ne_bytes());
    bytes
}

/// An address as four words in network order; IPv4 takes the first.
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

fn outcome(answer: &[u8]) -> io::Result<bool> {
    let field = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, field(16)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(true),
        (Some(NLMSG_ERROR), Some(error)) if error == -libc::ENOENT => Ok(false),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "sock_diag gave no acknowledgement")),
    }
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
            assert!(!destroy(&here, &Connection { cookie: same_place.cookie, ..connection }).unwrap());
            assert!(destroy(&here, &connection).unwrap());
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            other.set_nonblocking(true).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(!destroy(&here, &connection).unwrap(), "it is gone");
        }
    }

    #[test]
    fn one_that_is_bound_to_an_interface_is_found_too() {
        let here = Netns::of_process(std::process::id()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (client, mut server, connection) = pair(address);
            // Possible at any time, for anybody.
            socket2::SockRef::from(&client).bind_device(Some(b"lo")).unwrap();
            assert!(destroy(&here, &connection).unwrap(), "{address}");
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert!(!destroy(&here, &connection).unwrap(), "it is gone");
        }
    }

    #[test]
    fn the_other_end_does_as_well() {
        let here = Netns::of_process(std::process::id()).unwrap();
        let (mut client, _server, Connection { local, remote, .. }) = pair("127.0.0.1:0");
        let other = Connection { cookie: ANY_COOKIE, local: remote, remote: local };
        assert!(destroy(&here, &other).unwrap());
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(!destroy(&here, &other).unwrap(), "it is gone");
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        for answer in [&[][..], &[0; 4], &[0; 36]] {
            assert!(outcome(answer).is_err());
        }
    }
}
