//! From a peer's certificate to who the peer is.

use mesh_api::identity::SpiffeId;
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

/// A certificate in DER, as a peer shows it.
///
/// Two parsers read it in the agent: webpki, which checks the chain, and ours, which reads the name. A certificate that
/// they read differently could be signed for one workload and taken for another, so they have to agree.
pub fn check(data: &[u8]) {
    let read = SpiffeId::from_certificate_der(data);
    if let Ok(id) = &read {
        assert_eq!(id.as_str().parse().as_ref(), Ok(id), "an identity is read as it is written");
        let built = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(built.as_ref(), Ok(id), "its parts make it up");
        assert_eq!(format!("spiffe://{}", id.principal()), id.as_str());
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
    }
    let der = CertificateDer::from(data);
    if let (Ok(id), Ok(certificate)) = (read, EndEntityCert::try_from(&der)) {
        let first = certificate.valid_uri_names().find(|uri| uri.starts_with("spiffe://"));
        assert_eq!(first, Some(id.as_str()), "both parsers read the same name");
    }
}
