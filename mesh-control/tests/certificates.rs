//! The certificate authority, as agents meet it.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking too

mod common;

use std::time::Duration;

use common::{AGENT, BANK, Mesh, WEB, eventually, request_for, token};
use mesh_api::identity::SpiffeId;
use mesh_api::wire::type_url;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tonic::Code;
use x509_parser::prelude::{FromDer as _, X509Certificate};

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn a_token_leads_to_a_certificate_and_that_to_discovery() {
    let mesh = Mesh::start().await;
    let signed = mesh.sign("node1", None, 3600).await;
    assert_eq!(SpiffeId::from_certificate_der(&der(&signed.chain)).unwrap().to_string(), AGENT);
    assert_eq!(signed.roots, mesh.bundle());

    let mut agent = common::Agent::open(mesh.channel(Some(&signed)).await.unwrap(), "node1").await.unwrap();
    agent.subscribe(type_url::ADDRESS).await;
    assert_eq!(common::names(&agent.next().await), ["Kubernetes//Pod/bank/teller-1", common::WEB_UID]);
    agent.subscribe(type_url::AUTHORIZATION).await;
    assert_eq!(agent.next().await.type_url, type_url::AUTHORIZATION);
}

#[tokio::test]
async fn a_node_gets_the_accounts_of_its_pods_and_no_others() {
    let mesh = Mesh::start().await;
    let signed = mesh.sign("node1", Some(WEB), 3600).await;
    assert_eq!(SpiffeId::from_certificate_der(&der(&signed.chain)).unwrap().to_string(), WEB);

    let (csr, _) = request_for(&[BANK]);
    let refused = mesh.create(&token("node1"), Some(BANK), &csr, 3600).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("node1") && refused.message().contains(BANK), "{}", refused.message());
}

#[tokio::test]
async fn a_pod_that_appears_while_its_agent_asks_is_waited_for() {
    let mesh = Mesh::start().await;
    let identity = "spiffe://cluster.local/ns/shop/sa/cart";
    let (csr, _) = request_for(&[identity]);
    let token = token("node1");
    let ask = mesh.create(&token, Some(identity), &csr, 3600);
    let appear = async {
        mesh.write("cart.yaml", &common::pod("shop", "cart-1", "cart", "node1", "10.244.1.3"));
    };
    let (answer, ()) = tokio::join!(ask, appear);
    answer.unwrap();
}

#[tokio::test]
async fn an_ended_pod_gives_no_identity() {
    let mesh = Mesh::start().await;
    let ended = common::pod("shop", "web-1", "web", "node1", "10.244.1.2").replace("Running", "Succeeded");
    mesh.write("web.yaml", &ended);
    let (csr, _) = request_for(&[WEB]);
    eventually("the account is gone", async || {
        let answer = mesh.create(&token("node1"), Some(WEB), &csr, 3600).await;
        answer.is_err_and(|status| status.code() == Code::PermissionDenied)
    })
    .await;
}

#[tokio::test]
async fn callers_without_a_known_token_get_nothing() {
    let mesh = Mesh::start().await;
    let (csr, _) = request_for(&[AGENT]);
    for wrong in ["", "wrong", &token("node3"), &token("node1")[1..]] {
        let refused = mesh.create(wrong, None, &csr, 3600).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{wrong:?}");
        assert!(wrong.is_empty() || !refused.message().contains(wrong), "the token is not repeated");
    }
}

#[tokio::test]
async fn requests_that_are_not_what_they_claim_are_refused() {
    let mesh = Mesh::start().await;
    let foreign = "spiffe://other.domain/ns/shop/sa/web";
    let cases = [
        (request_for(&[BANK]).0, WEB, Code::InvalidArgument),
        (request_for(&[WEB, BANK]).0, WEB, Code::InvalidArgument),
        (request_for(&[]).0, WEB, Code::InvalidArgument),
        ("garbage".to_owned(), WEB, Code::InvalidArgument),
        (forged(), WEB, Code::InvalidArgument),
        (request_for(&[WEB]).0, "spiffe://cluster.local/shop/web", Code::InvalidArgument),
        (request_for(&[foreign]).0, foreign, Code::PermissionDenied),
    ];
    for (csr, identity, code) in cases {
        let refused = mesh.create(&token("node1"), Some(identity), &csr, 3600).await.unwrap_err();
        assert_eq!(refused.code(), code, "{}", refused.message());
    }
}

/// A request whose signature does not fit: one character near its end differs.
fn forged() -> String {
    let (csr, _) = request_for(&[WEB]);
    let at = csr.find("-----END").unwrap() - 20;
    let other = if csr.as_bytes()[at] == b'A' { "B" } else { "A" };
    format!("{}{other}{}", &csr[..at], &csr[at + 1..])
}

#[tokio::test]
async fn no_certificate_lives_longer_than_asked_or_allowed() {
    let mesh = Mesh::start_with(&["--workload-cert-ttl", "60s"]).await;
    for (asked, most) in [(20, 20), (3600, 60), (0, 60), (-5, 60), (i64::MAX, 60)] {
        let signed = mesh.sign("node1", Some(WEB), asked).await;
        let der = der(&signed.chain);
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let left = leaf.validity().time_to_expiration().unwrap().unsigned_abs();
        assert!(left <= Duration::from_secs(most), "{asked}: {left:?}");
        assert!(left >= Duration::from_secs(most - 10), "{asked}: {left:?}");
    }
}

#[tokio::test]
async fn a_changed_token_counts_without_a_restart() {
    let mesh = Mesh::start().await;
    let fresh = "a fresh token that nobody had before";
    std::fs::write(mesh.path("tokens/node1"), fresh).unwrap();
    let (csr, _) = request_for(&[AGENT]);
    eventually("the new token", async || mesh.create(fresh, None, &csr, 3600).await.is_ok()).await;
    let refused = mesh.create(&token("node1"), None, &csr, 3600).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
