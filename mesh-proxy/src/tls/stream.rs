//! A TLS session after its handshake.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use mesh_calm::BarrenBytes;
use rustls::pki_types::CertificateDer;
use rustls::unbuffered::{ConnectionState, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buffer_pool;
use super::unbuffered_client_or_server::{UnbufferedConnection, append_handshake_record};
use super::write_buffer::WriteBuffer;

/// Unsent bytes from which a writer has to wait: less than a stream's turn, which so is sent by itself, in
/// full packets.
const HIGH_WATER: usize = 96 * 1024;

/// Most bytes that rustls is shown at a time: the largest record (RFC 8446, section 5.2). It would process
/// all bytes that it sees, and stop only where data is among them.
const SHOWN: usize = 5 + 16 * 1024 + 256;

/// Records that are decrypted before other tasks run. Full ones fill all buffers long before.
const RECORDS: usize = 32;

/// Pieces shorter than this are gathered into one record first; longer ones are encrypted from where they
/// are.
const GATHER_BELOW: usize = 8 * 1024;

/// Bytes of records without data that a session may receive without any data: a thousand key updates.
const MOST_BARREN: usize = 32 * 1024;

/// A TLS session over TCP.
pub struct TlsStream<C> {
    tcp: TcpStream,
    /// Boxed: it has kilobytes, for which every task that passes the session on would else have room twice.
    unbuffered: Box<C>,
    /// Received and not yet decrypted: `incoming[start..end]`. The rest of the buffer is free.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// Decrypted and not yet read: `plaintext[read..]`.
    plaintext: Vec<u8>,
    read: usize,
    /// Written and not yet encrypted; short pieces only.
    gathered: Vec<u8>,
    /// Encrypted and not yet sent.
    outgoing: WriteBuffer,
    barren: BarrenBytes,
    peer_closed: bool,
    said_goodbye: bool,
}

/// Result of one step of the state machine.
enum Step {
    /// Plaintext was passed on.
    Read,
    Again,
    Starved,
    Closed,
}

impl<C: UnbufferedConnection> TlsStream<C> {
    pub(super) fn new(tcp: TcpStream, unbuffered: Box<C>, incoming: Vec<u8>, plaintext: Vec<u8>) -> Self {
        Self {
            tcp,
            unbuffered,
            end: incoming.len(),
            incoming,
            start: 0,
            plaintext,
            read: 0,
            gathered: Vec::new(),
            outgoing: WriteBuffer::default(),
            barren: BarrenBytes::new(MOST_BARREN),
            peer_closed: false,
            said_goodbye: false,
        }
    }

    /// Returns the peer's certificates, leaf first; none if it sent none.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.unbuffered.peer_certificates()
    }

    /// Returns the protocol that both sides chose (RFC 7301), if they did.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.unbuffered.alpn_protocol()
    }

    /// Returns the socket below.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Sends everything that was written; before, nothing is sent unless much has gathered. Ready when all is
    /// sent. Errors: those of `send(2)`, or encryption failed.
    pub fn poll_send_all(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal_gathered()?;
        while !self.outgoing.unsent().is_empty() {
            let written = ready!(Pin::new(&mut self.tcp).poll_write(context, self.outgoing.unsent()))?;
            self.outgoing.mark_sent(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts `bytes` into records of their own, for the next [`Self::poll_send_all`]. Errors: encryption
    /// failed.
    pub fn encrypt_and_queue(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seal_gathered()?;
        self.seal(bytes)
    }

    /// Decrypts in place and passes the data to `take`: first what is there, then what one read receives.
    /// `take` returns how many bytes it took. If those are not all, or after some records, the rest is kept
    /// for the next call, for which nobody is woken. Ready with false when the peer has closed the session.
    /// Errors: those of `take`, or the connection broke.
    pub fn poll_decrypt_with<E: From<io::Error>>(
        &mut self,
        context: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Poll<Result<bool, E>> {
        let mut received = !self.plaintext.is_empty();
        if received {
            self.take_plaintext(&mut take)?;
        }
        for _ in 0..RECORDS {
            if !self.plaintext.is_empty() {
                break;
            }
            match self.open_in_place(&mut take)? {
                Step::Read => received = true,
                Step::Again => {}
                Step::Closed => return Poll::Ready(Ok(false)),
                Step::Starved if received => break,
                Step::Starved => {
                    if !ready!(self.poll_receive(context)).map_err(E::from)? {
                        return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                    }
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Passes on what was decrypted before.
    fn take_plaintext<E>(&mut self, take: &mut impl FnMut(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        let plaintext = std::mem::take(&mut self.plaintext);
        self.read += take(&plaintext[self.read..])?;
        if self.read < plaintext.len() {
            self.plaintext = plaintext;
        } else {
            self.read = 0;
        }
        Ok(())
    }

    /// Whether there is data, or the end, that nobody will be woken for: it was decrypted so that a write
    /// could pass.
    pub fn has_unread_plaintext(&self) -> bool {
        !self.plaintext.is_empty() || self.peer_closed
    }

    /// Queues all of `piece` to be sent.
    fn queue(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.len() < GATHER_BELOW {
            if self.gathered.capacity() == 0 {
                self.gathered = buffer_pool::take_empty();
            }
            self.gathered.extend_from_slice(piece);
            return Ok(());
        }
        self.seal_gathered()?;
        self.seal(piece)
    }

    fn seal_gathered(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let gathered = std::mem::take(&mut self.gathered);
        let result = self.seal(&gathered);
        buffer_pool::return_empty(gathered);
        result
    }

    /// Encrypts `piece` to the end of `outgoing`.
    fn seal(&mut self, piece: &[u8]) -> io::Result<()> {
        self.write_traffic(|traffic, outgoing| encrypt(traffic, piece, outgoing))
    }

    /// Brings the state machine to where it may encrypt, and has `write` do so to the end of `outgoing`.
    fn write_traffic(
        &mut self,
        mut write: impl FnMut(&mut WriteTraffic<'_, C::Side>, &mut WriteBuffer) -> io::Result<()>,
    ) -> io::Result<()> {
        // The received bytes have to be shown each time, because rustls keeps positions in them.
        let shown = self.end.min(self.start + SHOWN);
        loop {
            let UnbufferedStatus { discard, state, .. } =
                self.unbuffered.process_records(&mut self.incoming[self.start..shown]);
            let state = state.inspect_err(|_| self.start += discard).map_err(invalid)?;
            let mut extra = 0;
            let (mut done, before) = (false, self.plaintext.len());
            match state {
                ConnectionState::WriteTraffic(mut traffic) => {
                    write(&mut traffic, &mut self.outgoing)?;
                    done = true;
                }
                // Received records that were not read yet come first.
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        extra += record.discard;
                        self.plaintext.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(encode) => queue_handshake(encode, &mut self.outgoing),
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            self.start += discard + extra;
            self.barren.count(discard + extra, self.plaintext.len() - before)?;
            if done {
                return Ok(());
            }
        }
    }

    /// Queues `close_notify`, which tells the peer the end from a cut (RFC 8446, section 6.1).
    fn say_goodbye(&mut self) -> io::Result<()> {
        self.write_traffic(|traffic, outgoing| {
            /// Bytes of an alert record, with room to spare.
            const ALERT: usize = 64;
            let written = traffic.queue_close_notify(outgoing.free_space(ALERT)).map_err(io::Error::other)?;
            outgoing.mark_filled(written);
            Ok(())
        })
    }

    /// Decrypts one step into `buffer`.
    fn open_one(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<Step> {
        self.open_in_place(|payload| {
            let fits = payload.len().min(buffer.remaining());
            buffer.put_slice(&payload[..fits]);
            Ok::<_, io::Error>(fits)
        })
    }

    /// Decrypts one step. What `take` does not take is kept for later.
    fn open_in_place<E: From<io::Error>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<Step, E> {
        if self.peer_closed {
            return Ok(Step::Closed);
        }
        let shown = self.end.min(self.start + SHOWN);
        let UnbufferedStatus { discard, state, .. } =
            self.unbuffered.process_records(&mut self.incoming[self.start..shown]);
        let state = state.inspect_err(|_| self.start += discard).map_err(invalid)?;
        let (mut extra, mut data) = (0, 0);
        let mut taken = Ok(0);
        let step = match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while taken.is_ok()
                    && let Some(record) = traffic.next_record()
                {
                    let record = record.map_err(invalid)?;
                    extra += record.discard;
                    data += record.payload.len();
                    taken = if self.plaintext.is_empty() { take(record.payload) } else { Ok(0) };
                    if let Ok(taken) = taken {
                        self.plaintext.extend_from_slice(&record.payload[taken..]);
                    }
                }
                Step::Read
            }
            ConnectionState::EncodeTlsData(encode) => {
                queue_handshake(encode, &mut self.outgoing);
                Step::Again
            }
            ConnectionState::TransmitTlsData(transmit) => {
                transmit.done();
                Step::Again
            }
            ConnectionState::PeerClosed | ConnectionState::Closed => {
                self.peer_closed = true;
                Step::Closed
            }
            // A message in several records, larger than any that exists.
            _ if discard == 0 && shown - self.start == SHOWN => return Err(too_large().into()),
            // Everything shown is processed, but more was received.
            _ if shown < self.end => Step::Again,
            _ => Step::Starved,
        };
        // Even if `take` failed: the record is decrypted, and can't be decrypted again.
        self.start += discard + extra;
        self.barren.count(discard + extra, data)?;
        taken.map(|_| step)
    }

    /// Copies out what was decrypted before.
    fn drain_plaintext(&mut self, buffer: &mut ReadBuf<'_>) {
        let left = &self.plaintext[self.read..];
        let fits = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..fits]);
        self.read += fits;
        if self.read == self.plaintext.len() {
            self.plaintext.clear();
            self.read = 0;
        }
    }

    /// Receives more bytes; ready with false at the end of the connection.
    ///
    /// Uses `poll_read` and not `try_read`: after a short read it knows that nothing more is there, which
    /// saves a system call.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.make_room();
        let mut room = ReadBuf::new(&mut self.incoming[self.end..]);
        let polled = Pin::new(&mut self.tcp).poll_read(context, &mut room);
        let received = room.filled().len();
        self.end += received;
        if polled.is_pending() {
            self.rest();
        }
        ready!(polled)?;
        Poll::Ready(Ok(received > 0))
    }

    /// Gives buffers back while the connection waits with nothing half received.
    fn rest(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            buffer_pool::return_full_length(std::mem::take(&mut self.incoming));
        }
    }

    /// Moves a partial record to the front and makes room behind it.
    fn make_room(&mut self) {
        self.incoming.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.incoming.len() < buffer_pool::BUFFER_LEN {
            let mut larger = buffer_pool::take_full_length();
            larger[..self.end].copy_from_slice(&self.incoming[..self.end]);
            self.incoming = larger;
        }
    }
}

fn encrypt<S>(traffic: &mut WriteTraffic<'_, S>, piece: &[u8], outgoing: &mut WriteBuffer) -> io::Result<()> {
    /// Header, content type and tag of a TLS 1.3 record (RFC 8446, section 5.2), rounded up.
    const OVERHEAD: usize = 32;
    /// Most bytes of plaintext in a record.
    const RECORD: usize = 16 * 1024;
    // One record more than needed, since a key update may come before the data.
    let likely = piece.len() + (piece.len() / RECORD + 2) * OVERHEAD;
    let mut answer = traffic.encrypt(piece, outgoing.free_space(likely));
    if let Err(EncryptError::InsufficientSize(needed)) = answer {
        answer = traffic.encrypt(piece, outgoing.free_space(needed.required_size));
    }
    outgoing.mark_filled(answer.map_err(io::Error::other)?);
    Ok(())
}

/// Queues a message of the handshake protocol after the handshake, such as an answer to a key update.
fn queue_handshake<S>(encode: EncodeTlsData<'_, S>, outgoing: &mut WriteBuffer) {
    let mut message = Vec::new();
    append_handshake_record(encode, &mut message);
    outgoing.free_space(message.len())[..message.len()].copy_from_slice(&message);
    outgoing.mark_filled(message.len());
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn too_large() -> io::Error {
    io::Error::other("a message of TLS that is larger than a record")
}

impl<C: UnbufferedConnection> AsyncRead for TlsStream<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        this.drain_plaintext(buffer);
        for _ in 0..RECORDS {
            if buffer.remaining() == 0 || this.peer_closed {
                break;
            }
            match this.open_one(buffer)? {
                Step::Read | Step::Again | Step::Closed => {}
                Step::Starved if buffer.filled().len() > before => break,
                Step::Starved => {
                    if !ready!(this.poll_receive(context))? {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
        if buffer.filled().len() == before && buffer.remaining() > 0 && !this.peer_closed {
            // Records without data. Other tasks first.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: UnbufferedConnection> AsyncWrite for TlsStream<C> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(piece)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.outgoing.unsent().len() + this.gathered.len() >= HIGH_WATER {
            ready!(this.poll_send_all(context))?;
        }
        for piece in pieces {
            this.queue(piece)?;
        }
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready at once: sending is [`TlsStream::poll_send_all`]'s, so that a caller that flushes after every
    /// frame does not cost a system call each time.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said_goodbye {
            this.said_goodbye = true;
            this.seal_gathered()?;
            this.say_goodbye()?;
        }
        ready!(this.poll_send_all(context))?;
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::fixture::test_tls_configs;
    use crate::tls;

    /// A client that updates its keys `updates` times for each byte of data, until it is cut off or has done
    /// so `times`.
    fn update_keys(address: std::net::SocketAddr, updates: usize, times: usize) -> io::Result<()> {
        let name = "0.0.0.0".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(Arc::clone(&test_tls_configs().0), name).unwrap();
        let mut tcp = std::net::TcpStream::connect(address)?;
        session.complete_io(&mut tcp)?;
        for _ in 0..times {
            for _ in 0..updates {
                session.refresh_traffic_keys().map_err(io::Error::other)?;
            }
            session.writer().write_all(b"x")?;
            while session.wants_write() {
                session.write_tls(&mut tcp)?;
            }
        }
        session.send_close_notify();
        session.write_tls(&mut tcp)?;
        // Closed with something unread in it the socket would be reset.
        let _until_the_end = tcp.read_to_end(&mut Vec::new());
        Ok(())
    }

    #[tokio::test]
    async fn key_updates_are_taken_and_a_flood_of_them_is_not() {
        for (updates, times, good) in [(1, 500, true), (30, 5000, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::thread::spawn(move || update_keys(address, updates, times));
            let (tcp, _) = listener.accept().await.unwrap();
            let mut session = tls::server_handshake(tcp, test_tls_configs().1).await.unwrap();
            let mut data = Vec::new();
            let read = session.read_to_end(&mut data).await;
            if good {
                assert_eq!(read.unwrap(), times);
            } else {
                assert!(read.unwrap_err().to_string().contains("without data"));
                assert!(data.len() < 100, "{}", data.len());
            }
            drop(session);
            assert_eq!(client.join().unwrap().is_ok(), good);
        }
    }
}
