//! Asking the node's agent, and waiting until a pod is in the mesh.
//!
//! The plugin connects to the agent's socket, sends one record with the pod's uid and, beside it, the
//! descriptor of the pod's network namespace: the runtime made that namespace, so nobody has to guess by the
//! pod's processes which one it is. The agent sends one record back when steering is in force there. Records
//! have one size, so there is nothing to put together.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use crate::call::Pod;

/// Bytes of a record; as the agent's processes have them between each other.
pub const RECORD: usize = 384;
/// A record.
pub type Record = [u8; RECORD];

/// An agent that is not there, or not ready, is asked again this often, and so is what it last knew.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const QUESTION: u8 = 1;
const ENROLLED: u8 = 1;
const REFUSED: u8 = 2;
/// Bytes of a pod's uid: 36 of a UUID, or 32 of a static pod's hash.
const LONGEST_UID: usize = 36;

/// Why a pod may not start.
#[derive(Debug)]
pub enum Refusal {
    /// The runtime does not say which pod it is.
    NoUid,
    /// Its namespace can't be opened.
    Netns(io::Error),
    /// The agent is not there, does not answer in time, or says why it can't take the pod in.
    Agent(String),
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Steering is in force in that namespace.
    Enrolled,
    /// It can't be, and why.
    Refused(String),
}

/// The question as a record. A uid that is longer than any is cut, and so is nobody's.
pub fn question(uid: &str) -> Record {
    record(QUESTION, uid)
}

/// The uid that is asked about, if it is a question.
pub fn asked(record: &Record) -> Option<&str> {
    let (kind, uid) = parts(record)?;
    (kind == QUESTION && (1..=LONGEST_UID).contains(&uid.len())).then_some(uid)
}

impl Answer {
    /// As a record. A reason that is too long is cut.
    pub fn encode(&self) -> Record {
        match self {
            Self::Enrolled => record(ENROLLED, ""),
            Self::Refused(reason) => record(REFUSED, reason),
        }
    }

    /// What a record says; none if it is no answer.
    pub fn decode(record: &Record) -> Option<Self> {
        match parts(record)? {
            (ENROLLED, _) => Some(Self::Enrolled),
            (REFUSED, reason) => Some(Self::Refused(reason.to_owned())),
            _ => None,
        }
    }
}

/// A kind, the length of a text in two bytes, and the text.
fn record(kind: u8, text: &str) -> Record {
    let mut record = [0; RECORD];
    let text = &text[..text.floor_char_boundary(RECORD - 3)];
    record[0] = kind;
    // No text is longer than a record.
    record[1..3].copy_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    record[3..3 + text.len()].copy_from_slice(text.as_bytes());
    record
}

fn parts(record: &Record) -> Option<(u8, &str)> {
    let length = usize::from(u16::from_le_bytes([record[1], record[2]]));
    let text = record.get(3..3 + length)?;
    Some((record[0], std::str::from_utf8(text).ok()?))
}

/// Waits until the agent has the pod, whose network namespace `netns` leads to, or until it is not `wanted`
/// any more. Errors: that did not happen within `patience`.
pub fn wait(
    socket: &Path,
    netns: &Path,
    pod: Pod<'_>,
    patience: Duration,
    wanted: impl Fn() -> bool,
) -> Result<(), Refusal> {
    if pod.uid.is_empty() || pod.uid.len() > LONGEST_UID {
        return Err(Refusal::NoUid);
    }
    let netns = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Refusal::Netns(error.into()))?;
    let deadline = Instant::now() + patience;
    let mut reason;
    loop {
        match ask(socket, &netns, pod.uid, deadline, &wanted) {
            Ok(None | Some(Answer::Enrolled)) => return Ok(()),
            Ok(Some(Answer::Refused(why))) => reason = why,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Refusal::Agent("it has not done so in time".to_owned()));
            }
            Err(error) => reason = error.to_string(),
        }
        if Instant::now() + LOOK_EVERY >= deadline {
            return Err(Refusal::Agent(reason));
        }
        std::thread::sleep(LOOK_EVERY);
        if !wanted() {
            return Ok(());
        }
    }
}

/// Asks once. None: the pod is not wanted any more. Errors: the agent is not there or goes away, or time is
/// up.
fn ask(
    socket: &Path,
    netns: &OwnedFd,
    uid: &str,
    deadline: Instant,
    wanted: &impl Fn() -> bool,
) -> io::Result<Option<Answer>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let channel = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&channel, &SocketAddrUnix::new(socket)?)?;
    send(&channel, &question(uid), netns)?;
    loop {
        match receive(&channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.map(Some),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if !wait_readable(&channel, left.min(LOOK_EVERY))? && !wanted() {
            return Ok(None);
        }
    }
}

fn send(channel: &OwnedFd, record: &Record, beside: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors = [beside.as_fd()];
    if !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(channel, &[IoSlice::new(record)], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(channel: &OwnedFd) -> io::Result<Answer> {
    let mut record = [0; RECORD];
    let received = recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut record)],
        &mut RecvAncillaryBuffer::default(),
        RecvFlags::CMSG_CLOEXEC,
    )?;
    match received.bytes {
        0 => Err(io::Error::new(io::ErrorKind::ConnectionReset, "it went away")),
        RECORD => Answer::decode(&record).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn wait_readable(channel: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    match poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        assert_eq!(asked(&question("0a1b")), Some("0a1b"));
        assert_eq!(asked(&question("")), None);
        assert_eq!(asked(&question(&"f".repeat(37))), None);
        for answer in [Answer::Enrolled, Answer::Refused("no room: 4096 pods".to_owned())] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
        let long = Answer::decode(&Answer::Refused("ä".repeat(RECORD)).encode());
        assert!(matches!(long, Some(Answer::Refused(reason)) if reason.len() > RECORD - 6));
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut record = question(&"f".repeat(36));
        for place in 0..RECORD {
            for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let before = std::mem::replace(&mut record[place], value);
                let _total = (asked(&record), Answer::decode(&record));
                record[place] = before;
            }
        }
        assert_eq!(asked(&[0xff; RECORD]), None);
    }
}
