//! What a pod of the mesh says to Istio's own parts, and what agents may write to say it.

use std::process::Command;

use anyhow::{Result, bail, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, workload};
use serde_json::Value;

const ANNOTATION: &str = "ambient.istio.io/redirection";

fn annotation(scope: &Scope, pod: &str) -> Result<Value> {
    Ok(scope.get(&["pod", pod])?["metadata"]["annotations"][ANNOTATION].clone())
}

fn said_is(scope: &Scope, expected: &Value) -> Result<()> {
    eventually("the annotation", SOON, || {
        let found = annotation(scope, "client")?;
        ensure!(found == *expected, "{found}");
        Ok(())
    })
}

#[test]
fn a_pod_says_that_it_is_in_the_mesh_for_as_long_as_it_is() -> Result<()> {
    let scope = Scope::new("annotation", Enrolled::Yes)?;
    scope.apply(&workload::client("client", None))?;
    scope.ready()?;
    said_is(&scope, &"enabled".into())?;
    // What somebody took off is written again.
    scope.kubectl(&["annotate", "pod", "client", &format!("{ANNOTATION}-")])?;
    said_is(&scope, &"enabled".into())?;
    mesh::restart("daemonset/mesh-agent")?;
    ensure!(annotation(&scope, "client")? == "enabled", "an agent that starts again takes it off");
    scope.unenrol()?;
    said_is(&scope, &Value::Null)
}

#[test]
fn an_agent_writes_nothing_else_of_a_pod_and_nothing_of_pods_elsewhere() -> Result<()> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("writes", Enrolled::No)?;
    let mut near = workload::client("near", Some(&first));
    // After its account.
    near["items"][1]["metadata"]["annotations"]["other"] = "kept".into();
    scope.apply(&workload::list(&[near, workload::client("far", Some(&second))]))?;
    scope.ready()?;
    let server =
        kubectl::run(&["config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}"])?;
    let authorization = format!("Authorization: Bearer {}", token_of_agent(&first)?);
    // kubectl would look at the pod first, which an agent may not in this way.
    let write = |pod: &str, metadata: &str| {
        let url = format!("{server}/api/v1/namespaces/{}/pods/{pod}/status", scope.name());
        kubectl::output(
            Command::new("curl")
                .args(["--silent", "--insecure", "--fail-with-body", "--request", "PATCH", &url])
                .args(["--header", &authorization, "--header", "Content-Type: application/merge-patch+json"])
                .args(["--data", &format!(r#"{{"metadata": {{{metadata}}}}}"#)]),
        )
    };
    let redirection = format!(r#""annotations": {{"{ANNOTATION}": "enabled"}}"#);
    write("near", &redirection)?;
    for (pod, metadata) in [
        ("far", redirection.as_str()),
        ("near", r#""annotations": {"other": "x"}"#),
        ("near", r#""annotations": null"#),
        ("near", r#""labels": {"app": "other"}"#),
        ("near", r#""finalizers": ["example.com/stay"]"#),
    ] {
        match write(pod, metadata) {
            Err(error) if error.to_string().contains("nodemesh-agent") => {}
            Err(error) => return Err(error.context("refused for another reason")),
            Ok(_) => bail!("it wrote {metadata} of {pod}"),
        }
    }
    Ok(())
}

/// A token as the agent of a node has one: bound to its pod, and so to its node.
fn token_of_agent(node: &str) -> Result<String> {
    let of_node = format!("--field-selector=spec.nodeName={node}");
    let component = "--selector=app.kubernetes.io/component=agent";
    let pods = kubectl::get(&["pods", "--namespace", mesh::NAMESPACE, component, &of_node])?;
    let pod = &pods["items"][0]["metadata"];
    let [name, uid] = ["name", "uid"].map(|key| pod[key].as_str().unwrap_or_default());
    let bound = ["--bound-object-kind=Pod", "--bound-object-name", name, "--bound-object-uid", uid];
    let token = ["create", "token", "mesh-agent", "--namespace", mesh::NAMESPACE];
    Ok(kubectl::run(&[&token[..], &bound].concat())?.trim().to_owned())
}
