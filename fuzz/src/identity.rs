//! From a peer's certificate to who the peer is.

use mesh_api::identity::SpiffeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate in DER, as a peer shows it.
///
/// The name is read by webpki, which checks the chain too. Another parser, which is more lenient, comes to no
/// other name.
pub fn check(data: &[u8]) {
    let read = SpiffeId::from_certificate_der(data);
    if let Ok(id) = &read {
        assert_eq!(id.as_str().parse().as_ref(), Ok(id), "an identity is read as it is written");
        let built = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(built.as_ref(), Ok(id), "its parts make it up");
        assert_eq!(format!("spiffe://{}", id.principal()), id.as_str());
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
    }
    if let (Ok(id), Ok((_, certificate))) = (read, X509Certificate::from_der(data))
        && let Ok(Some(names)) = certificate.subject_alternative_name()
    {
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let first = uris.find(|uri| uri.starts_with("spiffe://"));
        assert_eq!(first, Some(id.as_str()), "both parsers read the same name");
    }
}
