//! Verifies peers in the handshake: the certificate leads to a root of the mesh, is valid now, and is of our
//! trust domain.

use std::fmt;
use std::sync::Arc;

use mesh_api::identity::{CertificateIdentityError, SpiffeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::trusted_roots::TrustedRoots;

/// Verifier of both sides. It does not check which identity a server has: whoever connects knows whom it
/// expects.
#[derive(Debug)]
pub(super) struct TrustDomainVerifier {
    pub trust: Arc<TrustedRoots>,
    pub provider: Arc<CryptoProvider>,
    pub trust_domain: Arc<str>,
}

/// Why a certificate with a good chain is refused.
#[derive(thiserror::Error)]
enum Refused {
    #[error("no root of the mesh is known yet")]
    NoRoots,
    #[error("{found} is not of the trust domain {ours}")]
    TrustDomain { found: SpiffeId, ours: Arc<str> },
    #[error(transparent)]
    Identity(CertificateIdentityError),
}

/// rustls prints another's error by its `Debug` form, so that has to be the readable one.
impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

impl TrustDomainVerifier {
    fn check_trust_domain(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let found = SpiffeId::from_certificate_der(leaf).map_err(Refused::Identity)?;
        if found.trust_domain() == &*self.trust_domain {
            return Ok(());
        }
        Err(Refused::TrustDomain { found, ours: Arc::clone(&self.trust_domain) }.into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for TrustDomainVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.trust.roots();
        if roots.clients.is_none() {
            return Err(Refused::NoRoots.into());
        }
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)?;
        self.check_trust_domain(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for TrustDomainVerifier {
    /// Returns none: every client has one certificate, and the roots may change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let roots = self.trust.roots();
        let clients = roots.clients.as_ref().ok_or(Refused::NoRoots)?;
        let verified = clients.verify_client_cert(leaf, intermediates, now)?;
        self.check_trust_domain(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
