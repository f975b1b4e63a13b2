//! Answers the proxy's requests: at once, or by a task where a pod has a say in how long it takes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Signal;

use super::event_loop::{Keeper, Phase};
use super::pods::{Error, FoundSandbox};
use super::protocol::{self, Claim, KeeperAnswer, KeeperRequest};
use super::{Failure, channel};
use crate::cni::plugin_server::write_plugin_state;
use crate::sys::{self, PreexistingConnections};

/// Who asked: a proxy, by its process id and channel, and the id of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyTo {
    proxy: u32,
    channel: usize,
    request_id: u32,
}

/// A finished task, and who asked for it.
pub(super) type FinishedTask = (ReplyTo, TaskResult);

/// Result of a task.
pub(super) enum TaskResult {
    Found(Claim, FoundSandbox),
    Closed(Result<bool, Error>),
    Listed(Result<PreexistingConnections, Error>),
}

/// An answer and the descriptors beside it.
type Reply = (KeeperAnswer, Vec<OwnedFd>);

/// A reply, or none yet while a task runs. Errors: why it can't be done.
type Replied = Result<Option<Reply>, Failure>;

impl Keeper {
    /// Answers one request of the proxy. A proxy that sends an invalid request is not to be trusted with
    /// anything: it is killed, and another one is started.
    pub(super) fn answer_proxy(&mut self, index: usize) {
        let Some(process) = &mut self.process else { return };
        let Some(received) = process.channel_at(index).map(channel::try_receive) else { return };
        let proxy = process.pid();
        let request = match received {
            // The proxy is ending, which is handled elsewhere.
            Ok(None) => return process.handle_closed_channel(index),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(Some((record, beside))) => {
                let to = ReplyTo { proxy, channel: index, request_id: protocol::request_id(&record) };
                KeeperRequest::decode(&record)
                    .map(|request| (to, request, beside))
                    .ok_or(io::ErrorKind::InvalidData.into())
            }
            Err(error) => Err(error),
        };
        let answered = request.and_then(|(to, request, beside)| {
            self.act(request, beside, to).transpose().map_or(Ok(()), |reply| self.reply(to, reply))
        });
        self.end_unless(answered);
    }

    /// Answers the requests whose tasks are done.
    pub(super) fn answer_finished_tasks(&mut self) {
        for (to, end) in self.tasks.take_finished() {
            if self.process.as_ref().is_some_and(|process| process.pid() == to.proxy) {
                let reply = self.conclude(end);
                let answered = self.reply(to, reply);
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

    fn reply(&self, to: ReplyTo, reply: Result<Reply, Failure>) -> io::Result<()> {
        let refused = |error: Failure| (KeeperAnswer::Refused(error.to_string()), Vec::new());
        let (answer, descriptors) = reply.unwrap_or_else(refused);
        let beside = match &answer {
            KeeperAnswer::Enrolled(pod, ..) => self.pods.listeners_of_pod(*pod),
            _ => descriptors.iter().map(AsFd::as_fd).collect(),
        };
        let record = protocol::with_request_id(answer.encode(), to.request_id);
        let channel = self.process.as_ref().and_then(|process| process.channel_at(to.channel));
        match channel::send(channel.ok_or(io::ErrorKind::NotConnected)?, &record, &beside) {
            // The proxy has ended, which is handled elsewhere.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    /// Does what a request asks for, or starts a task: then there is no reply yet. Errors: why it can't be
    /// done, which the proxy is told.
    fn act(&mut self, request: KeeperRequest, given: Vec<OwnedFd>, to: ReplyTo) -> Replied {
        self.back_off.worked_once = true;
        let mut sockets = Vec::new();
        match request {
            KeeperRequest::Sockets(pod, kind, count) => {
                sockets = self.pods.open_sockets(pod, kind, count)?.into_iter().map(OwnedFd::from).collect();
            }
            _ if self.phase == Phase::Relieved => return Err("another keeper decides now".into()),
            KeeperRequest::Enrol(claim) => {
                let search = self.pods.sandbox_search_task(&claim, self.plugin_server.netns_of(&claim.uid));
                let uid = claim.uid.clone();
                return self.queue(&uid, to, move || TaskResult::Found(claim, search()));
            }
            KeeperRequest::Destroy(pod, connection) => {
                let (uid, netns) = self.pods.uid_and_netns(pod)?;
                let close = move || sys::destroy_connection(&netns, &connection);
                return self.queue(uid, to, move || TaskResult::Closed(close().map_err(Error::from)));
            }
            KeeperRequest::List(pod) => {
                let ((uid, netns), ours) = (self.pods.uid_and_netns(pod)?, self.pods.own_cgroup_id()?);
                let list = move || sys::list_preexisting_connections(&netns, ours);
                return self.queue(uid, to, move || TaskResult::Listed(list().map_err(Error::from)));
            }
            KeeperRequest::PreexistingJudged(pod) => self.pods.mark_preexisting_judged(pod)?,
            KeeperRequest::LetStart(pod) => {
                self.pods.allow_pod_start(pod)?;
                self.answer_waiting_plugins();
            }
            KeeperRequest::Unenrol(pod) => self.pods.unenrol(pod)?,
            KeeperRequest::UnenrolUnclaimed => self.pods.unenrol_unclaimed()?,
            KeeperRequest::Ready => self.handle_proxy_ready()?,
            KeeperRequest::Uninstalled => self.uninstalled = true,
            KeeperRequest::Bequeath(what) => self.inherited.replace_file(what, given.into_iter().next())?,
            KeeperRequest::WritePluginState(length) => {
                if let (Some(directory), Some(memory)) = (&self.config.cni_state_dir, given.first()) {
                    write_plugin_state(directory, memory, length)?;
                }
            }
        }
        Ok(Some((KeeperAnswer::Done, sockets)))
    }

    fn queue(&self, uid: &str, to: ReplyTo, work: impl FnOnce() -> TaskResult + Send + 'static) -> Replied {
        self.tasks.queue(uid, move || (to, work()))?;
        Ok(None)
    }

    fn conclude(&mut self, end: TaskResult) -> Result<Reply, Failure> {
        let answer = match end {
            TaskResult::Found(claim, found) => self.enrol(&claim, found)?,
            TaskResult::Closed(Ok(true)) => KeeperAnswer::Done,
            TaskResult::Closed(Ok(false)) => KeeperAnswer::Gone,
            TaskResult::Closed(Err(error)) => return Err(error.into()),
            TaskResult::Listed(left) => return list(&left?),
        };
        Ok((answer, Vec::new()))
    }

    fn enrol(&mut self, claim: &Claim, found: FoundSandbox) -> Result<KeeperAnswer, Failure> {
        if self.phase != Phase::Serving {
            // Nobody would accept connections from its listeners.
            return Ok(KeeperAnswer::NotYet);
        }
        self.untidy = true;
        self.take_over_new_pods();
        // While another keeper decides, that one takes pods in.
        let enrolled = self.pods.enrol(claim, found, self.predecessor.is_some());
        if let Err(error) = &enrolled {
            self.plugin_server.answer_refused(&claim.uid, &error.to_string());
        }
        Ok(enrolled?)
    }
}

/// Writes a list, which is longer than a record, into a memory file for the proxy. Errors: there is no
/// memory.
fn list(left: &PreexistingConnections) -> Result<Reply, Failure> {
    let file = File::from(memfd_create("leftovers", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&protocol::encode_preexisting(&left.found), 0)?;
    let count = u32::try_from(left.found.len())?;
    Ok((KeeperAnswer::Listed(count, left.more), vec![file.into()]))
}
