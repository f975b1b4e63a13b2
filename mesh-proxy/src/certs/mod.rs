//! Who the pods of this node are: their keys and certificates, and the roots that peers are checked with.
//!
//! Keys are made here and never leave. [`Certificates`] holds a certificate for each identity that somebody
//! retains, and renews it at half of its life. [`CaClient`] asks the authority, `trust` knows the roots,
//! `verify` and `tls` make of both what rustls needs. `inherited` has certificates outlive the proxy.

mod ca;
mod clock_jump;
mod control_plane;
mod crypto_warmup;
#[cfg(test)]
pub(crate) mod fixture;
mod inherited;
mod peer;
mod renewal;
mod store;
#[cfg(test)]
mod tests;
mod tls;
mod trust;
mod verify;

use std::sync::Arc;
use std::time::SystemTime;

use mesh_api::identity::{CertificateIdentityError, SpiffeId};
use rustls::pki_types::CertificateDer;

pub use ca::{AnswerError, CaClient, CaError};
pub use control_plane::ConnectError;
pub(crate) use control_plane::ControlPlane;
pub use crypto_warmup::warm_up;
pub use peer::PeerIdentity;
pub use store::Certificates;
pub(crate) use store::OwnCertificate;

/// An identity of this node with a certificate, ready to be used in handshakes.
#[derive(Debug)]
pub struct WorkloadCertificate {
    /// Who it is.
    pub id: SpiffeId,
    /// To connect as. Checks that the peer's certificate is of the mesh, but not who the peer is: ask
    /// [`peer_id`] after the handshake.
    pub client: Arc<rustls::ClientConfig>,
    /// To accept as. Clients must have a certificate of the same trust domain.
    pub server: Arc<rustls::ServerConfig>,
    /// From when the certificate is valid.
    pub not_before: SystemTime,
    /// Until when the certificate is valid.
    pub not_after: SystemTime,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// What peers are shown, the leaf first.
    chain: trust::Bundle,
}

/// Why a peer's certificate does not say who the peer is. The peer has to act.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It sent none.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// It is not one of a workload.
    #[error("peer certificate: {0}")]
    Identity(#[from] CertificateIdentityError),
}

/// Who a peer is, by the certificates of a finished handshake, the leaf first.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    Ok(SpiffeId::from_certificate_der(leaf)?)
}
