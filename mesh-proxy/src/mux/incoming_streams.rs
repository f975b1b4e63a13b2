//! The server's end of a connection.

use std::future::Future;
use std::io;
use std::rc::Rc;

use mesh_calm::FLOOD;
use rustls::server::UnbufferedServerConnection;
use tokio::task::spawn_local;

use super::connection_state::ConnectionState;
use super::driver::{CloseReason, ConnectionSide, Driver};
use super::frame::{ControlFrame, GoAwayReason, Refusal};
use super::open_frame::OpenFrame;
use super::pod_receive_budget::PodReceiveBudget;
use super::stream::{Stream, StreamError};
use crate::tls::TlsStream;

/// A connection on which a peer opens streams.
pub struct ServerConnection {
    tls: TlsStream<UnbufferedServerConnection>,
    budget: Rc<PodReceiveBudget>,
}

/// A stream that a peer asks for, neither accepted nor refused yet.
pub struct IncomingStream {
    /// Who connects to where.
    pub open: OpenFrame,
    pub(super) stream: Stream,
}

impl ServerConnection {
    /// Wraps a TLS session. Memory of its streams is taken from `budget`.
    pub fn new(tls: TlsStream<UnbufferedServerConnection>, budget: &Rc<PodReceiveBudget>) -> Self {
        Self { tls, budget: Rc::clone(budget) }
    }

    /// Serves the connection: spawns a task from `handle` for each stream. Once `drain` is over no new
    /// streams are taken, and the connection ends with its last stream. Errors: the connection broke; of kind
    /// [`FLOOD`] if the peer was cut off for a flood. Then `on_flood` runs at once, before the goodbye, which
    /// the peer can draw out.
    pub async fn serve<F>(
        self,
        drain: impl Future<Output = ()>,
        handle: impl Fn(IncomingStream) -> F,
        on_flood: impl FnOnce(),
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let shared = ConnectionState::new(&self.budget);
        let driver = Driver::new(self.tls, &shared, ConnectionSide::Server);
        let run = driver.run(|incoming| drop(spawn_local(handle(incoming))), on_flood);
        tokio::pin!(run);
        let over = tokio::select! {
            biased;
            over = &mut run => over,
            () = drain => {
                shared.closing.set(true);
                shared.queue_frame(&ControlFrame::GoAway(GoAwayReason::Draining, String::new()));
                run.await
            }
        };
        match over {
            CloseReason::Finished => Ok(()),
            CloseReason::Lost(error) => Err(error),
            CloseReason::Flood => Err(io::Error::new(FLOOD, CloseReason::Flood)),
            other => Err(io::Error::other(other)),
        }
    }
}

impl IncomingStream {
    /// Accepts the stream: from here on it carries raw bytes. Errors: it is over already; then the
    /// application must see nothing of it.
    pub fn into_accepted_stream(self) -> Result<Stream, StreamError> {
        self.stream.send_accept()?;
        Ok(self.stream)
    }

    /// Refuses the stream.
    pub fn refuse(self, refusal: Refusal) {
        self.stream.send_refuse(refusal);
    }
}
