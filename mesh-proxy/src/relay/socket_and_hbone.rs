//! Relays between a socket and an HBONE stream.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::{ByteMeter, Ends, Error, SocketSide, fin_on_drop, reset_on_drop};
use crate::hbone::{Stream, h2_to_io_error};
use crate::mux::MAX_BYTES_PER_TURN;

/// Most bytes of one DATA frame: bounds how long one stream keeps the others of its connection waiting.
const CHUNK: usize = MAX_BYTES_PER_TURN;

/// Bytes of the buffer that reads are cut from.
const ARENA: usize = 512 * 1024;

/// Reads shorter than this are copied out of the buffer, so that a few queued bytes never hold much memory.
const COPY_BELOW: usize = 4 * 1024;

thread_local! {
    /// The worker's read buffer.
    static ARENA_OF_CORE: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(ARENA));
}

/// Relays until both directions are closed. On an error, or if it is dropped before the end, both ends are
/// reset. Errors: which end broke.
pub async fn relay_hbone(
    socket: TcpStream,
    stream: &mut Stream,
    socket_side: SocketSide,
    meter: &ByteMeter,
) -> Result<(), Error> {
    let ends = Ends::from(socket_side);
    let mut both = Both { socket, stream, finished: false };
    let result = {
        let (mut from, to) = both.socket.split();
        let outgoing = outgoing(&mut from, &mut both.stream.send, meter, &ends);
        let unread = std::mem::take(&mut both.stream.unread);
        let incoming = incoming(unread, &mut both.stream.receive, to.as_ref(), meter, &ends);
        // Boxed: most connections are not relayed like this, and their tasks should be no larger for it.
        Box::pin(async { tokio::try_join!(outgoing, incoming) }).await.map(|((), ())| ())
    };
    both.finished = result.is_ok();
    result
}

/// The two ends, which are reset if they are dropped before they have finished.
struct Both<'a> {
    socket: TcpStream,
    stream: &'a mut Stream,
    finished: bool,
}

impl Drop for Both<'_> {
    fn drop(&mut self) {
        if self.finished {
            fin_on_drop(&self.socket);
        } else {
            reset_on_drop(&self.socket);
            self.stream.send.send_reset(Reason::CANCEL);
        }
    }
}

/// Relays from the socket to the stream. Reads only as much as the stream has credit for.
async fn outgoing(
    socket: &mut ReadHalf<'_>,
    stream: &mut SendStream<Bytes>,
    meter: &ByteMeter,
    ends: &Ends,
) -> Result<(), Error> {
    loop {
        tokio::select! {
            biased;
            ready = socket.readable() => ready.map_err(ends.socket)?,
            reason = poll_fn(|context| stream.poll_reset(context)) => {
                return Err((ends.stream)(reset(reason.unwrap_or(Reason::CANCEL))));
            }
        }
        let credit = credit(stream).await.map_err(ends.stream)?;
        let read = poll_fn(|context| poll_read(socket, credit.min(CHUNK), context));
        let Some(result) = read.now_or_never() else {
            stream.reserve_capacity(0);
            continue;
        };
        let bytes = result.map_err(ends.socket)?;
        if bytes.is_empty() {
            break;
        }
        meter.add_bytes(ends.from_socket, bytes.len());
        stream.send_data(bytes, false).map_err(|error| (ends.stream)(io::Error::other(error)))?;
    }
    stream.reserve_capacity(0);
    stream.send_data(Bytes::new(), true).map_err(|error| (ends.stream)(io::Error::other(error)))
}

/// Waits until the stream may send. Returns how many bytes.
async fn credit(stream: &mut SendStream<Bytes>) -> io::Result<usize> {
    stream.reserve_capacity(CHUNK);
    loop {
        match stream.capacity() {
            0 => {}
            credit => return Ok(credit),
        }
        match poll_fn(|context| stream.poll_capacity(context)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(io::Error::other(error)),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Reads at most `limit` bytes; none at the end.
///
/// Uses `poll_read` and not `try_read`: after a short read it knows that nothing more is there, which saves a
/// system call.
fn poll_read(socket: &mut ReadHalf<'_>, limit: usize, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    ARENA_OF_CORE.with_borrow_mut(|arena| {
        if arena.capacity() < CHUNK {
            // Reuses the memory if nothing of it is in use, and allocates otherwise.
            arena.reserve(ARENA);
        }
        let mut limited = BufMut::limit(&mut *arena, limit);
        let read = ready!(pin!(socket.read_buf(&mut limited)).poll(context))?;
        if read < COPY_BELOW {
            let copy = Bytes::copy_from_slice(arena);
            arena.clear();
            return Poll::Ready(Ok(copy));
        }
        Poll::Ready(Ok(arena.split().freeze()))
    })
}

/// Relays from the stream to the socket, `unread` bytes first. Credit is given back only for what the socket
/// took, so a reader that stops makes the node hold one stream window and no more.
async fn incoming(
    unread: Bytes,
    stream: &mut RecvStream,
    socket: &TcpStream,
    meter: &ByteMeter,
    ends: &Ends,
) -> Result<(), Error> {
    let mut backlog = BytesMut::from(unread);
    let mut ended = false;
    loop {
        if backlog.is_empty() {
            if ended {
                break;
            }
            // A new allocation later costs less than memory that an idle connection holds.
            backlog = BytesMut::new();
            match stream.data().await {
                Some(chunk) => {
                    let mut chunk = chunk.map_err(|error| (ends.stream)(h2_to_io_error(&error)))?;
                    let written = write(socket, &chunk).map_err(ends.socket)?;
                    give_back(stream, written, meter, ends)?;
                    chunk.advance(written);
                    backlog.extend_from_slice(&chunk);
                }
                None => ended = true,
            }
        } else {
            tokio::select! {
                ready = socket.writable() => {
                    ready.map_err(ends.socket)?;
                    let written = write(socket, &backlog).map_err(ends.socket)?;
                    give_back(stream, written, meter, ends)?;
                    backlog.advance(written);
                }
                // Small frames are gathered here, where they cost their length, and not in the HTTP/2 queue.
                chunk = stream.data(), if !ended => match chunk {
                    Some(chunk) => {
                        backlog.extend_from_slice(&chunk.map_err(|error| (ends.stream)(h2_to_io_error(&error)))?);
                    }
                    None => ended = true,
                },
            }
        }
    }
    // The application may have closed already; then nobody is left to tell.
    let _closed_already = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write);
    Ok(())
}

fn write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

fn give_back(stream: &mut RecvStream, written: usize, meter: &ByteMeter, ends: &Ends) -> Result<(), Error> {
    meter.add_bytes(ends.to_socket, written);
    stream.flow_control().release_capacity(written).map_err(|error| (ends.stream)(io::Error::other(error)))
}

fn reset(reason: Reason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("stream reset: {reason}"))
}
