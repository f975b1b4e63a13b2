//! A root certificate that the control plane made itself, with its key.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Ten years: a root is replaced by rotation, not by running out.
const LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks of nodes may be behind ours by this much.
const BACKDATE: Duration = Duration::from_hours(1);

/// A self-signed certificate that may sign leaves, and its private key.
pub struct Root {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: KeyPair,
}

impl Root {
    /// Makes a new one: ECDSA P-256, of a name that no other root has.
    pub fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, RootError> {
        let key = KeyPair::generate()?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, trust_domain);
        name.push(DnType::CommonName, format!("nodemesh root {}", RootId::of_key(&key)));
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + LIFETIME).into();
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, key })
    }

    /// Reads what [`Root::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, RootError> {
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| RootError::Certificate)?.into_owned();
        let key = KeyPair::from_pem(pem).map_err(|_| RootError::Key)?;
        check_key(&certificate, &key)?;
        Ok(Self { certificate, key })
    }

    /// Key and certificate in one text, so that one file holds both or neither.
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.key.serialize_pem(), super::pem::encode(&self.certificate))
    }

    /// Its name on disk and in the state of a rotation.
    pub fn id(&self) -> RootId {
        RootId::of_key(&self.key)
    }
}

/// Fails unless `certificate` is for `key`.
pub(super) fn check_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), RootError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| RootError::Certificate)?;
    let fits = parsed.public_key().raw == key.subject_public_key_info();
    if fits { Ok(()) } else { Err(RootError::Mismatch) }
}

/// A positive number of 127 random bits (RFC 5280, 4.1.2.2 asks for at most 20 octets).
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

/// Name of a root: the first 8 bytes of the SHA-256 of its public key, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(String);

impl RootId {
    fn of_key(key: &KeyPair) -> Self {
        Self(hex(&digest(&SHA256, &key.subject_public_key_info()).as_ref()[..8]))
    }
}

impl FromStr for RootId {
    type Err = RootError;

    fn from_str(text: &str) -> Result<Self, RootError> {
        // It becomes a file name.
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id { Ok(Self(text.to_owned())) } else { Err(RootError::Id) }
    }
}

impl TryFrom<String> for RootId {
    type Error = RootError;

    fn try_from(text: String) -> Result<Self, RootError> {
        text.parse()
    }
}

impl From<RootId> for String {
    fn from(id: RootId) -> Self {
        id.0
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of a certificate's public key, in hexadecimal: what people compare.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| hex(digest(&SHA256, parsed.public_key().raw).as_ref()))
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a root can't be used. The operator has to act.
#[derive(Debug, Error)]
pub enum RootError {
    /// No certificate, or one that can't be parsed.
    #[error("no readable certificate")]
    Certificate,
    /// No private key, or one of an unknown type.
    #[error("no readable private key (PKCS#8, PKCS#1 or SEC 1)")]
    Key,
    /// Certificate and key belong to different pairs.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// Not 16 hexadecimal digits.
    #[error("a root is named by 16 hexadecimal digits")]
    Id,
    /// The cryptographic library failed.
    #[error("cannot make a root: {0}")]
    Crypto(#[from] rcgen::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_survives_being_written() {
        let root = Root::generate("cluster.local", SystemTime::now()).unwrap();
        let again = Root::from_pem(&root.to_pem()).unwrap();
        assert_eq!(root.certificate, again.certificate);
        assert_eq!(root.id(), again.id());
        assert!(fingerprint(&root.certificate).starts_with(&root.id().to_string()));
    }

    #[test]
    fn a_foreign_key_is_noticed() {
        let [one, two] = [(); 2].map(|()| Root::generate("cluster.local", SystemTime::now()).unwrap());
        let mixed = Root { certificate: one.certificate, key: two.key };
        assert!(matches!(Root::from_pem(&mixed.to_pem()), Err(RootError::Mismatch)));
    }

    #[test]
    fn an_id_cannot_leave_its_directory() {
        assert!("../../etc/passwd".parse::<RootId>().is_err());
        assert!("0123456789abcdef".parse::<RootId>().is_ok());
    }
}
