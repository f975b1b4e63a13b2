//! Connections to endpoints that requests share, each on a stream of its own. One pod's requests never go on
//! another's.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use mesh_calm::{Guarded, Role};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::window_shares::{StreamWindowShare, WindowShares};
use super::{DATA_OVERHEAD, MAX_FRAME, MAX_HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::http::upstream_connection::{ConnectionUse, ServicePortSlot, UpstreamConnection};
use crate::mux::PodReceiveBudget;

/// Time for the preface to be written.
const START_TIME: Duration = Duration::from_secs(10);
/// Time for a connection to close once it is of no use.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// How long a connection waits for a request unless its policy says otherwise. Whoever closes it says so
/// before.
const IDLE_TIME: Duration = Duration::from_mins(1);
/// Time without a stream, beyond that, after which nobody holds a connection any more.
const FORGOTTEN: Duration = Duration::from_mins(1);

/// A connection to an endpoint that requests share.
pub(in crate::http) struct Http2Connection {
    requests: SendRequest<Bytes>,
    state: Rc<ConnectionState>,
}

/// What its streams and the task that drives it share.
struct ConnectionState {
    /// Transport as the access log names it.
    transport: &'static str,
    /// The policy that allowed it, if it is this node's to know, and one had to.
    policy_that_allowed_it: Option<Arc<str>>,
    open_streams: Cell<usize>,
    /// When its last stream ended.
    idle_since: Cell<Instant>,
    /// How long it may have none.
    idle_time: Cell<Duration>,
    /// Streams that it had.
    begun_streams: Cell<u32>,
    is_over: Cell<bool>,
    /// Why policy ended it.
    revoked: RefCell<Option<String>>,
    /// Counts it against the service's limit while it has streams.
    slot: RefCell<Option<ServicePortSlot>>,
    /// Tells those who wait for room on a connection to the same endpoint.
    stream_ended: Rc<Notify>,
    shares: WindowShares,
}

/// A request on its way, and its response: one stream.
pub(in crate::http) struct UpstreamStream {
    pub send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    /// Once the head of the response has come.
    pub receive: Option<RecvStream>,
    pub counted: CountedStream,
}

/// That a connection has an open stream, until it is dropped.
pub(in crate::http) struct CountedStream {
    connection: Rc<ConnectionState>,
    _share: Option<StreamWindowShare>,
}

/// The head of a response, or what came instead.
pub(in crate::http) enum ResponseEvent {
    Interim(Response<()>),
    /// The head of the response, and whether nothing follows.
    Head(Response<()>, bool),
}

impl ConnectionState {
    /// Returns some seconds after the connection has lost its last stream and its use.
    async fn wait_until_left(&self) {
        let mut was_left = false;
        loop {
            tokio::time::sleep(CLOSE_TIME).await;
            let is_left = self.open_streams.get() == 0
                && (self.is_over.get() || self.has_idled(self.idle_time.get().saturating_add(FORGOTTEN)));
            if is_left && was_left {
                return;
            }
            was_left = is_left;
        }
    }

    fn has_idled(&self, time: Duration) -> bool {
        self.open_streams.get() == 0 && self.idle_since.get().elapsed() >= time
    }
}

impl Http2Connection {
    /// Starts HTTP/2 on a connection to an endpoint, and a task that drives it. What comes is held in
    /// `budget`; `stream_ended` is told of each stream's end. Errors: it is gone.
    pub async fn start(
        upstream: UpstreamConnection,
        slot: Option<ServicePortSlot>,
        budget: Rc<PodReceiveBudget>,
        stream_ended: Rc<Notify>,
    ) -> io::Result<Self> {
        let state = Rc::new(ConnectionState {
            transport: upstream.transport,
            policy_that_allowed_it: upstream.policy_that_allowed_it().cloned(),
            open_streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            idle_time: Cell::new(IDLE_TIME),
            begun_streams: Cell::new(0),
            is_over: Cell::new(false),
            revoked: RefCell::default(),
            slot: RefCell::new(slot),
            stream_ended,
            shares: WindowShares::new(budget),
        });
        let (stream, authorized) = upstream.into_stream();
        let handshake = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .data_frame_budget(DATA_OVERHEAD)
            .enable_push(false)
            .handshake::<_, Bytes>(Guarded::new(stream, Role::Client));
        let started = tokio::time::timeout(START_TIME, handshake).await;
        let started = started.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let (requests, mut connection) = started.map_err(io::Error::other)?;
        let driven = Rc::clone(&state);
        spawn_local(async move {
            let revoked = async {
                match &authorized {
                    Some(authorized) => authorized.wait_until_revoked().await.to_string(),
                    None => std::future::pending().await,
                }
            };
            let mut window = 0;
            let run = poll_fn(|context| {
                let wanted = driven.shares.connection_window();
                if wanted != std::mem::replace(&mut window, wanted) {
                    connection.set_target_window_size(wanted);
                }
                Pin::new(&mut connection).poll(context)
            });
            tokio::select! {
                biased;
                reason = revoked => *driven.revoked.borrow_mut() = Some(reason),
                ended = run => {
                    tracing::debug!(?ended, "HTTP/2 connection to an endpoint is over");
                }
                // An endpoint that does not read holds up the library's goodbye.
                () = driven.wait_until_left() => {}
            }
            driven.is_over.set(true);
            *driven.slot.borrow_mut() = None;
        });
        Ok(Self { requests, state })
    }

    /// Whether it takes another request.
    pub fn has_room(&self) -> bool {
        let most = self.requests.current_max_send_streams().min(MAX_STREAMS as usize);
        !self.is_over() && self.state.open_streams.get() < most && !self.has_failed()
    }

    /// Whether it takes no more requests, as is known before one is sent.
    fn has_failed(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let failed = matches!(self.requests.clone().poll_ready(&mut context), Poll::Ready(Err(_)));
        if failed {
            self.state.is_over.set(true);
        }
        failed
    }

    /// Whether it is closed, or about to be.
    pub fn is_over(&self) -> bool {
        self.state.is_over.get()
    }

    /// Whether it takes no more requests and has none.
    pub fn is_done(&self) -> bool {
        self.is_over() && self.state.open_streams.get() == 0
    }

    /// Whether it has no stream, and had none for longer than it may.
    pub fn is_idle_too_long(&self) -> bool {
        self.state.has_idled(self.state.idle_time.get())
    }

    /// Whether a slot below the service's limit has to be taken for another stream.
    pub fn needs_slot(&self) -> bool {
        self.state.open_streams.get() == 0
    }

    /// Counts another stream; `slot`, if one is needed, is held while there are any. After the last one that
    /// `usage` lets it have it takes no more.
    pub fn count_stream(&self, slot: Option<ServicePortSlot>, usage: ConnectionUse) -> CountedStream {
        if slot.is_some() {
            *self.state.slot.borrow_mut() = slot;
        }
        let state = &self.state;
        state.open_streams.set(state.open_streams.get() + 1);
        state.begun_streams.set(state.begun_streams.get().saturating_add(1));
        state.idle_time.set(usage.idle_timeout.unwrap_or(IDLE_TIME));
        if usage.most_requests.is_some_and(|most| state.begun_streams.get() >= most.get()) {
            state.is_over.set(true);
        }
        CountedStream { connection: Rc::clone(&self.state), _share: self.state.shares.try_take() }
    }

    /// Returns the means of sending a request on it.
    pub fn request_sender(&self) -> SendRequest<Bytes> {
        self.requests.clone()
    }
}

impl CountedStream {
    /// Sends the head of a request. `is_end` is whether nothing follows it. Errors: the connection takes no
    /// more requests.
    pub async fn send_request(
        self,
        requests: SendRequest<Bytes>,
        request: Request<()>,
        is_end: bool,
    ) -> Result<UpstreamStream, h2::Error> {
        let begun = async { requests.ready().await?.send_request(request, is_end) };
        match begun.await {
            Ok((response, send)) => {
                Ok(UpstreamStream { send, response: Some(response), receive: None, counted: self })
            }
            Err(error) => {
                self.mark_connection_over();
                Err(error)
            }
        }
    }

    /// Returns the transport as the access log names it.
    pub fn transport(&self) -> &'static str {
        self.connection.transport
    }

    /// Returns the policy that allowed the connection, if it is this node's to know, and one had to.
    pub fn policy_that_allowed_it(&self) -> Option<&Arc<str>> {
        self.connection.policy_that_allowed_it.as_ref()
    }

    /// Returns why policy ended the connection, if it did.
    pub fn revocation_reason(&self) -> Option<String> {
        self.connection.revoked.borrow().clone()
    }

    /// Notes that the connection takes no more requests.
    pub fn mark_connection_over(&self) {
        self.connection.is_over.set(true);
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        let left = self.connection.open_streams.get() - 1;
        self.connection.open_streams.set(left);
        if left == 0 {
            self.connection.idle_since.set(Instant::now());
            *self.connection.slot.borrow_mut() = None;
        }
        self.connection.stream_ended.notify_one();
    }
}

impl UpstreamStream {
    /// Waits for the head of the response. Errors: there is none.
    pub fn poll_response(&mut self, context: &mut Context<'_>) -> Poll<Result<ResponseEvent, h2::Error>> {
        let Some(response) = &mut self.response else { return Poll::Pending };
        if let Poll::Ready(Some(interim)) = response.poll_informational(context) {
            return Poll::Ready(interim.map(ResponseEvent::Interim));
        }
        let polled = Pin::new(response).poll(context);
        polled.map_ok(|response| {
            let (parts, receive) = response.into_parts();
            let is_end = receive.is_end_stream();
            self.receive = Some(receive);
            self.response = None;
            ResponseEvent::Head(Response::from_parts(parts, ()), is_end)
        })
    }

    /// Ends it: nobody waits for the rest any more.
    pub fn cancel(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// Whether the endpoint has not begun to work on a request that ended so (RFC 9113, 8.7): it refused the
/// stream, or closed the connection before it.
pub(in crate::http) fn was_refused(error: &h2::Error) -> bool {
    // Of a connection that the endpoint closes, only streams beyond its last one end so.
    error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away() && error.is_remote()
}
