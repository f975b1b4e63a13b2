//! Moving bytes between two ends of a connection, faithfully: half-close stays half-close, a reset stays a
//! reset, and a slow reader slows its writer down.

mod hbone;
mod mesh;
mod plain;
mod socket;

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use hbone::relay as relay_hbone;
pub use mesh::relay as relay_mesh;
pub use plain::relay as relay_plain;

use crate::telemetry::{Outcome, Traffic};

/// Bytes moved so far, seen from the proxy: read from the connection that it accepted, and written to it. A
/// clone counts to the same.
#[derive(Clone, Debug, Default)]
pub struct Meter(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    from_client: Cell<u64>,
    to_client: Cell<u64>,
    traffic: OnceCell<Arc<Traffic>>,
    /// When the last bytes moved, where somebody asks.
    moved: Cell<Option<Instant>>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the end that opened the connection.
    FromClient,
    /// To the end that opened the connection.
    ToClient,
}

impl Meter {
    /// Adds bytes to these counts too, as they are moved: a connection that stays open for days is seen all
    /// the while.
    pub fn report_to(&self, traffic: Arc<Traffic>) {
        // Set once, when the connection opens; nothing was moved before.
        let _first = self.0.traffic.set(traffic);
    }

    /// Bytes from the client and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.0.from_client.get(), self.0.to_client.get())
    }

    /// From now on it is noted when bytes move. That costs a look at the clock each time, so it is done only
    /// where a silence is to be noticed.
    pub fn note_time(&self) {
        self.0.moved.set(Some(Instant::now()));
    }

    /// When the last bytes moved, or [`Meter::note_time`] was called; now, if it was not.
    pub fn last_moved(&self) -> Instant {
        self.0.moved.get().unwrap_or_else(Instant::now)
    }

    pub(super) fn add(&self, way: Way, bytes: usize) {
        let bytes = bytes as u64;
        let Counts { from_client, to_client, traffic, moved } = &*self.0;
        if moved.get().is_some() {
            moved.set(Some(Instant::now()));
        }
        let (own, shared) = match way {
            Way::FromClient => (from_client, traffic.get().map(|traffic| &traffic.received)),
            Way::ToClient => (to_client, traffic.get().map(|traffic| &traffic.sent)),
        };
        own.set(own.get() + bytes);
        if let Some(shared) = shared {
            shared.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// Which end of a relay between a socket and a stream the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketIs {
    /// The socket's peer opened the connection; the stream leads to the server.
    Client,
    /// The stream leads to the client; the socket's peer is the server.
    Server,
}

/// What is counted where in such a relay, and whose fault an error is.
struct Ends {
    from_socket: Way,
    to_socket: Way,
    socket: fn(io::Error) -> Error,
    stream: fn(io::Error) -> Error,
}

impl From<SocketIs> for Ends {
    fn from(socket_is: SocketIs) -> Self {
        match socket_is {
            SocketIs::Client => Self {
                from_socket: Way::FromClient,
                to_socket: Way::ToClient,
                socket: Error::Client,
                stream: Error::Server,
            },
            SocketIs::Server => Self {
                from_socket: Way::ToClient,
                to_socket: Way::FromClient,
                socket: Error::Server,
                stream: Error::Client,
            },
        }
    }
}

/// How a relay ended before both sides were done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The end that opened the connection broke it.
    #[error("client: {0}")]
    Client(io::Error),
    /// The end that it goes to broke it.
    #[error("server: {0}")]
    Server(io::Error),
}

/// Makes the kernel send a reset when the socket is dropped.
pub fn reset_on_drop(socket: &impl AsFd) {
    // On failure the peer sees a FIN instead; there is nothing better to do.
    let _fin_instead = socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

/// Makes the kernel end the connection as usual when the socket is dropped. Without that a proxy that dies
/// resets the connections that it carries, so that nobody takes half of what was sent for all of it.
pub(super) fn close_in_order(socket: &impl AsFd) {
    // On failure the other end may lose what it has not read yet, and sees a reset.
    let _reset_instead = socket2::SockRef::from(socket).set_linger(None);
}

impl From<Result<(), Error>> for Outcome {
    fn from(result: Result<(), Error>) -> Self {
        match result {
            Ok(()) => Self::Closed,
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}
