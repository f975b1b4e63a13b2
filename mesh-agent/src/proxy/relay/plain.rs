//! Between two sockets.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::{Error, Meter, Way, close_in_order, reset_on_drop};

/// Most bytes that one turn of one direction moves.
const CHUNK: usize = 128 * 1024;

thread_local! {
    /// The core's scratch buffer: a direction holds bytes of its own only while its reader is slower than its writer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Relays until both directions are closed. On an error both ends are reset.
pub async fn relay(client: &mut TcpStream, server: &mut TcpStream, meter: &Meter) -> Result<(), Error> {
    let result = {
        let (mut from_client, to_client) = client.split();
        let (mut from_server, to_server) = server.split();
        let (to_client, to_server) = (to_client.as_ref(), to_server.as_ref());
        let up = Ends { meter, way: Way::FromClient, read: Error::Client, write: Error::Server };
        let down = Ends { meter, way: Way::ToClient, read: Error::Server, write: Error::Client };
        // In a box: most connections are not relayed like this, and their tasks are to be no larger for it.
        let both = Box::pin(async {
            tokio::try_join!(
                direction(&mut from_client, to_server, &up),
                direction(&mut from_server, to_client, &down),
            )
        });
        both.await.map(|((), ())| ())
    };
    let leave = if result.is_ok() { close_in_order } else { reset_on_drop };
    leave(client);
    leave(server);
    result
}

/// What is counted where, and whose fault an error is.
struct Ends<'a> {
    meter: &'a Meter,
    way: Way,
    read: fn(io::Error) -> Error,
    write: fn(io::Error) -> Error,
}

async fn direction(from: &mut ReadHalf<'_>, to: &TcpStream, ends: &Ends<'_>) -> Result<(), Error> {
    loop {
        let turn = poll_fn(|context| SCRATCH.with_borrow_mut(|scratch| one_turn(from, to, scratch, context)));
        match turn.await {
            Ok(Turn::Moved(bytes)) => {
                ends.meter.add(ends.way, bytes);
                tokio::task::coop::consume_budget().await;
            }
            Ok(Turn::Blocked(bytes, rest)) => {
                write_rest(to, &rest).await.map_err(ends.write)?;
                ends.meter.add(ends.way, bytes);
            }
            Ok(Turn::End) => break,
            Err(Side::Read(error)) => return Err((ends.read)(error)),
            Err(Side::Write(error)) => return Err((ends.write)(error)),
        }
    }
    // The other end may have closed already; then there is nobody to tell.
    let _closed_already = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
    Ok(())
}

enum Turn {
    Moved(usize),
    /// So many bytes were read, of which these could not be written yet.
    Blocked(usize, Vec<u8>),
    End,
}

enum Side {
    Read(io::Error),
    Write(io::Error),
}

/// Reads through `poll_read` and not `try_read`: after a short read it knows that there is nothing more, which saves the
/// system call that would say so.
fn one_turn(
    from: &mut ReadHalf<'_>,
    to: &TcpStream,
    scratch: &mut [u8],
    context: &mut Context<'_>,
) -> Poll<Result<Turn, Side>> {
    let mut buffer = ReadBuf::new(scratch);
    ready!(Pin::new(from).poll_read(context, &mut buffer)).map_err(Side::Read)?;
    let read = buffer.filled();
    if read.is_empty() {
        return Poll::Ready(Ok(Turn::End));
    }
    let written = match to.try_write(read) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Poll::Ready(Err(Side::Write(error))),
    };
    Poll::Ready(Ok(if written == read.len() {
        Turn::Moved(written)
    } else {
        Turn::Blocked(read.len(), read[written..].to_vec())
    }))
}

async fn write_rest(to: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
