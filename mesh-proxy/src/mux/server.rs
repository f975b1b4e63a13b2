//! The server's side of a connection.

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

/// A connection that a peer opens streams on.
pub struct Server {
    tls: TlsStream<UnbufferedServerConnection>,
    budget: Rc<Budget>,
}

/// A stream that a peer asks for, not answered yet.
pub struct IncomingStream {
    /// Who connects to where.
    pub open: OpenFrame,
    pub(super) stream: Stream,
}

impl Server {
    /// A connection over a TLS session. What its streams may hold is taken from `budget`.
    pub fn new(tls: TlsStream<UnbufferedServerConnection>, budget: &Rc<Budget>) -> Self {
        Self { tls, budget: Rc::clone(budget) }
    }

    /// Serves the connection: each stream gets a task of its own from `handle`. Once `drain` is over no new
    /// streams are taken and the connection ends with the last one.
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
    /// Accepts: from here on the stream carries the raw bytes. An error if it is over by now; the application
    /// is not to see anything of it, then.
    pub fn accept(self) -> Result<Stream, Broken> {
        self.stream.accept()?;
        Ok(self.stream)
    }

    /// Refuses.
    pub fn refuse(self, refusal: Refusal) {
        self.stream.refuse(refusal);
    }
}
