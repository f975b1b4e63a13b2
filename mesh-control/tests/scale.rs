//! What a large mesh costs, small: states come in parts, and changes alone.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking too

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use common::{Agent, Mesh, first_request, names, pod};
use mesh_api::wire::type_url;
use mesh_api::wire::xds::{CONTINUES, DeltaDiscoveryRequest, DeltaDiscoveryResponse, PARTS};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

const FILES: usize = 40;
const PODS: usize = 50;

/// A file of pods; `moved` of them have other addresses.
fn pods(file: usize, moved: usize) -> String {
    let mut text = String::new();
    for number in 0..PODS {
        let net = if number < moved { 20 } else { 10 };
        let name = format!("web-{file}-{number}");
        let object = pod("shop", &name, "web", "node2", &format!("10.{net}.{file}.{number}"));
        writeln!(text, "---\n{object}").unwrap();
    }
    text
}

/// The rest of a state, in as many parts as it comes in.
async fn state(agent: &mut Agent) -> Vec<DeltaDiscoveryResponse> {
    let mut parts = Vec::new();
    loop {
        let part = agent.next().await;
        let continues = part.system_version_info.ends_with(CONTINUES);
        parts.push(part);
        if !continues {
            return parts;
        }
    }
}

async fn subscribe(agent: &Agent, in_parts: bool) {
    let mut first = first_request();
    let says = Value { kind: Some(Kind::StringValue("true".into())) };
    let metadata = Struct { fields: [(PARTS.to_owned(), says)].into() };
    first.node.as_mut().unwrap().metadata = in_parts.then_some(metadata);
    agent.send(DeltaDiscoveryRequest { type_url: type_url::ADDRESS.into(), ..first }).await;
}

#[tokio::test]
async fn a_large_state_comes_in_parts_and_a_change_alone() {
    let mut mesh = Mesh::start().await;
    mesh.stop().await;
    for file in 0..FILES {
        mesh.write(&format!("web-{file}.yaml"), &pods(file, 0));
    }
    mesh.begin().await;
    let (mut agent, mut other) = (mesh.agent("node1").await, mesh.agent("node1").await);
    subscribe(&agent, true).await;
    subscribe(&other, false).await;
    let parts = state(&mut agent).await;
    assert!(parts.len() >= 2, "{} part", parts.len());
    let all: BTreeSet<_> = parts.iter().flat_map(names).map(ToOwned::to_owned).collect();
    assert_eq!(all.len(), FILES * PODS + 2, "with the two that every test's mesh has");
    let whole = other.next().await;
    assert_eq!(names(&whole).len(), all.len(), "who does not take parts gets it whole");

    for change in 1..=20 {
        let start = Instant::now();
        mesh.write("web-7.yaml", &pods(7, change));
        for agent in [&mut agent, &mut other] {
            let told = agent.next().await;
            let moved = format!("Kubernetes//Pod/shop/web-7-{}", change - 1);
            assert_eq!((names(&told), &*told.removed_resources), (vec![moved.as_str()], &[][..]));
        }
        assert!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    }
}
