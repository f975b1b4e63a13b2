//! TLS over rustls' unbuffered interface: encrypts straight into our buffer, and decrypts where bytes were
//! received.
//!
//! Buffers belong to the worker (`scratch`), so an idle connection holds none. Writing is deferred: data is
//! encrypted at once but sent by [`TlsStream::poll_send`], once for everything that all tasks wrote in one
//! wakeup.

mod handshake;
pub mod scratch;
mod stream;
mod unbuffered;
mod write_buffer;

pub use handshake::{Error, accept, connect};
pub use stream::TlsStream;
pub use unbuffered::Unbuffered;
