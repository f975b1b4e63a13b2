//! The identity that a peer has proved in a handshake, and for how long that is valid.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_api::identity::SpiffeId;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::trusted_roots::{CertificateList, RootSet, TrustedRoots};
use super::{Certificates, PeerIdentityError, ca_client, peer_spiffe_id};

/// The identity of a session's peer, checked again while the session lasts.
pub struct VerifiedPeer {
    id: SpiffeId,
    chain: CertificateList,
    not_after: SystemTime,
    trust: Arc<TrustedRoots>,
    /// The roots that the chain was last verified with.
    good_with: RefCell<Arc<RootSet>>,
}

impl VerifiedPeer {
    /// Takes the certificates of a handshake that has just succeeded, leaf first. Errors: see
    /// [`PeerIdentityError`].
    pub fn new(certificates: &Certificates, chain: &[CertificateDer<'_>]) -> Result<Self, PeerIdentityError> {
        let trust = Arc::clone(&certificates.shared.trust);
        Ok(Self {
            id: peer_spiffe_id(chain)?,
            not_after: chain.first().and_then(|leaf| not_after(leaf)).unwrap_or(UNIX_EPOCH),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            good_with: RefCell::new(trust.roots()),
            trust,
        })
    }

    /// Returns the peer's identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whether a handshake would still succeed: the certificate has not expired, and leads to a root in
    /// force.
    pub fn is_valid(&self) -> bool {
        if SystemTime::now() >= self.not_after {
            return false;
        }
        let roots = self.trust.roots();
        if Arc::ptr_eq(&roots, &self.good_with.borrow()) {
            return true;
        }
        let good = roots.verify_chain(&self.chain).is_ok();
        if good {
            *self.good_with.borrow_mut() = roots;
        }
        good
    }

    /// Returns when the identity is no longer valid.
    pub async fn wait_until_invalid(&self) {
        let mut changes = self.trust.subscribe_root_and_clock_changes();
        while self.is_valid() {
            let left = self.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                // The sender lives as long as `self`.
                _ = changes.changed() => {}
            }
        }
    }
}

fn not_after(leaf: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    Some(ca_client::unix_seconds_to_time(parsed.validity().not_after.timestamp()))
}
