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

use mesh_calm::FLOOD;
use mesh_calm::turn::Turn;
use tokio::io::AsyncWrite;

use super::autotuned_receive_window::ReceiveWindow;
use super::connection_state::ConnectionState;
use super::frame::{ControlFrame, DecoderEvent, FrameDecoder, FrameError, GoAwayReason, Refusal};
use super::open_frame::OpenFrame;
use super::stream::{OpenAnswer, Stream, StreamError, StreamState, StreamViolation};
use super::{EARLY_CREDIT, IncomingStream, MAX_PEER_STREAMS, frame_costs};
use crate::tls::{TlsStream, UnbufferedConnection, buffer_pool};
use crate::urgent_data_and_min_rtt;

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
pub(super) enum CloseReason {
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
    Stream(#[from] StreamViolation),
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

impl CloseReason {
    /// Whether the peer was cut off for a flood, of frames or of TLS records.
    fn is_flood(&self) -> bool {
        match self {
            Self::Flood => true,
            Self::Lost(error) => error.kind() == FLOOD,
            _ => false,
        }
    }

    fn as_streams_see_it(&self) -> StreamError {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let why = self.to_string().into();
        match self {
            Self::Finished => StreamError::Gone(why),
            // The peer's kernel closed it, behind everything that the peer itself had sent.
            Self::Lost(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                StreamError::Gone(why)
            }
            _ => StreamError::Lost(why),
        }
    }
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionSide {
    Client,
    Server,
}

pub(super) struct Driver<C> {
    tls: TlsStream<C>,
    receiver: Receiver,
}

/// Everything but the TLS session, which is borrowed while its records are read.
struct Receiver {
    shared: Rc<ConnectionState>,
    side: ConnectionSide,
    decoder: FrameDecoder,
    /// Work left in this turn, before other tasks run.
    turn: Turn,
    /// A DATA frame that came in several records, gathered so that the application gets it in one system
    /// call.
    assembled: Vec<u8>,
    /// Stream of that frame.
    assembling: u32,
}

impl<C: UnbufferedConnection> Driver<C> {
    pub fn new(tls: TlsStream<C>, shared: &Rc<ConnectionState>, side: ConnectionSide) -> Self {
        shared.round_trip.set(urgent_data_and_min_rtt::min_rtt(tls.tcp()));
        let receiver = Receiver {
            shared: Rc::clone(shared),
            side,
            decoder: FrameDecoder::default(),
            turn: Turn::default(),
            assembled: Vec::new(),
            assembling: 0,
        };
        Self { tls, receiver }
    }

    /// Drives the connection to its end, and returns why it is over; `opened` gets the streams that the peer
    /// opens. `on_flood` runs as soon as the peer is found to flood.
    pub async fn run(
        mut self,
        mut opened: impl FnMut(IncomingStream),
        on_flood: impl FnOnce(),
    ) -> CloseReason {
        let shared = Rc::clone(&self.receiver.shared);
        let over = tokio::select! {
            biased;
            over = poll_fn(|context| match self.turn(context, &mut opened) {
                Ok(()) => Poll::Pending,
                Err(over) => Poll::Ready(over),
            }) => over,
            () = silence(&shared) => CloseReason::Silent,
        };
        if over.is_flood() {
            on_flood();
        }
        shared.break_all_streams(&over.as_streams_see_it());
        let _in_time = tokio::time::timeout(FAREWELL, self.say_goodbye(&over)).await;
        over
    }

    /// Runs one turn. Errors: why the connection is over.
    fn turn(
        &mut self,
        context: &mut Context<'_>,
        opened: &mut impl FnMut(IncomingStream),
    ) -> Result<(), CloseReason> {
        self.receiver.shared.begin_driver_turn(context);
        let closed = self.receive(context, opened)?;
        self.receiver.shared.end_driver_turn();
        let sent = self.send(context)?.is_ready();
        if closed || sent && self.receiver.shared.can_close(self.receiver.side) {
            return Err(CloseReason::Finished);
        }
        if self.receiver.shared.queued_len() > MOST_WAITING {
            return Err(CloseReason::Backlog);
        }
        if self.tls.has_unread_plaintext() {
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
    ) -> Result<bool, CloseReason> {
        let Self { tls, receiver } = self;
        receiver.turn = Turn::default();
        for _ in 0..RECEIVES {
            match tls.poll_decrypt_with(context, |bytes| receiver.take(bytes, opened)) {
                Poll::Ready(more) => {
                    if !more? {
                        return Ok(true);
                    }
                }
                Poll::Pending => return Ok(false),
            }
            receiver.deliver_assembled()?;
            receiver.shared.heard.set(receiver.shared.heard.get().wrapping_add(1));
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
            ready!(self.tls.poll_send_all(context))?;
            let Some(gathered) = self.receiver.shared.take_queued_bytes() else {
                self.receiver.shared.mark_accepts_sent();
                return Poll::Ready(Ok(()));
            };
            self.tls.encrypt_and_queue(&gathered)?;
            buffer_pool::return_empty(gathered);
            self.receiver.shared.wake_streams_awaiting_room();
        }
    }

    /// Tells the peer why the connection is over, and closes it.
    async fn say_goodbye(&mut self, over: &CloseReason) {
        let goodbye = match over {
            CloseReason::Frame(_)
            | CloseReason::Stream(_)
            | CloseReason::WrongStream(_)
            | CloseReason::Late => Some(GoAwayReason::Violation),
            CloseReason::Flood => Some(GoAwayReason::Flood),
            CloseReason::Backlog => Some(GoAwayReason::Backlog),
            CloseReason::Finished
            | CloseReason::Lost(_)
            | CloseReason::Silent
            | CloseReason::Dismissed(_) => None,
        };
        if let Some(goodbye) = goodbye {
            self.receiver.shared.queue_frame(&ControlFrame::GoAway(goodbye, over.to_string()));
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
        let mut unheard = buffer_pool::take_full_length();
        while left > 0 && tcp.readable().await.is_ok() {
            match tcp.try_read(&mut unheard) {
                Ok(0) => break,
                Ok(more) => left = left.saturating_sub(more),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        buffer_pool::return_full_length(unheard);
    }
}

impl Receiver {
    /// Processes frames for one turn. Returns the number of bytes taken.
    fn take(&mut self, bytes: &[u8], opened: &mut impl FnMut(IncomingStream)) -> Result<usize, CloseReason> {
        let mut rest = bytes;
        while !self.turn.is_over() {
            let Some(event) = self.decoder.next_event(&mut rest)? else { break };
            match event {
                DecoderEvent::Data { stream, piece, last } => {
                    self.turn.spend_on_data(piece.len());
                    self.shared
                        .patience
                        .borrow_mut()
                        .earn(frame_costs::allowance_for_received_data(piece.len()));
                    self.data(stream, piece, last)?;
                }
                DecoderEvent::Frame(frame) => {
                    let (cost, work) = frame_costs::frame_cost(&frame);
                    self.turn.spend(work, 0);
                    self.pay(cost)?;
                    self.frame(frame, opened)?;
                }
            }
        }
        let skipped = self.decoder.take_skipped_counts();
        self.pay(frame_costs::skipped_frames_cost(skipped))?;
        Ok(bytes.len() - rest.len())
    }

    fn pay(&self, cost: u32) -> Result<(), CloseReason> {
        if self.shared.patience.borrow_mut().spend(cost) { Ok(()) } else { Err(CloseReason::Flood) }
    }

    fn data(&mut self, stream: u32, piece: &[u8], last: bool) -> Result<(), CloseReason> {
        if last && self.assembled.is_empty() {
            return self.deliver(stream, piece);
        }
        if self.assembled.capacity() == 0 {
            self.assembled = buffer_pool::take_empty();
        }
        self.assembled.extend_from_slice(piece);
        self.assembling = stream;
        if last { self.deliver_assembled() } else { Ok(()) }
    }

    fn deliver_assembled(&mut self) -> Result<(), CloseReason> {
        if self.assembled.is_empty() {
            return Ok(());
        }
        let assembled = std::mem::take(&mut self.assembled);
        let result = self.deliver(self.assembling, &assembled);
        buffer_pool::return_empty(assembled);
        result
    }

    fn deliver(&self, stream: u32, bytes: &[u8]) -> Result<(), CloseReason> {
        match self.stream(stream)? {
            Some(stream) => Ok(stream.deliver_data(bytes, &self.shared)?),
            None if self.shared.try_spend_late_credit(bytes.len()) => Ok(()),
            None => Err(CloseReason::Late),
        }
    }

    /// Returns a stream that was opened; none if it is over, and then what still comes for it is discarded.
    /// Errors: no such stream was opened.
    fn stream(&self, id: u32) -> Result<Option<Rc<StreamState>>, CloseReason> {
        if id > self.shared.last_stream.get() {
            return Err(CloseReason::WrongStream(id));
        }
        Ok(self.shared.get_stream(id))
    }

    fn frame(
        &mut self,
        frame: ControlFrame,
        opened: &mut impl FnMut(IncomingStream),
    ) -> Result<(), CloseReason> {
        match frame {
            ControlFrame::Open(id, open) => self.open(id, open, opened)?,
            ControlFrame::Accept(id, credit) => {
                if let Some(stream) = self.stream(id)? {
                    stream.receive_answer(OpenAnswer::Accepted)?;
                    stream.receive_credit(credit)?;
                }
            }
            ControlFrame::Refuse(id, refusal) => {
                if let Some(stream) = self.stream(id)? {
                    stream.receive_answer(OpenAnswer::Refused(refusal))?;
                }
            }
            ControlFrame::Credit(id, credit) => {
                if let Some(stream) = self.stream(id)? {
                    stream.receive_credit(credit)?;
                }
            }
            ControlFrame::End(id) => {
                if let Some(stream) = self.stream(id)? {
                    stream.receive_end()?;
                }
            }
            ControlFrame::Reset(id, reason) => {
                if let Some(stream) = self.stream(id)? {
                    stream.end_with_error(StreamError::Reset(reason));
                }
            }
            ControlFrame::Ping(opaque) => self.shared.queue_frame(&ControlFrame::Pong(opaque)),
            ControlFrame::Pong(_) => {}
            ControlFrame::GoAway(GoAwayReason::Draining, _) => self.shared.closing.set(true),
            ControlFrame::GoAway(_, why) => return Err(CloseReason::Dismissed(why)),
        }
        Ok(())
    }

    fn open(
        &self,
        id: u32,
        open: OpenFrame,
        opened: &mut impl FnMut(IncomingStream),
    ) -> Result<(), CloseReason> {
        let shared = &self.shared;
        if self.side == ConnectionSide::Client || id <= shared.last_stream.get() {
            return Err(CloseReason::WrongStream(id));
        }
        shared.last_stream.set(id);
        let refusal = if shared.closing.get() {
            Some(Refusal::GoingAway)
        } else {
            (shared.stream_count() >= MAX_PEER_STREAMS).then_some(Refusal::Busy)
        };
        if let Some(refusal) = refusal {
            shared.expect_late_data(EARLY_CREDIT);
            shared.queue_frame(&ControlFrame::Refuse(id, refusal));
            return Ok(());
        }
        let state = StreamState::new_incoming(id, open.credit, ReceiveWindow::for_incoming(&shared.budget));
        shared.insert_stream(&state);
        opened(IncomingStream { open, stream: Stream::new(state, Rc::clone(shared)) });
        Ok(())
    }
}

/// Returns when the peer has not answered a ping in time.
async fn silence(shared: &ConnectionState) {
    let mut asked = false;
    let mut before = shared.heard.get();
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let now = shared.heard.get();
        if now != before {
            (before, asked) = (now, false);
        } else if asked {
            return;
        } else {
            asked = true;
            shared.queue_frame(&ControlFrame::Ping(*b"nodemesh"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_records_is_a_flood_and_a_lost_connection_is_none() {
        let lost = |kind: io::ErrorKind| CloseReason::Lost(kind.into()).is_flood();
        assert!(CloseReason::Flood.is_flood() && lost(FLOOD));
        assert!(!lost(io::ErrorKind::ConnectionReset) && !CloseReason::Late.is_flood());
    }
}
