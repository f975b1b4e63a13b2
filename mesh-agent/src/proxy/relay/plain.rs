//! Between two sockets.

use std::cell::RefCell;
use std::io;

use tokio::net::TcpStream;

use super::{Error, Meter, Way, reset_on_drop};

/// Most bytes that one turn of one direction moves.
const CHUNK: usize = 128 * 1024;

thread_local! {
    /// The core's scratch buffer: a direction holds bytes of its own only while its reader is slower than its writer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Relays until both directions are closed. On an error both ends are reset.
pub async fn relay(client: &TcpStream, server: &TcpStream, meter: &Meter) -> Result<(), Error> {
    let both = async {
        tokio::try_join!(
            direction(client, server, meter, Way::FromClient, Error::Client, Error::Server),
            direction(server, client, meter, Way::ToClient, Error::Server, Error::Client),
        )
    };
    let result = both.await.map(|((), ())| ());
    if result.is_err() {
        reset_on_drop(client);
        reset_on_drop(server);
    }
    result
}

async fn direction(
    from: &TcpStream,
    to: &TcpStream,
    meter: &Meter,
    way: Way,
    read_failed: fn(io::Error) -> Error,
    write_failed: fn(io::Error) -> Error,
) -> Result<(), Error> {
    loop {
        from.readable().await.map_err(read_failed)?;
        let moved = SCRATCH.with_borrow_mut(|scratch| one_turn(from, to, scratch));
        match moved {
            Ok(Turn::Nothing) => {}
            Ok(Turn::Moved(bytes)) => {
                meter.add(way, bytes);
                tokio::task::coop::consume_budget().await;
            }
            Ok(Turn::Blocked(bytes, rest)) => {
                write_rest(to, &rest).await.map_err(write_failed)?;
                meter.add(way, bytes);
            }
            Ok(Turn::End) => break,
            Err(Side::Read(error)) => return Err(read_failed(error)),
            Err(Side::Write(error)) => return Err(write_failed(error)),
        }
    }
    // The other end may have closed already; then there is nobody to tell.
    let _closed_already = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
    Ok(())
}

enum Turn {
    Nothing,
    Moved(usize),
    /// So many bytes were read, of which these could not be written yet.
    Blocked(usize, Vec<u8>),
    End,
}

enum Side {
    Read(io::Error),
    Write(io::Error),
}

fn one_turn(from: &TcpStream, to: &TcpStream, scratch: &mut [u8]) -> Result<Turn, Side> {
    let read = match from.try_read(scratch) {
        Ok(0) => return Ok(Turn::End),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Nothing),
        Err(error) => return Err(Side::Read(error)),
    };
    let written = match to.try_write(&scratch[..read]) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(Side::Write(error)),
    };
    if written == read {
        Ok(Turn::Moved(read))
    } else {
        Ok(Turn::Blocked(read, scratch[written..read].to_vec()))
    }
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
