//! HTTP: reads the requests of connections to services that have routes, and sends each where its route says.
//!
//! Reading order follows a request: [`detect`] finds out whether a connection speaks HTTP/1, [`serve`] reads
//! its requests one after the other, `exchange` decides what becomes of one, `forward` makes the attempts to
//! have it answered, `attempt` sends it to one endpoint on a connection of the [`UpstreamConnections`], and
//! `response` brings the answer back. [`h1`] is the protocol.
//!
//! Only the client's node reads; the server's relays bytes, as of any connection.

mod attempt;
mod body_pump;
mod client_connection;
mod cors;
pub mod detect;
mod exchange;
mod forward;
pub mod h1;
mod header_edits;
mod local_response;
mod mirror;
mod outgoing_head;
mod request_body;
mod response;
pub mod serve;
mod upstream_connection;
mod upstream_connections;

pub use self::mirror::Copies;
pub use self::upstream_connections::UpstreamConnections;

/// Most bytes that are read at once.
const READ_SIZE: usize = 16 * 1024;

#[cfg(test)]
mod tests;
