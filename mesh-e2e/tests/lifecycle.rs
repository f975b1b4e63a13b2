//! Pods come, go and move; Services of every make.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, workload};
use serde_json::{Value, json};

/// Long enough for fifty pods on a small machine.
const TO_SCALE: Duration = Duration::from_mins(3);

fn strict(subject: &str, replicas: u32) -> Result<Scope> {
    let [first, _] = cluster::nodes()?;
    let scope = Scope::new(subject, Enrolled::Yes)?;
    scope.apply(&workload::list(&[
        mesh::strict(),
        workload::server("web", replicas, None),
        workload::client("client", Some(&first)),
    ]))?;
    scope.ready()?;
    Ok(scope)
}

fn pods(scope: &Scope) -> Result<Vec<Value>> {
    scope.list(&["pods", "--selector=app=web"])
}

/// Asks until each of `count` pods has answered.
fn all_answer(scope: &Scope, count: usize) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    eventually("each pod answers", SOON, || {
        let all = scope
            .exec("client", &["sh", "-c", "for i in $(seq 20); do curl -sS -f -m 3 http://web; done"])?;
        seen.extend(all.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned));
        ensure!(seen.len() >= count, "{} of {count} answered", seen.len());
        Ok(())
    })
}

#[test]
fn a_deployment_goes_from_none_to_fifty_and_back() -> Result<()> {
    let scope = strict("scale", 0)?;
    ensure!(scope.fetch("client", "http://web").is_err(), "a Service without pods answers");
    scope.kubectl(&["scale", "--replicas=50", "deployment/web"])?;
    scope.kubectl(&["rollout", "status", "--timeout=180s", "deployment/web"])?;
    all_answer(&scope, 50)?;
    scope.ensure_no_restarts()?;
    let not_enrolled = scope.list(&["events", "--field-selector=reason=NotEnrolled"])?;
    ensure!(not_enrolled.is_empty(), "{not_enrolled:?}");
    scope.kubectl(&["scale", "--replicas=0", "deployment/web"])?;
    eventually("all pods go", TO_SCALE, || {
        let left = pods(&scope)?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })?;
    eventually("nobody answers", SOON, || {
        ensure!(scope.fetch("client", "http://web").is_err(), "somebody does");
        Ok(())
    })?;
    scope.kubectl(&["scale", "--replicas=1", "deployment/web"])?;
    eventually("the Service is back", SOON, || scope.fetch("client", "http://web")).map(drop)
}

#[test]
fn a_deleted_pod_is_replaced() -> Result<()> {
    let scope = strict("delete", 1)?;
    eventually("it answers", SOON, || scope.fetch("client", "http://web"))?;
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned).context("pods have names");
    for _ in 0..3 {
        let old = name(pods(&scope)?.first().context("there is a pod")?)?;
        scope.kubectl(&["delete", "pod", &old])?;
        scope.kubectl(&["rollout", "status", "--timeout=60s", "deployment/web"])?;
        let answer = eventually("its successor answers", SOON, || scope.fetch("client", "http://web"))?;
        ensure!(!answer.starts_with(&format!("{old} ")), "the deleted pod answered: {answer}");
    }
    Ok(())
}

/// A node that takes no pods while the value lives.
struct Drained(String);

impl Drop for Drained {
    fn drop(&mut self) {
        if let Err(error) = kubectl::run(&["uncordon", &self.0]) {
            eprintln!("{} stays cordoned: {error:#}", self.0);
        }
    }
}

#[test]
fn a_drained_node_loses_its_pods_and_the_others_answer() -> Result<()> {
    let [_, second] = cluster::nodes()?;
    let scope = strict("drain", 4)?;
    eventually("it answers", SOON, || scope.fetch("client", "http://web"))?;
    let drained = Drained(second.clone());
    kubectl::run(&["cordon", &second])?;
    // These pods only: the cluster's own may have nowhere to go, and other tests have theirs.
    scope.kubectl(&["label", "pods", "--selector=app=web", "drained=yes"])?;
    let only = "--pod-selector=drained=yes";
    kubectl::run(&[
        "drain",
        &second,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=90s",
        only,
    ])?;
    scope.kubectl(&["rollout", "status", "--timeout=90s", "deployment/web"])?;
    for pod in pods(&scope)? {
        let terminating = pod["metadata"]["deletionTimestamp"].is_string();
        ensure!(terminating || pod["spec"]["nodeName"] != second.as_str(), "{}", pod["metadata"]["name"]);
    }
    all_answer(&scope, 4)?;
    drop(drained);
    // Pods come back to it and are meshed there.
    scope.apply(&workload::client("back", Some(&second)))?;
    scope.ready()?;
    eventually("a pod on the node is answered", SOON, || scope.fetch("back", "http://web")).map(drop)
}

#[test]
fn headless_services_lead_to_each_pod() -> Result<()> {
    let scope = strict("headless", 2)?;
    let headless = json!({"clusterIP": "None", "selector": {"app": "web"}});
    scope.apply(&workload::service("each", &headless))?;
    for family in ["-4", "-6"] {
        let ask = || scope.curl("client", &[family, "http://each:8080"]);
        eventually("the name leads to a pod", SOON, ask)?;
    }
    for pod in pods(&scope)? {
        for ip in pod["status"]["podIPs"].as_array().context("pods have addresses")? {
            let ip = ip["ip"].as_str().context("an address is text")?;
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.into() };
            let answer = scope.fetch("client", &format!("http://{host}:8080"))?;
            ensure!(
                pod["metadata"]["name"].as_str().is_some_and(|name| answer.starts_with(name)),
                "{answer}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_service_without_selector_leads_where_its_slice_says() -> Result<()> {
    let scope = strict("manual", 1)?;
    let pod = pods(&scope)?.remove(0);
    let ip = pod["status"]["podIP"].as_str().context("a pod has an address")?;
    scope.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "manual"},
        "spec": {"ports": [{"name": "http", "port": 81, "targetPort": 8080}]},
    }))?;
    scope.apply(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "manual-1", "labels": {"kubernetes.io/service-name": "manual"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
    }))?;
    let ask = || scope.curl("client", &["-4", "http://manual:81"]);
    let answer = eventually("the Service answers", SOON, ask)?;
    ensure!(pod["metadata"]["name"].as_str().is_some_and(|name| answer.starts_with(name)), "{answer}");
    Ok(())
}
