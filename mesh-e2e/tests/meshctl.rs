//! What meshctl says of the mesh on a cluster, through the kubeconfig alone, and how it takes pods in and lets them go.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::process::Output;

use anyhow::ensure;
use mesh_e2e::meshctl::{answer, json, output};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, mesh, workload};
use serde_json::{Value, json};

fn meshctl(arguments: &[&str]) -> Output {
    output(arguments).unwrap()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A client, and a server that is only for it.
fn shop(enrolled: Enrolled) -> Scope {
    let [one, other] = cluster::nodes().unwrap();
    let scope = Scope::new("meshctl", enrolled).unwrap();
    let rules = json!([{"from": [{"source": {"principals": [
        format!("cluster.local/ns/{}/sa/client", scope.name())
    ]}}]}]);
    scope
        .apply(&workload::list(&[
            workload::client("client", Some(&one)),
            workload::client("stranger", Some(&one)),
            workload::server("web", 1, Some(&other)),
            mesh::authorization("clients", "web", "ALLOW", &rules),
        ]))
        .unwrap();
    scope.ready().unwrap();
    scope
}

#[test]
fn status_has_a_row_for_each_node_and_one_leader() {
    mesh::wait_ready().unwrap();
    let status = eventually("all is well", SOON, || {
        let output = meshctl(&["status"]);
        let status = answer(&output)?;
        ensure!(output.status.success(), "{status}");
        Ok(status)
    });
    let status = status.unwrap();
    let rows: Vec<_> = items(&status["nodes"]).iter().filter_map(|it| it["node"].as_str()).collect();
    for node in cluster::nodes().unwrap() {
        assert!(rows.contains(&node.as_str()), "{node} has no row: {status}");
    }
    let leaders = items(&status["control"]).iter().filter(|it| it["leader"] == true).count();
    assert_eq!(leaders, 1, "{status}");
    assert!(items(&status["nodes"]).iter().all(|it| it["lag"].is_u64()), "{status}");
}

#[test]
fn check_finds_nothing_that_fails() {
    mesh::wait_ready().unwrap();
    for arguments in [&["check"][..], &["check", "--pre"]] {
        eventually("check finds all in order", SOON, || {
            let output = meshctl(arguments);
            let findings = answer(&output)?;
            let failed = items(&findings).iter().find(|it| it["result"] == "fail");
            ensure!(output.status.success() && failed.is_none(), "{arguments:?}: {findings}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_namespace_goes_in_and_out_while_its_pods_run() {
    let scope = shop(Enrolled::No);
    let before = scope.incarnations().unwrap();
    let rehearsed = json(&["enroll", scope.name(), "--dry-run"]).unwrap();
    assert!(items(&rehearsed["pods"]).iter().all(|pod| pod["state"].is_null()), "{rehearsed}");

    let enrolled = meshctl(&["enroll", scope.name()]);
    assert!(enrolled.status.success(), "{enrolled:?}");
    let enrolled = answer(&enrolled).unwrap();
    let states: Vec<_> = items(&enrolled["pods"]).iter().map(|pod| &pod["state"]).collect();
    assert_eq!(states, ["enrolled"; 3], "{enrolled}");

    let pod = format!("{}/stranger", scope.name());
    let left = json(&["unenroll", "--pod", &pod]).unwrap();
    assert_eq!(left["pods"][0]["selected"], false, "{left}");
    let gone = meshctl(&["unenroll", scope.name()]);
    assert!(gone.status.success(), "{gone:?}");
    let gone = answer(&gone).unwrap();
    assert!(items(&gone["pods"]).iter().all(|pod| pod["state"] != "enrolled"), "{gone}");
    assert_eq!(scope.incarnations().unwrap(), before, "no pod was restarted for it");
}

#[test]
fn why_says_before_a_connection_what_becomes_of_it() {
    let scope = shop(Enrolled::Yes);
    let ask = |pod: &str| meshctl(&["why", &format!("{}/{pod}", scope.name()), "web:80"]);
    eventually("the client would be let in, and the stranger not", SOON, || {
        let (client, stranger) = (ask("client"), ask("stranger"));
        ensure!(client.status.code() == Some(0), "{client:?}");
        ensure!(stranger.status.code() == Some(3), "{stranger:?}");
        Ok(())
    })
    .unwrap();
    eventually("the client is let in", SOON, || scope.fetch("client", "http://web")).unwrap();
    scope.fetch("stranger", "http://web").unwrap_err();

    let [one, _] = cluster::nodes().unwrap();
    let certificates = json(&["certs", "--node", &one]).unwrap();
    let identity = format!("spiffe://cluster.local/ns/{}/sa/client", scope.name());
    let own = items(&certificates).iter().find(|it| it["identity"] == identity.as_str()).unwrap();
    assert_eq!((&own["state"], &own["node"]), (&"valid".into(), &one.into()), "{certificates}");
    let policies = json(&["policies"]).unwrap();
    let policy = items(&policies).iter().find(|it| it["namespace"] == scope.name()).unwrap();
    assert_eq!((&policy["name"], &policy["workloads"]), (&"clients".into(), &1.into()), "{policies}");
}

#[test]
fn what_is_not_there_is_named() {
    let said = |arguments: &[&str]| String::from_utf8(meshctl(arguments).stderr).unwrap();
    assert!(said(&["why", "default/nobody", "web:80"]).contains("there is no pod default/nobody"));
    assert!(said(&["enroll", "no-such-namespace"]).contains("there is no namespace no-such-namespace"));
    assert!(said(&["enroll", mesh::NAMESPACE]).contains("its pods stay out"));
    assert!(said(&["certs", "--node", "no-such-node"]).contains("no agent answered on no-such-node"));
}
