//! Records and descriptors over a pair of Unix sockets that keep records apart (`SOCK_SEQPACKET`, unix(7)).
//! Only [`receive_with_timeout`] and `wait_readable` block: without a record `receive` fails at once, and a
//! peer that does not read is given up.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::protocol::{RECORD_LEN, RecordBytes};

/// Most descriptors beside one record (`SCM_MAX_FD` of the kernel).
const MOST_DESCRIPTORS: usize = 253;
const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS));

/// A record and the descriptors beside it.
pub type Message = (RecordBytes, Vec<OwnedFd>);

/// Creates two ends that are connected. Errors: no descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends a record. Errors: the other end is gone, does not read (`WouldBlock`), or there are too many
/// descriptors.
pub fn send(channel: impl AsFd, record: &RecordBytes, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(channel, &[IoSlice::new(record)], &mut beside, flags)?;
    Ok(())
}

/// Receives a record; `None` if the other end is closed. Errors: there is none now (`WouldBlock`), or it has
/// another size.
pub fn try_receive(channel: impl AsFd) -> io::Result<Option<Message>> {
    let (mut record, mut space) = ([0; RECORD_LEN], [MaybeUninit::uninit(); SPACE]);
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut record)], &mut beside, flags)?;
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    match received.bytes {
        0 => Ok(None),
        RECORD_LEN => Ok(Some((record, descriptors))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Receives a record, waiting up to `patience`. Errors: none came in time (`TimedOut`), or the other end is
/// closed.
pub fn receive_with_timeout(channel: &OwnedFd, patience: Duration) -> io::Result<Message> {
    let deadline = Instant::now() + patience;
    loop {
        match try_receive(channel) {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => return Err(io::ErrorKind::ConnectionReset.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait_readable(&mut [PollFd::new(channel, PollFlags::IN)], left)?;
    }
}

/// Waits until a descriptor can be read, a signal comes, or `patience` has passed.
pub(super) fn wait_readable(polled: &mut [PollFd<'_>], patience: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    match poll(polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn records_and_descriptors_arrive_together() {
        let (one, other) = pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let many = vec![write.as_fd(); MOST_DESCRIPTORS];
        send(&one, &[7; RECORD_LEN], &many).unwrap();
        send(&one, &[8; RECORD_LEN], &[]).unwrap();
        let (record, descriptors) = try_receive(&other).unwrap().unwrap();
        assert_eq!((record, descriptors.len()), ([7; RECORD_LEN], MOST_DESCRIPTORS));
        drop(write);
        std::fs::File::from(descriptors.into_iter().next().unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "the other copies are closed");
        assert_eq!(try_receive(&other).unwrap().unwrap().1.len(), 0);
        assert_eq!(try_receive(&other).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert!(try_receive(&other).unwrap().is_none());
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_read() {
        let (one, _other) = pair().unwrap();
        let error = (0..100_000).find_map(|_| send(&one, &[0; RECORD_LEN], &[]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
