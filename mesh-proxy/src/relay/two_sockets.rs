//! Relays between two sockets.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::urgent_socket::{Urgency, UrgentSocket};
use super::{ByteMeter, Error, RelayDirection, fin_on_drop, reset_on_drop};

/// Most bytes that one direction moves in one turn.
const CHUNK: usize = 128 * 1024;

thread_local! {
    /// The worker's buffer: a direction holds bytes of its own only while its reader is slower than its
    /// writer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Relays until both directions are closed, and keeps urgent bytes urgent. On an error both ends are reset;
/// if it is dropped before the end they are too, as the proxy sets all sockets that it accepts and opens.
/// Errors: which end broke.
pub async fn relay_sockets(client: TcpStream, server: TcpStream, meter: &ByteMeter) -> Result<(), Error> {
    // Boxed: most connections are not relayed like this, and their tasks should be no larger for it.
    Box::pin(relay_between(client, server, meter)).await
}

async fn relay_between(client: TcpStream, server: TcpStream, meter: &ByteMeter) -> Result<(), Error> {
    let client = UrgentSocket::new(client).map_err(Error::Client)?;
    let server = UrgentSocket::new(server).map_err(Error::Server)?;
    let up = Ends { meter, way: RelayDirection::FromClient, read: Error::Client, write: Error::Server };
    let down = Ends { meter, way: RelayDirection::ToClient, read: Error::Server, write: Error::Client };
    let both =
        async { tokio::try_join!(direction(&client, &server, &up), direction(&server, &client, &down)) };
    let result = both.await.map(|((), ())| ());
    let leave = if result.is_ok() { fin_on_drop } else { reset_on_drop };
    leave(&client);
    leave(&server);
    result
}

/// Which direction to count, and which end errors are of.
struct Ends<'a> {
    meter: &'a ByteMeter,
    way: RelayDirection,
    read: fn(io::Error) -> Error,
    write: fn(io::Error) -> Error,
}

async fn direction(from: &UrgentSocket, to: &UrgentSocket, ends: &Ends<'_>) -> Result<(), Error> {
    loop {
        let turn = poll_fn(|context| SCRATCH.with_borrow_mut(|scratch| one_turn(from, to, scratch, context)));
        match turn.await {
            Ok(Turn::Moved(bytes)) => {
                ends.meter.add_bytes(ends.way, bytes);
                tokio::task::coop::consume_budget().await;
            }
            Ok(Turn::Blocked(bytes, urgency, rest)) => {
                to.write_all(&rest, urgency).await.map_err(ends.write)?;
                ends.meter.add_bytes(ends.way, bytes);
            }
            Ok(Turn::End) => break,
            Err(Side::Read(error)) => return Err((ends.read)(error)),
            Err(Side::Write(error)) => return Err((ends.write)(error)),
        }
    }
    to.shutdown_write();
    Ok(())
}

enum Turn {
    Moved(usize),
    /// Bytes read, and those of them that could not be written yet.
    Blocked(usize, Urgency, Vec<u8>),
    End,
}

enum Side {
    Read(io::Error),
    Write(io::Error),
}

fn one_turn(
    from: &UrgentSocket,
    to: &UrgentSocket,
    scratch: &mut [u8],
    context: &mut Context<'_>,
) -> Poll<Result<Turn, Side>> {
    let (bytes, urgency) = ready!(from.poll_read(context, scratch)).map_err(Side::Read)?;
    if bytes == 0 {
        return Poll::Ready(Ok(Turn::End));
    }
    let read = &scratch[..bytes];
    let written = to.try_write(read, urgency).map_err(Side::Write)?;
    Poll::Ready(Ok(if written == bytes {
        Turn::Moved(written)
    } else {
        Turn::Blocked(bytes, urgency, read[written..].to_vec())
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{Shutdown, TcpStream};
    use std::time::Duration;

    use rustix::net::{RecvFlags, SendFlags, recv, send};
    use socket2::SockRef;
    use tokio::sync::Notify;
    use tokio::task::spawn_local;

    use super::{CHUNK, relay_sockets};
    use crate::fixture::{run_as_worker, tcp_pair};
    use crate::relay::ByteMeter;
    use crate::urgent_data_and_min_rtt::is_at_urgent_mark;

    /// An application at each end of a relay.
    async fn ends() -> [TcpStream; 2] {
        let ((client, one), (two, server)) = (tcp_pair().await, tcp_pair().await);
        for inner in [&one, &two] {
            SockRef::from(inner).set_out_of_band_inline(true).unwrap();
        }
        spawn_local(async move { relay_sockets(one, two, &ByteMeter::default()).await });
        [client, server].map(|socket| socket.into_std().unwrap())
    }

    async fn say(socket: &TcpStream, mut words: &[u8], flags: SendFlags) {
        while !words.is_empty() {
            match send(socket, words, flags) {
                Ok(sent) => words = &words[sent..],
                Err(error) => pause(error).await,
            }
        }
    }

    /// The byte that is urgent for an application that does not take it in line.
    async fn urgent(socket: &TcpStream) -> u8 {
        let mut byte = [0];
        loop {
            match recv(socket, &mut byte[..], RecvFlags::OOB) {
                Ok(_) => return byte[0],
                // None has come.
                Err(rustix::io::Errno::INVAL) => pause(ErrorKind::WouldBlock).await,
                Err(error) => pause(error).await,
            }
        }
    }

    async fn hear(mut socket: &TcpStream, into: &mut [u8]) -> usize {
        loop {
            match socket.read(into) {
                Ok(heard) => return heard,
                Err(error) => pause(error).await,
            }
        }
    }

    async fn pause(error: impl Into<std::io::Error>) {
        let error = error.into();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[test]
    fn urgent_bytes_arrive_as_such_in_both_directions() {
        run_as_worker(async {
            let [client, server] = ends().await;
            for (from, to) in [(&client, &server), (&server, &client)] {
                for round in 0..3 {
                    // By itself, behind others, and before others.
                    let (before, after) =
                        ([&b""[..], b"before", b""][round], [&b""[..], b"", b"after"][round]);
                    say(from, before, SendFlags::empty()).await;
                    say(from, b"!", SendFlags::OOB).await;
                    say(from, after, SendFlags::empty()).await;
                    assert_eq!(urgent(to).await, b'!');
                    let mut all = [0; 16];
                    for text in [before, after].into_iter().filter(|text| !text.is_empty()) {
                        let heard = hear(to, &mut all).await;
                        assert_eq!(all[..heard], *text);
                    }
                }
            }
        });
    }

    #[test]
    fn an_urgent_byte_has_its_place_amid_much_and_at_the_end() {
        run_as_worker(async {
            let [client, server] = ends().await;
            SockRef::from(&server).set_out_of_band_inline(true).unwrap();
            let much = vec![7; 5 * CHUNK];
            // TCP has one mark at a time: where a second comes before the first was reached, there is no
            // first any more.
            let reached = Notify::new();
            let speaks = async {
                say(&client, &much, SendFlags::empty()).await;
                say(&client, b"1", SendFlags::OOB).await;
                reached.notified().await;
                say(&client, &much, SendFlags::empty()).await;
                say(&client, b"2", SendFlags::OOB).await;
                client.shutdown(Shutdown::Write).unwrap();
            };
            let hears = async {
                let (mut place, mut found, mut all) = (0, vec![], vec![0; CHUNK]);
                loop {
                    let is_urgent = is_at_urgent_mark(&server).unwrap();
                    let room = if is_urgent { 1 } else { CHUNK };
                    match hear(&server, &mut all[..room]).await {
                        0 => return (place, found),
                        heard => {
                            if is_urgent || all[0] != 7 {
                                found.push((place, all[0], is_urgent));
                                reached.notify_one();
                            }
                            place += heard;
                        }
                    }
                    // So that there is always something to read: only then is a mark certain to be seen.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let ((), (all, found)) = tokio::join!(speaks, hears);
            assert_eq!(all, 10 * CHUNK + 2);
            assert_eq!(found, [(5 * CHUNK, b'1', true), (10 * CHUNK + 1, b'2', true)]);
        });
    }
}
