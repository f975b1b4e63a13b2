//! The agent's side of the control plane against the real one: certificates, discovery over mutual TLS.

use std::time::Duration;

use clap::Parser;
use mesh_control::options::Options;
use mesh_control::server::ControlPlane;
use mesh_proxy::certs::{CaClient, Certificates};
use mesh_proxy::inheritance::BequestSender;
use mesh_proxy::tunnel::AllowedFraming;
use mesh_proxy::xds::{self, XdsConfig};

const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-of-node1-that-is-long-enough";
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1"},
    "spec": {"nodeName": "node1", "serviceAccountName": "web", "containers": [{"name": "c", "image": "x"}]},
    "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
               "conditions": [{"type": "Ready", "status": "True"}]}}"#;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

#[tokio::test]
async fn an_agent_gets_certificates_and_configuration() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    for directory in ["config", "tokens"] {
        std::fs::create_dir(path(directory)).unwrap();
    }
    std::fs::write(path("tokens").join("node1"), TOKEN).unwrap();
    std::fs::write(path("config").join("web.json"), POD).unwrap();
    let source = format!("directory:{}", path("config").display());
    let (state, tokens) = (path("state"), path("tokens"));
    let arguments = [
        ["test", "--source", &source],
        ["--state-dir", state.to_str().unwrap(), "--listen"],
        ["127.0.0.1:0", "--metrics", "127.0.0.1:0"],
        ["--node-tokens", tokens.to_str().unwrap(), "--trust-domain=cluster.local"],
    ];
    let options = Arguments::parse_from(arguments.as_flattened()).options;
    let control = ControlPlane::start(&options).await.unwrap();

    let address = format!("https://{}", control.listen_address());
    let (root_cert, token_file) = (path("state").join("root-cert.pem"), path("tokens").join("node1"));
    let name = "mesh-control".to_owned();
    let ca = CaClient::new(
        address.clone(),
        name.clone(),
        root_cert.clone(),
        token_file.clone(),
        "Kubernetes".to_owned(),
    );
    let certificates =
        Certificates::new(ca, "cluster.local", AllowedFraming::default(), BequestSender::without_successor());
    let config = XdsConfig {
        node_name: "node1".to_owned(),
        address,
        control_name: name,
        root_cert,
        token_file,
        cluster_id: "Kubernetes".to_owned(),
        instance_ip: "10.0.0.1".to_owned(),
        waypoints: mesh_api::plan::WaypointHandling::default(),
        release_memory: || (),
    };
    let mut xds = xds::start_client(
        config,
        certificates.clone(),
        BequestSender::without_successor(),
        tokio::sync::oneshot::channel().1,
    );
    let ready = tokio::time::timeout(PATIENCE, xds.ready.wait_for(|ready| *ready)).await.is_ok();
    assert!(ready, "not ready: {:?}", xds.link_status());
    let snapshot = xds.snapshot.load();
    let workload = snapshot.workload_by_address("10.244.1.2".parse().unwrap()).expect("the pod");
    certificates.retain_identity(&workload.identity);
    let identity = certificates.wait_for_certificate(&workload.identity, PATIENCE).await;
    assert!(identity.is_some(), "no certificate: {:?}", certificates.statuses());
    control.stop(Duration::from_secs(5)).await;
}
