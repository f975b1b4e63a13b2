//! What each fuzz target checks, as a function of bytes. [`docs/fuzzing.md`](../../docs/fuzzing.md) says how
//! to run them.
//!
//! A target asserts more than that nothing panics: what was read is written again, a second and simpler
//! implementation comes to the same answer, an error says what it is about.

pub mod addresses;
pub mod calm;
pub mod cni;
pub mod frames;
pub mod hbone;
pub mod http1;
pub mod identity;
pub mod inheritance;
pub mod keeper;
pub mod manifest;
pub mod packets;
pub mod records;
pub mod xds;

mod agree;
#[path = "../../mesh-api/tests/policy_model/naive.rs"]
pub mod naive;
#[path = "../../mesh-agent/src/sys/socket_kind.rs"]
mod socket_kind;
#[path = "../../mesh-agent/src/sys/tcp_connection.rs"]
mod tcp_connection;
/// What the keeper's protocol speaks of.
pub mod sys {
    pub use crate::socket_kind::SocketKind;
    pub use crate::tcp_connection::{ANY_COOKIE, Connection, PreexistingConnection};
}
