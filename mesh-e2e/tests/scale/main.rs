//! Two thousand pods of two hundred Services at the API server: objects only, on nodes without kubelets. What
//! they cost the mesh is printed, and bounded.
//!
//! [`load`] makes the objects, [`cost`] looks at the mesh's processes.

mod cost;
mod load;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_e2e::{Enrolled, Scope, audit, cluster, eventually, meshctl};

use cost::Cost;
use load::Load;

/// How long everybody may take to know of everything.
const TO_KNOW: Duration = Duration::from_mins(1);

/// Bounds, some three times what was measured.
const CONTROL_MEGABYTES: f64 = 250.0;
const AGENT_MEGABYTES: f64 = 100.0;

#[test]
fn two_thousand_pods_cost_what_is_stated() -> Result<()> {
    if !cluster::is_local() {
        println!("not run: the mesh's processes can be looked at on the local cluster only");
        return Ok(());
    }
    let scope = Scope::new("scale", Enrolled::Yes)?;
    let (before, asked) = (Cost::now()?, audit::requests()?.len());
    let load = Load::new(scope.name())?;
    let start = Instant::now();
    load.make_all()?;
    let made = start.elapsed();
    let known = known_to_agents(&scope, load::PODS, load.last_write())?;
    let full = Cost::now()?;
    println!("{} pods of {} Services made in {:.1} s", load::PODS, load::SERVICES, made.as_secs_f64());
    println!("known to every agent {:.1} s after the last write", known.as_secs_f64());
    println!("before {before}\nwith   {full}\nCPU    {}", full.since(&before));

    let start = Instant::now();
    load.replace(200)?;
    let replaced = start.elapsed();
    let known = known_to_agents(&scope, load::PODS, load.last_write())?;
    let churned = Cost::now()?;
    println!(
        "200 pods replaced in {:.1} s, known after {:.1} s more",
        replaced.as_secs_f64(),
        known.as_secs_f64()
    );
    println!("CPU    {}", churned.since(&full));

    let requests = audit::requests()?;
    let open = requests.iter().filter(|request| request.open).count();
    let lists = requests[asked..].iter().filter(|request| request.verb == "list").count();
    println!("watches held by control plane and agents: {open}; lists meanwhile: {lists}");
    ensure!(lists == 0, "objects that come are watched, not listed: {lists} lists");
    ensure!(full.control_megabytes() < CONTROL_MEGABYTES, "a replica is too large: {full}");
    ensure!(full.agent_megabytes() < AGENT_MEGABYTES, "an agent is too large: {full}");

    load.delete_all()?;
    known_to_agents(&scope, 0, load.last_write()).map(drop)
}

/// Waits until every agent has so many workloads of the namespace; answers how long ago the last write was.
fn known_to_agents(scope: &Scope, count: usize, last_write: Instant) -> Result<Duration> {
    for node in cluster::nodes()? {
        eventually("the agent has every workload", TO_KNOW, || {
            let all = meshctl::json(&["workloads", "--node", &node])?;
            let own = |entry: &&serde_json::Value| entry["namespace"] == scope.name();
            let found = all.as_array().into_iter().flatten().filter(own).count();
            ensure!(found == count, "{node} knows {found} of {count}");
            Ok(())
        })?;
    }
    Ok(last_write.elapsed())
}
