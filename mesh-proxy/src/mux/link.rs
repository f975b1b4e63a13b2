//! What the streams of a connection and its driver share.

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

use super::driver::Side;
use super::frame::{Frame, HEADER, data_header};
use super::stream::{Broken, State};
use super::window::Budget;
use super::{EARLY, TURN, price};
use crate::tls::scratch;

/// Most bytes of data that gather for one sending: one stream's turn, or several that do less, with their
/// headers.
const MOST_GATHERED: usize = TURN + 512;

/// Less room than this is not worth a read.
const LEAST_ROOM: usize = 4 * 1024;

thread_local! {
    /// The worker's buffer for early data.
    static PEEKED: RefCell<Box<[u8]>> = RefCell::new(vec![0; EARLY].into_boxed_slice());
}

/// Shared by the streams of a connection and its driver.
pub(super) struct Link {
    /// What the streams' windows are taken from.
    pub budget: Rc<Budget>,
    streams: RefCell<HashMap<u32, Rc<State>>>,
    /// Frames that wait to be encrypted and sent.
    gathered: RefCell<Vec<u8>>,
    driver: RefCell<Option<Waker>>,
    /// Whether the driver will run anyway.
    driver_woken: Cell<bool>,
    /// Streams that wait for room in `gathered`, each once.
    waiting: RefCell<Vec<Rc<State>>>,
    /// Streams whose answer to OPEN is not sent yet.
    unannounced: RefCell<Vec<Rc<State>>>,
    /// Handles of the client; a connection without any, and without streams, is closed.
    pub handles: Cell<usize>,
    /// The last stream that was opened.
    pub last_stream: Cell<u32>,
    /// Whether new streams are out of the question.
    pub closing: Cell<bool>,
    /// Counts what is received, over again from the start after the last number.
    pub heard: Cell<u32>,
    /// The way to the peer and back, without what waits on it.
    pub round_trip: Cell<Duration>,
    /// What the peer may still send without data.
    pub patience: RefCell<Patience>,
    /// Bytes that the peer had credit for on streams that are over: they may be on their way.
    overdue: Cell<usize>,
}

impl Link {
    /// A connection without streams.
    pub fn new(budget: &Rc<Budget>) -> Rc<Self> {
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
            patience: RefCell::new(price::patience()),
            overdue: Cell::default(),
        })
    }

    /// The driver is the task of `context`, and runs now: what gathers until [`Self::driven`] it sends
    /// anyway.
    pub fn drive(&self, context: &Context<'_>) {
        self.driver_woken.set(true);
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *driver = Some(context.waker().clone());
        }
    }

    /// From now on the driver has to be woken.
    pub fn driven(&self) {
        self.driver_woken.set(false);
    }

    /// Has the driver run, behind every task that is ready now.
    pub fn wake_driver(&self) {
        if !self.driver_woken.replace(true)
            && let Some(driver) = &*self.driver.borrow()
        {
            driver.wake_by_ref();
        }
    }

    /// Adds a frame to what is sent next.
    pub fn send(&self, frame: &Frame) {
        self.patience.borrow_mut().earn(price::sent(frame));
        self.with_gathered(|gathered| frame.write(gathered));
        self.wake_driver();
    }

    fn with_gathered<T>(&self, add: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut gathered = self.gathered.borrow_mut();
        if gathered.capacity() == 0 {
            *gathered = scratch::take();
        }
        let added = add(&mut gathered);
        if gathered.is_empty() {
            scratch::give(std::mem::take(&mut *gathered));
        }
        added
    }

    /// What has gathered.
    pub fn take_gathered(&self) -> Option<Vec<u8>> {
        let mut gathered = self.gathered.borrow_mut();
        (!gathered.is_empty()).then(|| std::mem::take(&mut *gathered))
    }

    /// Bytes that have gathered.
    pub fn gathered(&self) -> usize {
        self.gathered.borrow().len()
    }

    /// Room that is left for data.
    fn room(&self) -> usize {
        MOST_GATHERED.saturating_sub(self.gathered() + HEADER)
    }

    /// A stream whose answer has gathered is to hear when that is sent.
    pub fn announce_once_sent(&self, stream: &Rc<State>) {
        self.unannounced.borrow_mut().push(Rc::clone(stream));
    }

    /// All that gathered is sent.
    pub fn all_sent(&self) {
        self.unannounced.borrow_mut().drain(..).for_each(|stream| stream.announce());
    }

    /// There is room again.
    pub fn make_room(&self) {
        // Drained in place, since the list keeps its memory; nobody is added meanwhile.
        self.waiting.borrow_mut().drain(..).for_each(|stream| stream.there_is_room());
    }

    /// Reads from `socket` straight behind the header of a DATA frame, at most `limit` bytes. The first
    /// `skip` of them were sent before. A stream that finds no room is woken when there is some.
    pub fn poll_gather(
        &self,
        stream: &Rc<State>,
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
            gathered.extend_from_slice(&[0; HEADER]);
            let mut limited = BufMut::limit(&mut *gathered, limit.min(room));
            let read = pin!(socket.read_buf(&mut limited)).poll(context);
            let bytes = match &read {
                Poll::Ready(Ok(bytes)) => *bytes,
                _ => 0,
            };
            if bytes <= skip {
                gathered.truncate(at);
            } else {
                gathered.drain(at + HEADER..at + HEADER + skip);
                gathered[at..at + HEADER].copy_from_slice(&data_header(stream.id, bytes - skip));
                self.patience.borrow_mut().earn(price::sent_data(bytes - skip));
                self.wake_driver();
            }
            read
        }))?;
        Poll::Ready(Ok(read))
    }

    /// Adds bytes as a DATA frame, as many as there is room for. A stream that finds no room is woken when
    /// there is some. `bytes` are not empty.
    pub fn poll_send_data(&self, stream: &Rc<State>, bytes: &[u8]) -> Poll<usize> {
        if !self.has_room_for(stream) {
            return Poll::Pending;
        }
        let bytes = &bytes[..bytes.len().min(self.room())];
        self.gather_data(stream.id, bytes);
        Poll::Ready(bytes.len())
    }

    /// Adds early data as a DATA frame, or nothing where there is no room for it. Returns the bytes added.
    pub fn send_early(&self, stream: u32, bytes: &[u8]) -> usize {
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
        self.patience.borrow_mut().earn(price::sent_data(bytes.len()));
        self.wake_driver();
    }

    /// Whether there is room for a read; if not, the stream is woken when there is.
    fn has_room_for(&self, stream: &Rc<State>) -> bool {
        let has_room = self.room() >= LEAST_ROOM;
        if !has_room && !stream.waits_for_room.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(stream));
        }
        has_room
    }

    /// Adds what waits in `socket` as a DATA frame, at most `limit` bytes, and leaves it there.
    pub fn poll_peek(
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
    pub fn add(&self, stream: &Rc<State>) {
        self.streams.borrow_mut().insert(stream.id, Rc::clone(stream));
    }

    /// A stream, if it is open.
    pub fn stream(&self, id: u32) -> Option<Rc<State>> {
        self.streams.borrow().get(&id).cloned()
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.streams.borrow().len()
    }

    /// A stream is over.
    pub fn remove(&self, id: u32) {
        if let Some(stream) = self.streams.borrow_mut().remove(&id) {
            self.expect_late(stream.may_still_come());
        }
        if self.streams() == 0 {
            // It may have been the last.
            self.wake_driver();
        }
    }

    /// So many bytes may still come for a stream that is over.
    pub fn expect_late(&self, bytes: usize) {
        self.overdue.set(self.overdue.get().saturating_add(bytes));
    }

    /// Data of a stream that is over. Returns whether it may have been on its way.
    pub fn late(&self, bytes: usize) -> bool {
        let left = self.overdue.get().checked_sub(bytes);
        left.inspect(|left| self.overdue.set(*left)).is_some()
    }

    /// Whether nobody needs the connection any more: without streams, a client's when no handle is left, a
    /// server's when it takes no new ones.
    pub fn is_done(&self, side: Side) -> bool {
        let wanted = match side {
            Side::Client => self.handles.get() > 0 && !self.closing.get(),
            Side::Server => !self.closing.get(),
        };
        !wanted && self.streams() == 0
    }

    /// The connection is over, and so are its streams.
    pub fn break_off(&self, why: &Broken) {
        self.closing.set(true);
        let streams: Vec<_> = self.streams.borrow().values().cloned().collect();
        for stream in streams {
            stream.break_off(why.clone());
        }
        self.make_room();
    }
}
