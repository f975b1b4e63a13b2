use std::time::Duration;

use mesh_api::plan::{WaypointHandling, XdsResourceType};
use mesh_api::wire::type_url;
use mesh_api::wire::workload::{Address, Service, Workload, address};
use mesh_api::wire::xds::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, PARTS, Resource};
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::certs::test_ca::{RunningCa, TestCa};
use crate::inheritance::InheritedKind;
use crate::tunnel::AllowedFraming;

const PATIENCE: Duration = Duration::from_secs(15);

type Reply = Result<DeltaDiscoveryResponse, Status>;

/// Hands each stream that is opened to the test.
struct Server(mpsc::Sender<Opened>);

/// One stream, seen from the control plane.
struct Opened {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Reply>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type DeltaAggregatedResourcesStream = ReceiverStream<Reply>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if request.metadata().get("clusterid").is_none_or(|cluster| cluster != "Kubernetes") {
            return Err(Status::unauthenticated("of which cluster?"));
        }
        if request.peer_certs().is_none_or(|certificates| certificates.is_empty()) {
            return Err(Status::unauthenticated("no certificate"));
        }
        let (responses, stream) = mpsc::channel(4);
        let opened = Opened { requests: request.into_inner(), responses };
        self.0.send(opened).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Opened {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = tokio::time::timeout(PATIENCE, self.requests.message()).await;
        next.expect("a request in time").unwrap().expect("the stream goes on")
    }

    async fn respond(&self, type_url: &str, nonce: &str, resources: Vec<Resource>) {
        self.respond_at("1", type_url, nonce, resources).await;
    }

    async fn respond_at(&self, version: &str, type_url: &str, nonce: &str, resources: Vec<Resource>) {
        let response = DeltaDiscoveryResponse {
            system_version_info: version.to_owned(),
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
    }
}

fn resource(name: &str, address: address::Type) -> Resource {
    let value = Address { r#type: Some(address) }.encode_to_vec();
    let any = Any { type_url: type_url::ADDRESS.to_owned(), value };
    Resource { name: name.to_owned(), version: "v1".to_owned(), resource: Some(any), aliases: Vec::new() }
}

fn workload(uid: &str) -> Resource {
    let workload = Workload {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Workload::default()
    };
    resource(uid, address::Type::Workload(workload))
}

/// Names of what a dump has.
fn held(xds: &XdsState) -> Vec<String> {
    let bytes = xds.dump_resources();
    let (mut rest, mut names) = (&*bytes, Vec::new());
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        names.extend(response.resources.into_iter().map(|held| held.name));
    }
    names
}

async fn plane() -> (TestCa, mpsc::Receiver<Opened>, RunningCa) {
    let (sender, streams) = mpsc::channel(4);
    let authority = TestCa::new(Duration::from_mins(10));
    let routes = Routes::new(AggregatedDiscoveryServiceServer::new(Server(sender)));
    let running = authority.serve_with_routes("127.0.0.1:0", routes).await;
    (authority, streams, running)
}

fn agent(authority: &TestCa, address: std::net::SocketAddr) -> XdsState {
    agent_after(authority, address, BequestSender::without_successor(), oneshot::channel().1)
}

fn configuration(file: std::os::fd::OwnedFd) -> InheritedConfiguration {
    InheritedConfiguration { file: file.into(), beside: false }
}

/// One that comes after another.
fn agent_after(
    authority: &TestCa,
    address: std::net::SocketAddr,
    inheritance: BequestSender,
    inherited: oneshot::Receiver<InheritedConfiguration>,
) -> XdsState {
    let certificates = Certificates::new(
        authority.ca_client(address),
        "cluster.local",
        AllowedFraming::default(),
        BequestSender::without_successor(),
    );
    let config = XdsConfig {
        node_name: "node1".to_owned(),
        address: format!("https://{address}"),
        control_name: "mesh-control".to_owned(),
        root_cert: authority.root_cert_path(),
        token_file: authority.token_file_path(),
        cluster_id: "Kubernetes".to_owned(),
        instance_ip: "10.0.0.7".to_owned(),
        waypoints: WaypointHandling::default(),
        release_memory: || (),
    };
    start_client(config, certificates, inheritance, inherited)
}

async fn opened(streams: &mut mpsc::Receiver<Opened>) -> Opened {
    tokio::time::timeout(PATIENCE, streams.recv()).await.expect("a stream in time").unwrap()
}

#[tokio::test]
async fn nothing_counts_before_both_types_are_there() {
    let (authority, mut streams, running) = plane().await;
    let mut xds = agent(&authority, running.address);
    let mut stream = opened(&mut streams).await;
    let (first, second) = (stream.request().await, stream.request().await);
    let asked_for = [first.type_url.as_str(), &second.type_url];
    assert_eq!(asked_for, XdsResourceType::ALL.map(|of| of.type_url));
    let node = first.node.expect("a node");
    assert_eq!(
        node.id,
        "ztunnel~10.0.0.7~mesh-agent-node1.nodemesh-system~nodemesh-system.svc.cluster.local"
    );
    assert!(first.resource_names_subscribe.is_empty(), "everything");
    stream.respond(type_url::ADDRESS, "n1", vec![workload("a")]).await;
    let ack = stream.request().await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
    assert!(!*xds.ready.borrow());
    assert_eq!(xds.snapshot.load().workload_count(), 0, "workloads without policies are open to all");
    stream.respond(type_url::AUTHORIZATION, "n2", Vec::new()).await;
    tokio::time::timeout(PATIENCE, xds.updates.changed()).await.unwrap().unwrap();
    assert!(*xds.ready.borrow());
    assert_eq!(xds.snapshot.load().workload_count(), 1);
    assert!(xds.link_status().connected);
    assert_eq!(held(&xds), ["a"]);
}

#[tokio::test]
async fn a_state_counts_once_all_its_parts_are_there() {
    let (authority, mut streams, running) = plane().await;
    let mut xds = agent(&authority, running.address);
    let mut stream = opened(&mut streams).await;
    let (first, _) = (stream.request().await, stream.request().await);
    assert!(first.node.unwrap().metadata.unwrap().fields.contains_key(PARTS), "it says that it takes parts");
    stream.respond(type_url::AUTHORIZATION, "n1", Vec::new()).await;
    stream.respond_at("1+", type_url::ADDRESS, "n2", vec![workload("a")]).await;
    assert_eq!([stream.request().await, stream.request().await].map(|ack| ack.response_nonce), ["n1", "n2"]);
    assert!(!*xds.ready.borrow() && xds.snapshot.load().workload_count() == 0);
    stream.respond_at("1", type_url::ADDRESS, "n3", vec![workload("b")]).await;
    tokio::time::timeout(PATIENCE, xds.updates.changed()).await.unwrap().unwrap();
    assert!(*xds.ready.borrow());
    assert_eq!(xds.snapshot.load().workload_count(), 2);
}

#[tokio::test]
async fn a_bad_resource_is_complained_of_and_the_good_ones_count() {
    let (authority, mut streams, running) = plane().await;
    let xds = agent(&authority, running.address);
    let mut stream = opened(&mut streams).await;
    stream.request().await;
    stream.request().await;
    let bad = resource("not-its-name", address::Type::Service(Service::default()));
    stream.respond(type_url::ADDRESS, "n1", vec![workload("a"), bad]).await;
    let nack = stream.request().await;
    let message = nack.error_detail.expect("a complaint").message;
    assert!(message.starts_with("not-its-name: "), "{message}");
    assert_eq!(nack.response_nonce, "n1");
    assert_eq!(held(&xds), ["a"], "the good one is taken");
}

#[tokio::test]
async fn a_lost_link_leaves_the_snapshot_and_is_resumed() {
    let (authority, mut streams, running) = plane().await;
    let mut xds = agent(&authority, running.address);
    let stream = opened(&mut streams).await;
    stream.respond(type_url::ADDRESS, "n1", vec![workload("a")]).await;
    stream.respond(type_url::AUTHORIZATION, "n2", Vec::new()).await;
    tokio::time::timeout(PATIENCE, xds.updates.changed()).await.unwrap().unwrap();
    drop(stream);
    let mut again = opened(&mut streams).await;
    assert_eq!(xds.snapshot.load().workload_count(), 1, "what was there stays");
    assert!(*xds.ready.borrow());
    let first = again.request().await;
    assert!(first.node.is_some(), "a new stream");
    assert_eq!(first.initial_resource_versions, [("a".to_owned(), "v1".to_owned())].into());
}

#[tokio::test]
async fn without_a_control_plane_the_agent_waits() {
    let (authority, mut streams, running) = plane().await;
    let address = running.address;
    running.stop().await;
    let xds = agent(&authority, address);
    let told = async {
        while xds.link_status().error.is_none_or(|error| error != "the agent has no certificate yet") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the reason is told");
    streams.close();
    let (sender, mut streams) = mpsc::channel(4);
    let routes = Routes::new(AggregatedDiscoveryServiceServer::new(Server(sender)));
    let _running = authority.serve_with_routes(&address.to_string(), routes).await;
    opened(&mut streams).await;
}

/// The control plane is away when a proxy starts, and back later.
#[tokio::test]
async fn what_a_proxy_was_told_outlives_it_until_the_control_plane_is_back() {
    let (authority, mut streams, running) = plane().await;
    let (inheritance, mut left) = BequestSender::channel();
    let first = agent_after(&authority, running.address, inheritance, oneshot::channel().1);
    let opened = streams.recv().await.unwrap();
    opened.respond(type_url::ADDRESS, "1", vec![workload("a"), workload("b")]).await;
    opened.respond(type_url::AUTHORIZATION, "2", Vec::new()).await;
    let (what, file) = tokio::time::timeout(PATIENCE, left.recv()).await.unwrap().unwrap();
    assert_eq!(what, InheritedKind::Configuration);
    // A change that comes later is in the same file.
    opened.respond_at("2", type_url::ADDRESS, "3", vec![workload("c")]).await;
    let mut updates = first.updates.clone();
    updates.wait_for(|now| now.contains_workload("c")).await.unwrap();

    // The first one's runtime goes on, so the heir's control plane is at an address of its own.
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (send, inherited) = oneshot::channel();
    assert!(send.send(configuration(file.unwrap())).is_ok());
    let heir = agent_after(&authority, away, BequestSender::without_successor(), inherited);
    let mut ready = heir.ready.clone();
    tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    let now = heir.snapshot.load_full();
    assert!(["a", "b", "c"].into_iter().all(|uid| now.contains_workload(uid)));
    assert_eq!(now.generation(), 0, "older than whatever is told");

    let (sender, mut streams) = mpsc::channel(4);
    let routes = Routes::new(AggregatedDiscoveryServiceServer::new(Server(sender)));
    let _running = authority.serve_with_routes(&away.to_string(), routes).await;
    let mut opened = tokio::time::timeout(PATIENCE, streams.recv()).await.unwrap().unwrap();
    for _ in XdsResourceType::ALL {
        let held = opened.request().await.initial_resource_versions;
        assert!(held.is_empty(), "what was inherited is listed anew, since nobody vouches for it");
    }
    opened.respond(type_url::ADDRESS, "1", vec![workload("a")]).await;
    opened.respond(type_url::AUTHORIZATION, "2", Vec::new()).await;
    let mut updates = heir.updates.clone();
    let told = tokio::time::timeout(PATIENCE, updates.wait_for(|now| !now.contains_workload("b"))).await;
    assert!(told.unwrap().unwrap().contains_workload("a"));
}

#[tokio::test]
async fn what_the_control_plane_tells_in_time_goes_before_what_was_inherited() {
    let (authority, mut streams, running) = plane().await;
    let (inheritance, mut left) = BequestSender::channel();
    let _first = agent_after(&authority, running.address, inheritance, oneshot::channel().1);
    let opened = streams.recv().await.unwrap();
    opened.respond(type_url::ADDRESS, "1", vec![workload("old")]).await;
    opened.respond(type_url::AUTHORIZATION, "2", Vec::new()).await;
    let (_, file) = tokio::time::timeout(PATIENCE, left.recv()).await.unwrap().unwrap();
    let (sender, mut streams) = mpsc::channel(4);
    let routes = Routes::new(AggregatedDiscoveryServiceServer::new(Server(sender)));
    let running = authority.serve_with_routes("127.0.0.1:0", routes).await;
    let (send, inherited) = oneshot::channel();
    let heir = agent_after(&authority, running.address, BequestSender::without_successor(), inherited);
    let opened = tokio::time::timeout(PATIENCE, streams.recv()).await.unwrap().unwrap();
    opened.respond(type_url::ADDRESS, "1", vec![workload("new")]).await;
    opened.respond(type_url::AUTHORIZATION, "2", Vec::new()).await;
    let mut ready = heir.ready.clone();
    ready.wait_for(|ready| *ready).await.unwrap();
    assert!(send.send(configuration(file.unwrap())).is_ok());
    tokio::time::sleep(Duration::from_millis(700)).await;
    let now = heir.snapshot.load_full();
    assert!(now.contains_workload("new") && !now.contains_workload("old"));
}
