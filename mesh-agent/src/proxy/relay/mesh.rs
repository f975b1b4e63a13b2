//! Between a socket and a stream of the mesh's own protocol. The way from the stream to the socket is the driver's
//! (`mux`); this task only helps where the application is slower, and carries the other way.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use super::{Ends, Error, Meter, SocketIs, close_in_order, reset_on_drop};
use crate::proxy::mux::{Broken, Tunnel};

/// Most bytes that one turn reads: bounds how long one stream keeps the others of its connection waiting.
const CHUNK: usize = 64 * 1024;

/// Relays until both directions are closed. On an error, and when it is dropped before the end, the socket is reset; the
/// tunnel is reset when it is dropped.
pub async fn relay(
    socket: TcpStream,
    tunnel: &mut Tunnel,
    socket_is: SocketIs,
    meter: &Meter,
) -> Result<(), Error> {
    let ends = Ends::from(socket_is);
    let (read, write) = socket.into_split();
    tunnel.attach(write, meter, ends.to_socket);
    let mut relay = Relay { socket: read, tunnel, delivered: false, forwarded: false };
    poll_fn(|context| relay.poll(context, meter, &ends)).await
}

struct Relay<'a> {
    socket: OwnedReadHalf,
    tunnel: &'a mut Tunnel,
    /// Whether everything went from the stream to the socket, and the other way.
    delivered: bool,
    forwarded: bool,
}

impl Relay<'_> {
    fn poll(&mut self, context: &mut Context<'_>, meter: &Meter, ends: &Ends) -> Poll<Result<(), Error>> {
        if !self.delivered
            && let Poll::Ready(result) = self.tunnel.poll_deliver(context)
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
        // Last: a stream that has come to its end is not broken by the end of its connection.
        match self.tunnel.poll_broken(context) {
            Some(broken) => Poll::Ready(Err(described(&broken, ends))),
            None => Poll::Pending,
        }
    }

    fn forward(&mut self, context: &mut Context<'_>, meter: &Meter, ends: &Ends) -> Result<(), Error> {
        let mut left = CHUNK;
        // After a short read there is nothing more, which costs no system call to find out.
        while let Poll::Ready(read) = self.tunnel.poll_forward(&mut self.socket, left, context) {
            let bytes = read.map_err(ends.socket)?;
            if bytes == 0 {
                self.forwarded = true;
                return Ok(());
            }
            meter.add(ends.from_socket, bytes);
            left -= bytes;
            if left == 0 {
                // The others first.
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
            close_in_order(self.socket.as_ref());
        } else {
            reset_on_drop(self.socket.as_ref());
            self.tunnel.detach();
        }
    }
}

fn described(broken: &Broken, ends: &Ends) -> Error {
    match broken {
        Broken::Socket(kind) => (ends.socket)((*kind).into()),
        Broken::Reset(reason) => {
            let text = format!("stream reset: {reason:?}");
            (ends.stream)(io::Error::new(io::ErrorKind::ConnectionReset, text))
        }
        Broken::Lost(why) => (ends.stream)(io::Error::new(io::ErrorKind::ConnectionAborted, why.to_string())),
    }
}
