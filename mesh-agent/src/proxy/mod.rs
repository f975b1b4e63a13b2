//! The data path.

pub mod hbone;
pub mod relay;
pub mod tls;
