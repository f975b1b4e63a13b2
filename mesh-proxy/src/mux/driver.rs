//! The task that receives and sends for all streams of a connection.
//!
//! Received data is decrypted in place and written to the applications' sockets straight away. Data that the
//! streams' tasks have gathered is sent in one system call: a task that adds some wakes the driver, which so
//! runs after every task that was ready before it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_calm::turn::Turn;
use tokio::io::AsyncWrite;

use super::frame::{Decoder, Error as FrameError, Event, Frame, Goodbye, Refusal};
use super::link::Link;
use super::open::OpenFrame;
use super::stream::{Answer, Broken, State, Stream, Violation};
use super::window::Window;
use super::{EARLY, IncomingStream, MAX_PEER_STREAMS, price};
use crate::sys;
use crate::tls::{TlsStream, Unbuffered, scratch};

/// Silence after which a peer is asked whether it is alive, and time that it has to answer.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Reads in one turn, before other tasks run; each is up to one buffer.
const RECEIVES: usize = 2;

/// Most bytes that wait to be sent; more only if the peer does not read.
const MOST_WAITING: usize = 1024 * 1024;

/// Time for goodbyes.
const FAREWELL: Duration = Duration::from_secs(1);

/// Most bytes that are read after a goodbye; no more can be on their way.
const MOST_HEARD_OUT: usize = 8 * 1024 * 1024;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    /// Nobody needs it any more, or the peer closed it.
    #[error("finished")]
    Finished,
    /// It broke.
    #[error(transparent)]
    Lost(#[from] io::Error),
    /// The peer sent bytes that are no frame.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The peer broke the protocol on a stream.
    #[error("the peer broke the protocol: {0}")]
    Stream(#[from] Violation),
    /// The peer used a stream that it may not use.
    #[error("the peer broke the protocol: stream {0} is not its to use")]
    WrongStream(u32),
    /// The peer sent more for streams that are over than it had credit for.
    #[error("the peer broke the protocol: more data for streams that are over than they had credit for")]
    Late,
    /// The peer sent too many frames without data.
    #[error("the peer sends too much beside data")]
    Flood,
    /// The peer does not read what it asks for.
    #[error("the peer does not read")]
    Backlog,
    /// The peer did not answer a ping.
    #[error("no answer to a ping")]
    Silent,
    /// The peer closed the connection and blames us.
    #[error("the peer closed the connection: {0}")]
    Dismissed(String),
}

impl Over {
    fn as_streams_see_it(&self) -> Broken {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let why = self.to_string().into();
        match self {
            Self::Finished => Broken::Gone(why),
            // The peer's kernel closed it, behind everything that the peer itself had sent.
            Self::Lost(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                Broken::Gone(why)
            }
            _ => Broken::Lost(why),
        }
    }
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

pub(super) struct Driver<C> {
    tls: TlsStream<C>,
    receiver: Receiver,
}

/// Everything but the TLS session, which is borrowed while its records are read.
struct Receiver {
    link: Rc<Link>,
    side: Side,
    decoder: Decoder,
    /// Work left in this turn, before other tasks run.
    turn: Turn,
    /// A DATA frame that came in several records, gathered so that the application gets it in one system
    /// call.
    assembled: Vec<u8>,
    /// Stream of that frame.
    assembling: u32,
}

impl<C: Unbuffered> Driver<C> {
    pub fn new(tls: TlsStream<C>, link: &Rc<Link>, side: Side) -> Self {
        link.round_trip.set(sys::shortest_round_trip(tls.tcp()));
        let receiver = Receiver {
            link: Rc::clone(link),
            side,
            decoder: Decoder::default(),
            turn: Turn::default(),
            assembled: Vec::new(),
            assembling: 0,
        };
        Self { tls, receiver }
    }

    /// Drives the connection to its end, and returns why it is over; `opened` gets the streams that the peer
    /// opens.
    pub async fn run(mut self, mut opened: impl FnMut(IncomingStream)) -> Over {
        let link = Rc::clone(&self.receiver.link);
        let over = tokio::select! {
            biased;
            over = poll_fn(|context| match self.turn(context, &mut opened) {
                Ok(()) => Poll::Pending,
                Err(over) => Poll::Ready(over),
            }) => over,
            () = silence(&link) => Over::Silent,
        };
        link.break_off(&over.as_streams_see_it());
        let _in_time = tokio::time::timeout(FAREWELL, self.say_goodbye(&over)).await;
        over
    }

    /// Runs one turn. Errors: why the connection is over.
    fn turn(
        &mut self,
        context: &mut Context<'_>,
        opened: &mut impl FnMut(IncomingStream),
    ) -> Result<(), Over> {
        self.receiver.link.drive(context);
        let closed = self.receive(context, opened)?;
        self.receiver.link.driven();
        let sent = self.send(context)?.is_ready();
        if closed || sent && self.receiver.link.is_done(self.receiver.side) {
            return Err(Over::Finished);
        }
        if self.receiver.link.gathered() > MOST_WAITING {
            return Err(Over::Backlog);
        }
        if self.tls.has_plaintext() {
            context.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Receives for one turn. Returns whether the peer has closed the session. Errors: why the connection is
    /// over.
    fn receive(
        &mut self,
        context: &mut Context<'_>,
        opened: &mut impl FnMut(IncomingStream),
    ) -> Result<bool, Over> {
        let Self { tls, receiver } = self;
        receiver.turn = Turn::default();
        for _ in 0..RECEIVES {
            match tls.poll_read_in_place(context, |bytes| receiver.take(bytes, opened)) {
                Poll::Ready(more) => {
                    if !more? {
                        return Ok(true);
                    }
                }
                Poll::Pending => return Ok(false),
            }
            receiver.deliver_assembled()?;
            receiver.link.heard.set(receiver.link.heard.get().wrapping_add(1));
            if receiver.turn.is_over() {
                break;
            }
        }
        // Other tasks first.
        context.waker().wake_by_ref();
        Ok(false)
    }

    /// Sends everything that has gathered.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tls.poll_send(context))?;
            let Some(gathered) = self.receiver.link.take_gathered() else {
                self.receiver.link.all_sent();
                return Poll::Ready(Ok(()));
            };
            self.tls.write_records(&gathered)?;
            scratch::give(gathered);
            self.receiver.link.wake_waiting();
        }
    }

    /// Tells the peer why the connection is over, and closes it.
    async fn say_goodbye(&mut self, over: &Over) {
        let goodbye = match over {
            Over::Frame(_) | Over::Stream(_) | Over::WrongStream(_) | Over::Late => Some(Goodbye::Violation),
            Over::Flood => Some(Goodbye::Flood),
            Over::Backlog => Some(Goodbye::Backlog),
            Over::Finished | Over::Lost(_) | Over::Silent | Over::Dismissed(_) => None,
        };
        if let Some(goodbye) = goodbye {
            self.receiver.link.send(&Frame::GoAway(goodbye, over.to_string()));
        }
        let said = poll_fn(|context| {
            ready!(self.send(context))?;
            Pin::new(&mut self.tls).poll_shutdown(context)
        });
        if said.await.is_ok() {
            self.hear_out().await;
        }
    }

    /// Reads and discards until the peer has closed too: a socket that is closed with unread bytes is reset,
    /// and then the peer may lose what is on its way to it. Nothing is decrypted any more.
    async fn hear_out(&mut self) {
        let (tcp, mut left) = (self.tls.tcp(), MOST_HEARD_OUT);
        let mut unheard = scratch::take_room();
        while left > 0 && tcp.readable().await.is_ok() {
            match tcp.try_read(&mut unheard) {
                Ok(0) => break,
                Ok(more) => left = left.saturating_sub(more),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        scratch::give_room(unheard);
    }
}

impl Receiver {
    /// Processes frames for one turn. Returns the number of bytes taken.
    fn take(&mut self, bytes: &[u8], opened: &mut impl FnMut(IncomingStream)) -> Result<usize, Over> {
        let mut rest = bytes;
        while !self.turn.is_over() {
            let Some(event) = self.decoder.next(&mut rest)? else { break };
            match event {
                Event::Data { stream, piece, last } => {
                    self.turn.spend_on_data(piece.len());
                    self.link.patience.borrow_mut().earn(price::earned_by_data(piece.len()));
                    self.data(stream, piece, last)?;
                }
                Event::Frame(frame) => {
                    let (cost, work) = price::cost(&frame);
                    self.turn.spend(work, 0);
                    self.pay(cost)?;
                    self.frame(frame, opened)?;
                }
            }
        }
        let skipped = self.decoder.take_skipped();
        self.pay(price::cost_of_skipped(skipped))?;
        Ok(bytes.len() - rest.len())
    }

    fn pay(&self, cost: u32) -> Result<(), Over> {
        if self.link.patience.borrow_mut().spend(cost) { Ok(()) } else { Err(Over::Flood) }
    }

    fn data(&mut self, stream: u32, piece: &[u8], last: bool) -> Result<(), Over> {
        if last && self.assembled.is_empty() {
            return self.deliver(stream, piece);
        }
        if self.assembled.capacity() == 0 {
            self.assembled = scratch::take();
        }
        self.assembled.extend_from_slice(piece);
        self.assembling = stream;
        if last { self.deliver_assembled() } else { Ok(()) }
    }

    fn deliver_assembled(&mut self) -> Result<(), Over> {
        if self.assembled.is_empty() {
            return Ok(());
        }
        let assembled = std::mem::take(&mut self.assembled);
        let result = self.deliver(self.assembling, &assembled);
        scratch::give(assembled);
        result
    }

    fn deliver(&self, stream: u32, bytes: &[u8]) -> Result<(), Over> {
        match self.stream(stream)? {
            Some(stream) => Ok(stream.received(bytes, &self.link)?),
            None if self.link.late(bytes.len()) => Ok(()),
            None => Err(Over::Late),
        }
    }

    /// Returns a stream that was opened; none if it is over, and then what still comes for it is discarded.
    /// Errors: no such stream was opened.
    fn stream(&self, id: u32) -> Result<Option<Rc<State>>, Over> {
        if id > self.link.last_stream.get() {
            return Err(Over::WrongStream(id));
        }
        Ok(self.link.stream(id))
    }

    fn frame(&mut self, frame: Frame, opened: &mut impl FnMut(IncomingStream)) -> Result<(), Over> {
        match frame {
            Frame::Open(id, open) => self.open(id, open, opened)?,
            Frame::Accept(id, credit) => {
                if let Some(stream) = self.stream(id)? {
                    stream.answered(Answer::Accepted)?;
                    stream.credited(credit)?;
                }
            }
            Frame::Refuse(id, refusal) => {
                if let Some(stream) = self.stream(id)? {
                    stream.answered(Answer::Refused(refusal))?;
                }
            }
            Frame::Credit(id, credit) => {
                if let Some(stream) = self.stream(id)? {
                    stream.credited(credit)?;
                }
            }
            Frame::End(id) => {
                if let Some(stream) = self.stream(id)? {
                    stream.ended()?;
                }
            }
            Frame::Reset(id, reason) => {
                if let Some(stream) = self.stream(id)? {
                    stream.break_off(Broken::Reset(reason));
                }
            }
            Frame::Ping(opaque) => self.link.send(&Frame::Pong(opaque)),
            Frame::Pong(_) => {}
            Frame::GoAway(Goodbye::Draining, _) => self.link.closing.set(true),
            Frame::GoAway(_, why) => return Err(Over::Dismissed(why)),
        }
        Ok(())
    }

    fn open(&self, id: u32, open: OpenFrame, opened: &mut impl FnMut(IncomingStream)) -> Result<(), Over> {
        let link = &self.link;
        if self.side == Side::Client || id <= link.last_stream.get() {
            return Err(Over::WrongStream(id));
        }
        link.last_stream.set(id);
        let refusal = if link.closing.get() {
            Some(Refusal::GoingAway)
        } else {
            (link.streams() >= MAX_PEER_STREAMS).then_some(Refusal::Busy)
        };
        if let Some(refusal) = refusal {
            link.expect_late(EARLY);
            link.send(&Frame::Refuse(id, refusal));
            return Ok(());
        }
        let state = State::opened(id, open.credit, Window::early(&link.budget));
        link.add(&state);
        opened(IncomingStream { open, stream: Stream::new(state, Rc::clone(link)) });
        Ok(())
    }
}

/// Returns when the peer has not answered a ping in time.
async fn silence(link: &Link) {
    let mut asked = false;
    let mut before = link.heard.get();
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let now = link.heard.get();
        if now != before {
            (before, asked) = (now, false);
        } else if asked {
            return;
        } else {
            asked = true;
            link.send(&Frame::Ping(*b"nodemesh"));
        }
    }
}
