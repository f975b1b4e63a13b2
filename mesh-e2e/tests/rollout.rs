//! The mesh's own parts replaced while requests flow. What that costs is printed; that nothing hangs is
//! asserted.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_e2e::{Enrolled, Scope, Tally, Traffic, cluster, mesh, workload};

fn flowing(subject: &str) -> Result<Scope> {
    let [_, second] = cluster::nodes()?;
    let scope = Scope::new(subject, Enrolled::Yes)?;
    scope.apply(&workload::list(&[mesh::strict(), workload::server("web", 2, Some(&second))]))?;
    scope.ready()?;
    Ok(scope)
}

/// What became of the requests that were made while `part` was replaced, and for 6 seconds after.
fn during_restart(subject: &str, part: &str) -> Result<Tally> {
    let [first, _] = cluster::nodes()?;
    let scope = flowing(subject)?;
    let (traffic, before) = Traffic::start(&scope, &first)?;
    let start = Instant::now();
    mesh::restart(part)?;
    let took = start.elapsed();
    // Longer than a request may take, so that one that hangs is counted.
    thread::sleep(Duration::from_secs(6));
    let tally = traffic.tally()?.since(&before)?;
    println!("{part} replaced in {:.0} s: {tally}", took.as_secs_f64());
    let later = traffic.tally()?;
    thread::sleep(Duration::from_secs(2));
    let rest = traffic.tally()?.since(&later)?;
    ensure!(rest.ok > 10 && rest.failed.is_empty() && rest.hung.is_empty(), "afterwards: {rest}");
    scope.ensure_no_restarts()?;
    Ok(tally)
}

#[test]
fn replacing_the_control_plane_does_not_touch_traffic() -> Result<()> {
    let tally = during_restart("control", "deployment/mesh-control")?;
    ensure!(tally.failed.is_empty() && tally.hung.is_empty(), "{tally}");
    Ok(())
}

#[test]
fn replacing_the_agents_leaves_no_request_hanging() -> Result<()> {
    let tally = during_restart("agents", "daemonset/mesh-agent")?;
    ensure!(tally.hung.is_empty(), "{tally}");
    ensure!(tally.ok > 100, "{tally}");
    Ok(())
}
