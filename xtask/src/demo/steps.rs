//! The steps of the demo, in order.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::CommandExt;

use super::cluster::{Cluster, NAMESPACE, eventually};
use super::evidence::{Sample, access_field, last_access};

/// May talk to the web pods.
const CLIENT: &str = "client";
/// May not.
const STRANGER: &str = "stranger";
const URL: &str = "http://web/";
const DESTINATION: &str = "web:80";
const CLIENT_IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/client";
const STRANGER_IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/stranger";
const SERVER_IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/web";
/// The policy that lets the client in and nobody else.
const POLICY: &str = "demo/web-clients";
const REQUESTS: u32 = 10;

/// All steps; the first that does not hold ends the demo.
pub fn all(cluster: &Cluster) -> Result<()> {
    show_nodes_and_pods(cluster)?;
    cross_the_nodes(cluster)?;
    prove_mutual_tls(cluster)?;
    deny_a_stranger(cluster)?;
    read_the_metrics(cluster)?;
    ask_why(cluster)
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

fn cross_the_nodes(cluster: &Cluster) -> Result<()> {
    heading("Requests from one node's pod to a Service, answered by pods of both");
    let mut answers = Vec::new();
    for _ in 0..REQUESTS {
        let answer = cluster.exec(CLIENT, &["curl", "-sS", "--fail", "--max-time", "5", URL])?;
        ensure!(answer.success, "the client got no answer from {URL}: {}", answer.stderr.trim());
        answers.push(answer.stdout.trim().to_owned());
    }
    println!("$ curl {URL}     (in pod {CLIENT}, {REQUESTS} times)");
    answers.sort();
    for answer in answers.chunk_by(|one, other| one == other) {
        println!("{:>3} × {}", answer.len(), answer[0]);
    }
    let client = pod(cluster, CLIENT)?;
    let address = client["status"]["podIP"].as_str().context("the client has no address")?;
    ensure!(
        answers.iter().all(|answer| answer.contains(address)),
        "a server did not see the client's address"
    );
    Ok(())
}

fn prove_mutual_tls(cluster: &Cluster) -> Result<()> {
    heading("Between the nodes: mutual TLS, each end with its workload's certificate");
    let fields = [
        ("direction", "inbound"),
        ("transport", "hbone"),
        ("outcome", "closed"),
        ("src.identity", CLIENT_IDENTITY),
        ("dst.identity", SERVER_IDENTITY),
    ];
    let line = access_line(cluster, "the access log's line of a request under mutual TLS", &fields)?;
    ensure!(access_field(&line, "policy") == Some(POLICY), "another policy than {POLICY} allowed it: {line}");
    println!("access log of the server's agent:\n{line}\n");
    let certificates = cluster.meshctl(&["certs"]).captured()?;
    for identity in [CLIENT_IDENTITY, SERVER_IDENTITY] {
        ensure!(certificates.contains(identity), "no agent holds a certificate of {identity}");
    }
    println!("$ meshctl certs");
    show(&certificates);
    Ok(())
}

fn deny_a_stranger(cluster: &Cluster) -> Result<()> {
    heading("A pod that policy does not name is refused");
    let refused = cluster.exec(STRANGER, &["curl", "-sS", "--max-time", "5", URL])?;
    ensure!(!refused.success, "the stranger was served: {}", refused.stdout.trim());
    println!("$ curl {URL}     (in pod {STRANGER})\n{}\n", refused.stderr.trim());
    let fields = [("direction", "inbound"), ("outcome", "denied"), ("src.identity", STRANGER_IDENTITY)];
    let line = access_line(cluster, "the access log's line of the denied connection", &fields)?;
    ensure!(line.contains(POLICY), "the log does not name the policy {POLICY}: {line}");
    println!("access log of the server's agent:\n{line}");
    Ok(())
}

fn read_the_metrics(cluster: &Cluster) -> Result<()> {
    heading("The metrics tell both, under Istio's names");
    let metrics = cluster.metrics()?;
    let inbound = ("reporter", "destination");
    let opened =
        [inbound, ("source_principal", CLIENT_IDENTITY), ("connection_security_policy", "mutual_tls")];
    let opened = Sample::find(&metrics, "istio_tcp_connections_opened_total", &opened);
    let failed = [inbound, ("source_principal", STRANGER_IDENTITY), ("response_flags", "DENY")];
    let failed = Sample::find(&metrics, "istio_tcp_connections_failed_total", &failed);
    for sample in opened.iter().chain(&failed) {
        let keys = ["reporter", "source_principal", "connection_security_policy", "response_flags"];
        println!("{}", sample.shown_with(&keys));
    }
    let counted: f64 = opened.iter().map(|sample| sample.value).sum();
    ensure!(counted >= f64::from(REQUESTS), "{counted} connections counted of {REQUESTS}");
    ensure!(failed.iter().any(|sample| sample.value >= 1.0), "the denied connection was not counted");
    Ok(())
}

fn ask_why(cluster: &Cluster) -> Result<()> {
    heading("Why? The agent's own evaluator, asked without sending anything");
    for (pod, word) in [(CLIENT, "allowed"), (STRANGER, "denied")] {
        let from = format!("{NAMESPACE}/{pod}");
        let answer = cluster.meshctl(&["why", &from, DESTINATION]).outcome()?;
        println!("$ meshctl why {from} {DESTINATION}");
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

/// A line is written when its connection ends, which may be a little after the application has its answer.
fn access_line(cluster: &Cluster, what: &str, fields: &[(&str, &str)]) -> Result<String> {
    eventually(what, || Ok(last_access(&cluster.agent_logs()?, fields).map(str::to_owned)))
}

fn pod(cluster: &Cluster, name: &str) -> Result<Value> {
    let named = |pod: &Value| pod["metadata"]["name"] == name;
    cluster.pods()?.into_iter().find(named).with_context(|| format!("no pod {name}"))
}

fn heading(text: &str) {
    println!("\n── {text} ──");
}

fn show(text: &str) {
    println!("{}", text.trim_end());
}
