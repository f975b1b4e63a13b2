//! TLS over rustls' unbuffered interface: encrypts straight into our buffer, and decrypts where bytes were
//! received.
//!
//! Buffers belong to the worker (`buffer_pool`), so an idle connection holds none. Writing is deferred: data
//! is encrypted at once but sent by [`TlsStream::poll_send_all`], once for everything that all tasks wrote in
//! one wakeup.

pub mod buffer_pool;
mod handshake;
mod stream;
mod unbuffered_client_or_server;
mod write_buffer;

pub use handshake::{HandshakeError, client_handshake_unverified_name, server_handshake};
pub use stream::TlsStream;
pub use unbuffered_client_or_server::UnbufferedConnection;
