//! Between a stream and the HTTP/2 library that reads from it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::head::{Head, Scanner};
use crate::patience::Patience;
use crate::price::{self, Role};
use crate::turn::Turn;

/// GOAWAY, no stream, `ENHANCE_YOUR_CALM` (RFC 9113, sections 6.8 and 7).
const GOODBYE: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0b];

/// The kind of an [`io::Error`] that says that the peer was cut off for a flood.
pub const FLOOD: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// The peer asks for too much that is of no use, and was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// Beyond what anybody may.
    #[error("too many frames without data (ENHANCE_YOUR_CALM)")]
    Useless,
    /// Beyond what one may who has not proved who it is.
    #[error("too much before it was known who sends them (ENHANCE_YOUR_CALM)")]
    Unproven,
}

/// Bounds a peer that has not proved who it is. All its frames count.
#[derive(Clone, Debug)]
pub struct Trial {
    /// So many frames, and no more.
    pub frames: u32,
    /// Bytes of their payloads, and no more.
    pub bytes: u32,
    /// Whether it has proved it.
    pub proven: Arc<AtomicBool>,
}

/// A stream of which an HTTP/2 connection reads and to which it writes, with bounds.
///
/// A read hands on what a turn has room for; then it is pending, and its task is woken again behind all that
/// are ready. Once the peer's patience is spent, reads and writes fail with [`Flood`] inside an
/// [`io::Error`].
pub struct Guarded<S> {
    stream: S,
    incoming: Scanner,
    outgoing: Scanner,
    patience: Patience,
    trial: Option<Trial>,
    turn: Turn,
    /// Received beyond a turn's end: `held[handed_on..]`.
    held: Vec<u8>,
    handed_on: usize,
    flood: Option<Flood>,
}

impl<S> Guarded<S> {
    /// Guards our end of a connection that nothing was read from or written to yet.
    pub fn new(stream: S, role: Role) -> Self {
        let (incoming, outgoing) = match role {
            Role::Server => (Scanner::of_client(), Scanner::of_server()),
            Role::Client => (Scanner::of_server(), Scanner::of_client()),
        };
        Self {
            stream,
            incoming,
            outgoing,
            patience: price::patience(),
            trial: None,
            turn: Turn::default(),
            held: Vec::new(),
            handed_on: 0,
            flood: None,
        }
    }

    /// The same, with less for whoever has not proved who it is.
    #[must_use]
    pub fn on_trial(self, trial: Trial) -> Self {
        Self { trial: Some(trial), ..self }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Looks at bytes that were received. Returns how many of them this turn has room for, at least one.
    fn look(&mut self, received: &[u8]) -> Result<usize, Flood> {
        let mut rest = received;
        while let Some(head) = self.incoming.next(&mut rest) {
            let price = price::received(head);
            self.patience.earn(price.earned);
            if !self.patience.spend(price.cost) {
                return Err(Flood::Useless);
            }
            self.count_trial(head)?;
            self.turn.spend(price.work, 0);
            if self.turn.is_over() {
                break;
            }
        }
        let taken = received.len() - rest.len();
        self.turn.spend(0, taken);
        Ok(taken)
    }

    fn count_trial(&mut self, head: Head) -> Result<(), Flood> {
        let Some(trial) = &mut self.trial else { return Ok(()) };
        if trial.proven.load(Ordering::Relaxed) {
            self.trial = None;
            return Ok(());
        }
        trial.frames = trial.frames.checked_sub(1).ok_or(Flood::Unproven)?;
        trial.bytes = trial.bytes.checked_sub(head.length).ok_or(Flood::Unproven)?;
        Ok(())
    }

    fn note_sent(&mut self, mut sent: &[u8]) {
        while let Some(head) = self.outgoing.next(&mut sent) {
            self.patience.earn(price::sent(head));
        }
    }

    fn failed(&self) -> io::Result<()> {
        self.flood.map_or(Ok(()), |flood| Err(io::Error::new(FLOOD, flood)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    /// Fills `buffer` with what is held, or with what the stream has.
    fn poll_fill(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let held = &self.held[self.handed_on..];
        let fits = held.len().min(buffer.remaining());
        buffer.put_slice(&held[..fits]);
        self.handed_on += fits;
        if self.handed_on == self.held.len() {
            (self.held, self.handed_on) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Puts what this turn has no room for back.
    fn hold(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        if self.handed_on > 0 {
            // It was handed on just now.
            self.handed_on -= rest.len();
        } else if self.held.is_empty() {
            self.held.extend_from_slice(rest);
        }
    }

    /// Tells the peer why, as far as that can be done at once.
    fn say_goodbye(&mut self, context: &mut Context<'_>) {
        if !self.outgoing.is_between_frames() {
            return;
        }
        let mut left = &GOODBYE[..];
        while !left.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, left) {
                Poll::Ready(Ok(written)) if written > 0 => left = &left[written..],
                _ => return,
            }
        }
        let _best_effort = Pin::new(&mut self.stream).poll_flush(context);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.failed()?;
        if this.turn.is_over() {
            this.turn = Turn::default();
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let filled = this.poll_fill(context, buffer);
        if filled.is_pending() {
            this.turn = Turn::default();
        }
        ready!(filled)?;
        match this.look(&buffer.filled()[before..]) {
            Ok(taken) => {
                this.hold(&buffer.filled()[before + taken..]);
                buffer.set_filled(before + taken);
                Poll::Ready(Ok(()))
            }
            Err(flood) => {
                buffer.set_filled(before);
                this.say_goodbye(context);
                this.flood = Some(flood);
                (this.held, this.handed_on) = (Vec::new(), 0);
                Poll::Ready(this.failed())
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.failed()?;
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, piece))?;
        this.note_sent(&piece[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.failed()?;
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, pieces))?;
        let mut left = written;
        for piece in pieces {
            let of_piece = left.min(piece.len());
            this.note_sent(&piece[..of_piece]);
            left -= of_piece;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.failed()?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
