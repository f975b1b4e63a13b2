//! The server's end of a connection.

use std::future::Future;
use std::io;
use std::rc::Rc;

use rustls::server::UnbufferedServerConnection;
use tokio::task::spawn_local;

use super::driver::{Driver, Over, Side};
use super::frame::{Frame, Goodbye, Refusal};
use super::link::Link;
use super::open::OpenFrame;
use super::stream::{Broken, Stream};
use super::window::Budget;
use crate::tls::TlsStream;

/// A connection on which a peer opens streams.
pub struct Server {
    tls: TlsStream<UnbufferedServerConnection>,
    budget: Rc<Budget>,
}

/// A stream that a peer asks for, neither accepted nor refused yet.
pub struct IncomingStream {
    /// Who connects to where.
    pub open: OpenFrame,
    pub(super) stream: Stream,
}

impl Server {
    /// Wraps a TLS session. Memory of its streams is taken from `budget`.
    pub fn new(tls: TlsStream<UnbufferedServerConnection>, budget: &Rc<Budget>) -> Self {
        Self { tls, budget: Rc::clone(budget) }
    }

    /// Serves the connection: spawns a task from `handle` for each stream. Once `drain` is over no new
    /// streams are taken, and the connection ends with its last stream. Errors: the connection broke.
    pub async fn serve<F>(
        self,
        drain: impl Future<Output = ()>,
        handle: impl Fn(IncomingStream) -> F,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let link = Link::new(&self.budget);
        let driver = Driver::new(self.tls, &link, Side::Server);
        let run = driver.run(|incoming| drop(spawn_local(handle(incoming))));
        tokio::pin!(run);
        let over = tokio::select! {
            biased;
            over = &mut run => over,
            () = drain => {
                link.closing.set(true);
                link.send(&Frame::GoAway(Goodbye::Draining, String::new()));
                run.await
            }
        };
        match over {
            Over::Finished => Ok(()),
            Over::Lost(error) => Err(error),
            other => Err(io::Error::other(other)),
        }
    }
}

impl IncomingStream {
    /// Accepts the stream: from here on it carries raw bytes. Errors: it is over already; then the
    /// application must see nothing of it.
    pub fn accept(self) -> Result<Stream, Broken> {
        self.stream.accept()?;
        Ok(self.stream)
    }

    /// Refuses the stream.
    pub fn refuse(self, refusal: Refusal) {
        self.stream.refuse(refusal);
    }
}
