//! Moving bytes between two ends of a connection, faithfully: half-close stays half-close, a reset stays a reset, and
//! a slow reader slows its writer down.

mod plain;
mod tunnel;

use std::cell::Cell;
use std::io;

pub use plain::relay as relay_plain;
pub use tunnel::{SocketIs, relay as relay_tunnel};

use tokio::net::TcpStream;

/// Bytes moved so far, seen from the proxy: read from the connection that it accepted, and written to it.
#[derive(Debug, Default)]
pub struct Meter {
    /// From the end that opened the connection.
    pub from_client: Cell<u64>,
    /// To the end that opened the connection.
    pub to_client: Cell<u64>,
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

fn add(counter: &Cell<u64>, bytes: usize) {
    counter.set(counter.get() + bytes as u64);
}
