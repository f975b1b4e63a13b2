//! `meshctl why`: what would become of a connection, by the code that the agents decide with.

mod destination;
mod enrolment;
mod explain;
mod past;
mod remarks;
mod request;
mod same_node;
mod show;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hyper::body::Bytes;
use mesh_api::admin::PodStatus;
use mesh_api::plan::{Snapshot, Store, WaypointHandling};
use mesh_api::wire::xds::DeltaDiscoveryResponse;
use prost::Message;
use serde::Deserialize;

use crate::output::Format;
use crate::resources;
use crate::source::{Mesh, Node, Nodes, Source};
use crate::standing::NotEnrolled;

use destination::Destination;
use explain::{Agent, Explanation};
use request::Request;
use same_node::SameNode;

/// The connection that is asked about.
#[derive(Args)]
pub struct Question {
    /// Pod that would connect: NAMESPACE/NAME, or NAME in the namespace `default`
    #[arg(value_name = "FROM_POD")]
    from: String,
    /// Where to, as the pod's program would say it: a service's name or an address, and a port; or the URL
    /// of an HTTP request
    #[arg(value_name = "HOST:PORT|URL")]
    to: Destination,
    /// Method of the request
    #[arg(short = 'X', long = "request", value_name = "METHOD", default_value = "GET")]
    method: String,
    /// A header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = request::parse_header)]
    headers: Vec<(String, String)>,
}

impl Question {
    /// Returns the request that is asked about; none if it is a mere connection.
    fn request(&self) -> Option<Request> {
        let url = self.to.url()?.clone();
        Some(Request { method: self.method.clone(), headers: self.headers.clone(), url })
    }
}

/// What the answer needs of an agent's settings.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    same_node: String,
    /// None of an agent that does not know waypoints.
    waypoints: Option<String>,
}

/// Answers. The exit status is 3 if the connection would not be made.
pub async fn answer(source: &Source, question: &Question, format: Format) -> Result<ExitCode> {
    let explanation = explained(&source.mesh().await?, question).await?;
    format.print(&explanation, show::text)?;
    Ok(if explanation.is_taken() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Finds the pod's agent, takes its configuration, and explains.
async fn explained(mesh: &Mesh, question: &Question) -> Result<Explanation> {
    let (namespace, name) = question.from.split_once('/').unwrap_or(("default", &question.from));
    let nodes = match mesh {
        Mesh::Cluster(cluster) => {
            let pod = cluster.pod(namespace, name).await?;
            if let Some(nowhere) = NotEnrolled::of_kubernetes(&pod) {
                return Ok(Explanation::of_none(nowhere, &question.to));
            }
            let node = pod.spec.and_then(|spec| spec.node_name);
            Nodes::only(&node.with_context(|| format!("the pod {namespace}/{name} has no node yet"))?)
        }
        Mesh::Local { .. } => Nodes::default(),
    };
    let (agent, pod) = agent_of(mesh, &nodes, namespace, name).await?;
    let own = NotEnrolled::of_agent(&pod, &agent.name);
    let mut session = agent.endpoint.open().await?;
    let settings: Settings = session.json("/config").await?;
    let waypoints = waypoints(settings.waypoints.as_deref());
    let snapshot = rebuild(session.bytes("/snapshot").await?, waypoints)?;
    let client =
        snapshot.workloads().find(|workload| *workload.namespace == *namespace && *workload.name == *name);
    let client = match (client, own.clone()) {
        (Some(client), _) => client,
        (None, Some(own)) => return Ok(Explanation::of_none(own, &question.to)),
        (None, None) => bail!("the control plane has not told of the pod {namespace}/{name}"),
    };
    let pods = session.json::<Vec<PodStatus>>("/pods").await?;
    let same_node = SameNode::new(settings.same_node, pods);
    let agent = Agent { same_node, strict_egress: pod.strict_egress, request: question.request() };
    let mut explanation = explain::explain(&snapshot, &client, &question.to, &agent)?;
    explanation.not_enrolled.extend(own);
    enrolment::add(&mut explanation, mesh).await;
    past::add(&mut explanation, mesh).await;
    if let Some(written) = resources::if_known(mesh).await {
        remarks::add(&mut explanation, &snapshot, &written);
    }
    Ok(explanation)
}

async fn agent_of(mesh: &Mesh, nodes: &Nodes, namespace: &str, name: &str) -> Result<(Node, PodStatus)> {
    let answers = mesh.ask::<Vec<PodStatus>>(nodes, "/pods").await?;
    let mut all =
        answers.into_iter().flat_map(|(node, pods)| pods.into_iter().map(move |pod| (node.clone(), pod)));
    let Some(found) = all.find(|(_, pod)| pod.namespace == namespace && pod.name == name) else {
        bail!("no agent knows a pod {namespace}/{name}; pods on the host's network have none");
    };
    Ok(found)
}

/// What `--waypoints` of an agent comes to.
fn waypoints(setting: Option<&str>) -> WaypointHandling {
    match setting {
        Some("refuse") => WaypointHandling::Refuse,
        _ => WaypointHandling::Ignore,
    }
}

/// The agent's configuration as it decides with it.
fn rebuild(mut dump: Bytes, waypoints: WaypointHandling) -> Result<Snapshot> {
    let mut store = Store::default().with_waypoint_handling(waypoints);
    while !dump.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut dump)
            .context("the agent's configuration is not of this version")?;
        let rejected = store.apply_response(&response.type_url, response.resources, Vec::new());
        // The agent holds what it could take, except a faulty policy, which denies there as it does here.
        for resource in &rejected {
            remark!("warning: {resource}");
        }
    }
    let snapshot = store.snapshot();
    ensure!(
        snapshot.workload_count() > 0,
        "the agent has no configuration yet: it waits for the control plane"
    );
    Ok(snapshot)
}
