//! Relays bytes between two ends of a connection, faithfully: half-close stays half-close, a reset stays a
//! reset, and a slow reader slows its writer down.

mod socket_and_hbone;
mod socket_and_mux;
mod two_sockets;
mod urgent_socket;

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use socket_and_hbone::relay_hbone;
pub use socket_and_mux::relay_mux;
pub use two_sockets::relay_sockets;

use crate::telemetry::{ConnectionOutcome, TrafficCounters};

/// Counts the bytes of one connection, seen from the proxy: read from the client, and written to it. Clones
/// share their counts.
#[derive(Clone, Debug, Default)]
pub struct ByteMeter(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    from_client: Cell<u64>,
    to_client: Cell<u64>,
    traffic: OnceCell<Arc<TrafficCounters>>,
    /// When bytes last moved; none if nobody asked for it.
    moved: Cell<Option<Instant>>,
}

/// Direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RelayDirection {
    /// Away from the end that opened the connection.
    FromClient,
    /// Towards the end that opened the connection.
    ToClient,
}

impl ByteMeter {
    /// Adds bytes to `traffic` too as they move, so that a connection that stays open for days is seen all
    /// along.
    pub fn also_count_in(&self, traffic: Arc<TrafficCounters>) {
        // Set once, when the connection opens; nothing has moved before.
        let _first = self.0.traffic.set(traffic);
    }

    /// Returns the bytes from the client, and those to it.
    pub fn bytes_from_and_to_client(&self) -> (u64, u64) {
        (self.0.from_client.get(), self.0.to_client.get())
    }

    /// Notes from now on when bytes move. That costs a clock reading each time, so it is done only where an
    /// idle timeout needs it.
    pub fn track_activity(&self) {
        self.0.moved.set(Some(Instant::now()));
    }

    /// Returns when bytes last moved, or [`ByteMeter::track_activity`] was called; now, if it was not.
    pub fn last_activity_or_now(&self) -> Instant {
        self.0.moved.get().unwrap_or_else(Instant::now)
    }

    pub(super) fn add_bytes(&self, way: RelayDirection, bytes: usize) {
        let bytes = bytes as u64;
        let Counts { from_client, to_client, traffic, moved } = &*self.0;
        if moved.get().is_some() {
            moved.set(Some(Instant::now()));
        }
        let (own, shared) = match way {
            RelayDirection::FromClient => (from_client, traffic.get().map(|traffic| &traffic.received)),
            RelayDirection::ToClient => (to_client, traffic.get().map(|traffic| &traffic.sent)),
        };
        own.set(own.get() + bytes);
        if let Some(shared) = shared {
            shared.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// Which end of a relay between a socket and a stream the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketSide {
    /// The socket's peer is the client; the stream leads to the server.
    Client,
    /// The socket's peer is the server; the stream leads to the client.
    Server,
}

/// Which direction each way of such a relay is, and which end its errors are of.
struct Ends {
    from_socket: RelayDirection,
    to_socket: RelayDirection,
    socket: fn(io::Error) -> Error,
    stream: fn(io::Error) -> Error,
}

impl From<SocketSide> for Ends {
    fn from(socket_side: SocketSide) -> Self {
        match socket_side {
            SocketSide::Client => Self {
                from_socket: RelayDirection::FromClient,
                to_socket: RelayDirection::ToClient,
                socket: Error::Client,
                stream: Error::Server,
            },
            SocketSide::Server => Self {
                from_socket: RelayDirection::ToClient,
                to_socket: RelayDirection::FromClient,
                socket: Error::Server,
                stream: Error::Client,
            },
        }
    }
}

/// Which end broke before both directions were closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The end that opened the connection broke it.
    #[error("client: {0}")]
    Client(io::Error),
    /// The end that it goes to broke it.
    #[error("server: {0}")]
    Server(io::Error),
}

/// Has the kernel send a reset when the socket is dropped.
pub fn reset_on_drop(socket: &impl AsFd) {
    // On failure the peer sees a FIN instead; nothing better can be done.
    let _fin_instead = socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

/// Has the kernel close the connection with a FIN when the socket is dropped. Without this a proxy that dies
/// resets what it relays, so that nobody takes half of what was sent for all of it.
pub(super) fn fin_on_drop(socket: &impl AsFd) {
    // On failure the other end may lose what it has not read yet, and sees a reset.
    let _reset_instead = socket2::SockRef::from(socket).set_linger(None);
}

impl From<Result<(), Error>> for ConnectionOutcome {
    fn from(result: Result<(), Error>) -> Self {
        match result {
            Ok(()) => Self::Closed,
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}
