//! HTTP: reads the requests of connections to services that have routes, and sends each where its route says.
//!
//! Reading order follows a request: [`detect`] finds out which version a connection speaks, [`serve`] reads
//! its requests one after the other (of HTTP/2, `h2::serve` all at once), `answer_request` decides what
//! becomes of one, `forward` has it answered, by the attempts of the `retry_loop` at the endpoints of its
//! `upstream_target`, `send_request` sends it to one of them on a connection of the [`UpstreamConnections`],
//! and `relay_response` brings the answer back. [`h1`] and [`h2`] are the protocols; `downstream_client` and
//! `upstream_exchange` are the two sides of a request, whatever either speaks.
//!
//! Only the client's node reads; the server's relays bytes, as of any connection.

mod answer_request;
mod body_pump;
mod client_connection;
mod cors;
pub mod detect;
mod downstream_client;
mod forward;
mod grpc;
pub mod h1;
pub mod h2;
mod header_edits;
mod http_connection_context;
mod kept_body;
mod local_response;
mod mirror;
mod outgoing_head;
mod outgoing_request;
pub mod read_buffers;
mod relay_response;
mod request_key;
mod retry_loop;
mod send_request;
pub mod serve;
mod upstream_connection;
mod upstream_connections;
mod upstream_exchange;
mod upstream_target;

pub use self::http_connection_context::HttpConnection;
pub use self::mirror::Copies;
pub use self::upstream_connections::UpstreamConnections;

/// Most bytes that are read at once.
const READ_SIZE: usize = 16 * 1024;

#[cfg(test)]
mod tests;
