//! Moving bytes between two ends of a connection, faithfully: half-close stays half-close, a reset stays a reset, and
//! a slow reader slows its writer down.

mod plain;
mod tunnel;

use std::cell::{Cell, OnceCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use plain::relay as relay_plain;
pub use tunnel::{SocketIs, relay as relay_tunnel};

use tokio::net::TcpStream;

use crate::telemetry::{Ended, Traffic};

/// Bytes moved so far, seen from the proxy: read from the connection that it accepted, and written to it.
#[derive(Debug, Default)]
pub struct Meter {
    from_client: Cell<u64>,
    to_client: Cell<u64>,
    traffic: OnceCell<Arc<Traffic>>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the end that opened the connection.
    FromClient,
    /// To the end that opened the connection.
    ToClient,
}

impl Meter {
    /// Adds bytes to these counts too, as they are moved: a connection that stays open for days is seen all the while.
    pub fn report_to(&self, traffic: Arc<Traffic>) {
        // Set once, when the connection opens; nothing was moved before.
        let _first = self.traffic.set(traffic);
    }

    /// Bytes from the client and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.from_client.get(), self.to_client.get())
    }

    fn add(&self, way: Way, bytes: usize) {
        let bytes = bytes as u64;
        let (own, shared) = match way {
            Way::FromClient => (&self.from_client, self.traffic.get().map(|traffic| &traffic.received)),
            Way::ToClient => (&self.to_client, self.traffic.get().map(|traffic| &traffic.sent)),
        };
        own.set(own.get() + bytes);
        if let Some(shared) = shared {
            shared.fetch_add(bytes, Ordering::Relaxed);
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
pub fn reset_on_drop(socket: &TcpStream) {
    // On failure the peer sees a FIN instead; there is nothing better to do.
    let _fin_instead = socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

/// Makes the kernel end the connection as usual when the socket is dropped. Without that a proxy that dies resets the
/// connections that it carries, so that nobody takes half of what was sent for all of it.
fn close_in_order(socket: &TcpStream) {
    // On failure the other end may lose what it has not read yet, and sees a reset.
    let _reset_instead = socket2::SockRef::from(socket).set_linger(None);
}

impl From<Result<(), Error>> for Ended {
    fn from(result: Result<(), Error>) -> Self {
        match result {
            Ok(()) => Self::Closed,
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}
