//! HTTP requests go where a `VirtualService` says, with Istio's own manifests.

use anyhow::{Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, mesh, workload};
use serde_json::{Value, json};

/// A version of `web` in a Deployment of its own.
fn version(version: &str, node: &str) -> Value {
    let mut deployment = workload::deployment(&format!("web-{version}"), 1, Some(node));
    let labels = &mut deployment["spec"]["template"]["metadata"]["labels"];
    labels["set"] = json!("web");
    labels["version"] = json!(version);
    workload::list(&[workload::account(&format!("web-{version}")), deployment])
}

fn destination_rule() -> Value {
    let subset = |name: &str| json!({"name": name, "labels": {"version": name}});
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "web"},
        "spec": {
            "host": "web",
            "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}},
            "subsets": [subset("v1"), subset("v2")],
        },
    })
}

fn virtual_service(http: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "web"},
        "spec": {"hosts": ["web"], "http": http},
    })
}

/// Asks eight times, and checks that only pods of that version answer.
fn only(scope: &Scope, header: &str, version: &str) -> Result<()> {
    let script =
        format!("for n in 1 2 3 4 5 6 7 8; do curl -sS -f -m 5 -H '{header}' http://web/ || exit 1; done");
    let answers = scope.exec("client", &["sh", "-c", &script])?;
    let wanted = format!("web-{version}-");
    ensure!(
        answers.lines().count() == 8 && answers.lines().all(|line| line.starts_with(&wanted)),
        "{answers}"
    );
    Ok(())
}

#[test]
fn testers_get_version_2_and_all_others_version_1() -> Result<()> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("routes", Enrolled::Yes)?;
    let selector = json!({"selector": {"set": "web"}});
    scope.apply(&workload::list(&[
        workload::service("web", &selector),
        version("v1", &first),
        version("v2", &second),
        workload::client("client", Some(&first)),
    ]))?;
    scope.ready()?;
    scope.apply(&destination_rule())?;
    let to = |subset: &str| json!([{"destination": {"host": "web", "subset": subset}}]);
    scope.apply(&virtual_service(&json!([
        {"match": [{"headers": {"user": {"exact": "test"}}}], "route": to("v2")},
        {"route": to("v1")},
    ])))?;
    eventually("testers get version 2", SOON, || only(&scope, "user: test", "v2"))?;
    eventually("others get version 1", SOON, || only(&scope, "user: other", "v1"))?;
    for kind in ["virtualservices.networking.istio.io", "destinationrules.networking.istio.io"] {
        eventually("it is in force as written", SOON, || {
            let objects = scope.list(&[kind])?;
            let condition = mesh::in_force(&objects[0])?;
            ensure!(
                condition["status"] == "True" && condition["reason"] == "AsWritten",
                "{kind}: {condition}"
            );
            Ok(())
        })?;
    }
    scope.apply(&virtual_service(&json!([
        {"match": [{"uri": {"prefix": "/none"}}], "route": to("v3")},
        {"route": to("v2")},
    ])))?;
    eventually("a change counts", SOON, || only(&scope, "user: other", "v2"))?;
    eventually("a subset that is not there is told", SOON, || {
        let routes = scope.list(&["virtualservices.networking.istio.io"])?;
        let condition = mesh::in_force(&routes[0])?;
        ensure!(condition["reason"] == "Partly" && condition.to_string().contains("v3"), "{condition}");
        Ok(())
    })
}
