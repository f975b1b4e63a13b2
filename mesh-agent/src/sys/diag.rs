//! Closing connections of others (`sock_diag`(7), `SOCK_DESTROY`).

use std::io;
use std::net::IpAddr;

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
/// A netlink header and `struct inet_diag_req_v2` of `linux/inet_diag.h`.
const LENGTH: usize = 16 + 56;

/// Closes a connection as if the other end had reset it; the other end is told the same. Answers false if it is gone
/// already. Errors: there is no permission (`CAP_NET_ADMIN`), or the kernel can't (`CONFIG_INET_DIAG_DESTROY`).
pub fn destroy(netns: &Netns, connection: &Connection) -> io::Result<bool> {
    let socket = netns.run(|| {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))
    })??;
    send(&socket, &request(connection), SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    outcome(answer.get(..length).unwrap_or_default())
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of the kernel's headers, in fields that they fit into"
)]
fn request(connection: &Connection) -> Vec<u8> {
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
    // On any interface.
    bytes.extend([0; 4]);
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
    fn an_answer_that_is_none_is_an_error() {
        for answer in [&[][..], &[0; 4], &[0; 36]] {
            assert!(outcome(answer).is_err());
        }
    }
}
