//! One stream of a connection.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::EARLY;
use super::frame::{Frame, Reason, Refusal};
use super::link::Link;
use super::window::Window;
use crate::relay::{Meter, Way};

/// Most credit that a stream may have.
const MOST_CREDIT: usize = i32::MAX as usize;

/// Why a stream is over before both ends have finished.
#[derive(Clone, Debug)]
pub enum Broken {
    /// The application's socket broke.
    Socket(io::ErrorKind),
    /// The peer reset it.
    Reset(Reason),
    /// The peer has closed the connection, or its end of it is gone. What it did not answer its application
    /// never got, since an answer is on its way before that.
    Gone(Rc<str>),
    /// The connection is lost, with what was on its way.
    Lost(Rc<str>),
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(kind) => write!(formatter, "{kind}"),
            Self::Reset(reason) => write!(formatter, "stream reset: {reason:?}"),
            Self::Gone(why) | Self::Lost(why) => formatter.write_str(why),
        }
    }
}

/// What the other end answered to OPEN.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Accepted,
    Refused(Refusal),
}

/// What a peer did wrong on a stream.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error("more data on stream {0} than it has credit for")]
    Credit(u32),
    #[error("data or END on stream {0} before it is accepted or after END")]
    NotOpen(u32),
    #[error("credit of stream {0} out of range")]
    CreditRange(u32),
    #[error("an answer for stream {0}, which waits for none")]
    Answer(u32),
}

/// A stream, as its task and the connection's driver see it. Each waits for the other through `task`.
pub(super) struct Stream {
    pub id: u32,
    /// The task that the stream belongs to.
    task: RefCell<Option<Waker>>,
    /// Whether and how the acceptor answered.
    pub answer: Cell<Option<Answer>>,
    broken: RefCell<Option<Broken>>,
    /// What may be sent.
    credit: Cell<usize>,
    /// What the peer may send.
    window: RefCell<Window>,
    peer_ended: Cell<bool>,
    /// Whether it is among those that wait for the connection to send.
    pub waits_for_room: Cell<bool>,
    /// Whether the peer's kernel, or ours, has the answer to the peer's OPEN. Until then the application gets
    /// nothing, so that a peer without an answer may try again.
    pub announced: Cell<bool>,
    /// The application, once it is there.
    application: RefCell<Option<Application>>,
    /// What the application did not take yet.
    backlog: RefCell<BytesMut>,
}

/// Where a stream's bytes go.
struct Application {
    socket: OwnedWriteHalf,
    meter: Meter,
    way: Way,
}

impl Stream {
    /// A stream that is being opened by this end.
    pub fn opening(id: u32, window: Window) -> Rc<Self> {
        Self::new(id, None, EARLY, window)
    }

    /// A stream that the peer opens, with what it grants. Its data may come at once.
    pub fn opened(id: u32, credit: u32, window: Window) -> Rc<Self> {
        Self::new(id, Some(Answer::Accepted), (credit as usize).min(MOST_CREDIT), window)
    }

    fn new(id: u32, answer: Option<Answer>, credit: usize, window: Window) -> Rc<Self> {
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
        })
    }

    /// The task of `context` hears of what happens from now on.
    pub fn listen(&self, context: &Context<'_>) {
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

    /// The connection has sent what kept this stream waiting.
    pub fn there_is_room(&self) {
        self.waits_for_room.set(false);
        self.wake();
    }

    /// The answer is on its way.
    pub fn announce(&self) {
        self.announced.set(true);
        self.wake();
    }

    /// The stream is over.
    pub fn break_off(&self, why: Broken) {
        self.broken.borrow_mut().get_or_insert(why);
        self.wake();
    }

    /// The peer answered OPEN.
    pub fn answered(&self, answer: Answer) -> Result<(), Violation> {
        if self.answer.replace(Some(answer)).is_some() {
            return Err(Violation::Answer(self.id));
        }
        self.wake();
        Ok(())
    }

    /// The peer takes more.
    pub fn credited(&self, more: u32) -> Result<(), Violation> {
        let credit = self.credit.get() + more as usize;
        if more == 0 || credit > MOST_CREDIT {
            return Err(Violation::CreditRange(self.id));
        }
        self.credit.set(credit);
        self.wake();
        Ok(())
    }

    /// The peer has sent its last byte.
    pub fn ended(&self) -> Result<(), Violation> {
        self.may_receive()?;
        self.peer_ended.set(true);
        self.wake();
        Ok(())
    }

    /// Bytes that the peer may still send, if it has not ended.
    pub fn may_still_come(&self) -> usize {
        if self.peer_ended.get() { 0 } else { self.window.borrow().granted() }
    }

    fn may_receive(&self) -> Result<(), Violation> {
        let open = matches!(self.answer.get(), Some(Answer::Accepted)) && !self.peer_ended.get();
        open.then_some(()).ok_or(Violation::NotOpen(self.id))
    }

    /// Bytes from the peer: to the application at once, or as much as it takes, without a task in between.
    pub fn received(&self, bytes: &[u8], link: &Link) -> Result<(), Violation> {
        self.may_receive()?;
        if !self.window.borrow_mut().receive(bytes.len()) {
            return Err(Violation::Credit(self.id));
        }
        if self.broken.borrow().is_some() {
            return Ok(());
        }
        let mut backlog = self.backlog.borrow_mut();
        let written = if backlog.is_empty() { self.write(bytes, link) } else { 0 };
        if written < bytes.len() && self.broken.borrow().is_none() {
            backlog.extend_from_slice(&bytes[written..]);
            self.wake();
        }
        Ok(())
    }

    /// Writes what the application takes, and gives credit back for it.
    fn write(&self, bytes: &[u8], link: &Link) -> usize {
        let application = self.application.borrow();
        let Some(Application { socket, meter, way }) = application.as_ref().filter(|_| self.announced.get())
        else {
            return 0;
        };
        match socket.try_write(bytes) {
            Ok(written) => {
                meter.add(*way, written);
                self.give_back(written, link);
                written
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.break_off(Broken::Socket(error.kind()));
                0
            }
        }
    }

    fn give_back(&self, written: usize, link: &Link) {
        let due = self.window.borrow_mut().taken(written, link.round_trip.get());
        if let Some(credit) = due.filter(|_| !self.peer_ended.get()) {
            link.send(&Frame::Credit(self.id, credit));
        }
    }
}

/// A stream that is open, in the hands of the task that it belongs to. Dropping it before both directions
/// have ended resets it.
pub struct Tunnel {
    pub(super) stream: Rc<Stream>,
    pub(super) link: Rc<Link>,
    /// Bytes at the front of the application's socket that were sent together with OPEN.
    pub(super) early: usize,
    sent_end: bool,
    finished: bool,
    reason: Reason,
}

impl Tunnel {
    pub(super) fn new(stream: Rc<Stream>, link: Rc<Link>) -> Self {
        Self { stream, link, early: 0, sent_end: false, finished: false, reason: Reason::Broken }
    }

    /// Tells the opener that its stream is open. An error if it is over already: then the application must
    /// not see anything of it, since the opener may try again.
    pub(super) fn accept(&self) -> Result<(), Broken> {
        if let Some(broken) = &*self.stream.broken.borrow() {
            return Err(broken.clone());
        }
        let credit = self.stream.window.borrow_mut().open_wide();
        self.link.send(&Frame::Accept(self.stream.id, credit));
        self.link.announce_once_sent(&self.stream);
        Ok(())
    }

    /// Tells the opener that it is not to be.
    pub(super) fn refuse(mut self, refusal: Refusal) {
        // Of what was reset already nobody wants to hear.
        if self.stream.broken.borrow().is_none() {
            self.link.send(&Frame::Refuse(self.stream.id, refusal));
        }
        self.finished = true;
    }

    /// Nothing is to be said any more.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// Resets the stream.
    pub fn reset(mut self, reason: Reason) {
        self.reason = reason;
    }

    /// From now on what arrives goes to `socket`.
    pub(crate) fn attach(&self, socket: OwnedWriteHalf, meter: &Meter, way: Way) {
        *self.stream.application.borrow_mut() = Some(Application { socket, meter: meter.clone(), way });
    }

    /// Takes the socket back, without closing it.
    pub(crate) fn detach(&self) {
        if let Some(Application { socket, .. }) = self.stream.application.take() {
            socket.forget();
        }
    }

    /// Whether there is credit to send something.
    pub(crate) fn may_send(&self) -> bool {
        self.stream.credit.get() + self.early > 0
    }

    /// Whether both ends have sent their last byte: nothing that matters comes over the connection any more.
    pub(crate) fn needs_no_connection(&self) -> bool {
        self.sent_end && self.stream.peer_ended.get()
    }

    /// Why the stream is over, if it is; and has `context`'s task hear of it, and of everything else.
    pub(crate) fn poll_broken(&self, context: &Context<'_>) -> Option<Broken> {
        self.stream.listen(context);
        self.stream.broken.borrow().clone()
    }

    /// Writes what the application did not take before. Ready when the peer has ended and everything is
    /// written; the application has been told so, then.
    pub(crate) fn poll_deliver(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = &self.stream;
        if !stream.announced.get() {
            return Poll::Pending;
        }
        let mut backlog = stream.backlog.borrow_mut();
        while !backlog.is_empty() {
            match &*stream.application.borrow() {
                Some(Application { socket, .. }) => ready!(socket.as_ref().poll_write_ready(context))?,
                None => return Poll::Pending,
            }
            let written = stream.write(&backlog, &self.link);
            backlog.advance(written);
            if let Some(Broken::Socket(kind)) = &*stream.broken.borrow() {
                return Poll::Ready(Err((*kind).into()));
            }
        }
        // A new allocation later costs less than memory that an idle stream holds.
        *backlog = BytesMut::new();
        if !stream.peer_ended.get() {
            return Poll::Pending;
        }
        // Closes the socket's writing side. The application may have closed already; then there is nobody to
        // tell.
        drop(stream.application.take());
        Poll::Ready(Ok(()))
    }

    /// Reads from the application's socket what the stream has credit for, and sends it. Ready with the
    /// number of bytes, none of them when the application has sent its last one, which the peer has been told
    /// then.
    ///
    /// At most `most` bytes, so that no stream keeps the others waiting.
    pub(crate) fn poll_forward(
        &mut self,
        socket: &mut OwnedReadHalf,
        most: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let credit = self.stream.credit.get();
        // Those bytes were paid for already.
        let limit = most.min(credit + self.early);
        if limit == 0 {
            return Poll::Pending;
        }
        ready!(socket.as_ref().poll_read_ready(context))?;
        let read = ready!(self.link.poll_gather(&self.stream, socket, limit, self.early, context))?;
        if read == 0 {
            self.sent_end = true;
            self.link.send(&Frame::End(self.stream.id));
        }
        let sent_before = read.min(self.early);
        self.early -= sent_before;
        self.stream.credit.set(credit - (read - sent_before));
        Poll::Ready(Ok(read))
    }

    /// Sends what the application has written already, which stays in its socket until the stream is
    /// accepted: so a refusal does not lose it. Ready when that was done.
    pub(super) fn poll_send_early(&mut self, socket: &TcpStream, context: &mut Context<'_>) -> Poll<()> {
        let peeked = ready!(self.link.poll_peek(self.stream.id, socket, EARLY, context)).unwrap_or_default();
        self.early = peeked;
        self.stream.credit.set(self.stream.credit.get() - peeked);
        Poll::Ready(())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let ended = self.needs_no_connection() && self.stream.backlog.borrow().is_empty();
        // The peer knows, or there is no way to tell it.
        let broken = matches!(
            *self.stream.broken.borrow(),
            Some(Broken::Reset(_) | Broken::Gone(_) | Broken::Lost(_))
        );
        let over = self.finished || ended || broken;
        if !over {
            self.link.send(&Frame::Reset(self.stream.id, self.reason));
        }
        self.link.remove(self.stream.id);
        self.detach();
    }
}
