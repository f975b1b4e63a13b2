//! Issuing certificates: the immutable part of the authority, replaced as a whole when roots change.

use std::time::{Duration, SystemTime};

use mesh_api::identity::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::root::{self, RootError};
use super::rotation::Roots;

/// Clocks of nodes may be behind ours by this much, as istiod has it.
const BACKDATE: Duration = Duration::from_mins(2);

/// Signs with one key, and knows what others need to trust it.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// From the signing certificate upwards, without roots; empty if a root signs.
    intermediates: Vec<CertificateDer<'static>>,
    /// The one that we sign under first.
    roots: Vec<CertificateDer<'static>>,
    expires: SystemTime,
}

/// What is certified.
pub struct Subject<'a, K> {
    /// The SPIFFE name.
    pub identity: &'a SpiffeId,
    /// DNS names besides.
    pub dns_names: &'a [&'a str],
    /// The public key.
    pub key: &'a K,
}

/// A new certificate.
pub struct Issued {
    /// Leaf, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Until when the leaf is valid.
    pub expires: SystemTime,
}

impl Signer {
    /// Signs with roots that the control plane made itself.
    pub fn from_roots(roots: Roots) -> Result<Self, SignerError> {
        let mut trusted = vec![roots.signing.certificate.clone()];
        trusted.extend(roots.other.map(|root| root.certificate));
        Self::new(&roots.signing.certificate, roots.signing.key, Vec::new(), trusted)
    }

    /// Signs with a given certificate. `chain` leads from its issuer to a root; it may be empty if the
    /// signing certificate is a root itself, and may hold further roots to be trusted.
    pub fn from_given(
        signing: &CertificateDer<'static>,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SignerError> {
        root::check_key(signing, &key)?;
        let mut path = vec![signing.clone()];
        path.extend(chain.into_iter().filter(|certificate| certificate != signing));
        let (mut intermediates, mut roots) = (Vec::new(), Vec::new());
        for certificate in path {
            let list = if is_self_signed(&certificate)? { &mut roots } else { &mut intermediates };
            list.push(certificate);
        }
        check_path(&intermediates, &roots)?;
        Self::new(signing, key, intermediates, roots)
    }

    fn new(
        signing: &CertificateDer<'static>,
        key: KeyPair,
        intermediates: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SignerError> {
        let (_, parsed) = X509Certificate::from_der(signing).map_err(|_| RootError::Certificate)?;
        if !parsed.is_ca() {
            return Err(SignerError::NotAuthority);
        }
        let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(expires),
            issuer: Issuer::from_ca_cert_der(signing, key)?,
            intermediates,
            roots,
        })
    }

    /// What others have to trust; the root that we sign under first.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Certifies `subject` from now on for `lifetime`, or until the signing certificate expires if that is
    /// sooner.
    pub fn issue<K: PublicKeyData>(
        &self,
        subject: &Subject<'_, K>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, SignerError> {
        let expires = (now + lifetime).min(self.expires);
        if expires <= now {
            return Err(SignerError::Expired);
        }
        let mut params = leaf_params(subject)?;
        // A short life is not backdated by more than a tenth, so that half-life still means half.
        params.not_before = (now - BACKDATE.min(lifetime / 10)).into();
        params.not_after = expires.into();
        let leaf = params.signed_by(subject.key, &self.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.intermediates);
        Ok(Issued { chain, expires })
    }
}

/// Empty subject, so that the names are marked critical (RFC 5280, 4.2.1.6).
fn leaf_params<K>(subject: &Subject<'_, K>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names.push(SanType::URI(subject.identity.as_str().try_into()?));
    for name in subject.dns_names {
        params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(root::random_serial());
    Ok(params)
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> Result<bool, RootError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| RootError::Certificate)?;
    Ok(parsed.subject() == parsed.issuer())
}

/// Each certificate must be signed by the next, and the last one by a root.
fn check_path(
    intermediates: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<(), SignerError> {
    if roots.is_empty() {
        return Err(SignerError::NoRoot);
    }
    for (at, certificate) in intermediates.iter().enumerate() {
        let issuers = match intermediates.get(at + 1) {
            Some(next) => std::slice::from_ref(next),
            None => roots,
        };
        if !issuers.iter().any(|issuer| is_signed_by(certificate, issuer)) {
            return Err(SignerError::BrokenPath { position: at });
        }
    }
    Ok(())
}

fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer))
    else {
        return false;
    };
    certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// Why no certificate can be issued. The operator has to act.
#[derive(Debug, Error)]
pub enum SignerError {
    /// Certificate or key are unusable.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The signing certificate lacks the basic constraint.
    #[error("the signing certificate is not one of an authority (basicConstraints CA:TRUE is missing)")]
    NotAuthority,
    /// The given certificates have no self-signed one.
    #[error("no root certificate is given; name the chain up to the root with --ca-chain")]
    NoRoot,
    /// The given chain does not lead to its root.
    #[error("certificate {position} of the chain (the signing one is 0) is not signed by the next")]
    BrokenPath {
        /// Position in the chain, from 0.
        position: usize,
    },
    /// The signing certificate has run out.
    #[error("the signing certificate has expired")]
    Expired,
    /// The cryptographic library failed.
    #[error("cannot sign: {0}")]
    Crypto(#[from] rcgen::Error),
}

#[cfg(test)]
mod tests;
