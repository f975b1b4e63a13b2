//! The certificate authority.
//!
//! Reading order: [`Authority`] is what the rest of the control plane sees; it replaces its [`signer`]
//! whenever the roots on disk change ([`rotation`]). `service` is the gRPC side, which reads a request
//! ([`csr`]), decides whether the node may have what it asks for, and signs.

mod authority;
pub mod csr;
pub mod pem;
pub mod root;
pub mod rotation;
mod service;
pub mod signer;

pub use authority::{Authority, AuthorityError, GivenAuthority};
pub use service::CertificateService;
