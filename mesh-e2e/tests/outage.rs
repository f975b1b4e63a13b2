//! The API server away while requests flow.

use std::env;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::cluster::Stopped;
use mesh_e2e::{Enrolled, SOON, Scope, Traffic, cluster, eventually, kubectl, mesh, workload};

/// Seconds without an API server; long enough for every watch and lease to end.
const OUTAGE: u64 = 30;

fn outage() -> Result<Duration> {
    let seconds = env::var("NODEMESH_E2E_OUTAGE").ok().map(|text| text.parse());
    let seconds = seconds.transpose().context("NODEMESH_E2E_OUTAGE is not a number of seconds")?;
    Ok(Duration::from_secs(seconds.unwrap_or(OUTAGE)))
}

#[test]
fn traffic_goes_on_without_the_api_server_and_changes_take_effect_after_it() -> Result<()> {
    if !cluster::is_local() {
        println!("not run: only the local cluster's API server can be stopped");
        return Ok(());
    }
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("outage", Enrolled::Yes)?;
    scope.apply(&workload::list(&[
        mesh::strict(),
        workload::server("web", 2, Some(&second)),
        workload::client("client", Some(&first)),
    ]))?;
    scope.ready()?;
    let traffic = Traffic::start(&scope, &first)?;
    let before = eventually("traffic flows", SOON, || {
        let tally = traffic.tally()?;
        ensure!(tally.ok > 100, "{tally}");
        Ok(tally)
    })?;

    let stopped = Stopped::stop("kube-apiserver")?;
    ensure!(kubectl::run(&["get", "nodes", "--request-timeout=2s"]).is_err(), "the API server still answers");
    thread::sleep(outage()?);
    drop(stopped);

    eventually("the API server is back", SOON, || kubectl::run(&["get", "nodes"]))?;
    let tally = eventually("logs can be read", SOON, || traffic.tally())?.since(&before)?;
    println!("API server away for {} s: {tally}", outage()?.as_secs());
    ensure!(tally.failed.is_empty() && tally.hung.is_empty(), "{tally}");
    ensure!(u128::try_from(tally.ok)? > outage()?.as_millis() / 100, "{tally}");

    // All converge: a policy that is made now is in force soon.
    eventually("the client is answered", SOON, || scope.fetch("client", "http://web"))?;
    scope.apply(&mesh::authorization("nobody", "web", "ALLOW", &serde_json::json!([])))?;
    eventually("a new policy is in force", SOON, || {
        ensure!(scope.fetch("client", "http://web").is_err(), "the client is answered");
        Ok(())
    })?;
    mesh::wait_ready()
}
