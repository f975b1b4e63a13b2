//! Certificate signing requests: what a request must look like before anybody asks who sent it.

use mesh_api::identity::{InvalidSpiffeId, SpiffeId};
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

/// A request whose signature was checked and that names exactly one SPIFFE identity.
///
/// Nothing but the key and the identity is taken over: what else a request may ask for (a subject, other
/// names, the right to sign) is for the authority to decide.
#[derive(Debug)]
pub struct CertificateRequest {
    /// Identity that the request names. Whether its sender may have it is not decided here.
    pub identity: SpiffeId,
    /// Key to be certified; the sender proved that it holds the private half.
    pub key: SubjectPublicKeyInfo,
}

impl CertificateRequest {
    /// Reads a PEM text.
    pub fn parse(pem: &str) -> Result<Self, CsrError> {
        let der =
            CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Malformed)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        let info = &request.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::Key)?;
        Ok(Self { identity: only_identity(&request)?, key })
    }
}

fn only_identity(request: &X509CertificationRequest<'_>) -> Result<SpiffeId, CsrError> {
    let mut names =
        request.requested_extensions().into_iter().flatten().filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
    match (names.next().map(Vec::as_slice), names.next()) {
        (Some([GeneralName::URI(uri)]), None) => Ok(uri.parse()?),
        _ => Err(CsrError::Names),
    }
}

/// Why a signing request is refused, whoever sent it. The sender has to act.
#[derive(Debug, Error)]
pub enum CsrError {
    /// Not PEM, or not a request.
    #[error("the certificate signing request can't be parsed")]
    Malformed,
    /// Signed by another key than the one in it.
    #[error("the signature of the certificate signing request does not match its key")]
    Signature,
    /// A kind of key that is not supported.
    #[error("the key type is not supported; use ECDSA P-256, P-384, Ed25519 or RSA")]
    Key,
    /// No subject alternative name, several, or one of another type.
    #[error("the request must have exactly one subject alternative name, a SPIFFE URI")]
    Names,
    /// One name, but not an identity of this mesh.
    #[error(transparent)]
    Identity(#[from] InvalidSpiffeId),
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn request(names: Vec<SanType>) -> rcgen::CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn a_request_for_one_identity_is_read() {
        let pem = request(vec![uri(IDENTITY)]).pem().unwrap();
        assert_eq!(CertificateRequest::parse(&pem).unwrap().identity.to_string(), IDENTITY);
    }

    #[test]
    fn other_numbers_and_types_of_names_are_refused() {
        let dns = SanType::DnsName("web.shop".try_into().unwrap());
        for names in [vec![], vec![dns.clone()], vec![uri(IDENTITY), dns], vec![uri(IDENTITY), uri(IDENTITY)]]
        {
            let pem = request(names).pem().unwrap();
            assert!(matches!(CertificateRequest::parse(&pem), Err(CsrError::Names)));
        }
        let pem = request(vec![uri("https://example.com/")]).pem().unwrap();
        assert!(matches!(CertificateRequest::parse(&pem), Err(CsrError::Identity(_))));
    }

    #[test]
    fn garbage_and_forged_signatures_are_refused() {
        assert!(matches!(CertificateRequest::parse("hello"), Err(CsrError::Malformed)));
        let mut der = request(vec![uri(IDENTITY)]).der().to_vec();
        // The account's first letter: the request still parses, but is not what was signed.
        let at = der.windows(3).position(|w| w == b"web").unwrap();
        der[at] = b'x';
        let pem = crate::ca::pem::encode(&der.into()).replace("CERTIFICATE", "CERTIFICATE REQUEST");
        assert!(matches!(CertificateRequest::parse(&pem), Err(CsrError::Signature)));
    }
}
