//! Requests to the kernel about links and routes (`rtnetlink`(7)).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Messages and flags of `linux/netlink.h`.
mod raw {
    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const NLM_F_REQUEST: u16 = 1;
    /// Bytes of `nlmsghdr`.
    pub(super) const HEADER: usize = 16;
    /// Without the flags for nested attributes and byte order.
    pub(super) const TYPE: u16 = 0x3fff;
}

/// Opens a socket for requests, in this thread's network namespace.
pub(super) fn open_route_socket() -> io::Result<OwnedFd> {
    // Without a protocol it is `NETLINK_ROUTE`, the first one.
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Requests one thing; `None` if there is no such thing.
pub(super) fn query_one(socket: &OwnedFd, kind: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    request(socket, kind, 0, body)?;
    let mut answer = vec![0; 32 * 1024];
    let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(length);
    read_answer(&answer)
}

/// Requests a change. `flags` are those besides `NLM_F_REQUEST`, with that for an acknowledgement among them.
/// Errors: the kernel's.
pub(super) fn request_change(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    request(socket, kind, flags, body)?;
    let mut answer = vec![0; 4096];
    let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    let error = answer.get(..length).and_then(|answer| answer.get(raw::HEADER..)).and_then(read_u32);
    match error.map(|error| error.cast_signed().saturating_neg()) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(raw::HEADER + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = Vec::with_capacity(raw::HEADER + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((raw::NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and sender: the socket has only one request, and the kernel knows who asks.
    request.extend([0; 8]);
    request.extend(body);
    send(socket, &request, SendFlags::empty())?;
    Ok(())
}

fn read_answer(answer: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let body = answer.get(raw::HEADER..);
    let (Some(kind), Some(body)) = (kind, body) else { return Err(io::ErrorKind::InvalidData.into()) };
    if kind != raw::NLMSG_ERROR {
        return Ok(Some(body.to_vec()));
    }
    let error = read_u32(body).map_or(libc::EIO, |error| error.cast_signed().saturating_neg());
    match error {
        libc::ENOENT | libc::ENODEV | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL => Ok(None),
        _ => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Appends an attribute to a message.
pub(super) fn push_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Iterates over the attributes of a message, as far as they can be parsed.
pub(super) fn parse_attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & raw::TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns a number, if there are enough bytes for one.
pub(super) fn read_u32(value: &[u8]) -> Option<u32> {
    value.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Returns a text up to its zero byte.
pub(super) fn read_c_string(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_not_read() {
        assert_eq!(parse_attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0, "shorter than its own head");
        assert!(read_answer(&[0; 15]).is_err());
        let mut message = Vec::new();
        push_attribute(&mut message, 7, b"veth1\0");
        assert_eq!(
            parse_attributes(&message).map(|(kind, value)| (kind, read_c_string(value))).collect::<Vec<_>>(),
            [(7, "veth1".to_owned())]
        );
    }
}
