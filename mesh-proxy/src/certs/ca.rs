//! Asking the certificate authority (docs/wire.md, Certificates).

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

use super::control_plane::{ConnectError, ControlPlane};
use super::trust::Bundle;

/// What is asked for; the authority may give less.
const LIFETIME: Duration = Duration::from_hours(24);
/// From the request to the answer. The authority may wait a moment for the pod to be known to it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Ends a certificate (RFC 7468, section 5.1).
const END: &str = "-----END CERTIFICATE-----";

/// The certificate authority.
#[derive(Clone, Debug)]
pub struct CaClient {
    pub(super) control_plane: ControlPlane,
}

/// Whose certificate is asked for.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// The agent's own. The token says which agent it is.
    Agent {
        /// URI of its identity.
        uri: String,
    },
    /// That of a workload on this node.
    Workload(SpiffeId),
}

/// A certificate with its key.
pub(super) struct Issued {
    pub id: SpiffeId,
    /// The leaf first, no root.
    pub chain: Bundle,
    /// The same as it came.
    pub chain_pem: String,
    pub key: KeyPair,
    /// Self-signed, all of them.
    pub roots: Bundle,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub serial: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authority is away, or we can't say who we are.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It did not answer in time.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// It said no.
    #[error("refused: {} ({:?})", .0.message(), .0.code())]
    Refused(tonic::Status),
    /// Its answer can't be used: it has to be looked at.
    #[error("unusable answer: {0}")]
    Answer(#[from] AnswerError),
    /// The cryptographic library failed.
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There must be at least a leaf and the roots.
    #[error("{0} certificates instead of a leaf and the roots")]
    TooFew(usize),
    /// It is not PEM.
    #[error("not PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    /// The leaf is not a certificate.
    #[error("the leaf can't be parsed")]
    Leaf,
    /// The leaf does not say who it is for.
    #[error(transparent)]
    Identity(#[from] CertificateIdentityError),
    /// The leaf is for somebody else.
    #[error("it is for {found} instead of {asked}")]
    WrongIdentity {
        /// Whose was asked for.
        asked: String,
        /// Whose came.
        found: SpiffeId,
    },
    /// It does not lead to the roots it came with, is not valid now, or is of another key.
    #[error("{0}")]
    Certificate(#[from] rustls::Error),
}

impl CaClient {
    /// An authority at `https://HOST:PORT`.
    pub fn new(
        address: String,
        name: String,
        root_cert: PathBuf,
        token_file: PathBuf,
        cluster_id: String,
    ) -> Self {
        Self { control_plane: ControlPlane { address, name, root_cert, token_file, cluster_id } }
    }

    /// Makes a key and has it certified.
    pub(super) async fn certify(
        &self,
        subject: &Subject,
        trusted: &RootCertStore,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?;
        let mut request = Request::new(request(subject, &key)?);
        self.control_plane.authenticate(&mut request)?;
        let answer = async {
            let channel = self.control_plane.connect(trusted, None).await?;
            let mut client = IstioCertificateServiceClient::new(channel);
            client.create_certificate(request).await.map_err(CaError::Refused)
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| CaError::Silent)??;
        let issued = Issued::read(&answer.into_inner().cert_chain, key)?;
        if issued.id.as_str() != subject.as_str() {
            let asked = subject.as_str().to_owned();
            return Err(AnswerError::WrongIdentity { asked, found: issued.id }.into());
        }
        Ok(issued)
    }
}

impl Subject {
    /// URI of the identity.
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

impl Issued {
    /// The leaf comes first and the roots last, divided into texts in any way.
    fn read(answer: &[String], key: KeyPair) -> Result<Self, AnswerError> {
        let mut chain = certificates(&answer.join("\n"))?;
        let count = chain.len();
        let roots = chain.iter().rev().take_while(|certificate| is_self_signed(certificate)).count();
        let roots = chain.split_off(count - roots);
        if roots.is_empty() {
            return Err(AnswerError::TooFew(count));
        }
        Self::of(pem_head(answer, chain.len()), roots, key)
    }

    /// Of a chain without a root, the leaf first, and the roots that it is to lead to.
    pub fn of(chain_pem: String, roots: Bundle, key: KeyPair) -> Result<Self, AnswerError> {
        let chain = certificates(&chain_pem)?;
        let leaf = chain.first().ok_or(AnswerError::TooFew(roots.len()))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| AnswerError::Leaf)?;
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        Ok(Self {
            id: SpiffeId::from_certificate_der(leaf)?,
            not_before: time(not_before.timestamp()),
            not_after: time(not_after.timestamp()),
            serial: parsed.raw_serial_as_string().replace(':', ""),
            chain_pem,
            chain,
            roots,
            key,
        })
    }

    /// The private key, for rustls.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

fn certificates(text: &str) -> Result<Bundle, AnswerError> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(AnswerError::Pem)
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

/// The first `count` certificates of an answer as they came.
fn pem_head(answer: &[String], count: usize) -> String {
    answer.join("\n").split_inclusive(END).take(count).collect()
}

/// A certificate's time, which is in seconds since 1970 and before the year 10,000.
pub(super) fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::fixture::root;

    /// However they are divided into texts, and whether or not these end with a line break.
    #[test]
    fn every_root_at_the_end_of_an_answer_counts() {
        let (first, second, key) = (root("first"), root("second"), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        let uri = "spiffe://td/ns/a/sa/b";
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let leaf = params.signed_by(&key, &*first).unwrap().pem().trim().to_owned();
        let read = |answer: &[String]| Issued::read(answer, KeyPair::generate().unwrap());
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
            assert!(matches!(read(answer), Err(AnswerError::TooFew(found)) if found == answer.len()));
        }
    }
}
