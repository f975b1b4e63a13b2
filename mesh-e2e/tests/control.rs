//! The control plane's replicas, over which agents spread, and another control plane in their place.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{SOON, cluster, eventually, mesh, meshctl};
use serde_json::Value;

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Which agent is with which replica now, as `node replica`.
fn links(status: &Value) -> BTreeSet<String> {
    let of = |replica: &Value| {
        let name = replica["name"].as_str().unwrap_or_default().to_owned();
        let agents: Vec<_> = items(&replica["status"]["agents"]).map(|it| it["node"].clone()).collect();
        agents.into_iter().map(move |node| format!("{} {name}", node.as_str().unwrap_or_default()))
    };
    items(&status["control"]).flat_map(of).collect()
}

#[test]
fn agents_spread_over_the_replicas() -> Result<()> {
    // Half an hour, if nothing is said: too long for a test.
    let _short = mesh::Values::set(&["control.extraArgs={--agent-stay=5s}"])?;
    let nodes = cluster::nodes()?.len();
    let mut seen = BTreeSet::new();
    let mut both = false;
    eventually(
        "every agent has been with each of the replicas, and both had agents at a time",
        SOON * 3,
        || {
            let status = meshctl::json(&["status"])?;
            let replicas = items(&status["control"]).count();
            ensure!(replicas == 2, "there are {replicas} replicas");
            both |= items(&status["control"]).all(|it| items(&it["status"]["agents"]).next().is_some());
            seen.extend(links(&status));
            ensure!(both && seen.len() >= 2 * nodes, "so far {seen:?}, at a time: {both}");
            Ok(())
        },
    )
}

/// As under istiod, which is not there: what can't work is told, and a control plane of our own is not
/// missed.
#[test]
fn another_control_plane_is_named_and_the_own_one_not_missed() -> Result<()> {
    const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
    let changed = mesh::Values::set_at_once(&[
        "control.enabled=false",
        &format!("agent.controlPlane.address={ISTIOD}"),
        "agent.controlPlane.name=istiod.istio-system.svc",
        "agent.controlPlane.rootConfigMap=istio-ca-root-cert",
        "agent.controlPlane.tokenAudience=istio-ca",
    ])?;
    eventually("check names the other control plane alone", SOON, || {
        let findings = meshctl::json(&["check"])?;
        let about =
            |check: &str| items(&findings).filter(|it| it["check"] == check).cloned().collect::<Vec<_>>();
        let control = about("control plane");
        let detail = format!("agents use another one, {ISTIOD}");
        ensure!(control.len() == 1 && control[0]["result"] == "ok", "{findings}");
        ensure!(control[0]["detail"] == detail.as_str(), "{findings}");
        let roots = about("trust bundle");
        let named = roots.first().and_then(|it| it["detail"].as_str()).context("no trust bundle")?;
        ensure!(named.contains("no ConfigMap istio-ca-root-cert"), "{findings}");
        ensure!(!findings.to_string().contains("no control plane in the namespace"), "{findings}");
        Ok(())
    })?;
    let status = meshctl::json(&["status"])?;
    ensure!(status["otherControl"]["address"] == ISTIOD, "{status}");
    ensure!(status["control"].as_array().is_some_and(Vec::is_empty), "{status}");
    ensure!(!status["problems"].to_string().contains("no control plane"), "{status}");
    let rotated = meshctl::output(&["rotate-root"])?;
    let said = String::from_utf8_lossy(&rotated.stderr);
    ensure!(!rotated.status.success() && said.contains(ISTIOD), "{said}");

    drop(changed);
    mesh::wait_ready()?;
    eventually("the own control plane is back", Duration::from_mins(1), || {
        let status = meshctl::json(&["status"])?;
        ensure!(status["otherControl"].is_null() && links(&status).len() >= 2, "{status}");
        Ok(())
    })
}
