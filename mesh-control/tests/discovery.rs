//! The discovery service, as agents meet it.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking too

mod common;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use common::{Agent, Mesh, WEB, WEB_UID, eventually, first_request, names, pod, policy};
use mesh_api::wire::type_url;
use mesh_api::wire::xds::{DeltaDiscoveryRequest, Node, Status as Detail};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Code;

#[tokio::test]
async fn a_stream_needs_the_certificate_of_an_agent_and_a_token() {
    let mesh = Mesh::start().await;
    let open = async |identity: Option<&common::Signed>, node: &str| {
        let channel = mesh.channel(identity).await.unwrap();
        Agent::open(channel, node).await.map(|_| ()).map_err(|status| status.code())
    };
    let agent = mesh.sign("node1", None, 3600).await;
    let workload = mesh.sign("node1", Some(WEB), 3600).await;
    assert_eq!(open(Some(&agent), "node1").await, Ok(()));
    assert_eq!(open(Some(&agent), "node7").await, Err(Code::Unauthenticated));
    assert_eq!(open(None, "node1").await, Err(Code::Unauthenticated));
    assert_eq!(open(Some(&workload), "node1").await, Err(Code::PermissionDenied));
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let mesh = Mesh::start().await;
    let signed = mesh.sign("node1", None, 2).await;
    eventually("the certificate expires", async || {
        // TLS 1.3 tells the client of a refusal only after its own handshake is done.
        match mesh.channel(Some(&signed)).await {
            Ok(channel) => Agent::open(channel, "node1").await.is_err(),
            Err(_) => true,
        }
    })
    .await;
}

#[tokio::test]
async fn another_authority_is_refused() {
    let (mesh, other) = (Mesh::start().await, Mesh::start().await);
    let signed = other.sign("node1", None, 3600).await;
    let opened = match mesh.channel(Some(&signed)).await {
        Ok(channel) => Agent::open(channel, "node1").await.is_ok(),
        Err(_) => false,
    };
    assert!(!opened);
}

#[tokio::test]
async fn an_agent_must_say_who_it_is_and_not_be_someone_else() {
    let mesh = Mesh::start().await;
    let mut nameless = mesh.agent("node1").await;
    nameless.send(DeltaDiscoveryRequest { node: None, ..first_request() }).await;
    assert_eq!(nameless.end().await.code(), Code::InvalidArgument);

    let mut impostor = mesh.agent("node1").await;
    let node2 = Value { kind: Some(Kind::StringValue("node2".into())) };
    let metadata = Some(Struct { fields: [("NODE_NAME".into(), node2)].into() });
    let node = first_request().node.map(|node| Node { metadata, ..node });
    impostor.send(DeltaDiscoveryRequest { node, ..first_request() }).await;
    assert_eq!(impostor.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_agent_that_has_stayed_is_let_go_without_an_error_and_comes_again() {
    let mesh = Mesh::start_with(&["--agent-stay", "1s"]).await;
    for _ in 0..2 {
        let mut agent = mesh.agent("node1").await;
        agent.subscribe(type_url::ADDRESS).await;
        assert_eq!(agent.next().await.resources.len(), 2);
        let end = tokio::time::timeout(common::DEADLINE, agent.responses.message()).await;
        assert!(matches!(end, Ok(Ok(None))), "{end:?}");
    }
}

#[tokio::test]
async fn a_change_reaches_every_agent_at_once() {
    let mesh = Mesh::start().await;
    let mut agents = [mesh.agent("node1").await, mesh.agent("node2").await];
    for agent in &mut agents {
        agent.subscribe(type_url::ADDRESS).await;
        assert_eq!(agent.next().await.resources.len(), 2);
    }
    let mut quickest = Duration::MAX;
    // The best of some tries: the machine may be busy with something else.
    for round in 3..8 {
        let start = Instant::now();
        mesh.write("web.yaml", &pod("shop", "web-1", "web", "node1", &format!("10.244.1.{round}")));
        for agent in &mut agents {
            assert_eq!(names(&agent.next().await), [WEB_UID]);
        }
        quickest = quickest.min(start.elapsed());
    }
    assert!(quickest < Duration::from_millis(300), "{quickest:?}");
}

#[tokio::test]
async fn a_resumed_stream_is_sent_the_difference() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    let first = agent.next().await;
    let mut versions: HashMap<_, _> =
        first.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
    drop(agent);

    mesh.write("web.yaml", &pod("shop", "web-1", "web", "node1", "10.244.1.99"));
    std::fs::remove_file(mesh.path("config/teller.yaml")).unwrap();
    mesh.write("new.yaml", &pod("bank", "new-1", "teller", "node2", "10.244.2.3"));
    eventually("the change is in force", async || {
        let mut watcher = mesh.agent("node2").await;
        watcher.subscribe(type_url::ADDRESS).await;
        names(&watcher.next().await) == ["Kubernetes//Pod/bank/new-1", WEB_UID]
    })
    .await;

    versions.insert("Kubernetes//Pod/shop/never-was".into(), "0123456789abcdef".into());
    let mut agent = mesh.agent("node1").await;
    agent.send(DeltaDiscoveryRequest { initial_resource_versions: versions, ..first_request() }).await;
    let mut difference = agent.next().await;
    assert_eq!(names(&difference), ["Kubernetes//Pod/bank/new-1", WEB_UID]);
    difference.removed_resources.sort();
    assert_eq!(
        difference.removed_resources,
        ["Kubernetes//Pod/bank/teller-1", "Kubernetes//Pod/shop/never-was"]
    );
}

#[tokio::test]
async fn resuming_with_everything_is_answered_by_nothing() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    let held = agent.next().await.resources;
    let versions = held.into_iter().map(|resource| (resource.name, resource.version)).collect();
    let mut again = mesh.agent("node1").await;
    again.send(DeltaDiscoveryRequest { initial_resource_versions: versions, ..first_request() }).await;
    let answer = again.next().await;
    assert!(answer.resources.is_empty() && answer.removed_resources.is_empty());
}

#[tokio::test]
async fn a_policy_comes_before_its_workload_and_goes_after() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    agent.next().await;
    agent.subscribe(type_url::AUTHORIZATION).await;
    agent.next().await;

    mesh.write("policy.yaml", &policy("shop", "only-bank", "web"));
    let (first, second) = (agent.next().await, agent.next().await);
    assert_eq!(names(&first), ["shop/only-bank"]);
    assert_eq!(names(&second), [WEB_UID]);

    std::fs::remove_file(mesh.path("config/policy.yaml")).unwrap();
    let (first, second) = (agent.next().await, agent.next().await);
    assert_eq!(names(&first), [WEB_UID]);
    assert_eq!(second.removed_resources, ["shop/only-bank"]);
}

#[tokio::test]
async fn a_resumed_agent_is_not_shut_out_between_two_responses() {
    let mesh = Mesh::start().await;
    mesh.write("policy.yaml", &policy("shop", "new", "web"));
    eventually("the policy is in force", async || {
        let mut watcher = mesh.agent("node2").await;
        watcher.subscribe(type_url::AUTHORIZATION).await;
        !watcher.next().await.resources.is_empty()
    })
    .await;
    let mut agent = mesh.agent("node1").await;
    let held = |name: &str| HashMap::from([(name.to_owned(), "stale".to_owned())]);
    for (type_url, name) in [(type_url::AUTHORIZATION, "shop/old"), (type_url::ADDRESS, WEB_UID)] {
        let initial_resource_versions = held(name);
        let type_url = type_url.to_owned();
        agent.send(DeltaDiscoveryRequest { type_url, initial_resource_versions, ..first_request() }).await;
    }
    let [added, workloads, dropped] = [agent.next().await, agent.next().await, agent.next().await];
    assert_eq!(names(&added), ["shop/new"]);
    assert!(added.removed_resources.is_empty());
    assert!(names(&workloads).contains(&WEB_UID));
    assert_eq!(dropped.removed_resources, ["shop/old"]);
}

/// Made while an agent does not read.
const CHANGES: usize = 10;

#[tokio::test]
async fn an_agent_that_does_not_read_holds_nobody_up_and_catches_up_at_once() {
    let mesh = Mesh::start().await;
    let mut many = String::new();
    for number in 0..3000u32 {
        let ip = format!("10.245.{}.{}", number / 250, number % 250);
        write!(many, "---\n{}", pod("crowd", &format!("p-{number}"), "crowd", "node2", &ip)).unwrap();
    }
    mesh.write("many.yaml", &many);
    let mut quick = mesh.agent("node1").await;
    quick.subscribe(type_url::ADDRESS).await;
    let mut known = quick.next().await.resources.len();
    while known < 3002 {
        known += quick.next().await.resources.len();
    }

    let signed = mesh.sign("node2", None, 3600).await;
    let narrow = mesh.endpoint().initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let channel =
        narrow.tls_config(Mesh::tls(&mesh.bundle(), Some(&signed))).unwrap().connect().await.unwrap();
    let mut slow = Agent::open(channel, "node2").await.unwrap();
    slow.subscribe(type_url::ADDRESS).await;
    for change in 0..CHANGES {
        mesh.write("web.yaml", &pod("shop", "web-1", "web", "node1", &format!("10.244.1.{}", 100 + change)));
        assert_eq!(names(&quick.next().await), [WEB_UID]);
    }
    let current = quick.responses_version(&mesh).await;
    let mut responses = 0;
    loop {
        let response = slow.next().await;
        responses += 1;
        let web = response.resources.iter().find(|resource| resource.name == WEB_UID);
        if web.is_some_and(|resource| resource.version == current) {
            break;
        }
    }
    assert!(responses < CHANGES / 2, "{responses} responses: states in between are skipped, not queued");
}

impl Agent {
    /// Version of the web pod that a new stream is sent.
    async fn responses_version(&self, mesh: &Mesh) -> String {
        let mut fresh = mesh.agent("node1").await;
        fresh.subscribe(type_url::ADDRESS).await;
        let response = fresh.next().await;
        response.resources.into_iter().find(|resource| resource.name == WEB_UID).unwrap().version
    }
}

#[tokio::test]
async fn a_rejection_is_noted_and_not_argued_with() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    let response = agent.responses.message().await.unwrap().unwrap();
    let detail = Detail { message: format!("{WEB_UID}: no good"), ..Detail::default() };
    let nack = DeltaDiscoveryRequest {
        response_nonce: response.nonce,
        error_detail: Some(detail),
        ..first_request()
    };
    agent.send(nack).await;
    eventually("the rejection is shown", async || {
        let (_, status) = mesh.admin("GET /status").await;
        status.contains("no good") && status.contains("\"unacknowledged\":0")
    })
    .await;
    mesh.write("teller.yaml", &pod("bank", "teller-1", "teller", "node2", "10.244.2.77"));
    assert_eq!(names(&agent.next().await), ["Kubernetes//Pod/bank/teller-1"]);
}

#[tokio::test]
async fn on_demand_names_are_answered() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    let star = vec!["*".to_owned()];
    agent
        .send(DeltaDiscoveryRequest {
            resource_names_subscribe: star.clone(),
            resource_names_unsubscribe: star,
            ..first_request()
        })
        .await;
    assert!(agent.next().await.resources.is_empty());
    let ask = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["/10.244.1.2".to_owned(), "/10.9.9.9".to_owned()],
        ..first_request()
    };
    agent.send(ask).await;
    let answer = agent.next().await;
    assert_eq!(
        (names(&answer), &answer.removed_resources[..]),
        (vec![WEB_UID], &["/10.9.9.9".to_owned()][..])
    );
}

#[tokio::test]
async fn an_unknown_type_harms_nobody() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe("type.googleapis.com/envoy.config.cluster.v3.Cluster").await;
    agent.subscribe(type_url::ADDRESS).await;
    assert_eq!(agent.next().await.type_url, type_url::ADDRESS);
}

#[tokio::test]
async fn a_withdrawn_token_ends_the_stream() {
    let mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    agent.next().await;
    std::fs::remove_file(mesh.path("tokens/node1")).unwrap();
    assert_eq!(agent.end().await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_stop_tells_agents_to_go() {
    let mut mesh = Mesh::start().await;
    let mut agent = mesh.agent("node1").await;
    agent.subscribe(type_url::ADDRESS).await;
    agent.next().await;
    let start = Instant::now();
    let ((), end) = tokio::join!(mesh.stop(), agent.end());
    assert_eq!(end.code(), Code::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(4), "it did not take the deadline");
    assert!(!mesh.path("control.sock").exists());
}
