//! Requests certificates of the certificate authority (docs/wire.md, Certificates).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::identity::{CertificateIdentityError, SpiffeId};
use mesh_api::wire::ca::IstioCertificateRequest;
use mesh_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::Request;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::control_plane_connector::{ControlPlaneConnectError, ControlPlaneConnector};
use super::trusted_roots::CertificateList;

/// Lifetime that is asked for; the authority may grant less.
const LIFETIME: Duration = Duration::from_hours(24);
/// Timeout of a request. The authority may wait a moment for the pod to be known to it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Last line of a certificate in PEM (RFC 7468, section 5.1).
const END: &str = "-----END CERTIFICATE-----";

/// Client of the certificate authority.
#[derive(Clone, Debug)]
pub struct CaClient {
    pub(super) control_plane: ControlPlaneConnector,
}

/// The identity that a certificate is requested for.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// The agent's own identity. The token says which agent it is.
    Agent {
        /// URI of its identity.
        uri: String,
    },
    /// A workload's identity on this node.
    Workload(SpiffeId),
}

/// A certificate with its key.
pub(super) struct IssuedCertificate {
    pub id: SpiffeId,
    /// The chain, leaf first, without a root.
    pub chain: CertificateList,
    /// The chain as PEM, as it came.
    pub chain_pem: String,
    pub key: KeyPair,
    /// The roots, all self-signed.
    pub roots: CertificateList,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub serial: String,
}

/// Why a certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authority is unreachable, or our token or cluster name can't be sent.
    #[error(transparent)]
    Connect(#[from] ControlPlaneConnectError),
    /// No answer in time.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The authority refused the request.
    #[error("refused: {} ({:?})", .0.message(), .0.code())]
    Refused(tonic::Status),
    /// The answer can't be used; an operator has to look at it.
    #[error("unusable answer: {0}")]
    Answer(#[from] CaResponseError),
    /// The cryptographic library can't make a key or a request.
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// What is wrong with the authority's answer.
#[derive(Debug, thiserror::Error)]
pub enum CaResponseError {
    /// There is no leaf, or no root behind it; so many certificates came.
    #[error("{0} certificates instead of a leaf and the roots")]
    TooFew(usize),
    /// The answer is not PEM.
    #[error("not PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    /// The leaf can't be parsed.
    #[error("the leaf can't be parsed")]
    Leaf,
    /// The leaf has no valid SPIFFE ID.
    #[error(transparent)]
    Identity(#[from] CertificateIdentityError),
    /// The leaf is for another identity.
    #[error("it is for {found} instead of {asked}")]
    WrongIdentity {
        /// The identity that was asked for.
        asked: String,
        /// The identity that the leaf has.
        found: SpiffeId,
    },
    /// The chain does not lead to the roots that came with it, is not valid now, or is not of our key.
    #[error("{0}")]
    Certificate(#[from] rustls::Error),
}

impl CaClient {
    /// Creates a client of the authority at `address`, `https://HOST:PORT`, whose certificate must have the
    /// DNS name `name` and is checked with the PEM file `root_cert` at first. `token_file` has the node's
    /// token; `cluster_id` is the cluster's name.
    pub fn new(
        address: String,
        name: String,
        root_cert: PathBuf,
        token_file: PathBuf,
        cluster_id: String,
    ) -> Self {
        Self { control_plane: ControlPlaneConnector { address, name, root_cert, token_file, cluster_id } }
    }

    /// Makes a key and has it certified. Errors: see [`CaError`].
    pub(super) async fn request_certificate(
        &self,
        subject: &Subject,
        trusted: &RootCertStore,
    ) -> Result<IssuedCertificate, CaError> {
        let key = KeyPair::generate()?;
        let mut request = Request::new(request(subject, &key)?);
        self.control_plane.add_auth_headers(&mut request)?;
        let answer = async {
            let channel = self.control_plane.open_channel(trusted, None).await?;
            let mut client = IstioCertificateServiceClient::new(channel);
            client.create_certificate(request).await.map_err(CaError::Refused)
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| CaError::Silent)??;
        let issued = IssuedCertificate::read(&answer.into_inner().cert_chain, key)?;
        if issued.id.as_str() != subject.as_str() {
            let asked = subject.as_str().to_owned();
            return Err(CaResponseError::WrongIdentity { asked, found: issued.id }.into());
        }
        Ok(issued)
    }
}

impl Subject {
    /// Returns the URI of the identity.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Agent { uri } => uri,
            Self::Workload(id) => id.as_str(),
        }
    }
}

fn request(subject: &Subject, key: &KeyPair) -> Result<IstioCertificateRequest, rcgen::Error> {
    let metadata = match subject {
        Subject::Agent { .. } => None,
        Subject::Workload(id) => Some(impersonated(id)),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(subject.as_str().try_into()?)];
    let csr = params.serialize_request(key)?.pem()?;
    let validity_duration = i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX);
    Ok(IstioCertificateRequest { csr, validity_duration, metadata })
}

fn impersonated(id: &SpiffeId) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(id.to_string())) };
    Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]) }
}

impl IssuedCertificate {
    /// Parses an answer: leaf first, roots last, divided into texts in any way.
    fn read(answer: &[String], key: KeyPair) -> Result<Self, CaResponseError> {
        let mut chain = certificates(&answer.join("\n"))?;
        let count = chain.len();
        let roots = chain.iter().rev().take_while(|certificate| is_self_signed(certificate)).count();
        let roots = chain.split_off(count - roots);
        if roots.is_empty() {
            return Err(CaResponseError::TooFew(count));
        }
        Self::from_chain(pem_head(answer, chain.len()), roots, key)
    }

    /// Parses a chain, leaf first and without a root; `roots` are those that it should lead to.
    pub fn from_chain(
        chain_pem: String,
        roots: CertificateList,
        key: KeyPair,
    ) -> Result<Self, CaResponseError> {
        let chain = certificates(&chain_pem)?;
        let leaf = chain.first().ok_or(CaResponseError::TooFew(roots.len()))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CaResponseError::Leaf)?;
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        Ok(Self {
            id: SpiffeId::from_certificate_der(leaf)?,
            not_before: unix_seconds_to_time(not_before.timestamp()),
            not_after: unix_seconds_to_time(not_after.timestamp()),
            serial: parsed.raw_serial_as_string().replace(':', ""),
            chain_pem,
            chain,
            roots,
            key,
        })
    }

    /// Returns the private key as rustls takes it (PKCS #8).
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

fn certificates(text: &str) -> Result<CertificateList, CaResponseError> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(CaResponseError::Pem)
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

/// Returns the first `count` certificates of an answer as PEM, as they came.
fn pem_head(answer: &[String], count: usize) -> String {
    answer.join("\n").split_inclusive(END).take(count).collect()
}

/// Converts a certificate's time, seconds since 1970 and before the year 10,000. Earlier is 1970.
pub(super) fn unix_seconds_to_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::test_ca::generate_root;

    /// However they are divided into texts, and whether or not these end with a line break.
    #[test]
    fn every_root_at_the_end_of_an_answer_counts() {
        let (first, second, key) =
            (generate_root("first"), generate_root("second"), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        let uri = "spiffe://td/ns/a/sa/b";
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let leaf = params.signed_by(&key, &*first).unwrap().pem().trim().to_owned();
        let read = |answer: &[String]| IssuedCertificate::read(answer, KeyPair::generate().unwrap());
        let together = [leaf.clone(), first.pem() + &second.pem()];
        let apart = [leaf.clone(), first.pem().trim().to_owned(), second.pem()];
        for answer in [&together[..], &apart[..]] {
            let issued = read(answer).unwrap();
            assert_eq!(issued.roots, [first.der().clone(), second.der().clone()]);
            assert_eq!(issued.chain.len(), 1, "roots are not sent to peers");
            assert_eq!(issued.chain_pem.trim(), leaf);
            assert_eq!(issued.id.as_str(), uri);
        }
        for answer in [&[][..], &[leaf][..], &[first.pem()][..]] {
            assert!(matches!(read(answer), Err(CaResponseError::TooFew(found)) if found == answer.len()));
        }
    }
}
