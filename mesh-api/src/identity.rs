//! Who a workload is: SPIFFE identities of the form that Istio gives them.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use webpki::EndEntityCert;

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID, section 2.3.
const MAX_LENGTH: usize = 2048;

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, exactly these segments.
///
/// Cheap to clone: all parts are slices of one shared text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: u16,
    namespace: u16,
}

impl SpiffeId {
    /// Builds an identity from its parts, checking each of them.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// Identity of the holder of a certificate: its first URI SAN with the scheme `spiffe`, as it is read by
    /// the parser that checks the chain. Another one could be led to read another name. Behind a name that it
    /// can't read it sees none.
    pub fn from_certificate_der(der: &[u8]) -> Result<Self, CertificateIdentityError> {
        let der = CertificateDer::from(der);
        let certificate = EndEntityCert::try_from(&der).map_err(|_| CertificateIdentityError::Malformed)?;
        let uri = certificate.valid_uri_names().find(|uri| uri.starts_with(SCHEME));
        Ok(uri.ok_or(CertificateIdentityError::Absent)?.parse()?)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI without its scheme, which is how policies write a principal.
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    /// Trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.uri[self.trust_domain_range()]
    }

    /// Namespace.
    pub fn namespace(&self) -> &str {
        &self.uri[self.namespace_range()]
    }

    /// Service account.
    pub fn service_account(&self) -> &str {
        &self.uri[self.namespace_range().end + "/sa/".len()..]
    }

    fn trust_domain_range(&self) -> Range<usize> {
        SCHEME.len()..SCHEME.len() + usize::from(self.trust_domain)
    }

    fn namespace_range(&self) -> Range<usize> {
        let start = self.trust_domain_range().end + "/ns/".len();
        start..start + usize::from(self.namespace)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(uri: &str) -> Result<Self, InvalidSpiffeId> {
        let invalid = |problem| InvalidSpiffeId { uri: uri.chars().take(200).collect(), problem };
        if uri.len() > MAX_LENGTH {
            return Err(invalid(Problem::TooLong));
        }
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| invalid(Problem::Scheme))?;
        let mut segments = rest.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) else {
            return Err(invalid(Problem::Segments));
        };
        if !is_trust_domain(trust_domain) {
            return Err(invalid(Problem::TrustDomain));
        }
        if !is_segment(namespace) || !is_segment(account) {
            return Err(invalid(Problem::Characters));
        }
        let short = |text: &str| u16::try_from(text.len()).map_err(|_| invalid(Problem::TooLong));
        Ok(Self { trust_domain: short(trust_domain)?, namespace: short(namespace)?, uri: uri.into() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// SPIFFE-ID, section 2.1: lower case only.
pub(crate) fn is_trust_domain(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.bytes().all(allowed)
}

/// SPIFFE-ID, section 2.2: no percent-encoding, no relative segments.
fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

/// A text that is not an identity of this mesh.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{uri}` is not a workload identity (spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT): {problem}")]
pub struct InvalidSpiffeId {
    uri: String,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
enum Problem {
    #[error("it is longer than 2048 bytes")]
    TooLong,
    #[error("it does not start with `spiffe://`")]
    Scheme,
    #[error("its segments are different")]
    Segments,
    #[error("a trust domain is lower-case letters, digits, `.`, `-` and `_`")]
    TrustDomain,
    #[error("namespace and account are letters, digits, `.`, `-` and `_`")]
    Characters,
}

/// Why a certificate does not say who its holder is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateIdentityError {
    /// Not a certificate in DER.
    #[error("the certificate can't be parsed")]
    Malformed,
    /// No URI SAN with the scheme `spiffe`.
    #[error("the certificate has no SPIFFE identity")]
    Absent,
    /// There is one, of another form.
    #[error(transparent)]
    Invalid(#[from] InvalidSpiffeId),
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn an_identity_survives_the_round_trip() {
        let built = SpiffeId::new("cluster.local", "shop", "web-1").unwrap();
        let read: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web-1".parse().unwrap();
        assert_eq!(built, read);
        assert_eq!(read.to_string(), "spiffe://cluster.local/ns/shop/sa/web-1");
        assert_eq!(read.principal(), "cluster.local/ns/shop/sa/web-1");
        assert_eq!(
            (read.trust_domain(), read.namespace(), read.service_account()),
            ("cluster.local", "shop", "web-1")
        );
    }

    #[test]
    fn what_is_no_identity_is_told_apart() {
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(MAX_LENGTH));
        let cases = [
            ("", "does not start with"),
            ("https://td/ns/a/sa/b", "does not start with"),
            ("SPIFFE://td/ns/a/sa/b", "does not start with"),
            ("spiffe://td", "segments"),
            ("spiffe://td/ns/a", "segments"),
            ("spiffe://td/ns/a/sa/b/", "segments"),
            ("spiffe://td/ns/a/sa/b/c", "segments"),
            ("spiffe://td/sa/a/ns/b", "segments"),
            ("spiffe://td//ns/a/sa/b", "segments"),
            ("spiffe:///ns/a/sa/b", "trust domain"),
            ("spiffe://TD/ns/a/sa/b", "trust domain"),
            ("spiffe://td:80/ns/a/sa/b", "trust domain"),
            ("spiffe://user@td/ns/a/sa/b", "trust domain"),
            ("spiffe://td/ns//sa/b", "namespace and account"),
            ("spiffe://td/ns/a/sa/", "namespace and account"),
            ("spiffe://td/ns/../sa/b", "namespace and account"),
            ("spiffe://td/ns/a%2fb/sa/b", "namespace and account"),
            ("spiffe://td/ns/a/sa/b?c", "namespace and account"),
            ("spiffe://td/ns/a/sa/ü", "namespace and account"),
            (&long, "longer"),
        ];
        for (uri, problem) in cases {
            let error = uri.parse::<SpiffeId>().unwrap_err().to_string();
            assert!(error.contains(problem), "{uri}: {error}");
        }
        assert!(SpiffeId::new("td", "a/sa/b", "c").is_err(), "a part can't pretend to be several");
    }

    #[test]
    fn a_certificate_says_who_its_holder_is() {
        let of = |uris: &[&str]| SpiffeId::from_certificate_der(&certificate(uris));
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        assert_eq!(of(&["spiffe://td/ns/a/sa/b"]).as_ref(), Ok(&id));
        assert_eq!(of(&["https://example.org", "spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/c"]), Ok(id));
        assert_eq!(of(&[]), Err(CertificateIdentityError::Absent));
        assert_eq!(of(&["https://example.org"]), Err(CertificateIdentityError::Absent));
        let first_counts = of(&["spiffe://td/other", "spiffe://td/ns/a/sa/b"]);
        assert!(matches!(first_counts, Err(CertificateIdentityError::Invalid(_))));
        let whole = certificate(&["spiffe://td/ns/a/sa/b"]);
        for end in 0..whole.len() {
            let cut = SpiffeId::from_certificate_der(&whole[..end]);
            assert_eq!(cut, Err(CertificateIdentityError::Malformed), "cut at {end}");
        }
    }

    /// Kinds of names that there are not (RFC 5280, section 4.2.1.6 ends at 8, and says which are
    /// constructed).
    #[test]
    fn names_behind_one_that_cannot_be_read_do_not_count() {
        const URI: u8 = 0x86;
        let mut der = certificate(&["https://example.org", "spiffe://td/ns/a/sa/b"]);
        let first = der.windows(7).position(|bytes| bytes == b"https:/").unwrap() - 2;
        assert_eq!(der[first], URI);
        for kind in [0x8b, 0xa2, 0xa6] {
            der[first] = kind;
            assert_eq!(SpiffeId::from_certificate_der(&der), Err(CertificateIdentityError::Absent));
        }
    }

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }
}
