//! One stream of a connection: its state, and the handle of the task that owns it.

mod io_traits;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::autotuned_receive_window::ReceiveWindow;
use super::connection_state::ConnectionState;
use super::frame::{ControlFrame, Refusal, ResetReason};
use super::{EARLY_CREDIT, EarlyData};
use crate::relay::{ByteMeter, RelayDirection};

/// Most credit of a stream, bytes.
const MOST_CREDIT: usize = i32::MAX as usize;

/// Why a stream is over before both ends have finished.
#[derive(Clone, Debug)]
pub enum StreamError {
    /// The application's socket broke.
    Socket(io::ErrorKind),
    /// The peer reset it.
    Reset(ResetReason),
    /// The peer has closed the connection, or its end of it is gone. A stream that it did not answer never
    /// reached the application, since an answer is sent before that.
    Gone(Rc<str>),
    /// The connection is lost, with what was on its way.
    Lost(Rc<str>),
}

impl fmt::Display for StreamError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(kind) => write!(formatter, "{kind}"),
            Self::Reset(reason) => write!(formatter, "stream reset: {reason:?}"),
            Self::Gone(why) | Self::Lost(why) => formatter.write_str(why),
        }
    }
}

/// The peer's answer to OPEN.
#[derive(Clone, Copy, Debug)]
pub(super) enum OpenAnswer {
    Accepted,
    Refused(Refusal),
}

/// How a peer broke the protocol on a stream.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum StreamViolation {
    #[error("more data on stream {0} than it has credit for")]
    Credit(u32),
    #[error("data or END on stream {0} before it is accepted or after END")]
    NotOpen(u32),
    #[error("credit of stream {0} out of range")]
    CreditRange(u32),
    #[error("an answer for stream {0}, which waits for none")]
    Answer(u32),
}

/// A stream's state, shared by its task and the connection's driver, which wakes the task through `task`.
pub(super) struct StreamState {
    pub id: u32,
    /// Wakes the task that owns the stream.
    task: RefCell<Option<Waker>>,
    /// The peer's answer to OPEN, once there is one.
    pub answer: Cell<Option<OpenAnswer>>,
    broken: RefCell<Option<StreamError>>,
    /// Bytes that this end may send.
    credit: Cell<usize>,
    /// What the peer may send.
    window: RefCell<ReceiveWindow>,
    peer_ended: Cell<bool>,
    /// Whether it is in the connection's list of streams that wait for room.
    pub waits_for_room: Cell<bool>,
    /// Whether our ACCEPT has been sent. Until then the application gets nothing, so that a peer without an
    /// answer may try again.
    pub announced: Cell<bool>,
    /// The application's socket, once it is attached.
    application: RefCell<Option<Application>>,
    /// Bytes that the application has not taken yet.
    backlog: RefCell<BytesMut>,
    /// The reason in the RESET that is sent if the stream is dropped before its end.
    reset_reason: Cell<ResetReason>,
}

/// Where received bytes are written.
struct Application {
    socket: OwnedWriteHalf,
    meter: ByteMeter,
    way: RelayDirection,
}

impl StreamState {
    /// Creates a stream that this end opens.
    pub fn new_outgoing(id: u32, window: ReceiveWindow) -> Rc<Self> {
        Self::new(id, None, EARLY_CREDIT, window)
    }

    /// Creates a stream that the peer opens with `credit` bytes for this end. Its data may follow at once.
    pub fn new_incoming(id: u32, credit: u32, window: ReceiveWindow) -> Rc<Self> {
        Self::new(id, Some(OpenAnswer::Accepted), (credit as usize).min(MOST_CREDIT), window)
    }

    fn new(id: u32, answer: Option<OpenAnswer>, credit: usize, window: ReceiveWindow) -> Rc<Self> {
        Rc::new(Self {
            id,
            task: RefCell::default(),
            answer: Cell::new(answer),
            broken: RefCell::default(),
            credit: Cell::new(credit),
            window: RefCell::new(window),
            announced: Cell::new(answer.is_none()),
            peer_ended: Cell::new(false),
            waits_for_room: Cell::new(false),
            application: RefCell::default(),
            backlog: RefCell::default(),
            reset_reason: Cell::new(ResetReason::Broken),
        })
    }

    /// Has the task of `context` woken on every event from now on.
    pub fn register_waker(&self, context: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *task = Some(context.waker().clone());
        }
    }

    fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// Notes that the connection has room again, and wakes the task.
    pub fn wake_for_send_queue_room(&self) {
        self.waits_for_room.set(false);
        self.wake();
    }

    /// Notes that ACCEPT was sent, and wakes the task.
    pub fn mark_accept_sent(&self) {
        self.announced.set(true);
        self.wake();
    }

    /// Ends the stream.
    pub fn end_with_error(&self, why: StreamError) {
        self.broken.borrow_mut().get_or_insert(why);
        self.wake();
    }

    /// Notes the answer to OPEN. Errors: there was one already.
    pub fn receive_answer(&self, answer: OpenAnswer) -> Result<(), StreamViolation> {
        if self.answer.replace(Some(answer)).is_some() {
            return Err(StreamViolation::Answer(self.id));
        }
        self.wake();
        Ok(())
    }

    /// Adds credit for this end. Errors: none is added, or it is too much.
    pub fn receive_credit(&self, more: u32) -> Result<(), StreamViolation> {
        let credit = self.credit.get() + more as usize;
        if more == 0 || credit > MOST_CREDIT {
            return Err(StreamViolation::CreditRange(self.id));
        }
        self.credit.set(credit);
        self.wake();
        Ok(())
    }

    /// Notes that the peer has sent its last byte. Errors: it may not send.
    pub fn receive_end(&self) -> Result<(), StreamViolation> {
        self.may_receive()?;
        self.peer_ended.set(true);
        self.wake();
        Ok(())
    }

    /// Returns how many bytes the peer may still send; zero once it has ended.
    pub fn peer_credit_left(&self) -> usize {
        if self.peer_ended.get() { 0 } else { self.window.borrow().peer_credit() }
    }

    fn may_receive(&self) -> Result<(), StreamViolation> {
        let open = matches!(self.answer.get(), Some(OpenAnswer::Accepted)) && !self.peer_ended.get();
        open.then_some(()).ok_or(StreamViolation::NotOpen(self.id))
    }

    /// Takes bytes of the peer: as many as the application takes are written at once, without a task in
    /// between. Errors: the peer had no credit for them, or has ended.
    pub fn deliver_data(&self, bytes: &[u8], shared: &ConnectionState) -> Result<(), StreamViolation> {
        self.may_receive()?;
        if !self.window.borrow_mut().try_spend_credit(bytes.len()) {
            return Err(StreamViolation::Credit(self.id));
        }
        if self.broken.borrow().is_some() {
            return Ok(());
        }
        let mut backlog = self.backlog.borrow_mut();
        let written = if backlog.is_empty() { self.write(bytes, shared) } else { 0 };
        if written < bytes.len() && self.broken.borrow().is_none() {
            backlog.extend_from_slice(&bytes[written..]);
            self.wake();
        }
        Ok(())
    }

    /// Writes as much as the application takes, and gives credit back for it. Returns the number of bytes.
    fn write(&self, bytes: &[u8], shared: &ConnectionState) -> usize {
        let application = self.application.borrow();
        let Some(Application { socket, meter, way }) = application.as_ref().filter(|_| self.announced.get())
        else {
            return 0;
        };
        match socket.try_write(bytes) {
            Ok(written) => {
                meter.add_bytes(*way, written);
                self.give_back(written, shared);
                written
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.end_with_error(StreamError::Socket(error.kind()));
                0
            }
        }
    }

    fn give_back(&self, written: usize, shared: &ConnectionState) {
        let due = self.window.borrow_mut().grant_for_consumed(written, shared.round_trip.get());
        if let Some(credit) = due.filter(|_| !self.peer_ended.get()) {
            shared.queue_frame(&ControlFrame::Credit(self.id, credit));
        }
    }
}

/// Changes the reason that the peer is told when the stream is reset: policy no longer allows it.
pub struct ResetReasonSetter(Rc<StreamState>);

impl ResetReasonSetter {
    /// Changes it from now on.
    pub fn set_reason_to_revoked(&self) {
        self.0.reset_reason.set(ResetReason::Revoked);
    }
}

/// An open stream, owned by one task. Dropping it before both directions have ended resets it.
pub struct Stream {
    pub(super) state: Rc<StreamState>,
    pub(super) shared: Rc<ConnectionState>,
    /// Bytes at the front of the application's socket that were sent together with OPEN.
    pub(super) early: usize,
    /// Bytes that were sent together with OPEN and are in no socket.
    sent_early: usize,
    sent_end: bool,
    finished: bool,
}

impl Stream {
    pub(super) fn new(state: Rc<StreamState>, shared: Rc<ConnectionState>) -> Self {
        Self { state, shared, early: 0, sent_early: 0, sent_end: false, finished: false }
    }

    /// Sends ACCEPT. Errors: the stream is over; then the application must see nothing of it, since the
    /// opener may try again.
    pub(super) fn send_accept(&self) -> Result<(), StreamError> {
        if let Some(broken) = &*self.state.broken.borrow() {
            return Err(broken.clone());
        }
        let credit = self.state.window.borrow_mut().grow_on_accept();
        self.shared.queue_frame(&ControlFrame::Accept(self.state.id, credit));
        self.shared.notify_when_accept_sent(&self.state);
        Ok(())
    }

    /// Sends REFUSE.
    pub(super) fn send_refuse(mut self, refusal: Refusal) {
        // A peer that has reset the stream already is told nothing.
        if self.state.broken.borrow().is_none() {
            self.shared.queue_frame(&ControlFrame::Refuse(self.state.id, refusal));
        }
        self.finished = true;
    }

    /// Has nothing sent when the stream is dropped.
    pub(super) fn suppress_reset(&mut self) {
        self.finished = true;
    }

    /// Returns what changes the reason of a reset.
    pub fn reset_reason_setter(&self) -> ResetReasonSetter {
        ResetReasonSetter(Rc::clone(&self.state))
    }

    /// Returns how many bytes of [`EarlyData::Bytes`] were sent together with OPEN: writing starts behind
    /// them.
    pub fn early_bytes_sent(&self) -> usize {
        self.sent_early
    }

    /// Whether any bytes were sent together with OPEN.
    pub(super) fn sent_data_with_open(&self) -> bool {
        self.early + self.sent_early > 0
    }

    /// Writes received bytes to `socket` from now on.
    pub(crate) fn attach_socket(&self, socket: OwnedWriteHalf, meter: &ByteMeter, way: RelayDirection) {
        *self.state.application.borrow_mut() = Some(Application { socket, meter: meter.clone(), way });
    }

    /// Takes the socket back, without closing it.
    pub(crate) fn detach_socket(&self) {
        if let Some(Application { socket, .. }) = self.state.application.take() {
            socket.forget();
        }
    }

    /// Whether the stream may read from its application: it has credit, or early bytes to skip.
    pub(crate) fn may_read_socket(&self) -> bool {
        self.state.credit.get() + self.early > 0
    }

    /// Whether both ends have sent their last byte: then the connection no longer matters.
    pub(crate) fn both_ends_finished(&self) -> bool {
        self.sent_end && self.state.peer_ended.get()
    }

    /// Returns why the stream is over, if it is, and has the task of `context` woken on every event.
    pub(crate) fn poll_stream_error(&self, context: &Context<'_>) -> Option<StreamError> {
        self.state.register_waker(context);
        self.state.broken.borrow().clone()
    }

    /// Writes what the application has not taken yet. Ready when the peer has ended, everything is written
    /// and the application's socket is shut down for writing.
    pub(crate) fn poll_drain_and_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &self.state;
        if !state.announced.get() {
            return Poll::Pending;
        }
        let mut backlog = state.backlog.borrow_mut();
        while !backlog.is_empty() {
            match &*state.application.borrow() {
                Some(Application { socket, .. }) => ready!(socket.as_ref().poll_write_ready(context))?,
                None => return Poll::Pending,
            }
            let written = state.write(&backlog, &self.shared);
            backlog.advance(written);
            if let Some(StreamError::Socket(kind)) = &*state.broken.borrow() {
                return Poll::Ready(Err((*kind).into()));
            }
        }
        // A new allocation later costs less than memory that an idle stream holds.
        *backlog = BytesMut::new();
        if !state.peer_ended.get() {
            return Poll::Pending;
        }
        // Shuts the socket down for writing. The application may have closed already; then nobody is left to
        // tell.
        drop(state.application.take());
        Poll::Ready(Ok(()))
    }

    /// Reads as much from the application's socket as the stream has credit for, and sends it. Ready with the
    /// number of bytes; zero at the application's end, which the peer has then been told.
    ///
    /// At most `most` bytes, so that no stream keeps the others waiting.
    pub(crate) fn poll_send_from_socket(
        &mut self,
        socket: &mut OwnedReadHalf,
        most: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let credit = self.state.credit.get();
        // Early bytes were paid for already.
        let limit = most.min(credit + self.early);
        if limit == 0 {
            return Poll::Pending;
        }
        ready!(socket.as_ref().poll_read_ready(context))?;
        let read =
            ready!(self.shared.poll_queue_application_data(&self.state, socket, limit, self.early, context))?;
        if read == 0 {
            self.sent_end = true;
            self.shared.queue_frame(&ControlFrame::End(self.state.id));
        }
        let sent_before = read.min(self.early);
        self.early -= sent_before;
        self.state.credit.set(credit - (read - sent_before));
        Poll::Ready(Ok(read))
    }

    /// Sends early bytes, as many as may be sent together with OPEN. Those in the client's socket stay there
    /// until the stream is accepted, so that a refusal does not lose them. Ready when done.
    pub(super) fn poll_send_early_data(
        &mut self,
        early: EarlyData<'_>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let (id, shared) = (self.state.id, &self.shared);
        match early {
            EarlyData::Socket(socket) => {
                self.early = ready!(shared.poll_queue_peeked_data(id, socket, EARLY_CREDIT, context))
                    .unwrap_or_default();
            }
            EarlyData::Bytes(bytes) => {
                self.sent_early = shared.queue_early_data(id, &bytes[..bytes.len().min(EARLY_CREDIT)]);
            }
            EarlyData::None => {}
        }
        self.state.credit.set(self.state.credit.get() - self.early - self.sent_early);
        Poll::Ready(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let ended = self.both_ends_finished() && self.state.backlog.borrow().is_empty();
        // The peer knows, or can't be told.
        let broken = matches!(
            *self.state.broken.borrow(),
            Some(StreamError::Reset(_) | StreamError::Gone(_) | StreamError::Lost(_))
        );
        let over = self.finished || ended || broken;
        if !over {
            self.shared.queue_frame(&ControlFrame::Reset(self.state.id, self.state.reset_reason.get()));
        }
        self.shared.remove_stream(self.state.id);
        self.detach_socket();
    }
}
