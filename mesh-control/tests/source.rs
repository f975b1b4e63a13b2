//! The directory source, seen from outside.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking too

mod common;

use common::{Mesh, eventually, names, policy};
use mesh_api::manifest::ManifestError;
use mesh_api::wire::type_url;

async fn errors(mesh: &Mesh) -> Vec<ManifestError> {
    serde_json::from_str(&mesh.admin("GET /errors").await.1).unwrap()
}

#[tokio::test]
async fn a_broken_policy_stays_in_force_as_it_was_and_is_reported() {
    let mut mesh = Mesh::start().await;
    mesh.write("policy.yaml", &policy("shop", "only-bank", "web"));
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::AUTHORIZATION).await;
    let first = agent.next().await;
    let sent = if first.resources.is_empty() { agent.next().await } else { first };
    assert_eq!(names(&sent), ["shop/only-bank"]);

    let broken = policy("shop", "only-bank", "web").replace("namespaces", "namepsaces");
    mesh.write("policy.yaml", &format!("{broken}---\n{}", policy("shop", "second", "web")));
    assert_eq!(names(&agent.next().await), ["shop/second"], "the good rest is applied");
    let found = errors(&mesh).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].file.ends_with("policy.yaml"));
    assert_eq!(found[0].resource.as_deref(), Some("AuthorizationPolicy shop/only-bank"));
    assert!(found[0].field.as_deref().unwrap().contains("namepsaces"), "{:?}", found[0]);

    // A restart on the broken file does not open the door either.
    drop(agent);
    mesh.stop().await;
    mesh.begin().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::AUTHORIZATION).await;
    assert_eq!(names(&agent.next().await), ["shop/only-bank", "shop/second"]);

    mesh.write("policy.yaml", &policy("shop", "second", "web"));
    assert_eq!(agent.next().await.removed_resources, ["shop/only-bank"]);
    eventually("nothing is wrong any more", async || errors(&mesh).await.is_empty()).await;
}

#[tokio::test]
async fn status_and_metrics_tell_what_is_there() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    agent.next().await;
    let (_, text) = mesh.admin("GET /status").await;
    let status: mesh_api::admin::ControlStatus = serde_json::from_str(&text).unwrap();
    assert_eq!((status.objects, status.errors, status.roots.len()), (2, 0, 1));
    assert_eq!((status.agents.len(), status.agents[0].node.as_str()), (1, "node1"));

    let address = mesh.control.as_ref().unwrap().metrics_address();
    let text = scrape(address).await;
    for line in
        ["mesh_control_agents 1", "mesh_control_certificates_signed_total 1", "mesh_control_config_objects 2"]
    {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

async fn scrape(address: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}
