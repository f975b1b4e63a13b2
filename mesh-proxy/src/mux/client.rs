//! The client's end of a connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use rustls::client::UnbufferedClientConnection;
use tokio::task::spawn_local;

use super::driver::{Driver, Side};
use super::frame::{Frame, Refusal};
use super::link::Link;
use super::open::{OpenFrame, Trace};
use super::stream::{Answer, Broken, State, Stream};
use super::window::{Budget, Window};
use super::{Early, MAX_STREAMS};
use crate::tls::TlsStream;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection is closed or closing; another one may do.
    #[error("mesh connection: {0}")]
    Connection(Rc<str>),
    /// The destination's policy denies it.
    #[error("denied by the destination's policy")]
    Denied,
    /// The destination could not reach its application.
    #[error("destination unavailable")]
    Unavailable,
    /// The destination refused for another reason.
    #[error("refused by the destination ({0:?})")]
    Refused(Refusal),
}

/// A connection to one destination. It closes when the last handle and the last stream are gone.
pub struct Connection {
    link: Rc<Link>,
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self::of(Rc::clone(&self.link))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.handles.set(self.link.handles.get() - 1);
        if self.link.handles.get() == 0 {
            self.link.wake_driver();
        }
    }
}

impl Connection {
    /// Starts a task that drives a TLS session; `ended` runs when the connection is over. Memory of its
    /// streams is taken from `budget`.
    pub fn start(
        tls: TlsStream<UnbufferedClientConnection>,
        budget: &Rc<Budget>,
        ended: impl FnOnce() + 'static,
    ) -> Self {
        let connection = Self::of(Link::new(budget));
        let driver = Driver::new(tls, &connection.link, Side::Client);
        spawn_local(async move {
            // A server opens no streams: the driver does not let it.
            let over = driver.run(drop).await;
            tracing::debug!(reason = %over, "mesh connection closed");
            ended();
        });
        connection
    }

    fn of(link: Rc<Link>) -> Self {
        link.handles.set(link.handles.get() + 1);
        Self { link }
    }

    /// Whether another stream fits.
    pub fn has_room(&self) -> bool {
        !self.link.closing.get() && self.link.streams() < MAX_STREAMS
    }

    /// Returns the number of open streams.
    pub fn streams(&self) -> usize {
        self.link.streams()
    }

    /// Opens a stream and waits for the destination's answer. `early` is sent along, as far as there is
    /// credit. Errors: see [`OpenError`].
    ///
    /// `exposed` is set when the other end's application may have got early bytes and it is not known what
    /// became of the stream: then nobody may send them again.
    pub async fn open(
        &self,
        mut open: OpenFrame,
        early: Early<'_>,
        exposed: &Cell<bool>,
    ) -> Result<Stream, OpenError> {
        let link = &self.link;
        let next = link.last_stream.get().checked_add(1).filter(|_| !link.closing.get());
        let id = next.ok_or_else(|| OpenError::Connection("closing".into()))?;
        link.last_stream.set(id);
        let window = Window::opening(&link.budget);
        open.credit = window.size();
        let state = State::opening(id, window);
        link.add(&state);
        link.send(&Frame::Open(id, open));
        let mut unanswered = Unanswered { link, heard: link.heard.get(), answered: false };
        let mut stream = Stream::new(state, Rc::clone(link));
        let mut early = Some(early);
        let answer = poll_fn(|context| {
            let broken = stream.poll_broken(context);
            // First: a stream that was accepted and then broke must not be opened again.
            if let Some(answer) = stream.state.answer.get() {
                return Poll::Ready(Ok(answer));
            }
            if let Some(broken) = broken {
                return Poll::Ready(Err(broken));
            }
            if let Some(sending) = early
                && stream.poll_send_early(sending, context).is_ready()
            {
                early = None;
                exposed.set(stream.is_exposed());
            }
            Poll::Pending
        });
        let answer = answer.await;
        unanswered.answered = true;
        if !matches!(answer, Err(Broken::Lost(_))) {
            exposed.set(false);
        }
        let refusal = match answer {
            Ok(Answer::Accepted) => return Ok(stream),
            Ok(Answer::Refused(refusal)) => refusal,
            Err(broken @ (Broken::Lost(_) | Broken::Gone(_))) => {
                return Err(OpenError::Connection(broken.to_string().into()));
            }
            Err(Broken::Reset(_) | Broken::Socket(_)) => return Err(OpenError::Unavailable),
        };
        stream.finish();
        Err(match refusal {
            Refusal::Denied => OpenError::Denied,
            Refusal::Unavailable => OpenError::Unavailable,
            Refusal::Busy | Refusal::GoingAway => {
                link.closing.set(true);
                OpenError::Connection(format!("{refusal:?}").into())
            }
            Refusal::BadRequest | Refusal::Other(_) => OpenError::Refused(refusal),
        })
    }
}

/// A stream that waits for its answer. If the caller gives up and nothing at all was received meanwhile, no
/// new streams go on the connection. Open ones go on, if it still lives.
struct Unanswered<'a> {
    link: &'a Link,
    heard: u32,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered && self.link.heard.get() == self.heard {
            self.link.closing.set(true);
        }
    }
}

/// Builds an OPEN frame without credit, with a new trace.
pub fn open_frame(source: SocketAddr, destination: SocketAddr, host: Option<&str>) -> OpenFrame {
    OpenFrame {
        host: host.map(str::to_owned),
        trace: Some(new_trace()),
        ..OpenFrame::new(source, destination)
    }
}

/// Returns a trace that nothing records. An id of zeros would be invalid.
fn new_trace() -> Trace {
    let (id, parent) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    Trace { id: id.to_be_bytes(), parent: parent.to_be_bytes(), flags: 0 }
}
