//! The client's end of a connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use rustls::client::UnbufferedClientConnection;
use tokio::task::spawn_local;

use super::autotuned_receive_window::ReceiveWindow;
use super::connection_state::ConnectionState;
use super::driver::{ConnectionSide, Driver};
use super::frame::{ControlFrame, Refusal};
use super::open_frame::{OpenFrame, TraceContext};
use super::pod_receive_budget::PodReceiveBudget;
use super::stream::{OpenAnswer, Stream, StreamError, StreamState};
use super::{EarlyData, MAX_STREAMS};
use crate::tls::TlsStream;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection is closed, closing or full; another one may do.
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
    shared: Rc<ConnectionState>,
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self::of(Rc::clone(&self.shared))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.handles.set(self.shared.handles.get() - 1);
        if self.shared.handles.get() == 0 {
            self.shared.wake_driver();
        }
    }
}

impl Connection {
    /// Starts a task that drives a TLS session; `ended` runs when the connection is over. Memory of its
    /// streams is taken from `budget`.
    pub fn start(
        tls: TlsStream<UnbufferedClientConnection>,
        budget: &Rc<PodReceiveBudget>,
        ended: impl FnOnce() + 'static,
    ) -> Self {
        let connection = Self::of(ConnectionState::new(budget));
        let driver = Driver::new(tls, &connection.shared, ConnectionSide::Client);
        spawn_local(async move {
            // A server opens no streams: the driver does not let it.
            let over = driver.run(drop, || {}).await;
            tracing::debug!(reason = %over, "mesh connection closed");
            ended();
        });
        connection
    }

    fn of(shared: Rc<ConnectionState>) -> Self {
        shared.handles.set(shared.handles.get() + 1);
        Self { shared }
    }

    /// Whether another stream fits.
    pub fn has_room(&self) -> bool {
        !self.shared.closing.get() && self.shared.stream_count() < MAX_STREAMS
    }

    /// Returns the number of open streams.
    pub fn stream_count(&self) -> usize {
        self.shared.stream_count()
    }

    /// Opens a stream and waits for the destination's answer. `early` is sent along, as far as there is
    /// credit. Errors: see [`OpenError`].
    ///
    /// `exposed` is set when the other end's application may have got early bytes and it is not known what
    /// became of the stream: then nobody may send them again.
    pub async fn open_stream(
        &self,
        mut open: OpenFrame,
        early: EarlyData<'_>,
        exposed: &Cell<bool>,
    ) -> Result<Stream, OpenError> {
        let shared = &self.shared;
        let next = shared.last_stream.get().checked_add(1).filter(|_| !shared.closing.get());
        let id = next.ok_or_else(|| OpenError::Connection("closing".into()))?;
        shared.last_stream.set(id);
        let window = ReceiveWindow::for_outgoing(&shared.budget);
        open.credit = window.whole_credit_for_open();
        let state = StreamState::new_outgoing(id, window);
        shared.insert_stream(&state);
        shared.queue_frame(&ControlFrame::Open(id, open));
        let mut unanswered = Unanswered { shared, heard: shared.heard.get(), answered: false };
        let mut stream = Stream::new(state, Rc::clone(shared));
        let mut early = Some(early);
        let answer = poll_fn(|context| {
            let broken = stream.poll_stream_error(context);
            // First: a stream that was accepted and then broke must not be opened again.
            if let Some(answer) = stream.state.answer.get() {
                return Poll::Ready(Ok(answer));
            }
            if let Some(broken) = broken {
                return Poll::Ready(Err(broken));
            }
            if let Some(sending) = early
                && stream.poll_send_early_data(sending, context).is_ready()
            {
                early = None;
                exposed.set(stream.sent_data_with_open());
            }
            Poll::Pending
        });
        let answer = answer.await;
        unanswered.answered = true;
        if !matches!(answer, Err(StreamError::Lost(_))) {
            exposed.set(false);
        }
        let refusal = match answer {
            Ok(OpenAnswer::Accepted) => return Ok(stream),
            Ok(OpenAnswer::Refused(refusal)) => refusal,
            Err(broken @ (StreamError::Lost(_) | StreamError::Gone(_))) => {
                return Err(OpenError::Connection(broken.to_string().into()));
            }
            Err(StreamError::Reset(_) | StreamError::Socket(_)) => return Err(OpenError::Unavailable),
        };
        stream.suppress_reset();
        Err(match refusal {
            Refusal::Denied => OpenError::Denied,
            Refusal::Unavailable => OpenError::Unavailable,
            Refusal::Busy | Refusal::GoingAway => {
                shared.closing.set(true);
                OpenError::Connection(format!("{refusal:?}").into())
            }
            Refusal::BadRequest | Refusal::Other(_) => OpenError::Refused(refusal),
        })
    }
}

/// A stream that waits for its answer. If the caller gives up and nothing at all was received meanwhile, no
/// new streams go on the connection. Open ones go on, if it still lives.
struct Unanswered<'a> {
    shared: &'a ConnectionState,
    heard: u32,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered && self.shared.heard.get() == self.heard {
            self.shared.closing.set(true);
        }
    }
}

/// Builds an OPEN frame without credit, with a new trace.
pub fn traced_open_frame(source: SocketAddr, destination: SocketAddr, host: Option<&str>) -> OpenFrame {
    OpenFrame {
        host: host.map(str::to_owned),
        trace: Some(new_trace()),
        ..OpenFrame::new(source, destination)
    }
}

/// Returns a trace that nothing records. An id of zeros would be invalid.
fn new_trace() -> TraceContext {
    let (id, parent) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    TraceContext { id: id.to_be_bytes(), parent: parent.to_be_bytes(), flags: 0 }
}
