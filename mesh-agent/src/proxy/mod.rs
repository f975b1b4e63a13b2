//! The data path.

pub mod accept;
pub mod admission;
pub mod balance;
pub mod flow;
pub mod hbone;
pub mod relay;
pub mod tls;
