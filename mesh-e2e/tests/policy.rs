//! Authorization by service account, and what is wrong in a policy said where its author looks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, never_within, workload};
use serde_json::json;

const POLICY: &str = "authorizationpolicies.security.istio.io";

/// Two clients that differ in their service account only, on the first node; the server is on the second.
fn shop(subject: &str) -> Result<Scope> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new(subject, Enrolled::Yes)?;
    scope.apply(&workload::list(&[
        workload::server("web", 1, Some(&second)),
        workload::client("friend", Some(&first)),
        workload::client("stranger", Some(&first)),
    ]))?;
    scope.ready()?;
    admitted(&scope, "friend")?;
    admitted(&scope, "stranger")?;
    Ok(scope)
}

fn admitted(scope: &Scope, client: &str) -> Result<()> {
    eventually(&format!("{client} is answered"), SOON, || scope.fetch(client, "http://web")).map(drop)
}

fn refused(scope: &Scope, client: &str) -> Result<()> {
    let ask = || scope.fetch(client, "http://web");
    eventually(&format!("{client} is refused"), SOON, || {
        ensure!(ask().is_err(), "it is answered");
        Ok(())
    })?;
    never_within(&format!("{client} is answered again"), Duration::from_secs(1), ask)
}

fn from(scope: &Scope, account: &str) -> serde_json::Value {
    json!([{"from": [{"source": {"principals": [format!("cluster.local/ns/{}/sa/{account}", scope.name())]}}]}])
}

#[test]
fn service_accounts_are_allowed_and_denied() -> Result<()> {
    let scope = shop("policy")?;
    scope.apply(&mesh::authorization("friends", "web", "ALLOW", &from(&scope, "friend")))?;
    refused(&scope, "stranger")?;
    admitted(&scope, "friend")?;

    scope.apply(&mesh::authorization("friends", "web", "ALLOW", &json!([{}])))?;
    admitted(&scope, "stranger")?;

    scope.apply(&mesh::authorization("no-friends", "web", "DENY", &from(&scope, "friend")))?;
    refused(&scope, "friend")?;
    admitted(&scope, "stranger")?;

    scope.kubectl(&["delete", POLICY, "--all"])?;
    admitted(&scope, "friend")
}

#[test]
fn a_policy_in_force_says_so() -> Result<()> {
    let scope = shop("accepted")?;
    scope.apply(&mesh::authorization("friends", "web", "ALLOW", &from(&scope, "friend")))?;
    scope.apply(&mesh::strict())?;
    scope.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "web"},
        "spec": {"host": "web", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
    }))?;
    for kind in [POLICY, "peerauthentications.security.istio.io", "destinationrules.networking.istio.io"] {
        eventually("its condition is there", SOON, || {
            for object in scope.list(&[kind])? {
                let condition = mesh::accepted(&object)?;
                ensure!(condition["status"] == "True" && condition["reason"] == "Accepted", "{condition}");
                ensure!(condition["observedGeneration"] == object["metadata"]["generation"], "{condition}");
                let condition = mesh::in_force(&object)?;
                ensure!(condition["status"] == "True" && condition["reason"] == "AsWritten", "{condition}");
            }
            Ok(())
        })?;
    }
    let printed = scope.kubectl(&["get", POLICY])?;
    ensure!(printed.contains("True"), "kubectl get shows no condition: {printed}");
    Ok(())
}

#[test]
fn a_broken_policy_is_rejected_with_a_reason_and_the_rest_stays_in_force() -> Result<()> {
    let scope = shop("broken")?;
    scope.apply(&mesh::authorization("friends", "web", "ALLOW", &from(&scope, "friend")))?;
    refused(&scope, "stranger")?;

    // The definition of the kind can't know that this is no address.
    let broken = json!([{"from": [{"source": {"ipBlocks": ["nowhere/99"]}}]}]);
    scope.apply(&mesh::authorization("broken", "web", "DENY", &broken))?;
    let reason = eventually("it is rejected", SOON, || {
        let object = scope.get(&[POLICY, "broken"])?;
        let condition = mesh::accepted(&object)?;
        ensure!(condition["status"] == "False" && condition["reason"] == "Invalid", "{condition}");
        condition["message"].as_str().map(str::to_owned).context("it has no message")
    })?;
    ensure!(reason.contains("nowhere/99"), "the reason does not name what is wrong: {reason}");
    eventually("an event tells", SOON, || {
        let events =
            scope.list(&["events", "--field-selector=reason=Rejected,involvedObject.name=broken"])?;
        ensure!(!events.is_empty(), "there is none");
        Ok(())
    })?;
    admitted(&scope, "friend")?;
    refused(&scope, "stranger")?;

    // Mended, it counts.
    scope.apply(&mesh::authorization("broken", "web", "DENY", &from(&scope, "friend")))?;
    refused(&scope, "friend")?;
    eventually("its condition follows", SOON, || {
        let object = scope.get(&[POLICY, "broken"])?;
        let condition = mesh::accepted(&object)?;
        ensure!(condition["status"] == "True", "{condition}");
        Ok(())
    })
}

/// A broken edit of a policy that was good is as if it had not been made, for a control plane that starts
/// afterwards too.
#[test]
fn a_policy_that_is_broken_by_an_edit_stays_as_it_was_when_the_control_plane_is_replaced() -> Result<()> {
    let scope = shop("edited")?;
    scope.apply(&mesh::authorization("friends", "web", "ALLOW", &from(&scope, "friend")))?;
    refused(&scope, "stranger")?;
    for network in ["nowhere/99", "nowhere/98"] {
        let broken = json!([{"from": [{"source": {"ipBlocks": [network]}}]}]);
        scope.apply(&mesh::authorization("friends", "web", "ALLOW", &broken))?;
        eventually("it is rejected", SOON, || {
            let object = scope.get(&[POLICY, "friends"])?;
            let message = mesh::accepted(&object)?["message"].as_str().unwrap_or_default().to_owned();
            ensure!(message.contains(network), "{message}");
            Ok(())
        })?;
    }
    // One event for the two, with a count.
    eventually("the event is counted", SOON, || {
        let events =
            scope.list(&["events", "--field-selector=reason=Rejected,involvedObject.name=friends"])?;
        ensure!(events.iter().any(|event| event["series"]["count"].as_u64() >= Some(2)), "{events:?}");
        Ok(())
    })?;
    let kept = ["get", "configmap/nodemesh-last-good", "--namespace", mesh::NAMESPACE, "--output=json"];
    eventually("its last good state is kept", SOON, || {
        let text = kubectl::run(&kept)?;
        ensure!(text.contains(scope.name()), "{text}");
        Ok(())
    })?;
    mesh::restart("deployment/mesh-control")?;
    admitted(&scope, "friend")?;
    refused(&scope, "stranger")
}
