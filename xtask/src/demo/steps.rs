//! The steps of the demo, in order.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::CommandExt;

use super::cluster::{Cluster, NAMESPACE, eventually};
use super::evidence::{Sample, last_access};
use super::routing;

/// May talk to the web pods.
pub const CLIENT: &str = "client";
/// May not.
const STRANGER: &str = "stranger";
const URL: &str = "http://web/";
const DESTINATION: &str = "web:80";
const CLIENT_IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/client";
const SERVER_IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/web";
/// The policy that lets the client in and nobody else.
const POLICY: &str = "demo/web-clients";
/// Enough that chance does not send all of them to the server on the client's own node.
const REQUESTS: usize = 20;

/// All steps; the first that does not hold ends the demo.
pub fn all(cluster: &Cluster) -> Result<()> {
    show_nodes_and_pods(cluster)?;
    let crossed = cross_the_nodes(cluster)?;
    prove_mutual_tls(cluster)?;
    deny_a_stranger(cluster)?;
    read_the_metrics(cluster, crossed)?;
    ask_why(cluster)?;
    routing::all(cluster)
}

fn show_nodes_and_pods(cluster: &Cluster) -> Result<()> {
    heading("Two nodes, and pods of ordinary programs on both");
    cluster.apply_manifests()?;
    show(&cluster.lab(&["get", "pods", "-n", NAMESPACE]).captured()?);
    let pods = cluster.pods()?;
    for node in cluster.nodes()? {
        let here = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node.as_str()).count();
        ensure!(here > 0, "no pod of the demo runs on {node}");
    }
    Ok(())
}

/// Returns how many of the requests went to the other node.
fn cross_the_nodes(cluster: &Cluster) -> Result<usize> {
    heading("Requests to a Service, over IPv4 and IPv6, answered by pods of both nodes");
    let answers = fetch(cluster)?;
    say!("$ curl {URL}     (in pod {CLIENT}, {REQUESTS} times)");
    for answer in answers.chunk_by(|one, other| one == other) {
        say!("{:>3} × {}", answer.len(), answer[0]);
    }
    let pods = cluster.pods()?;
    let client = named(&pods, CLIENT)?;
    let addresses: Vec<_> = client["status"]["podIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["ip"].as_str())
        .collect();
    let mut crossed = 0;
    for answer in &answers {
        let (server, seen) =
            answer.split_once(" saw a request from ").context("an answer of another kind")?;
        ensure!(addresses.contains(&seen), "{server} saw {seen}, which is none of {addresses:?}");
        crossed += usize::from(named(&pods, server)?["spec"]["nodeName"] != client["spec"]["nodeName"]);
    }
    ensure!(crossed > 0, "no request left the client's node");
    say!("{crossed} of them crossed to the other node; each server saw the client's own address.");
    Ok(crossed)
}

/// The answers to the client's requests, sorted.
fn fetch(cluster: &Cluster) -> Result<Vec<String>> {
    let mut answers = Vec::with_capacity(REQUESTS);
    for family in ["-4", "-6"].into_iter().cycle().take(REQUESTS) {
        let answer = cluster.exec(CLIENT, &["curl", family, "-sS", "--fail", "--max-time", "5", URL])?;
        ensure!(answer.success, "the client got no answer from {URL}: {}", answer.stderr.trim());
        answers.push(answer.stdout.trim().to_owned());
    }
    answers.sort();
    Ok(answers)
}

fn prove_mutual_tls(cluster: &Cluster) -> Result<()> {
    heading("Between the nodes: mutual TLS, each end with its workload's certificate");
    let fields = [
        ("direction", "inbound"),
        ("transport", "mesh"),
        ("outcome", "closed"),
        ("src.identity", CLIENT_IDENTITY),
        ("dst.identity", SERVER_IDENTITY),
    ];
    let line = access_line(cluster, "the access log's line of a request under mutual TLS", &fields)?;
    say!("access log of the server's agent:\n{line}\n");
    let certificates = cluster.meshctl(&["certs"]).captured()?;
    for identity in [CLIENT_IDENTITY, SERVER_IDENTITY] {
        ensure!(certificates.contains(identity), "no agent holds a certificate of {identity}");
    }
    say!("$ meshctl certs");
    show(&certificates);
    Ok(())
}

fn deny_a_stranger(cluster: &Cluster) -> Result<()> {
    heading("A pod that policy does not name is refused");
    let refused = cluster.exec(STRANGER, &["curl", "-sS", "--max-time", "5", URL])?;
    ensure!(!refused.success, "the stranger was served: {}", refused.stdout.trim());
    say!("$ curl {URL}     (in pod {STRANGER})\n{}\n", refused.stderr.trim());
    // The server's agent refuses it; on a node with both pods that is the client's agent too.
    let fields = [("outcome", "denied"), ("src.workload", STRANGER)];
    let line = access_line(cluster, "the access log's line of the denied connection", &fields)?;
    say!("access log of the agent that refused it:\n{line}");
    Ok(())
}

fn read_the_metrics(cluster: &Cluster, crossed: usize) -> Result<()> {
    heading("The metrics tell both, under Istio's names");
    let metrics = cluster.metrics()?;
    let served = [
        ("reporter", "destination"),
        ("source_principal", CLIENT_IDENTITY),
        ("destination_principal", SERVER_IDENTITY),
        ("connection_security_policy", "mutual_tls"),
    ];
    let served = Sample::find(&metrics, "istio_tcp_connections_opened_total", &served);
    let denied = [("source_workload", STRANGER), ("response_flags", "DENY")];
    let denied = Sample::find(&metrics, "istio_tcp_connections_failed_total", &denied);
    for sample in served.iter().chain(&denied) {
        let keys =
            ["source_workload", "destination_workload", "connection_security_policy", "response_flags"];
        say!("{}", sample.shown_with(&keys));
    }
    let counted: u64 = served.iter().map(|sample| sample.value).sum();
    ensure!(
        usize::try_from(counted)? == crossed,
        "{counted} connections under mutual TLS were counted, {crossed} were made"
    );
    ensure!(denied.iter().any(|sample| sample.value > 0), "the denied connection was not counted");
    Ok(())
}

fn ask_why(cluster: &Cluster) -> Result<()> {
    heading("Why? The agent's own evaluator, asked without sending anything");
    for (pod, word) in [(CLIENT, "allowed"), (STRANGER, "denied")] {
        let from = format!("{NAMESPACE}/{pod}");
        let answer = cluster.meshctl(&["why", &from, DESTINATION]).outcome()?;
        say!("$ meshctl why {from} {DESTINATION}");
        show(&answer.stdout);
        ensure!(
            answer.stdout.contains(word) && answer.stdout.contains(POLICY),
            "meshctl why does not say `{word}` and {POLICY}: {}{}",
            answer.stdout,
            answer.stderr
        );
    }
    Ok(())
}

/// The last line with these fields that names the policy. It is written when its connection ends, which may
/// be a little after the application has its answer.
fn access_line(cluster: &Cluster, what: &str, fields: &[(&str, &str)]) -> Result<String> {
    eventually(what, || {
        let mut lines = cluster.agent_logs()?;
        lines.retain(|line| line.contains(POLICY));
        Ok(last_access(&lines, fields).map(str::to_owned))
    })
}

fn named<'a>(pods: &'a [Value], name: &str) -> Result<&'a Value> {
    pods.iter().find(|pod| pod["metadata"]["name"] == name).with_context(|| format!("no pod {name}"))
}

/// Says what the next step shows.
pub fn heading(text: &str) {
    say!("\n── {text} ──");
}

/// Says what a command has written.
pub fn show(text: &str) {
    say!("{}", text.trim_end());
}
