//! Keys and certificates of the pods of this node, and the roots that peers are checked with.
//!
//! Keys are made here and never leave the node. [`Certificates`] holds a certificate for each identity that
//! is retained, and renews it at half of its life. [`CaClient`] requests it of the authority, `trusted_roots`
//! has the roots, `trust_domain_verifier` and `tls_config` build rustls' configurations from both.
//! `inheritance` has certificates outlive the proxy.

mod ca_client;
mod clock_jump;
mod control_plane_connector;
mod crypto_warmup;
mod inheritance;
mod peer_identity_validity;
mod renewal;
mod store;
#[cfg(test)]
pub(crate) mod test_ca;
#[cfg(test)]
mod tests;
mod tls_config;
mod trust_domain_verifier;
mod trusted_roots;

use std::sync::Arc;
use std::time::SystemTime;

use mesh_api::identity::{CertificateIdentityError, SpiffeId};
use rustls::pki_types::CertificateDer;

pub use ca_client::{CaClient, CaError, CaResponseError};
pub use control_plane_connector::ControlPlaneConnectError;
pub(crate) use control_plane_connector::ControlPlaneConnector;
pub use crypto_warmup::warm_up_crypto;
pub use peer_identity_validity::VerifiedPeer;
pub(crate) use store::AgentCertificate;
pub use store::Certificates;

/// An identity of this node with its certificate, ready for handshakes.
#[derive(Debug)]
pub struct WorkloadCertificate {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// TLS configuration for connecting. It checks that the peer's certificate is of the mesh, but not which
    /// identity it has: call [`peer_spiffe_id`] after the handshake.
    pub client: Arc<rustls::ClientConfig>,
    /// TLS configuration for accepting. Clients need a certificate of the same trust domain.
    pub server: Arc<rustls::ServerConfig>,
    /// Start of the certificate's validity.
    pub not_before: SystemTime,
    /// End of the certificate's validity.
    pub not_after: SystemTime,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// The chain that peers get, leaf first, without a root.
    chain: trusted_roots::CertificateList,
}

/// Why a peer's certificate has no identity. The peer has to act.
#[derive(Debug, thiserror::Error)]
pub enum PeerIdentityError {
    /// It sent no certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// Its certificate is not one of a workload.
    #[error("peer certificate: {0}")]
    Identity(#[from] CertificateIdentityError),
}

/// Returns a peer's identity, from the certificates of a finished handshake, leaf first. Errors: there is no
/// certificate, or it is not one of a workload.
pub fn peer_spiffe_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerIdentityError> {
    let leaf = chain.first().ok_or(PeerIdentityError::NoCertificate)?;
    Ok(SpiffeId::from_certificate_der(leaf)?)
}
