//! The socket where the CNI plugin asks (`mesh_cni::agent`), and the file that it decides by.
//!
//! The runtime runs the plugin, as root, before any program of the pod: so the network namespace that it
//! passes is the pod's, and nobody has to look for it. It is held as long as the plugin waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_cni::agent::{Answer, asked};
use mesh_cni::install::Record;
use mesh_cni::{SOCKET, STATE, state};
use rustix::fs::{FileType, fcntl_get_seals, fstat};
use rustix::io::pread;
use rustix::net::{SocketFlags, accept_with, sockopt};

use crate::config::Config;
use crate::keeper::{channel, replace_seqpacket_listener};
use crate::sys::Netns;

/// Most plugins that wait at a time, as many as pods may start at once on a node. Others wait to be accepted.
const MOST: usize = 128;

/// Time after which a plugin that has not gone by itself is forgotten.
const PATIENCE: Duration = Duration::from_secs(30);

/// The listening socket and the plugins that wait. Without a plugin on this node there is no socket.
pub(crate) struct PluginServer {
    path: PathBuf,
    listener: Option<OwnedFd>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    channel: OwnedFd,
    since: Instant,
    /// The pod's uid and its namespace, once they are told.
    pod: Option<(String, Netns)>,
}

impl PluginServer {
    /// Creates one that does not listen yet.
    pub fn new(config: &Config) -> Self {
        Self { path: config.run_dir.join(SOCKET), listener: None, waiting: Vec::new() }
    }

    /// Listens, in place of a predecessor.
    pub fn listen(&mut self) {
        let listener = replace_seqpacket_listener(&self.path, 128).inspect_err(|error| {
            let path = self.path.display();
            tracing::error!(%path, %error, "the CNI plugin can't ask here: no pod of the mesh starts");
        });
        self.listener = listener.ok();
    }

    /// Stops listening. Plugins that wait ask again, whoever listens then.
    pub fn stop_listening(&mut self) {
        self.listener = None;
        self.waiting.clear();
    }

    /// Returns the descriptors to wait for.
    pub fn descriptors_to_poll(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = self.listener.iter().filter(|_| self.waiting.len() < MOST);
        listener.chain(self.waiting.iter().map(|it| &it.channel)).map(AsFd::as_fd)
    }

    /// Handles plugins that have come or gone. Returns the pods, by uid and cookie, that are asked for for
    /// the first time.
    pub fn receive_requests(&mut self) -> Vec<(String, u64)> {
        while let Some(channel) = self.accept() {
            self.waiting.push(Waiting { channel, since: Instant::now(), pod: None });
        }
        let mut new = Vec::new();
        self.waiting.retain_mut(|it| match channel::try_receive(&it.channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => it.since.elapsed() < PATIENCE,
            // A plugin asks only once.
            Ok(Some((record, mut beside))) if it.pod.is_none() && beside.len() == 1 => {
                let netns = beside.pop().map(Netns::of_descriptor);
                it.pod = asked(&record).map(str::to_owned).zip(netns.and_then(Result::ok));
                new.extend(it.pod.iter().map(|(uid, netns)| (uid.clone(), netns.cookie())));
                it.pod.is_some()
            }
            _ => false,
        });
        new
    }

    /// Accepts a plugin, if it has this process's user id, which is the node's root.
    fn accept(&self) -> Option<OwnedFd> {
        let listener = self.listener.as_ref().filter(|_| self.waiting.len() < MOST)?;
        loop {
            let channel = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
            let theirs = sockopt::socket_peercred(&channel).ok()?.uid;
            if theirs == rustix::process::geteuid() {
                return Some(channel);
            }
        }
    }

    /// Returns the namespace that the runtime says is a pod's: the last one if there are several, since those
    /// before it failed.
    pub fn netns_of(&self, uid: &str) -> Option<Netns> {
        let pods = self.waiting.iter().rev().filter_map(|it| it.pod.as_ref());
        let (_, netns) = pods.into_iter().find(|(it, _)| it == uid)?;
        Netns::of_descriptor(netns.as_fd().try_clone_to_owned().ok()?).ok()
    }

    /// Answers plugins whose pods are enrolled.
    pub fn answer_enrolled(&mut self, is_enrolled: impl Fn(&str, u64) -> bool) {
        self.waiting.retain(|it| {
            let enrolled = it.pod.as_ref().is_some_and(|(uid, netns)| is_enrolled(uid, netns.cookie()));
            !enrolled || channel::send(&it.channel, &Answer::Enrolled.encode(), &[]).is_err()
        });
    }

    /// Tells plugins that wait for a pod why it can't be in the mesh.
    pub fn answer_refused(&mut self, uid: &str, reason: &str) {
        let answer = Answer::Refused(reason.to_owned()).encode();
        self.waiting.retain(|it| {
            let theirs = it.pod.as_ref().is_some_and(|(it, _)| it == uid);
            !theirs || channel::send(&it.channel, &answer, &[]).is_err()
        });
    }
}

/// Writes the file that the plugin decides by. Its contents, like which pods are enrolled, are the proxy's
/// decision. They come in a memory file on which nobody can make this wait. Errors: it is no such file, or
/// too long; the file can't be written.
pub(crate) fn write_plugin_state(directory: &Path, memory: &OwnedFd, length: u32) -> io::Result<()> {
    let is_memory = FileType::from_raw_mode(fstat(memory)?.st_mode) == FileType::RegularFile
        && fcntl_get_seals(memory).is_ok();
    if !is_memory || u64::from(length) > state::LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = vec![0; length as usize];
    let read = pread(memory, &mut content, 0)?;
    content.truncate(read);
    // Where there is no plugin, nobody would remove the file again.
    if Record::read(directory).is_none() {
        return Ok(());
    }
    state::replace(&directory.join(STATE), &content)
}
