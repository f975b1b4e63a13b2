//! STRICT between nodes, and probes of the kubelet where there is no plaintext.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, never_within, workload};
use serde_json::{Value, json};

const FAMILIES: [&str; 2] = ["-4", "-6"];

#[test]
fn strict_refuses_plaintext_by_both_families() -> Result<()> {
    let scope = Scope::across_nodes("strict", Enrolled::Yes)?;
    let outside = Scope::new("outside", Enrolled::No)?;
    outside.apply(&workload::client("client", None))?;
    outside.ready()?;
    let url = format!("http://web.{}", scope.name());
    for family in FAMILIES {
        eventually("PERMISSIVE admits plaintext", SOON, || outside.curl("client", &[family, &url]))?;
    }
    scope.apply(&mesh::strict())?;
    for family in FAMILIES {
        let ask = || outside.curl("client", &[family, &url]);
        eventually("STRICT refuses plaintext", SOON, || {
            ensure!(ask().is_err(), "{family} is answered");
            Ok(())
        })?;
        never_within("plaintext is answered", Duration::from_secs(2), ask)?;
        scope.curl("client", &[family, "http://web"]).context("the mesh's own client")?;
    }
    Ok(())
}

#[test]
fn probes_pass_under_strict() -> Result<()> {
    let scope = Scope::across_nodes("probes", Enrolled::Yes)?;
    scope.apply(&mesh::strict())?;
    // A pod that starts under STRICT, beside one that was there before.
    let mut late = workload::deployment("late", 1, None);
    late["spec"]["template"]["spec"]["serviceAccountName"] = json!("web");
    scope.apply(&late)?;
    scope.ready()?;
    // Ten times as long as three probes that fail, after which the kubelet restarts a container.
    thread::sleep(Duration::from_secs(30));
    scope.ensure_no_restarts()?;
    let unhealthy = scope.list(&["events", "--field-selector=reason=Unhealthy"])?;
    let late =
        unhealthy.iter().filter(|event| !event["message"].as_str().is_some_and(|it| it.contains("refused")));
    let late: Vec<_> = late.map(|event| event["message"].to_string()).collect();
    ensure!(late.is_empty(), "probes failed: {late:?}");
    Ok(())
}

/// What kube-proxy translates to a node's address, and what a host-network pod sends from it, is no probe of
/// the kubelet, though it goes to the port that the kubelet probes.
#[test]
fn a_nodes_address_is_no_probe() -> Result<()> {
    let scope = Scope::across_nodes("nodeport", Enrolled::Yes)?;
    scope.apply(&workload::service("web", &json!({"type": "NodePort"})))?;
    let outside = Scope::new("outside", Enrolled::No)?;
    let mut host = workload::client("host", Some(&cluster::nodes()?[1]));
    host["items"][1]["spec"]["hostNetwork"] = json!(true);
    outside.apply(&workload::list(&[host, workload::client("client", None)]))?;
    outside.ready()?;
    let ways = ways_by_address(&scope)?;
    let ask = |(client, url): &(&str, String)| outside.fetch(client, url);
    for way in &ways {
        eventually("PERMISSIVE admits it", SOON, || ask(way))?;
    }
    scope.apply(&mesh::strict())?;
    for way in &ways {
        eventually("STRICT refuses it", SOON, || {
            ensure!(ask(way).is_err(), "{way:?} is answered");
            Ok(())
        })?;
        never_within("it is answered again", Duration::from_secs(1), || ask(way))?;
    }
    scope.fetch("client", "http://web").context("the mesh's own client")?;
    scope.ready().context("the kubelet's own probes")
}

/// Who asks, and for what: the server's node port at each node, and the server itself from its node's
/// address.
fn ways_by_address(scope: &Scope) -> Result<Vec<(&'static str, String)>> {
    let port = scope.get(&["service", "web"])?["spec"]["ports"][0]["nodePort"].clone();
    let mut ways = Vec::new();
    for node in cluster::nodes()? {
        let node = kubectl::get(&["node", &node])?;
        let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let is_own = |address: &&Value| address["type"] == "InternalIP";
        let own = addresses.iter().find(is_own).context("nodes have addresses")?;
        let url = format!("http://{}:{port}", own["address"].as_str().context("addresses are text")?);
        ways.extend([("client", url.clone()), ("host", url)]);
    }
    let server = scope.list(&["pods", "--selector=app=web"])?;
    let address = server[0]["status"]["podIP"].as_str().context("it is ready")?;
    ways.push(("host", format!("http://{address}:8080")));
    Ok(ways)
}
