//! A new root for the mesh while requests flow.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, Traffic, cluster, eventually, mesh, meshctl, workload};

/// Seconds that certificates live, which pass between two steps. Longer than kubelets take to bring a changed
/// `ConfigMap` to the agents.
const LIFETIME: u64 = 30;

#[test]
fn the_root_is_replaced_without_a_failed_request() -> Result<()> {
    let _short_lives = mesh::Values::set(&[&format!("control.workloadCertTtl={LIFETIME}s")])?;
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("rotation", Enrolled::Yes)?;
    scope.apply(&workload::list(&[mesh::strict(), workload::server("web", 2, Some(&second))]))?;
    scope.ready()?;
    let (traffic, _) = Traffic::start(&scope, &first)?;
    let before = meshctl::json(&["status"])?;
    for (step, phase) in [("add", "added"), ("sign", "signing"), ("drop", "steady")] {
        // Refused until every certificate was renewed since the step before.
        let state = eventually(step, Duration::from_secs(3 * LIFETIME), || {
            meshctl::json(&["rotate-root", "--step", step])
        })?;
        let now = &state["phase"];
        ensure!(now == phase || now[phase].is_object(), "after {step}: {state}");
    }
    let after = eventually("every replica has the new root alone", SOON, || {
        let after = meshctl::json(&["status"])?;
        ensure!(roots(&after).iter().all(|roots| roots.len() == 1), "{after}");
        Ok(after)
    })?;
    ensure!(roots(&before)[0] != roots(&after)[0], "the root is the one from before: {after}");
    ensure!(roots(&after).windows(2).all(|pair| pair[0] == pair[1]), "replicas differ: {after}");
    let tally = traffic.tally()?;
    println!("root replaced: {tally}");
    ensure!(tally.failed.is_empty() && tally.hung.is_empty(), "{tally}");
    scope.ensure_no_restarts()
}

/// The trust bundle of each replica.
fn roots(status: &serde_json::Value) -> Vec<Vec<String>> {
    let replicas = status["control"].as_array().into_iter().flatten();
    let bundle = |replica: &serde_json::Value| {
        let roots = replica["status"]["roots"].as_array().into_iter().flatten();
        roots.filter_map(|root| root.as_str().map(str::to_owned)).collect()
    };
    replicas.map(bundle).collect()
}
