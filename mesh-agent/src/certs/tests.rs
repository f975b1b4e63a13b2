use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::identity::SpiffeId;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::fixture::{Authority, Running, root};
use super::trust::Trust;
use super::verify::MeshVerifier;
use super::{Certificates, tls};
use crate::config::Tunnel;

const LONG: Duration = Duration::from_mins(10);
const PATIENCE: Duration = Duration::from_secs(15);

fn web() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

async fn agent(lifetime: Duration) -> (Authority, Running, Certificates) {
    let authority = Authority::new(lifetime);
    let running = authority.serve("127.0.0.1:0").await;
    let certificates =
        Certificates::new(authority.client(running.address), "cluster.local", Tunnel::default());
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
    certificates.retain(&web());
    let first = certificates.ready(&web(), PATIENCE).await.expect("a certificate");
    assert_eq!(first.id, web());
    until("renewal", || certificates.current(&web()).expect("never none").serial != first.serial).await;
    let left = first.not_after.duration_since(SystemTime::now()).expect("renewed before the end");
    assert!(left < Duration::from_secs(3), "renewed much too early, {left:?} before the end");
}

#[tokio::test]
async fn identities_are_held_as_often_as_retained() {
    let (_authority, _running, certificates) = agent(LONG).await;
    certificates.retain(&web());
    certificates.retain(&web());
    certificates.ready(&web(), PATIENCE).await.expect("a certificate");
    certificates.release(&web());
    assert!(certificates.current(&web()).is_some());
    certificates.release(&web());
    assert!(certificates.current(&web()).is_none());
    assert!(certificates.status().is_empty());
}

#[tokio::test]
async fn an_authority_that_is_away_ends_in_expiry_and_is_recovered_from() {
    let (authority, running, certificates) = agent(Duration::from_secs(4)).await;
    certificates.retain(&web());
    certificates.ready(&web(), PATIENCE).await.expect("a certificate");
    let address = running.address.to_string();
    running.stop().await;
    until("a failed renewal", || certificates.status()[0].state == "renewing").await;
    assert!(certificates.current(&web()).is_some(), "the old one stays in use");
    until("expiry", || certificates.current(&web()).is_none()).await;
    let status = certificates.status().remove(0);
    assert_eq!(status.state, "expired");
    assert!(status.error.is_some_and(|error| error.contains("refused")), "the reason is told");
    let _running = authority.serve(&address).await;
    certificates.ready(&web(), PATIENCE).await.expect("a new certificate");
}

#[tokio::test]
async fn an_answer_for_somebody_else_is_not_used() {
    let authority = Authority::new(LONG);
    let running = authority.serve("127.0.0.1:0").await;
    authority.set().identity = Some("spiffe://cluster.local/ns/shop/sa/other".to_owned());
    let certificates =
        Certificates::new(authority.client(running.address), "cluster.local", Tunnel::default());
    certificates.retain(&web());
    until("an error", || certificates.status()[0].error.is_some()).await;
    let error = certificates.status().remove(0).error.unwrap();
    assert!(error.contains("it is for spiffe://cluster.local/ns/shop/sa/other instead of"), "{error}");
    assert!(certificates.current(&web()).is_none());
    until("the agent asked as well", || authority.set().signed >= 2).await;
    let mut own = certificates.own();
    let used = tokio::time::timeout(Duration::from_secs(1), own.wait_for(Option::is_some)).await;
    assert!(used.is_err(), "nor does the agent use one of somebody else");
}

#[tokio::test]
async fn a_refusal_is_told() {
    let (authority, _running, certificates) = agent(LONG).await;
    std::fs::write(authority.token_file(), "wrong").unwrap();
    certificates.retain(&web());
    until("an error", || certificates.status()[0].error.is_some()).await;
    assert!(certificates.status()[0].error.as_deref().unwrap().contains("who are you?"));
    std::fs::write(authority.token_file(), super::fixture::TOKEN).unwrap();
    certificates.ready(&web(), PATIENCE).await.expect("the token is read again for each request");
}

/// The long life shows that no renewal is needed to hear of a root.
#[tokio::test]
async fn roots_come_and_go_while_certificates_stay() {
    let (authority, _running, certificates) = agent(LONG).await;
    certificates.retain(&web());
    let before = certificates.ready(&web(), PATIENCE).await.expect("a certificate");
    let first = Arc::clone(&authority.set().roots[0]);
    // The first goes on signing while the second is being told to everybody.
    authority.set().roots = vec![root("second"), Arc::clone(&first)];
    authority.write_bundle();
    until("two roots", || certificates.status()[0].roots.len() == 2).await;
    let now = certificates.current(&web()).unwrap();
    assert!(Arc::ptr_eq(&before, &now), "connections go on with the same configuration");
    authority.set().roots.remove(0);
    authority.write_bundle();
    until("one root", || certificates.status()[0].roots.len() == 1).await;
}

/// The authority lost its root, or was told to replace it without waiting.
#[tokio::test]
async fn a_certificate_whose_root_is_gone_is_replaced_at_once() {
    let (authority, running, certificates) = agent(LONG).await;
    certificates.retain(&web());
    let before = certificates.ready(&web(), PATIENCE).await.expect("a certificate");
    let (address, old_roots) = (running.address.to_string(), certificates.status().remove(0).roots);
    running.stop().await;
    authority.set().roots = vec![root("second")];
    authority.write_bundle();
    let _running = authority.serve(&address).await;
    until("another root", || certificates.status()[0].roots != old_roots).await;
    until("a certificate under it", || {
        certificates.current(&web()).is_some_and(|now| now.serial != before.serial)
    })
    .await;
}

struct Mesh {
    verifier: MeshVerifier,
    root: Arc<rcgen::CertifiedIssuer<'static, KeyPair>>,
}

fn mesh(name: &str) -> Mesh {
    let (provider, root) = (tls::provider(), root(name));
    let trust = Arc::new(Trust::new(Arc::clone(&provider), "".as_ref()));
    trust.learn(vec![root.der().clone()]).unwrap();
    Mesh { verifier: MeshVerifier { trust, provider, trust_domain: "td".into() }, root }
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
