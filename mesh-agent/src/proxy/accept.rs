//! Room two: taking connections, with a cap and without spinning.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// First and longest pause after `accept` failed for lack of something (descriptors, memory).
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connections that a worker may have open at one time.
pub struct Cap {
    free: Cell<usize>,
    returned: Notify,
}

/// A place below the cap, given back when it is dropped.
pub struct Place(Rc<Cap>);

impl Cap {
    /// A cap of so many connections.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { free: Cell::new(most), returned: Notify::new() })
    }

    /// Waits for a place.
    pub async fn place(self: &Rc<Self>) -> Place {
        while self.free.get() == 0 {
            self.returned.notified().await;
        }
        self.free.set(self.free.get() - 1);
        Place(Rc::clone(self))
    }

    /// Waits until all of `most` places are free.
    pub async fn all_returned(&self, most: usize) {
        while self.free.get() < most {
            self.returned.notified().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.returned.notify_one();
    }
}

/// Accepts for ever. `refused` hears of failures that are the node's, not one connection's.
pub async fn accept_loop(
    listener: TcpListener,
    cap: Rc<Cap>,
    mut refused: impl FnMut(&io::Error),
    mut serve: impl FnMut(TcpStream, SocketAddr, Place),
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let place = cap.place().await;
        match listener.accept().await {
            Ok((socket, peer)) => {
                pause = FIRST_PAUSE;
                serve(socket, peer, place);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                refused(&error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Errors that `accept` passes on from a connection that broke before it was taken (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_cap_holds_back_and_lets_on() {
        let cap = Cap::new(1);
        let first = cap.place().await;
        let waits = tokio::time::timeout(Duration::from_millis(20), cap.place()).await;
        assert!(waits.is_err(), "a second place below a cap of one");
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), cap.place())
            .await
            .expect("a place after one was returned");
    }
}
