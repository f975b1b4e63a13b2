//! A control plane in this process, on loopback, and clients of it as agents are.
#![allow(dead_code)] // every test file uses a part of it

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use mesh_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_api::wire::type_url;
use mesh_api::wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh_control::options::Options;
use mesh_control::server::ControlPlane;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};

pub const AGENT: &str = "spiffe://cluster.local/ns/nodemesh-system/sa/mesh-agent";
pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const BANK: &str = "spiffe://cluster.local/ns/bank/sa/teller";
pub const WEB_UID: &str = "Kubernetes//Pod/shop/web-1";

/// Long enough for a busy machine, short enough to notice a hang.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// Two nodes: `shop/web-1` runs on node1, `bank/teller-1` on node2.
pub struct Mesh {
    pub home: tempfile::TempDir,
    pub control: Option<ControlPlane>,
    extra: Vec<String>,
}

impl Mesh {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(extra: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for directory in ["config", "tokens"] {
            std::fs::create_dir(home.path().join(directory)).unwrap();
        }
        let extra = extra.iter().map(|text| (*text).to_owned()).collect();
        let mut mesh = Self { home, control: None, extra };
        for node in ["node1", "node2"] {
            std::fs::write(mesh.path("tokens").join(node), token(node)).unwrap();
        }
        mesh.write("web.yaml", &pod("shop", "web-1", "web", "node1", "10.244.1.2"));
        mesh.write("teller.yaml", &pod("bank", "teller-1", "teller", "node2", "10.244.2.2"));
        mesh.begin().await;
        mesh
    }

    pub async fn begin(&mut self) {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let source = format!("directory:{}", path("config"));
        let mut arguments = vec!["test".to_owned(), "--source".into(), source];
        for (option, value) in [
            ("--state-dir", path("state")),
            ("--node-tokens", path("tokens")),
            ("--admin-socket", path("control.sock")),
            ("--listen", "127.0.0.1:0".into()),
            ("--metrics", "127.0.0.1:0".into()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        arguments.extend(self.extra.iter().cloned());
        let options = Arguments::parse_from(arguments).options;
        self.control = Some(ControlPlane::start(&options).await.unwrap());
    }

    pub async fn stop(&mut self) {
        self.control.take().unwrap().stop(Duration::from_secs(5)).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Puts a manifest in place as a careful writer does.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.path("config").join(format!(".{name}"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.path("config").join(name)).unwrap();
    }

    pub fn bundle(&self) -> String {
        std::fs::read_to_string(self.path("state/root-cert.pem")).unwrap()
    }

    pub fn endpoint(&self) -> Endpoint {
        let address = self.control.as_ref().unwrap().listen_address();
        Channel::from_shared(format!("https://{address}")).unwrap()
    }

    /// TLS as an agent's: with the bundle, the name, and a certificate if there is one.
    pub fn tls(bundle: &str, identity: Option<&Signed>) -> ClientTlsConfig {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(bundle)).domain_name("mesh-control");
        match identity {
            Some(signed) => tls.identity(Identity::from_pem(&signed.chain, &signed.key)),
            None => tls,
        }
    }

    pub async fn channel(&self, identity: Option<&Signed>) -> Result<Channel, tonic::transport::Error> {
        self.endpoint().tls_config(Self::tls(&self.bundle(), identity))?.connect().await
    }

    /// Asks for a certificate.
    pub async fn create(
        &self,
        token: &str,
        impersonated: Option<&str>,
        csr: &str,
        seconds: i64,
    ) -> Result<IstioCertificateResponse, Status> {
        let metadata = impersonated.map(|identity| Struct {
            fields: [(
                "ImpersonatedIdentity".into(),
                Value { kind: Some(Kind::StringValue(identity.into())) },
            )]
            .into(),
        });
        let mut request =
            Request::new(IstioCertificateRequest { csr: csr.into(), validity_duration: seconds, metadata });
        authorize(&mut request, token);
        let mut client = IstioCertificateServiceClient::new(self.channel(None).await.unwrap());
        client.create_certificate(request).await.map(tonic::Response::into_inner)
    }

    /// Makes a key and has it certified.
    pub async fn sign(&self, node: &str, identity: Option<&str>, seconds: i64) -> Signed {
        let (csr, key) = request_for(&[identity.unwrap_or(AGENT)]);
        let answer = self.create(&token(node), identity, &csr, seconds).await.unwrap();
        let roots = answer.cert_chain.last().unwrap().clone();
        let chain = answer.cert_chain[..answer.cert_chain.len() - 1].concat();
        Signed { chain, key, roots }
    }

    /// An agent of `node`, with its certificate.
    pub async fn agent(&self, node: &str) -> Agent {
        let signed = self.sign(node, None, 3600).await;
        Agent::open(self.channel(Some(&signed)).await.unwrap(), node).await.unwrap()
    }

    /// `METHOD path` of the admin socket: status and body.
    pub async fn admin(&self, request: &str) -> (u16, String) {
        let mut socket = tokio::net::UnixStream::connect(self.path("control.sock")).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nhost: control\r\nconnection: close\r\n\r\n");
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// A certificate chain with its key, and the roots that came along.
pub struct Signed {
    pub chain: String,
    pub key: String,
    pub roots: String,
}

/// An open discovery stream.
pub struct Agent {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

impl Agent {
    pub async fn open(channel: Channel, node: &str) -> Result<Self, Status> {
        let (requests, outbound) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(200 << 20);
        let mut request = Request::new(ReceiverStream::new(outbound));
        authorize(&mut request, &token(node));
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// Subscribes to everything of a type.
    pub async fn subscribe(&self, type_url: &str) {
        self.send(DeltaDiscoveryRequest { type_url: type_url.into(), ..first_request() }).await;
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The next response, which is acknowledged.
    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(DEADLINE, self.responses.message());
        let response = next.await.expect("no response in time").unwrap().expect("the stream ended");
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        response
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> Status {
        let end = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok("ended"),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(DEADLINE, end).await.expect("the stream goes on")
    }
}

pub fn first_request() -> DeltaDiscoveryRequest {
    let id = "ztunnel~10.0.0.1~agent.nodemesh-system~nodemesh-system.svc.cluster.local".to_owned();
    let node = Some(Node { id, ..Node::default() });
    DeltaDiscoveryRequest { node, type_url: type_url::ADDRESS.into(), ..DeltaDiscoveryRequest::default() }
}

pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    names
}

pub fn token(node: &str) -> String {
    format!("the-very-secret-token-of-{node}")
}

pub fn authorize<T>(request: &mut Request<T>, token: &str) {
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
}

/// A signing request for `identities`, and its key.
pub fn request_for(identities: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = identities.iter().map(|id| SanType::URI((*id).try_into().unwrap())).collect();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

pub fn pod(namespace: &str, name: &str, account: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {account}}}}}\n\
         spec: {{serviceAccountName: {account}, nodeName: {node}, containers: [{{name: main}}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

pub fn policy(namespace: &str, name: &str, app: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{matchLabels: {{app: {app}}}}}, action: ALLOW, rules: [{{from: [{{source: {{namespaces: [bank]}}}}]}}]}}\n"
    )
}

/// Waits until `done` says yes.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
