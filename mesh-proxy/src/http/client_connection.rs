//! The client's end of a connection that is read as HTTP.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::h1::{BodyDecoder, BodyFraming, BodyPiece, MAX_HEAD, Malformed, find_head_end};
use super::{READ_SIZE, read_buffers};
use crate::mux::PodReceiveBudget;

/// Memory that a large head takes: as it came, as it is read, and as it is written.
const LARGE_HEAD: usize = 3 * MAX_HEAD;
/// Time for a head once its first byte has come.
const HEAD_TIME: Duration = Duration::from_mins(1);
/// Time without a request after which a connection is closed (Envoy's default).
const IDLE_TIME: Duration = Duration::from_hours(1);
/// Most bytes of a request's body that are read and thrown away, so that the client reads its response.
pub(super) const MAX_DISCARDED: usize = 256 * 1024;
/// Time for that.
pub(super) const DISCARD_TIME: Duration = Duration::from_secs(2);

/// A client's socket, and what was read from it and not used yet.
pub(super) struct ClientConnection {
    pub socket: TcpStream,
    pub input: BytesMut,
    /// Where memory for large heads is taken from: what the pod's streams may hold.
    budget: Rc<PodReceiveBudget>,
    large_head: Option<LargeHeadReservation>,
}

/// Memory for a head beyond the first 16 KiB, and for what is made of it, until it is dropped.
pub(super) struct LargeHeadReservation(Rc<PodReceiveBudget>);

impl LargeHeadReservation {
    /// Takes it; none if the pod's streams hold all that they may.
    pub fn try_take(budget: &Rc<PodReceiveBudget>) -> Option<Self> {
        budget.try_take(LARGE_HEAD).then(|| Self(Rc::clone(budget)))
    }
}

impl Drop for LargeHeadReservation {
    fn drop(&mut self) {
        self.0.give_back(LARGE_HEAD);
    }
}

/// What came instead of a head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The client is done, or gone.
    NoMoreBytes,
    /// No head came in time.
    Timeout,
    /// What came is none.
    Malformed(Malformed),
}

impl ClientConnection {
    pub fn new(socket: TcpStream, budget: Rc<PodReceiveBudget>) -> Self {
        Self { socket, input: BytesMut::new(), budget, large_head: None }
    }

    /// Gives memory back that the last request took.
    pub fn release_large_head(&mut self) {
        self.large_head = None;
    }

    /// Waits until bytes of the next request are there. Returns whether there are any. An idle connection
    /// holds no buffer.
    pub async fn wait_for_request(&mut self) -> bool {
        if !self.input.is_empty() {
            return true;
        }
        read_buffers::give_back(&mut self.input);
        if !matches!(timeout(IDLE_TIME, self.socket.readable()).await, Ok(Ok(()))) {
            return false;
        }
        matches!(self.fill().await, Ok(read) if read > 0)
    }

    /// Reads the next head. Errors: see [`NoHead`].
    pub async fn read_head(&mut self) -> Result<BytesMut, NoHead> {
        let read = async {
            let mut searched = 0;
            loop {
                // Empty lines before a request are ignored (RFC 9112, 2.2).
                while searched == 0 && self.input.starts_with(b"\r\n") {
                    self.input.advance(2);
                }
                let seen = &self.input[..self.input.len().min(MAX_HEAD + 1)];
                let may_be_empty_line = matches!(seen, [] | [b'\r']);
                if !may_be_empty_line
                    && let Some(length) = find_head_end(seen, &mut searched).map_err(NoHead::Malformed)?
                {
                    return Ok(self.input.split_to(length));
                }
                if self.input.len() >= READ_SIZE && self.large_head.is_none() {
                    self.large_head = LargeHeadReservation::try_take(&self.budget);
                    if self.large_head.is_none() {
                        return Err(NoHead::Malformed(Malformed::TooLarge));
                    }
                }
                if self.fill().await.unwrap_or(0) == 0 {
                    return Err(NoHead::NoMoreBytes);
                }
            }
        };
        timeout(HEAD_TIME, read).await.unwrap_or(Err(NoHead::Timeout))
    }

    async fn fill(&mut self) -> io::Result<usize> {
        read_buffers::make_room(&mut self.input);
        self.socket.read_buf(&mut self.input).await
    }

    /// Waits until the client has reset its connection.
    pub async fn wait_until_reset(&self) -> io::Error {
        let failed = self.socket.ready(Interest::ERROR).await.and_then(|_| self.socket.take_error());
        failed.map_or_else(
            |error| error,
            |error| error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        )
    }

    /// Checks that the client has not closed its connection. Errors: it has, or it is gone.
    pub fn check_is_there(&self) -> io::Result<()> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        match self.socket.peek(&mut [0]).now_or_never() {
            Some(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// Reads the rest of a request's body and throws it away. Returns whether it came to its end, so that
    /// another request can follow.
    pub async fn discard_body(&mut self, framing: BodyFraming) -> bool {
        let discard = async {
            let (mut decoder, mut discarded) = (BodyDecoder::new(framing), 0);
            loop {
                match decoder.decode(&mut self.input) {
                    Ok(BodyPiece::End(_)) => return true,
                    Ok(BodyPiece::Data(data)) => {
                        discarded += data.len();
                        if discarded > MAX_DISCARDED {
                            return false;
                        }
                    }
                    Ok(BodyPiece::Incomplete) => {
                        if self.fill().await.unwrap_or(0) == 0 {
                            return false;
                        }
                    }
                    Err(_) => return false,
                }
            }
        };
        timeout(DISCARD_TIME, discard).await.unwrap_or(false)
    }

    /// Closes the connection so that the client reads what was written: its socket would be reset, and that
    /// lost, if bytes of its own were left unread (RFC 9112, 9.6).
    pub async fn close_in_order(mut self) {
        let close = async {
            if self.socket.shutdown().await.is_err() {
                return;
            }
            let mut discarded = 0;
            while discarded < MAX_DISCARDED {
                self.input.clear();
                match self.fill().await {
                    Ok(read) if read > 0 => discarded += read,
                    _ => return,
                }
            }
        };
        let _closed_or_late = timeout(DISCARD_TIME, close).await;
    }
}
