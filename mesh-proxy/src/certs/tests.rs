use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::identity::SpiffeId;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::test_ca::{RunningCa, TestCa, generate_root};
use super::trust_domain_verifier::TrustDomainVerifier;
use super::trusted_roots::TrustedRoots;
use super::{Certificates, tls_config};
use crate::inheritance::certificate_file::{
    CertificateEntry, CertificateFile, MAX_CERTIFICATE_FILE_BYTES, parse_certificate_file,
    write_certificate_file,
};
use crate::inheritance::{self, BequestSender};
use crate::tunnel::AllowedFraming;

const LONG: Duration = Duration::from_mins(10);
const PATIENCE: Duration = Duration::from_secs(15);

fn web() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

async fn agent(lifetime: Duration) -> (TestCa, RunningCa, Certificates) {
    let authority = TestCa::new(lifetime);
    let running = authority.serve("127.0.0.1:0").await;
    let certificates = Certificates::new(
        authority.ca_client(running.address),
        "cluster.local",
        AllowedFraming::default(),
        BequestSender::without_successor(),
    );
    (authority, running, certificates)
}

/// Looks until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let look = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_life_without_a_gap() {
    let (_authority, _running, certificates) = agent(Duration::from_secs(4)).await;
    certificates.retain_identity(&web());
    let first = certificates.wait_for_certificate(&web(), PATIENCE).await.expect("a certificate");
    assert_eq!(first.id, web());
    until("renewal", || certificates.current(&web()).expect("never none").serial != first.serial).await;
    let left = first.not_after.duration_since(SystemTime::now()).expect("renewed before the end");
    assert!(left < Duration::from_secs(3), "renewed much too early, {left:?} before the end");
}

#[tokio::test]
async fn identities_are_held_as_often_as_retained() {
    let (_authority, _running, certificates) = agent(LONG).await;
    certificates.retain_identity(&web());
    certificates.retain_identity(&web());
    certificates.wait_for_certificate(&web(), PATIENCE).await.expect("a certificate");
    certificates.release_identity(&web());
    assert!(certificates.current(&web()).is_some());
    certificates.release_identity(&web());
    assert!(certificates.current(&web()).is_none());
    assert!(certificates.statuses().is_empty());
}

#[tokio::test]
async fn an_authority_that_is_away_ends_in_expiry_and_is_recovered_from() {
    let (authority, running, certificates) = agent(Duration::from_secs(4)).await;
    certificates.retain_identity(&web());
    certificates.wait_for_certificate(&web(), PATIENCE).await.expect("a certificate");
    let address = running.address.to_string();
    running.stop().await;
    until("a failed renewal", || certificates.statuses()[0].state == "renewing").await;
    assert!(certificates.current(&web()).is_some(), "the old one stays in use");
    until("expiry", || certificates.current(&web()).is_none()).await;
    let status = certificates.statuses().remove(0);
    assert_eq!(status.state, "expired");
    assert!(status.error.is_some_and(|error| error.contains("refused")), "the reason is told");
    let _running = authority.serve(&address).await;
    certificates.wait_for_certificate(&web(), PATIENCE).await.expect("a new certificate");
}

#[tokio::test]
async fn an_answer_for_somebody_else_is_not_used() {
    let authority = TestCa::new(LONG);
    let running = authority.serve("127.0.0.1:0").await;
    authority.lock_state().identity = Some("spiffe://cluster.local/ns/shop/sa/other".to_owned());
    let certificates = Certificates::new(
        authority.ca_client(running.address),
        "cluster.local",
        AllowedFraming::default(),
        BequestSender::without_successor(),
    );
    certificates.retain_identity(&web());
    until("an error", || certificates.statuses()[0].error.is_some()).await;
    let error = certificates.statuses().remove(0).error.unwrap();
    assert!(error.contains("it is for spiffe://cluster.local/ns/shop/sa/other instead of"), "{error}");
    assert!(certificates.current(&web()).is_none());
    until("the agent asked as well", || authority.lock_state().signed >= 2).await;
    let mut own = certificates.subscribe_agent_certificate();
    let used = tokio::time::timeout(Duration::from_secs(1), own.wait_for(Option::is_some)).await;
    assert!(used.is_err(), "nor does the agent use one of somebody else");
}

/// istiod signs for workloads only where it is told the cluster; for the agent itself it wants a token alone.
#[tokio::test]
async fn an_authority_is_told_of_which_cluster_the_agent_is() {
    let (authority, _running, certificates) = agent(LONG).await;
    authority.lock_state().cluster = Some("another".to_owned());
    certificates.retain_identity(&web());
    until("a refusal", || certificates.statuses()[0].error.is_some()).await;
    let error = certificates.statuses().remove(0).error.unwrap();
    assert!(error.contains("no node authorizer"), "{error}");
    authority.lock_state().cluster = Some("cluster-1".to_owned());
    certificates
        .wait_for_certificate(&web(), PATIENCE)
        .await
        .expect("signed for the cluster that the agent is of");
}

#[tokio::test]
async fn a_cluster_that_no_header_can_name_is_told_with_its_setting() {
    let authority = TestCa::new(LONG);
    let running = authority.serve("127.0.0.1:0").await;
    let mut client = authority.ca_client(running.address);
    client.control_plane.cluster_id = "München".to_owned();
    let certificates = Certificates::new(
        client,
        "cluster.local",
        AllowedFraming::default(),
        BequestSender::without_successor(),
    );
    certificates.retain_identity(&web());
    until("an error", || certificates.statuses()[0].error.is_some()).await;
    let error = certificates.statuses().remove(0).error.unwrap();
    assert!(error.contains("--cluster-id"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told() {
    let (authority, _running, certificates) = agent(LONG).await;
    std::fs::write(authority.token_file_path(), "wrong").unwrap();
    certificates.retain_identity(&web());
    until("an error", || certificates.statuses()[0].error.is_some()).await;
    assert!(certificates.statuses()[0].error.as_deref().unwrap().contains("who are you?"));
    std::fs::write(authority.token_file_path(), super::test_ca::TOKEN).unwrap();
    certificates
        .wait_for_certificate(&web(), PATIENCE)
        .await
        .expect("the token is read again for each request");
}

/// The long life shows that no renewal is needed to hear of a root.
#[tokio::test]
async fn roots_come_and_go_while_certificates_stay() {
    let (authority, _running, certificates) = agent(LONG).await;
    certificates.retain_identity(&web());
    let before = certificates.wait_for_certificate(&web(), PATIENCE).await.expect("a certificate");
    let first = Arc::clone(&authority.lock_state().roots[0]);
    // The first goes on signing while the second is being told to everybody.
    authority.lock_state().roots = vec![generate_root("second"), Arc::clone(&first)];
    authority.write_root_file();
    until("two roots", || certificates.statuses()[0].roots.len() == 2).await;
    let now = certificates.current(&web()).unwrap();
    assert!(Arc::ptr_eq(&before, &now), "connections go on with the same configuration");
    authority.lock_state().roots.remove(0);
    authority.write_root_file();
    until("one root", || certificates.statuses()[0].roots.len() == 1).await;
}

/// The authority lost its root, or was told to replace it without waiting.
#[tokio::test]
async fn a_certificate_whose_root_is_gone_is_replaced_at_once() {
    let (authority, running, certificates) = agent(LONG).await;
    certificates.retain_identity(&web());
    let before = certificates.wait_for_certificate(&web(), PATIENCE).await.expect("a certificate");
    let (address, old_roots) = (running.address.to_string(), certificates.statuses().remove(0).roots);
    running.stop().await;
    authority.lock_state().roots = vec![generate_root("second")];
    authority.write_root_file();
    let _running = authority.serve(&address).await;
    until("another root", || certificates.statuses()[0].roots != old_roots).await;
    until("a certificate under it", || {
        certificates.current(&web()).is_some_and(|now| now.serial != before.serial)
    })
    .await;
}

/// Those of the agent and of `web`, as they are left to a next proxy.
async fn left_behind(authority: &TestCa, running: &RunningCa) -> (Certificates, Vec<u8>) {
    let (inheritance, mut left) = BequestSender::channel();
    let client = authority.ca_client(running.address);
    let certificates = Certificates::new(client, "cluster.local", AllowedFraming::default(), inheritance);
    certificates.retain_identity(&web());
    let both = async {
        loop {
            let (_, file) = left.recv().await.expect("certificates are left");
            let bytes =
                inheritance::read_whole_file(&File::from(file.unwrap()), MAX_CERTIFICATE_FILE_BYTES).unwrap();
            if parse_certificate_file(&bytes).unwrap().entries.len() == 2 {
                return bytes;
            }
        }
    };
    let bytes = tokio::time::timeout(PATIENCE, both).await.expect("in time");
    (certificates, bytes)
}

/// Another proxy, which finds these bytes and no authority.
fn heir(authority: &TestCa, bytes: &[u8]) -> Certificates {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let heir = Certificates::new(
        authority.ca_client(nobody),
        "cluster.local",
        AllowedFraming::default(),
        BequestSender::without_successor(),
    );
    let mut file = inheritance::create_empty_memfd(c"test").unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    heir.load_inherited(&file);
    heir.retain_identity(&web());
    heir
}

#[tokio::test]
async fn certificates_outlive_the_proxy_that_asked_for_them() {
    let authority = TestCa::new(LONG);
    let running = authority.serve("127.0.0.1:0").await;
    let (first, bytes) = left_behind(&authority, &running).await;
    let before = first.current(&web()).unwrap();
    drop(first);
    let address = running.address;
    running.stop().await;
    let heir = Certificates::new(
        authority.ca_client(address),
        "cluster.local",
        AllowedFraming::default(),
        BequestSender::without_successor(),
    );
    let mut file = inheritance::create_empty_memfd(c"test").unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    heir.load_inherited(&file);
    heir.retain_identity(&web());
    assert_eq!(heir.current(&web()).expect("at once").serial, before.serial);
    assert!(heir.subscribe_agent_certificate().borrow().is_some(), "nor does the agent wait for its own");
    until("a failed renewal", || heir.statuses()[0].state == "renewing").await;
    let _running = authority.serve(&address.to_string()).await;
    until("a certificate of its own", || heir.current(&web()).unwrap().serial != before.serial).await;
}

#[tokio::test]
async fn what_a_proxy_left_counts_only_as_far_as_it_can_be_checked() {
    let authority = TestCa::new(LONG);
    let running = authority.serve("127.0.0.1:0").await;
    let (_first, bytes) = left_behind(&authority, &running).await;
    let good = parse_certificate_file(&bytes).unwrap();
    let of = |uri: &str| good.entries.iter().find(|entry| entry.uri == uri).unwrap();
    let (web_entry, own_entry) =
        (of(web().as_str()), of("spiffe://cluster.local/ns/nodemesh-system/sa/mesh-agent"));
    let with = |roots: Vec<&[u8]>, uri, chain, key| {
        let mut bytes = Vec::new();
        let contents = CertificateFile { roots, entries: vec![CertificateEntry { uri, chain, key }] };
        write_certificate_file(&contents, &mut bytes).unwrap();
        heir(&authority, &bytes).current(&web()).is_some()
    };
    let (uri, chain, key) = (web_entry.uri, web_entry.chain, web_entry.key);
    assert!(with(good.roots.clone(), uri, chain, key), "this one is good");
    assert!(!with(good.roots.clone(), uri, chain, own_entry.key), "the key is another's");
    assert!(!with(good.roots.clone(), uri, own_entry.chain, own_entry.key), "the certificate is another's");
    assert!(!with(good.roots.clone(), uri, "", key));
    assert!(!with(good.roots.clone(), uri, chain, b"no key"));
    assert!(!with(vec![], uri, chain, key), "it leads to no root");
    // Whoever took the proxy over has a root of his own, and a certificate under it.
    let (theirs, own_key) = (generate_root("theirs"), KeyPair::generate().unwrap());
    let own_der = own_key.serialize_der();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let forged = params.signed_by(&own_key, &*theirs).unwrap().pem();
    let both = vec![good.roots[0], theirs.der().as_ref()];
    assert!(!with(both.clone(), uri, &forged, &own_der), "the file names no such root");
    assert!(with(both, uri, chain, key));
    for length in 0..bytes.len() {
        assert!(parse_certificate_file(&bytes[..length]).is_none(), "cut at {length}");
    }
}

#[tokio::test]
async fn an_inherited_certificate_that_has_expired_is_none() {
    let authority = TestCa::new(Duration::from_secs(3));
    let running = authority.serve("127.0.0.1:0").await;
    let (first, bytes) = left_behind(&authority, &running).await;
    drop(first);
    assert!(heir(&authority, &bytes).current(&web()).is_some());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(heir(&authority, &bytes).current(&web()).is_none());
}

struct Mesh {
    verifier: TrustDomainVerifier,
    root: Arc<rcgen::CertifiedIssuer<'static, KeyPair>>,
}

fn mesh(name: &str) -> Mesh {
    let (provider, root) = (tls_config::crypto_provider(), generate_root(name));
    let trust = Arc::new(TrustedRoots::new(Arc::clone(&provider), "".as_ref()));
    trust.install_ca_roots(vec![root.der().clone()]).unwrap();
    Mesh { verifier: TrustDomainVerifier { trust, provider, trust_domain: "td".into() }, root }
}

impl Mesh {
    fn leaf(&self, uri: &str, valid: std::ops::Range<SystemTime>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        (params.not_before, params.not_after) = (valid.start.into(), valid.end.into());
        params.signed_by(&KeyPair::generate().unwrap(), &**self.root).unwrap().der().clone()
    }

    /// What both sides say of a certificate, which must be the same.
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), String> {
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let server = self.verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::now());
        let client = self.verifier.verify_client_cert(leaf, &[], UnixTime::now());
        let text = |error: rustls::Error| error.to_string();
        let (server, client) = (server.map(drop).map_err(text), client.map(drop).map_err(text));
        assert_eq!(server, client);
        server
    }
}

#[test]
fn a_peer_is_refused_for_a_reason_that_is_told() {
    let (ours, theirs) = (mesh("ours"), mesh("theirs"));
    let (id, now, minute) = ("spiffe://td/ns/a/sa/b", SystemTime::now(), Duration::from_mins(1));
    let valid = now - minute..now + minute;
    assert_eq!(ours.check(&ours.leaf(id, valid.clone())), Ok(()));
    let cases = [
        (ours.leaf(id, now - 2 * minute..now - minute), "expired"),
        (ours.leaf(id, now + minute..now + 2 * minute), "not valid yet"),
        (ours.leaf("spiffe://other/ns/a/sa/b", valid.clone()), "is not of the trust domain td"),
        (ours.leaf("https://example.org", valid.clone()), "no SPIFFE identity"),
        (theirs.leaf(id, valid), "UnknownIssuer"),
    ];
    for (leaf, expected) in cases {
        let reason = ours.check(&leaf).unwrap_err();
        assert!(reason.contains(expected), "{reason} instead of {expected}");
    }
}
