//! Asking the keeper for what is about pods as a whole.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};

use super::asynchronous;
use crate::keeper::channel::{self, Message};
use crate::keeper::protocol::{Answer, Claim, Request};
use crate::sys::Connection;

/// The keeper, as the proxy sees it. Cheap to copy.
#[derive(Clone)]
pub struct Keeper {
    calls: mpsc::UnboundedSender<Call>,
}

struct Call {
    request: Request,
    answer: oneshot::Sender<(Answer, Vec<OwnedFd>)>,
}

/// What came of asking for a pod.
pub enum Enrolled {
    /// It is in the mesh.
    Yes {
        /// The cookie of its network namespace, by which the keeper knows it from now on.
        netns: u64,
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// For each worker: outbound, inbound, HBONE.
        listeners: Vec<TcpListener>,
    },
    /// It has no process in a network namespace of its own yet, or no address there.
    NotYet,
}

impl Keeper {
    /// Follows a channel on the runtime that this is called on. When the keeper is gone the process ends.
    pub fn start(channel: OwnedFd) -> io::Result<Self> {
        let channel = asynchronous(channel)?;
        let (calls, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            if let Err(error) = follow(&channel, asked).await {
                tracing::error!(%error, "the keeper is gone");
                std::process::exit(1);
            }
        });
        Ok(Self { calls })
    }

    /// Has a pod taken into the mesh. Errors: the reason why it can't be.
    pub async fn enrol(&self, claim: Claim) -> Result<Enrolled, String> {
        match self.ask(Request::Enrol(claim)).await {
            (Answer::Enrolled(netns, addresses), descriptors) => {
                let listeners = descriptors.into_iter().map(TcpListener::from).collect();
                Ok(Enrolled::Yes { netns, addresses, listeners })
            }
            (Answer::NotYet, _) => Ok(Enrolled::NotYet),
            (answer, _) => Err(reason(answer)),
        }
    }

    /// Has a pod let go.
    pub async fn dismiss(&self, netns: u64) -> Result<(), String> {
        self.done(Request::Dismiss(netns)).await
    }

    /// Has every pod let go that was not asked for since this proxy started.
    pub async fn retain(&self) -> Result<(), String> {
        self.done(Request::Retain).await
    }

    /// Says that this proxy serves.
    pub async fn ready(&self) -> Result<(), String> {
        self.done(Request::Ready).await
    }

    /// Says that nothing is to be left behind.
    pub async fn uninstalled(&self) -> Result<(), String> {
        self.done(Request::Uninstalled).await
    }

    /// Has a connection of a pod closed. One that is closed already is as good.
    pub async fn destroy(&self, netns: u64, connection: Connection) -> Result<(), String> {
        self.done(Request::Destroy(netns, connection)).await
    }

    async fn done(&self, request: Request) -> Result<(), String> {
        match self.ask(request).await.0 {
            Answer::Done => Ok(()),
            answer => Err(reason(answer)),
        }
    }

    async fn ask(&self, request: Request) -> (Answer, Vec<OwnedFd>) {
        let (answer, answered) = oneshot::channel();
        // The other end lives as long as the runtime.
        let _stopping = self.calls.send(Call { request, answer });
        answered.await.unwrap_or_else(|_| (Answer::Refused("stopping".to_owned()), Vec::new()))
    }
}

fn reason(answer: Answer) -> String {
    match answer {
        Answer::Refused(reason) => reason,
        answer => format!("the keeper answered {answer:?}"),
    }
}

/// One call after another. Between them nothing comes but the end.
async fn follow(channel: &UnixDatagram, mut calls: mpsc::UnboundedReceiver<Call>) -> io::Result<()> {
    loop {
        let call = tokio::select! {
            call = calls.recv() => match call {
                Some(call) => call,
                None => return Ok(()),
            },
            unasked = receive(channel) => {
                unasked?;
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        send(channel, &call.request).await?;
        let (record, descriptors) = receive(channel).await?;
        let answer = Answer::decode(&record).ok_or(io::ErrorKind::InvalidData)?;
        // Who asked may have stopped waiting.
        let _unheard = call.answer.send((answer, descriptors));
    }
}

pub(super) async fn send(channel: &UnixDatagram, request: &Request) -> io::Result<()> {
    channel.async_io(Interest::WRITABLE, || channel::send(channel, &request.encode(), &[])).await
}

pub(super) async fn receive(channel: &UnixDatagram) -> io::Result<Message> {
    let message = channel.async_io(Interest::READABLE, || channel::receive(channel)).await?;
    message.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
}
