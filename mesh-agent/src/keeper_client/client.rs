//! The proxy's requests to the keeper about whole pods.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mesh_proxy::inheritance::{self, Bequest};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};

use super::asynchronous;
use super::fair_request_queue::{FairRequestQueue, QueueKey};
use crate::keeper::channel::{self, Message};
use crate::keeper::protocol::{self, Claim, InheritedKind, KeeperAnswer, KeeperRequest, RecordBytes};
use crate::sys::{Connection, PreexistingConnections};

/// The keeper, as the proxy sees it. Cheap to clone.
#[derive(Clone)]
pub struct KeeperClient {
    calls: mpsc::UnboundedSender<QueuedRequest>,
}

pub(super) struct QueuedRequest {
    pub request: KeeperRequest,
    /// A descriptor to send beside it.
    pub beside: Option<Arc<OwnedFd>>,
    pub answer: oneshot::Sender<AnswerWithFds>,
}

/// An answer and the descriptors beside it.
pub(super) type AnswerWithFds = (KeeperAnswer, Vec<OwnedFd>);

/// Result of asking for a pod.
pub enum EnrolResult {
    /// The pod is enrolled.
    Enrolled {
        /// The cookie of its network namespace, by which the keeper knows it from now on.
        netns: u64,
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// Whether its preexisting connections have been judged.
        preexisting_judged: bool,
        /// Its listeners: outbound, inbound, HBONE for each worker.
        listeners: Vec<TcpListener>,
    },
    /// It has no process in a network namespace of its own yet, or no address there.
    NotYet,
}

impl KeeperClient {
    /// Starts a task on the current runtime that follows a channel. If the keeper is gone the process ends.
    /// The receiver gets the uids of pods that moved: the runtime has made them a new network namespace.
    /// Errors: the channel can't be polled.
    pub fn start(channel: OwnedFd) -> io::Result<(Self, mpsc::UnboundedReceiver<String>)> {
        let channel = asynchronous(channel)?;
        let (calls, asked) = mpsc::unbounded_channel();
        let (tell, moved) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            if let Err(error) = follow(&channel, asked, &tell).await {
                tracing::error!(%error, "the keeper is gone");
                std::process::exit(1);
            }
        });
        Ok((Self { calls }, moved))
    }

    /// Enrols a pod. Errors: why it can't be enrolled, in words.
    pub async fn enrol_pod(&self, claim: Claim) -> Result<EnrolResult, String> {
        match self.ask(KeeperRequest::Enrol(claim)).await {
            (KeeperAnswer::Enrolled(netns, addresses, preexisting_judged), descriptors) => {
                let listeners = descriptors.into_iter().map(TcpListener::from).collect();
                Ok(EnrolResult::Enrolled { netns, addresses, preexisting_judged, listeners })
            }
            (KeeperAnswer::NotYet, _) => Ok(EnrolResult::NotYet),
            (answer, _) => Err(reason(answer)),
        }
    }

    /// Lets a pod go. Errors: why that failed, in words.
    pub async fn unenrol_pod(&self, netns: u64) -> Result<(), String> {
        self.done(KeeperRequest::Unenrol(netns)).await
    }

    /// Lets go every pod that was not asked for since this proxy started. Errors: why that failed, in words.
    pub async fn unenrol_unclaimed(&self) -> Result<(), String> {
        self.done(KeeperRequest::UnenrolUnclaimed).await
    }

    /// Tells that this proxy serves. Errors: why the keeper did not take over, in words.
    pub async fn report_ready(&self) -> Result<(), String> {
        self.done(KeeperRequest::Ready).await
    }

    /// Tells that nothing is to be left behind. Errors: why that failed, in words.
    pub async fn report_uninstalled(&self) -> Result<(), String> {
        self.done(KeeperRequest::Uninstalled).await
    }

    /// Has `length` bytes of a memory file written for the CNI plugin. Errors: why that failed, in words.
    pub async fn write_plugin_state(&self, memory: Arc<OwnedFd>, length: u32) -> Result<(), String> {
        match self.ask_with(KeeperRequest::WritePluginState(length), Some(memory)).await.0 {
            KeeperAnswer::Done => Ok(()),
            answer => Err(reason(answer)),
        }
    }

    /// Closes a connection of a pod. Returns whether there was one. Errors: why that failed, in words.
    pub async fn destroy_connection(&self, netns: u64, connection: Connection) -> Result<bool, String> {
        match self.ask(KeeperRequest::Destroy(netns, connection)).await.0 {
            KeeperAnswer::Done => Ok(true),
            KeeperAnswer::Gone => Ok(false),
            answer => Err(reason(answer)),
        }
    }

    /// Lists the connections of a pod that the mesh did not open. Errors: why that failed, in words.
    pub async fn list_preexisting(&self, netns: u64) -> Result<PreexistingConnections, String> {
        let (answer, descriptors) = self.ask(KeeperRequest::List(netns)).await;
        match (answer, descriptors.into_iter().next()) {
            (KeeperAnswer::Listed(count, more), Some(file)) => {
                let mut bytes = vec![0; protocol::encoded_preexisting_length(count)];
                File::from(file).read_exact(&mut bytes).map_err(|error| error.to_string())?;
                Ok(PreexistingConnections { found: protocol::decode_preexisting(&bytes), more })
            }
            (answer, _) => Err(reason(answer)),
        }
    }

    /// Lets a pod's first program run. Errors: why that failed, in words.
    pub async fn allow_pod_start(&self, netns: u64) -> Result<(), String> {
        self.done(KeeperRequest::LetStart(netns)).await
    }

    /// Tells that a pod's preexisting connections have been judged. Errors: why that failed, in words.
    pub async fn report_preexisting_judged(&self, netns: u64) -> Result<(), String> {
        self.done(KeeperRequest::PreexistingJudged(netns)).await
    }

    /// Leaves a file to the next proxy. Errors: why that failed, in words.
    pub async fn bequeath(&self, (what, file): Bequest) -> Result<(), String> {
        let what = match what {
            inheritance::InheritedKind::Certificates => InheritedKind::Certificates,
            inheritance::InheritedKind::Configuration => InheritedKind::Configuration,
        };
        match self.ask_with(KeeperRequest::Bequeath(what), file.map(Arc::new)).await.0 {
            KeeperAnswer::Done => Ok(()),
            answer => Err(reason(answer)),
        }
    }

    async fn done(&self, request: KeeperRequest) -> Result<(), String> {
        match self.ask(request).await.0 {
            KeeperAnswer::Done => Ok(()),
            answer => Err(reason(answer)),
        }
    }

    async fn ask(&self, request: KeeperRequest) -> AnswerWithFds {
        self.ask_with(request, None).await
    }

    async fn ask_with(&self, request: KeeperRequest, beside: Option<Arc<OwnedFd>>) -> AnswerWithFds {
        let (answer, answered) = oneshot::channel();
        // The other end lives as long as the runtime.
        let _stopping = self.calls.send(QueuedRequest { request, beside, answer });
        answered.await.unwrap_or_else(|_| (KeeperAnswer::Refused("stopping".to_owned()), Vec::new()))
    }
}

fn reason(answer: KeeperAnswer) -> String {
    match answer {
        KeeperAnswer::Refused(reason) => reason,
        answer => format!("the keeper answered {answer:?}"),
    }
}

/// Sends requests, and passes on answers, in any order, and news of pods that moved.
async fn follow(
    channel: &UnixDatagram,
    mut calls: mpsc::UnboundedReceiver<QueuedRequest>,
    moved: &mpsc::UnboundedSender<String>,
) -> io::Result<()> {
    let mut queue = FairRequestQueue::default();
    loop {
        while let Some((request_id, request, beside)) = queue.take_next_to_send() {
            let record = protocol::with_request_id(request.encode(), request_id);
            send_record(channel, &record, beside.as_deref()).await?;
        }
        tokio::select! {
            call = calls.recv() => match call {
                Some(call) => queue.push(QueueKey::of_request(&call.request), call),
                None => return Ok(()),
            },
            received = receive_message(channel) => {
                let (record, descriptors) = received?;
                match KeeperAnswer::decode(&record).ok_or(io::ErrorKind::InvalidData)? {
                    // The enroller may have stopped.
                    KeeperAnswer::Moved(uid) => drop(moved.send(uid)),
                    answer => {
                        let wait = queue.take_waiter(protocol::request_id(&record)).ok_or(io::ErrorKind::InvalidData)?;
                        // The caller may have stopped waiting.
                        let _unheard = wait.send((answer, descriptors));
                    }
                }
            }
        }
    }
}

pub(super) async fn send_request(channel: &UnixDatagram, request: &KeeperRequest) -> io::Result<()> {
    send_record(channel, &request.encode(), None).await
}

async fn send_record(
    channel: &UnixDatagram,
    record: &RecordBytes,
    beside: Option<&OwnedFd>,
) -> io::Result<()> {
    let beside: Vec<_> = beside.into_iter().map(AsFd::as_fd).collect();
    channel.async_io(Interest::WRITABLE, || channel::send(channel, record, &beside)).await
}

pub(super) async fn receive_message(channel: &UnixDatagram) -> io::Result<Message> {
    let message = channel.async_io(Interest::READABLE, || channel::try_receive(channel)).await?;
    message.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
}
