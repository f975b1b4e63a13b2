//! Relays between a socket and a stream of the mesh's own protocol. The connection's driver (`mux`) writes to
//! the socket; this task helps only while the application is slower, and relays the other direction.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Instant, Sleep};

use super::{ByteMeter, Ends, Error, SocketSide, fin_on_drop, reset_on_drop};
use crate::mux::{MAX_BYTES_PER_TURN, Stream, StreamError};

/// How often a socket that is not read is checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Relays until both directions are closed. On an error, or if it is dropped before the end, the socket is
/// reset; the stream is reset when it is dropped. Errors: which end broke.
pub async fn relay_mux(
    socket: TcpStream,
    stream: &mut Stream,
    socket_side: SocketSide,
    meter: &ByteMeter,
) -> Result<(), Error> {
    let ends = Ends::from(socket_side);
    let (read, write) = socket.into_split();
    stream.attach_socket(write, meter, ends.to_socket);
    let mut relay = Relay { socket: read, stream, delivered: false, forwarded: false, look: None };
    poll_fn(|context| relay.poll(context, meter, &ends)).await
}

struct Relay<'a> {
    socket: OwnedReadHalf,
    stream: &'a mut Stream,
    /// Whether everything went from the stream to the socket, and from the socket to the stream.
    delivered: bool,
    forwarded: bool,
    /// When to check the application next, while there is no credit to read it.
    look: Option<Pin<Box<Sleep>>>,
}

impl Relay<'_> {
    fn poll(&mut self, context: &mut Context<'_>, meter: &ByteMeter, ends: &Ends) -> Poll<Result<(), Error>> {
        if !self.delivered
            && let Poll::Ready(result) = self.stream.poll_drain_and_shutdown(context)
        {
            result.map_err(ends.socket)?;
            self.delivered = true;
        }
        if !self.forwarded {
            self.forward(context, meter, ends)?;
        }
        if self.delivered && self.forwarded {
            return Poll::Ready(Ok(()));
        }
        // Last: a stream that has ended is not broken by the end of its connection.
        match self.stream.poll_stream_error(context) {
            // Nor is one whose bytes are all here, if the application just has not taken them yet.
            Some(StreamError::Lost(_) | StreamError::Gone(_)) if self.stream.both_ends_finished() => {
                Poll::Pending
            }
            Some(broken) => Poll::Ready(Err(described(&broken, ends))),
            None => self.watch_application(context, ends),
        }
    }

    /// Checks the application's socket while there is no credit: nobody reads it then, or would notice that
    /// it broke.
    fn watch_application(&mut self, context: &mut Context<'_>, ends: &Ends) -> Poll<Result<(), Error>> {
        if self.forwarded || self.stream.may_read_socket() {
            // The timer stays for the next time: a fast stream is without credit often.
            return Poll::Pending;
        }
        let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_EVERY)));
        while look.as_mut().poll(context).is_ready() {
            if let Ok(Some(error)) | Err(error) = self.socket.as_ref().take_error() {
                return Poll::Ready(Err((ends.socket)(error)));
            }
            look.as_mut().reset(Instant::now() + LOOK_EVERY);
        }
        Poll::Pending
    }

    fn forward(&mut self, context: &mut Context<'_>, meter: &ByteMeter, ends: &Ends) -> Result<(), Error> {
        let mut left = MAX_BYTES_PER_TURN;
        // After a short read nothing more is there, which costs no system call to find out.
        while let Poll::Ready(read) = self.stream.poll_send_from_socket(&mut self.socket, left, context) {
            let bytes = read.map_err(ends.socket)?;
            if bytes == 0 {
                self.forwarded = true;
                return Ok(());
            }
            meter.add_bytes(ends.from_socket, bytes);
            left -= bytes;
            if left == 0 {
                // Other tasks first.
                context.waker().wake_by_ref();
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if self.delivered && self.forwarded {
            fin_on_drop(self.socket.as_ref());
        } else {
            reset_on_drop(self.socket.as_ref());
            self.stream.detach_socket();
        }
    }
}

fn described(broken: &StreamError, ends: &Ends) -> Error {
    match broken {
        StreamError::Socket(kind) => (ends.socket)((*kind).into()),
        StreamError::Reset(_) | StreamError::Lost(_) | StreamError::Gone(_) => (ends.stream)(broken.into()),
    }
}
