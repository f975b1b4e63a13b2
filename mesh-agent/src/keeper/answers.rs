//! Answers the proxy's requests: at once, or by an errand where a pod has a say in how long it takes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Signal;

use super::pods::{Error, Found};
use super::protocol::{self, Claim, KeeperAnswer, KeeperRequest};
use super::serve::{Keeper, State};
use super::{Failure, channel};
use crate::cni::server;
use crate::sys::{self, PreexistingConnections};

/// Who asked: a proxy, by its process id and channel, and the request's ticket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    proxy: u32,
    channel: usize,
    ticket: u32,
}

/// A finished errand, and who asked for it.
pub(super) type Done = (Asked, End);

/// Result of an errand.
pub(super) enum End {
    Found(Claim, Found),
    Closed(Result<bool, Error>),
    Listed(Result<PreexistingConnections, Error>),
}

/// An answer and the descriptors beside it.
type Reply = (KeeperAnswer, Vec<OwnedFd>);

/// A reply, or none yet while an errand runs. Errors: why it can't be done.
type Replied = Result<Option<Reply>, Failure>;

impl Keeper {
    /// Answers one request of the proxy. A proxy that sends an invalid request is not to be trusted with
    /// anything: it is killed, and another one is started.
    pub(super) fn answer(&mut self, index: usize) {
        let Some(process) = &mut self.process else { return };
        let Some(received) = process.channel(index).map(channel::receive) else { return };
        let proxy = process.id();
        let request = match received {
            // The proxy is ending, which is handled elsewhere.
            Ok(None) => return process.forget_channel(index),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(Some((record, beside))) => {
                let asked = Asked { proxy, channel: index, ticket: protocol::ticket(&record) };
                KeeperRequest::decode(&record)
                    .map(|request| (asked, request, beside))
                    .ok_or(io::ErrorKind::InvalidData.into())
            }
            Err(error) => Err(error),
        };
        let answered = request.and_then(|(asked, request, beside)| {
            self.act(request, beside, asked).transpose().map_or(Ok(()), |reply| self.reply(asked, reply))
        });
        self.end_unless(answered);
    }

    /// Answers the requests whose errands are done.
    pub(super) fn answer_errands(&mut self) {
        for (asked, end) in self.errands.done() {
            if self.process.as_ref().is_some_and(|process| process.id() == asked.proxy) {
                let reply = self.conclude(end);
                let answered = self.reply(asked, reply);
                self.end_unless(answered);
            }
        }
    }

    fn end_unless(&self, answered: io::Result<()>) {
        if let (Err(error), Some(process)) = (answered, &self.process) {
            tracing::error!(%error, "the proxy asks for what is no request, or hears no answers: ending it");
            process.signal(Signal::KILL);
        }
    }

    fn reply(&self, asked: Asked, reply: Result<Reply, Failure>) -> io::Result<()> {
        let refused = |error: Failure| (KeeperAnswer::Refused(error.to_string()), Vec::new());
        let (answer, descriptors) = reply.unwrap_or_else(refused);
        let beside = match &answer {
            KeeperAnswer::Enrolled(pod, ..) => self.pods.listeners(*pod),
            _ => descriptors.iter().map(AsFd::as_fd).collect(),
        };
        let record = protocol::with_ticket(answer.encode(), asked.ticket);
        let channel = self.process.as_ref().and_then(|process| process.channel(asked.channel));
        match channel::send(channel.ok_or(io::ErrorKind::NotConnected)?, &record, &beside) {
            // The proxy has ended, which is handled elsewhere.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    /// Does what a request asks for, or starts an errand: then there is no reply yet. Errors: why it can't be
    /// done, which the proxy is told.
    fn act(&mut self, request: KeeperRequest, given: Vec<OwnedFd>, asked: Asked) -> Replied {
        self.back_off.worked_once = true;
        let mut sockets = Vec::new();
        match request {
            KeeperRequest::Sockets(pod, kind, count) => {
                sockets = self.pods.sockets(pod, kind, count)?.into_iter().map(OwnedFd::from).collect();
            }
            _ if self.state == State::Relieved => return Err("another keeper decides now".into()),
            KeeperRequest::Enrol(claim) => {
                let search = self.pods.search(&claim, self.plugin_server.netns_of(&claim.uid));
                let uid = claim.uid.clone();
                return self.run_errand(&uid, asked, move || End::Found(claim, search()));
            }
            KeeperRequest::Destroy(pod, connection) => {
                let (uid, netns) = self.pods.place(pod)?;
                let close = move || sys::destroy(&netns, &connection);
                return self.run_errand(uid, asked, move || End::Closed(close().map_err(Error::from)));
            }
            KeeperRequest::List(pod) => {
                let ((uid, netns), ours) = (self.pods.place(pod)?, self.pods.own_cgroup()?);
                let list = move || sys::preexisting_connections(&netns, ours);
                return self.run_errand(uid, asked, move || End::Listed(list().map_err(Error::from)));
            }
            KeeperRequest::Settled(pod) => self.pods.settle(pod)?,
            KeeperRequest::LetStart(pod) => {
                self.pods.let_start(pod)?;
                self.let_in();
            }
            KeeperRequest::Dismiss(pod) => self.pods.dismiss(pod)?,
            KeeperRequest::DismissUnclaimed => self.pods.dismiss_unclaimed()?,
            KeeperRequest::Ready => self.proxy_is_ready()?,
            KeeperRequest::Uninstalled => self.uninstalled = true,
            KeeperRequest::Bequeath(what) => self.estate.hold(what, given.into_iter().next())?,
            KeeperRequest::WritePluginConfig(length) => {
                if let (Some(directory), Some(memory)) = (&self.config.cni_state_dir, given.first()) {
                    server::write_plugin_config(directory, memory, length)?;
                }
            }
        }
        Ok(Some((KeeperAnswer::Done, sockets)))
    }

    fn run_errand(&self, uid: &str, asked: Asked, work: impl FnOnce() -> End + Send + 'static) -> Replied {
        self.errands.put(uid, move || (asked, work()))?;
        Ok(None)
    }

    fn conclude(&mut self, end: End) -> Result<Reply, Failure> {
        let answer = match end {
            End::Found(claim, found) => self.enrol(&claim, found)?,
            End::Closed(Ok(true)) => KeeperAnswer::Done,
            End::Closed(Ok(false)) => KeeperAnswer::Gone,
            End::Closed(Err(error)) => return Err(error.into()),
            End::Listed(left) => return list(&left?),
        };
        Ok((answer, Vec::new()))
    }

    fn enrol(&mut self, claim: &Claim, found: Found) -> Result<KeeperAnswer, Failure> {
        if self.state != State::Serving {
            // Nobody would accept connections from its listeners.
            return Ok(KeeperAnswer::NotYet);
        }
        self.untidy = true;
        self.follow_predecessor();
        // While another keeper decides, that one takes pods in.
        let enrolled = self.pods.enrol(claim, found, self.predecessor.is_some());
        if let Err(error) = &enrolled {
            self.plugin_server.refuse(&claim.uid, &error.to_string());
        }
        Ok(enrolled?)
    }
}

/// Writes a list, which is longer than a record, into a memory file for the proxy. Errors: there is no
/// memory.
fn list(left: &PreexistingConnections) -> Result<Reply, Failure> {
    let file = File::from(memfd_create("leftovers", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&protocol::write_preexisting(&left.found), 0)?;
    let count = u32::try_from(left.found.len())?;
    Ok((KeeperAnswer::Listed(count, left.more), vec![file.into()]))
}
