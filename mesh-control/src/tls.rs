//! The TLS side of the xDS and CA port: places and handshakes off the accept loop, certificates and roots
//! that may change.

mod accept;
mod connection;
mod credentials;
mod session;
mod standing;

pub use accept::incoming;
pub use connection::{Connection, Peer};
pub use credentials::{ServerTls, TlsError, names};
pub use standing::Crowded;
