use rcgen::{BasicConstraints, IsCa};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::super::root::Root;
use super::*;

fn root() -> Root {
    Root::generate("cluster.local", SystemTime::now()).unwrap()
}

fn identity() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web").unwrap()
}

fn issue(signer: &Signer, lifetime: Duration) -> Result<Issued, SignerError> {
    let key = KeyPair::generate().unwrap();
    let subject = Subject { identity: &identity(), dns_names: &[], key: &key };
    signer.issue(&subject, lifetime, SystemTime::now())
}

#[test]
fn a_leaf_is_what_the_mesh_expects() {
    let root = root();
    let above = root.certificate.clone();
    let signer = Signer::from_roots(Roots { signing: root, other: None }).unwrap();
    let issued = issue(&signer, Duration::from_mins(1)).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();

    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf
        .extensions()
        .iter()
        .find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some((e.critical, names.general_names.clone())),
            _ => None,
        })
        .unwrap();
    assert_eq!(names, (true, vec![GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]));
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !leaf.is_ca());
    assert!(is_signed_by(&issued.chain[0], &above));
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!((60..=67).contains(&life), "{life}");
}

#[test]
fn serial_numbers_differ() {
    let signer = Signer::from_roots(Roots { signing: root(), other: None }).unwrap();
    let serial = || {
        let issued = issue(&signer, Duration::from_mins(1)).unwrap();
        X509Certificate::from_der(&issued.chain[0]).unwrap().1.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

/// An intermediate below `root` that expires in an hour.
fn intermediate(root: &Root) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = (SystemTime::now() + Duration::from_hours(1)).into();
    let root_key = KeyPair::from_pem(&root.key.serialize_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&root.certificate, root_key).unwrap();
    (params.signed_by(&key, &issuer).unwrap().der().clone(), key)
}

#[test]
fn a_given_intermediate_signs_within_its_own_life() {
    let root = root();
    let (certificate, key) = intermediate(&root);
    let signer = Signer::from_given(&certificate, key, vec![root.certificate.clone()]).unwrap();
    assert_eq!(signer.roots(), [root.certificate]);
    let issued = issue(&signer, Duration::from_hours(24)).unwrap();
    assert_eq!(issued.chain[1..], [certificate]);
    assert!(issued.expires <= SystemTime::now() + Duration::from_hours(1));
}

#[test]
fn a_given_authority_must_make_sense() {
    let (root, stranger) = (root(), root());
    let given = |chain| {
        let (certificate, key) = intermediate(&root);
        Signer::from_given(&certificate, key, chain).map(|_| ())
    };
    assert!(matches!(given(vec![]), Err(SignerError::NoRoot)));
    let foreign = given(vec![stranger.certificate.clone()]);
    assert!(matches!(foreign, Err(SignerError::BrokenPath { position: 0 })));

    let signer = Signer::from_roots(Roots { signing: stranger, other: None }).unwrap();
    let key = KeyPair::generate().unwrap();
    let subject = Subject { identity: &identity(), dns_names: &[], key: &key };
    let leaf = signer.issue(&subject, Duration::from_mins(1), SystemTime::now()).unwrap().chain.remove(0);
    let result = Signer::from_given(&leaf, key, signer.roots().to_vec());
    assert!(matches!(result, Err(SignerError::NotAuthority)));
}
