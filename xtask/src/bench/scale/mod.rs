//! The scale section: a control plane and agents that hold a large mesh which changes all the time.
//!
//! The objects are made up and written where the lab's control plane reads its configuration; everything from
//! there to the kernel's maps of two agents is the real thing. Reading order: [`objects`] (the mesh), [`lab`]
//! (what runs), [`kernel`] (what the data path knows), [`churn`] (the changes), [`rows`] (the results).

mod churn;
mod kernel;
mod lab;
mod objects;
mod rows;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::bench::proc;
use crate::workspace::Workspace;

use self::kernel::Destinations;
use self::lab::{Lab, NODES};
use self::objects::Mesh;
use self::rows::Rows;

/// What all metrics of the section begin with.
const SECTION: &str = "scale.";

/// Services, and pods of each.
const SIZE: (usize, usize) = (10_000, 10);

/// Changes each second, and for how long.
const RATE: u32 = 100;
const CHURN: Duration = Duration::from_secs(30);

/// An agent gives memory back that it needed for a while when it tidies up, every ten seconds.
const SETTLING: Duration = Duration::from_secs(25);

/// Longest wait for everything to arrive.
const PATIENCE: Duration = Duration::from_mins(3);

/// Whether somebody who asks for these metrics asks for the section.
pub fn is_wanted(only: &[String]) -> bool {
    only.is_empty()
        || only.iter().any(|wanted| SECTION.starts_with(wanted.as_str()) || wanted.starts_with(SECTION))
}

/// The metrics that are of other sections.
pub fn others(only: &[String]) -> Vec<String> {
    only.iter().filter(|wanted| !wanted.starts_with("scale")).cloned().collect()
}

/// Measures, prints a table, and answers the rows as JSON.
pub fn run(workspace: &Workspace) -> Result<Value> {
    let mut rows = Rows::default();
    let lab = Lab::up(workspace)?;
    rows.add("scale.control_rss_idle", "MB", proc::resident(&[lab.control()?])?);
    rows.add("scale.agent_rss_idle", "MB", proc::resident(&lab.agent(NODES[0])?)?);
    let mut mesh = Mesh::new(SIZE.0, SIZE.1);
    say!("scale: {} services, {} workloads", mesh.services(), mesh.workloads());
    let written = mesh.write(&lab.scratch())?;
    load(&lab, &mesh, &written, &mut rows)?;
    start_again(&lab, &mesh, &mut rows)?;
    let memory = |rows: &mut Rows, when: &str| -> Result<()> {
        thread::sleep(SETTLING);
        rows.add(&format!("scale.control_rss{when}"), "MB", proc::resident(&[lab.control()?])?);
        let agents = NODES.iter().map(|node| proc::resident(&lab.agent(node)?));
        let largest = agents.collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
        rows.add(&format!("scale.agent_rss{when}"), "MB", largest);
        Ok(())
    };
    memory(&mut rows, "")?;
    rows.add("scale.agent_map_memory", "MB", kernel::memory(&lab.destinations(NODES[0])?)?);
    churn::run(&lab, &mut mesh, RATE, CHURN, &mut rows)?;
    memory(&mut rows, "_churned")?;
    crate::say::text(&rows.table());
    Ok(rows.json())
}

/// All of it comes to a mesh that runs.
fn load(lab: &Lab, mesh: &Mesh, written: &Path, rows: &mut Rows) -> Result<()> {
    let control = proc::cpu_seconds(&[lab.control()?])?;
    let agent = proc::cpu_seconds(&lab.agent(NODES[0])?)?;
    let start = Instant::now();
    lab.give(written)?;
    for node in NODES {
        let map = lab.destinations(node)?;
        let known = Destinations::open(&map)?;
        // To count takes a while: only once the last one is there.
        wait(&format!("{node}'s kernel to know all"), || {
            Ok(known.know(mesh.last().into()) && kernel::count(&map)? >= mesh.addresses())
        })?;
    }
    rows.add("scale.load_s", "s", start.elapsed().as_secs_f64());
    rows.add("scale.load_control_cpu_s", "CPU s", proc::cpu_seconds(&[lab.control()?])? - control);
    rows.add("scale.load_agent_cpu_s", "CPU s", proc::cpu_seconds(&lab.agent(NODES[0])?)? - agent);
    Ok(())
}

/// An agent starts in a mesh that is there.
fn start_again(lab: &Lab, mesh: &Mesh, rows: &mut Rows) -> Result<()> {
    let node = NODES[1];
    let start = Instant::now();
    lab.restart_agent(node)?;
    wait("the agent to be ready", || Ok(lab.is_ready(node)))?;
    rows.add("scale.agent_full_s", "s", start.elapsed().as_secs_f64());
    rows.add("scale.agent_full_cpu_s", "CPU s", proc::cpu_seconds(&lab.agent(node)?)?);
    let known = kernel::count(&lab.destinations(node)?)?;
    ensure!(known >= mesh.addresses(), "the agent is ready and its kernel knows {known} addresses");
    Ok(())
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < end, "waited {} s for {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
