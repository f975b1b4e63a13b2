//! Where the CNI plugin asks (`mesh_cni::agent`), and what it decides by.
//!
//! The runtime runs the plugin, as root, before any program of the pod: so the network namespace that it
//! hands over is the pod's, and nobody has to look for it. It is held for as long as the plugin waits.

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
use crate::keeper::{channel, listen_at};
use crate::sys::Netns;

/// Plugins that wait at a time: as many as a node may have pods start at once. Others wait to be let in.
const MOST: usize = 128;

/// One that has not gone by itself after this is forgotten.
const PATIENCE: Duration = Duration::from_secs(30);

/// The socket, and who waits there. Without a plugin on this node there is none.
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
    /// A closed one.
    pub fn new(config: &Config) -> Self {
        Self { path: config.run_dir.join(SOCKET), listener: None, waiting: Vec::new() }
    }

    /// Opens it, in place of a predecessor's.
    pub fn open(&mut self) {
        let listener = listen_at(&self.path, 128).inspect_err(|error| {
            let path = self.path.display();
            tracing::error!(%path, %error, "the CNI plugin can't ask here: no pod of the mesh starts");
        });
        self.listener = listener.ok();
    }

    /// Closes it. Those who wait ask again, whoever is there then.
    pub fn close(&mut self) {
        self.listener = None;
        self.waiting.clear();
    }

    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = self.listener.iter().filter(|_| self.waiting.len() < MOST);
        listener.chain(self.waiting.iter().map(|it| &it.channel)).map(AsFd::as_fd)
    }

    /// Hears who has come and who has gone; the pods, by uid and cookie, that are told of for the first time.
    pub fn hear(&mut self) -> Vec<(String, u64)> {
        while let Some(channel) = self.accept() {
            self.waiting.push(Waiting { channel, since: Instant::now(), pod: None });
        }
        let mut new = Vec::new();
        self.waiting.retain_mut(|it| match channel::receive(&it.channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => it.since.elapsed() < PATIENCE,
            // Nobody says more than once what he wants.
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

    /// Lets one in, if it is this user's, who is the node's root.
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

    /// The namespace that the runtime says is a pod's. The last one, if it says several: those before it
    /// failed.
    pub fn netns_of(&self, uid: &str) -> Option<Netns> {
        let pods = self.waiting.iter().rev().filter_map(|it| it.pod.as_ref());
        let (_, netns) = pods.into_iter().find(|(it, _)| it == uid)?;
        Netns::of_descriptor(netns.as_fd().try_clone_to_owned().ok()?).ok()
    }

    /// Answers those whose pods are in the mesh.
    pub fn let_in(&mut self, is_enrolled: impl Fn(&str, u64) -> bool) {
        self.waiting.retain(|it| {
            let enrolled = it.pod.as_ref().is_some_and(|(uid, netns)| is_enrolled(uid, netns.cookie()));
            !enrolled || channel::send(&it.channel, &Answer::Enrolled.encode(), &[]).is_err()
        });
    }

    /// Tells those who wait for a pod why it can't be in the mesh.
    pub fn refuse(&mut self, uid: &str, reason: &str) {
        let answer = Answer::Refused(reason.to_owned()).encode();
        self.waiting.retain(|it| {
            let theirs = it.pod.as_ref().is_some_and(|(it, _)| it == uid);
            !theirs || channel::send(&it.channel, &answer, &[]).is_err()
        });
    }
}

/// Writes what the plugin decides by. It is the proxy's to say, as is who is enrolled, and it comes in memory
/// that nobody can make this wait for. Errors: it is no such memory, or too much; the file can't be written.
pub(crate) fn write_plugin_config(directory: &Path, memory: &OwnedFd, length: u32) -> io::Result<()> {
    let is_memory = FileType::from_raw_mode(fstat(memory)?.st_mode) == FileType::RegularFile
        && fcntl_get_seals(memory).is_ok();
    if !is_memory || u64::from(length) > state::LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = vec![0; length as usize];
    let read = pread(memory, &mut content, 0)?;
    content.truncate(read);
    // Where there is no plugin, nobody would take it away again.
    if Record::read(directory).is_none() {
        return Ok(());
    }
    state::replace(&directory.join(STATE), &content)
}
