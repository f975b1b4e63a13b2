//! State that the streams of a connection share with its driver.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BufMut;
use mesh_calm::Patience;
use tokio::io::{AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use super::driver::ConnectionSide;
use super::frame::{ControlFrame, HEADER_LEN, data_header};
use super::pod_receive_budget::PodReceiveBudget;
use super::stream::{StreamError, StreamState};
use super::{EARLY_CREDIT, MAX_BYTES_PER_TURN, frame_costs};
use crate::tls::buffer_pool;

/// Most bytes that gather before they are sent: one stream's turn, or several that send less, with headers.
const MOST_GATHERED: usize = MAX_BYTES_PER_TURN + 512;

/// Least free bytes for which a socket is read.
const LEAST_ROOM: usize = 4 * 1024;

thread_local! {
    /// The worker's buffer for early data.
    static PEEKED: RefCell<Box<[u8]>> = RefCell::new(vec![0; EARLY_CREDIT].into_boxed_slice());
}

/// State that the streams of a connection share with its driver.
pub(super) struct ConnectionState {
    /// The budget that the streams' windows are taken from.
    pub budget: Rc<PodReceiveBudget>,
    streams: RefCell<HashMap<u32, Rc<StreamState>>>,
    /// Frames that wait to be encrypted and sent.
    gathered: RefCell<Vec<u8>>,
    driver: RefCell<Option<Waker>>,
    /// Whether the driver will run without being woken.
    driver_woken: Cell<bool>,
    /// Streams that wait for room in `gathered`, each once.
    waiting: RefCell<Vec<Rc<StreamState>>>,
    /// Streams whose ACCEPT is not sent yet.
    unannounced: RefCell<Vec<Rc<StreamState>>>,
    /// Handles of the client; a connection without any, and without streams, is closed.
    pub handles: Cell<usize>,
    /// Number of the last stream that was opened.
    pub last_stream: Cell<u32>,
    /// Whether no new streams are taken.
    pub closing: Cell<bool>,
    /// Counts reads with data, wrapping around.
    pub heard: Cell<u32>,
    /// Shortest round-trip time to the peer, without queues.
    pub round_trip: Cell<Duration>,
    /// What the peer may still send without data (see `frame_costs`).
    pub patience: RefCell<Patience>,
    /// Bytes that the peer had credit for on streams that are over: they may be on their way.
    overdue: Cell<usize>,
}

impl ConnectionState {
    /// Creates the state of a connection without streams.
    pub fn new(budget: &Rc<PodReceiveBudget>) -> Rc<Self> {
        Rc::new(Self {
            budget: Rc::clone(budget),
            streams: RefCell::default(),
            gathered: RefCell::default(),
            driver: RefCell::default(),
            driver_woken: Cell::default(),
            waiting: RefCell::default(),
            unannounced: RefCell::default(),
            handles: Cell::default(),
            last_stream: Cell::default(),
            closing: Cell::default(),
            heard: Cell::default(),
            round_trip: Cell::default(),
            patience: RefCell::new(frame_costs::initial_allowance()),
            overdue: Cell::default(),
        })
    }

    /// Notes that the driver is the task of `context` and runs now: until [`Self::end_driver_turn`] it need
    /// not be woken.
    pub fn begin_driver_turn(&self, context: &Context<'_>) {
        self.driver_woken.set(true);
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *driver = Some(context.waker().clone());
        }
    }

    /// Notes that the driver has to be woken from now on.
    pub fn end_driver_turn(&self) {
        self.driver_woken.set(false);
    }

    /// Wakes the driver, which runs after every task that is ready now.
    pub fn wake_driver(&self) {
        if !self.driver_woken.replace(true)
            && let Some(driver) = &*self.driver.borrow()
        {
            driver.wake_by_ref();
        }
    }

    /// Adds a frame to what is sent next.
    pub fn queue_frame(&self, frame: &ControlFrame) {
        self.patience.borrow_mut().earn(frame_costs::allowance_earned_by_sent_frame(frame));
        self.with_gathered(|gathered| frame.encode(gathered));
        self.wake_driver();
    }

    fn with_gathered<T>(&self, add: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut gathered = self.gathered.borrow_mut();
        if gathered.capacity() == 0 {
            *gathered = buffer_pool::take_empty();
        }
        let added = add(&mut gathered);
        if gathered.is_empty() {
            buffer_pool::return_empty(std::mem::take(&mut *gathered));
        }
        added
    }

    /// Takes the bytes that have gathered.
    pub fn take_queued_bytes(&self) -> Option<Vec<u8>> {
        let mut gathered = self.gathered.borrow_mut();
        (!gathered.is_empty()).then(|| std::mem::take(&mut *gathered))
    }

    /// Returns the number of bytes that have gathered.
    pub fn queued_len(&self) -> usize {
        self.gathered.borrow().len()
    }

    /// Returns how many more bytes of data may gather.
    fn room(&self) -> usize {
        MOST_GATHERED.saturating_sub(self.queued_len() + HEADER_LEN)
    }

    /// Has a stream announced once its ACCEPT, which has gathered, is sent.
    pub fn notify_when_accept_sent(&self, stream: &Rc<StreamState>) {
        self.unannounced.borrow_mut().push(Rc::clone(stream));
    }

    /// Announces streams, since all that had gathered is sent.
    pub fn mark_accepts_sent(&self) {
        self.unannounced.borrow_mut().drain(..).for_each(|stream| stream.mark_accept_sent());
    }

    /// Wakes the streams that wait for room.
    pub fn wake_streams_awaiting_room(&self) {
        // Drained in place, since the list keeps its memory; nothing is added meanwhile.
        self.waiting.borrow_mut().drain(..).for_each(|stream| stream.wake_for_send_queue_room());
    }

    /// Reads up to `limit` bytes from `socket` into a DATA frame, but for the first `skip` of them, which
    /// were sent before. Ready with the number read. Without room it is pending, and the stream is woken when
    /// there is some.
    pub fn poll_queue_application_data(
        &self,
        stream: &Rc<StreamState>,
        socket: &mut OwnedReadHalf,
        limit: usize,
        skip: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if !self.has_room_for(stream) {
            return Poll::Pending;
        }
        let room = self.room();
        let read = ready!(self.with_gathered(|gathered| {
            let at = gathered.len();
            gathered.extend_from_slice(&[0; HEADER_LEN]);
            let mut limited = BufMut::limit(&mut *gathered, limit.min(room));
            let read = pin!(socket.read_buf(&mut limited)).poll(context);
            let bytes = match &read {
                Poll::Ready(Ok(bytes)) => *bytes,
                _ => 0,
            };
            if bytes <= skip {
                gathered.truncate(at);
            } else {
                gathered.drain(at + HEADER_LEN..at + HEADER_LEN + skip);
                gathered[at..at + HEADER_LEN].copy_from_slice(&data_header(stream.id, bytes - skip));
                self.patience.borrow_mut().earn(frame_costs::allowance_earned_by_sent_data(bytes - skip));
                self.wake_driver();
            }
            read
        }))?;
        Poll::Ready(Ok(read))
    }

    /// Adds as many of `bytes`, which must not be empty, as there is room for, in a DATA frame. Ready with
    /// their number. Without room it is pending, and the stream is woken when there is some.
    pub fn poll_queue_data(&self, stream: &Rc<StreamState>, bytes: &[u8]) -> Poll<usize> {
        if !self.has_room_for(stream) {
            return Poll::Pending;
        }
        let bytes = &bytes[..bytes.len().min(self.room())];
        self.gather_data(stream.id, bytes);
        Poll::Ready(bytes.len())
    }

    /// Adds early data as a DATA frame, all or nothing. Returns the number of bytes added.
    pub fn queue_early_data(&self, stream: u32, bytes: &[u8]) -> usize {
        if bytes.is_empty() || self.room() < bytes.len() {
            return 0;
        }
        self.gather_data(stream, bytes);
        bytes.len()
    }

    fn gather_data(&self, stream: u32, bytes: &[u8]) {
        self.with_gathered(|gathered| {
            gathered.extend_from_slice(&data_header(stream, bytes.len()));
            gathered.extend_from_slice(bytes);
        });
        self.patience.borrow_mut().earn(frame_costs::allowance_earned_by_sent_data(bytes.len()));
        self.wake_driver();
    }

    /// Whether there is room for a read; if not, the stream is woken when there is.
    fn has_room_for(&self, stream: &Rc<StreamState>) -> bool {
        let has_room = self.room() >= LEAST_ROOM;
        if !has_room && !stream.waits_for_room.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(stream));
        }
        has_room
    }

    /// Adds up to `limit` bytes that wait in `socket` as a DATA frame, and leaves them there. Ready with
    /// their number.
    pub fn poll_queue_peeked_data(
        &self,
        stream: u32,
        socket: &TcpStream,
        limit: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.room() < limit {
            return Poll::Ready(Ok(0));
        }
        PEEKED.with_borrow_mut(|peeked| {
            let mut buffer = ReadBuf::new(&mut peeked[..limit]);
            let bytes = ready!(socket.poll_peek(context, &mut buffer))?;
            if bytes > 0 {
                self.gather_data(stream, buffer.filled());
            }
            Poll::Ready(Ok(bytes))
        })
    }

    /// Adds a stream.
    pub fn insert_stream(&self, stream: &Rc<StreamState>) {
        self.streams.borrow_mut().insert(stream.id, Rc::clone(stream));
    }

    /// Returns a stream, if it is open.
    pub fn get_stream(&self, id: u32) -> Option<Rc<StreamState>> {
        self.streams.borrow().get(&id).cloned()
    }

    /// Returns the number of open streams.
    pub fn stream_count(&self) -> usize {
        self.streams.borrow().len()
    }

    /// Removes a stream that is over.
    pub fn remove_stream(&self, id: u32) {
        if let Some(stream) = self.streams.borrow_mut().remove(&id) {
            self.expect_late_data(stream.peer_credit_left());
        }
        if self.stream_count() == 0 {
            // It may have been the last one.
            self.wake_driver();
        }
    }

    /// Notes bytes that may still come for a stream that is over.
    pub fn expect_late_data(&self, bytes: usize) {
        self.overdue.set(self.overdue.get().saturating_add(bytes));
    }

    /// Counts data of a stream that is over against the credit that its peer had left. Returns false if the
    /// peer sent more than that.
    pub fn try_spend_late_credit(&self, bytes: usize) -> bool {
        let left = self.overdue.get().checked_sub(bytes);
        left.inspect(|left| self.overdue.set(*left)).is_some()
    }

    /// Whether nobody needs the connection: it has no streams, and a client has no handle left, or a server
    /// takes no new streams.
    pub fn can_close(&self, side: ConnectionSide) -> bool {
        let wanted = match side {
            ConnectionSide::Client => self.handles.get() > 0 && !self.closing.get(),
            ConnectionSide::Server => !self.closing.get(),
        };
        !wanted && self.stream_count() == 0
    }

    /// Ends the connection and its streams.
    pub fn break_all_streams(&self, why: &StreamError) {
        self.closing.set(true);
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        for stream in streams {
            stream.end_with_error(why.clone());
        }
        self.wake_streams_awaiting_room();
    }
}
