//! One keeper takes over from another: the new version runs beside the old one, gets its pods and listeners
//! by descriptor, and starts a proxy of its own. Only when that serves it replaces programs and links, each
//! at once. So there is always an agent, and never two that decide.
//!
//! The new one asks and the old one answers, in records of the [`protocol`](super::protocol)'s size. Until it
//! is told that it is relieved the old one goes on; if the new one fails on the way, nothing has happened.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};

use super::admin_listeners::AdminListeners;
use super::channel::{self, Message};
use super::inherited_files::InheritedFiles;
use super::pods::{self, Pods};
use super::protocol::{Claim, Reader, RecordBytes, Writer};
use crate::config::Config;
use crate::sys::Netns;

/// Version of these records. A keeper with another one is not taken over from.
const VERSION: u16 = 1;

/// Timeout of an answer. The other keeper has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(5);

const HELLO: u8 = 1;
const NEXT: u8 = 2;
const RELIEVED: u8 = 3;
const OFFER: u8 = 11;
const POD: u8 = 12;
const END: u8 = 13;

/// Follows a pod's claim if its preexisting connections are not
/// [judged](super::protocol::KeeperRequest::PreexistingJudged). Older keepers say 0.
const UNJUDGED: u8 = 1;

/// The socket where a successor connects.
pub(super) struct HandoverSocket {
    path: PathBuf,
    listener: Option<OwnedFd>,
}

impl HandoverSocket {
    /// Returns the socket for these settings, not open yet; none if there is no directory for it. Its name is
    /// made of what only one agent uses: the node's cgroup and the directory of pins.
    pub fn from_config(config: &Config) -> Option<Self> {
        let place = || -> io::Result<PathBuf> {
            DirBuilder::new().recursive(true).mode(0o700).create(&config.run_dir)?;
            fs::create_dir_all(&config.bpf_root)?;
            let (cgroup, pins) = (fs::metadata(&config.cgroup_root)?, fs::metadata(&config.bpf_root)?);
            Ok(config.run_dir.join(format!("{}-{}.sock", cgroup.ino(), pins.ino())))
        };
        let path = place().inspect_err(|error| {
            let directory = config.run_dir.display();
            tracing::warn!(%directory, %error, "no agent can take over from another without a gap");
        });
        path.ok().map(|path| Self { path, listener: None })
    }

    /// Listens, in place of a predecessor.
    pub fn listen(&mut self) {
        let listener = replace_seqpacket_listener(&self.path, 1).inspect_err(|error| {
            let path = self.path.display();
            tracing::warn!(%path, %error, "no successor can take over from this agent without a gap");
        });
        self.listener = listener.ok();
    }

    /// Returns the descriptor to wait for.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Accepts a successor, if it has this process's user id.
    pub fn accept_successor(&self) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let channel = accept_with(self.listener.as_ref()?, flags).ok()?;
        let theirs = sockopt::socket_peercred(&channel).ok()?.uid;
        (theirs == rustix::process::geteuid()).then_some(channel)
    }
}

/// Listens at a path, in place of whoever does; `backlog` connections may wait.
pub(crate) fn replace_seqpacket_listener(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let fresh = path.with_extension(format!("{}", std::process::id()));
    let _left_behind = fs::remove_file(&fresh);
    let socket = seqpacket()?;
    bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
    listen(&socket, backlog)?;
    fs::rename(&fresh, path)?;
    Ok(socket)
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The keeper that is taken over from, as its successor sees it.
pub(super) struct Predecessor {
    channel: OwnedFd,
    /// Number of its workers.
    pub workers: u8,
    /// The node's own listeners.
    pub listeners: Vec<OwnedFd>,
    /// The files that its proxy has left.
    pub inherited: InheritedFiles,
}

impl Predecessor {
    /// Connects to the keeper that serves now, if there is one with the same version.
    pub fn connect(socket: &HandoverSocket) -> Option<Self> {
        let channel = seqpacket().ok()?;
        connect(&channel, &SocketAddrUnix::new(&socket.path).ok()?).ok()?;
        Self::greet(channel)
            .inspect_err(|error| tracing::warn!(%error, "the agent that runs here is not taken over from"))
            .ok()
    }

    fn greet(channel: OwnedFd) -> io::Result<Self> {
        let (offer, mut listeners) = ask(&channel, &Writer::new(HELLO).u16(VERSION).record)?;
        let mut from = Reader::of(&offer);
        match (from.u8(), from.u8()) {
            (Some(OFFER), Some(workers)) if workers > 0 => {
                // Behind the listeners, in reverse order. An older keeper has none.
                let mut file = || from.u8().filter(|there| *there != 0).and_then(|_| listeners.pop());
                let (config, certs) = (file(), file());
                Ok(Self { channel, workers, listeners, inherited: InheritedFiles::new(certs, config) })
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes over those of its pods that are not here yet. The proxy enrols any that can't be had. Errors: it
    /// is gone, or its answers are invalid.
    pub fn take_over_pods(&mut self, pods: &mut Pods) -> io::Result<()> {
        loop {
            let (record, descriptors) = ask(&self.channel, &Writer::new(NEXT).record)?;
            let mut from = Reader::of(&record);
            if from.u8() != Some(POD) {
                return Ok(());
            }
            let claim = Claim::decode(&mut from).ok_or(io::ErrorKind::InvalidData)?;
            let judged = from.u8() != Some(UNJUDGED);
            if let Err(error) = self.adopt(claim, judged, descriptors, pods) {
                tracing::warn!(%error, "a pod is not taken over with its listeners");
            }
        }
    }

    fn adopt(
        &self,
        claim: Claim,
        judged: bool,
        descriptors: Vec<OwnedFd>,
        pods: &mut Pods,
    ) -> Result<(), pods::Error> {
        // The namespace and, for each worker, three listeners.
        let mut descriptors = descriptors.into_iter();
        let netns = descriptors.next().filter(|_| descriptors.len() == 3 * usize::from(self.workers));
        let netns = Netns::of_descriptor(netns.ok_or(io::Error::from(io::ErrorKind::InvalidData))?)?;
        let cookie = pods.insert(claim, netns, descriptors.map(TcpListener::from).collect())?;
        // Its proxies' own connections must not be taken for preexisting ones.
        if judged { pods.mark_preexisting_judged(cookie) } else { Ok(()) }
    }

    /// Tells it that it is relieved.
    pub fn send_relieved(&self) {
        if let Err(error) = channel::send(&self.channel, &Writer::new(RELIEVED).record, &[]) {
            tracing::warn!(%error, "the predecessor ended before it was relieved");
        }
    }
}

fn ask(channel: &OwnedFd, record: &RecordBytes) -> io::Result<Message> {
    channel::send(channel, record, &[])?;
    channel::receive_with_timeout(channel, PATIENCE)
}

/// The keeper that is taking over, as its predecessor sees it.
pub(super) struct Successor {
    channel: OwnedFd,
    /// Pods that it has got. More may be enrolled while it starts.
    got: BTreeSet<u64>,
}

impl Successor {
    /// Wraps an accepted connection.
    pub fn new(channel: OwnedFd) -> Self {
        Self { channel, got: BTreeSet::new() }
    }

    /// Answers a request. Returns whether it has taken over. Errors: it is gone, or the request is invalid.
    pub fn answer_next_request(
        &mut self,
        pods: &Pods,
        node: &AdminListeners,
        files: &InheritedFiles,
    ) -> io::Result<bool> {
        let record = match channel::try_receive(&self.channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            received => received?.ok_or(io::ErrorKind::ConnectionReset)?.0,
        };
        let mut from = Reader::of(&record);
        match (from.u8(), from.u16()) {
            (Some(HELLO), Some(VERSION)) => {
                let files = files.descriptors();
                let offer = Writer::new(OFFER).u8(pods.workers);
                let offer = files.iter().rev().fold(offer, |to, file| to.u8(file.is_some().into()));
                let mut descriptors = node.descriptors();
                descriptors.extend(files.into_iter().flatten());
                channel::send(&self.channel, &offer.record, &descriptors).map(|()| false)
            }
            (Some(NEXT), _) => self.give_next(pods).map(|()| false),
            (Some(RELIEVED), _) => Ok(true),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn give_next(&mut self, pods: &Pods) -> io::Result<()> {
        let Some((cookie, pod)) = pods.iter().find(|(cookie, _)| !self.got.contains(cookie)) else {
            return channel::send(&self.channel, &Writer::new(END).record, &[]);
        };
        self.got.insert(cookie);
        let mut descriptors = vec![pod.netns.as_fd()];
        descriptors.extend(pod.listeners.iter().map(AsFd::as_fd));
        let unjudged = if pods.programs.is_preexisting_judged(cookie) { 0 } else { UNJUDGED };
        channel::send(&self.channel, &pod.claim.encode(Writer::new(POD)).u8(unjudged).record, &descriptors)
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
