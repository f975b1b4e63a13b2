//! `cargo xtask bench`: no mesh, the mesh, and Envoy, in one run, in turns.
//!
//! All three paths run at once in one lab, between pods on two nodes and on one, with the same servers and
//! clients; only one is under load at a time. Reading order: [`plan`] (what is measured), [`paths`] (the
//! lab), [`envoy`] (the comparison's proxies), [`measure`], [`pace`] and [`proc`] (one measurement),
//! [`report`] and [`bars`] (the table and the file). [`scale`] is a section of its own: a large mesh that
//! changes.

mod bars;
mod calls;
mod envoy;
mod measure;
pub mod pace;
mod paths;
mod plan;
mod proc;
mod report;
mod scale;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::build;
use crate::setup::is_root;
use crate::workspace::Workspace;

use paths::Paths;
use plan::{Agents, Path, Plan, Probe};
use report::Report;

/// Between the last pod's start and the measurement of idle memory.
const SETTLING: Duration = Duration::from_secs(25);

/// What to measure and where to put it.
#[derive(Args)]
pub struct Options {
    /// Measure only this metric, or all whose names start with it (`same`, `cross.rps`); may be repeated
    #[arg(long, value_name = "METRIC")]
    only: Vec<String>,
    /// Write the results to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each single measurement takes, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// One more argument for every agent, `--agent-arg=--workers=1`; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
}

/// Builds, measures, reports.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    ensure!(is_root(), "a lab needs root");
    let others = scale::others(&options.only);
    let plan = Plan::of(&others)?;
    build::everything(workspace)?;
    let scale = if scale::is_wanted(&options.only) { scale::run(workspace)? } else { Value::Null };
    let results = if !options.only.is_empty() && others.is_empty() {
        json!({})
    } else {
        compare(workspace, options, &plan)?
    };
    if let Some(file) = &options.json {
        let mut results = results;
        results["scale"] = scale;
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(file, text + "\n").with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}

/// The three paths side by side.
fn compare(workspace: &Workspace, options: &Options, plan: &Plan) -> Result<Value> {
    let mut report = Report::default();
    if plan.wants_usual() {
        usual(workspace, options, plan, &mut report)?;
    }
    for agents in Agents::UNUSUAL {
        let probes = plan.probes(agents);
        if !probes.is_empty() {
            let own = agents.argument().map(ToOwned::to_owned);
            let arguments: Vec<_> = options.agent_arg.iter().cloned().chain(own).collect();
            rounds(&Paths::up(workspace, &arguments)?, options, plan, &probes, &mut report)?;
        }
    }
    crate::say::text(&report.table());
    report.json()
}

/// Everything with agents as they are.
fn usual(workspace: &Workspace, options: &Options, plan: &Plan, report: &mut Report) -> Result<()> {
    let paths = Paths::up(workspace, &options.agent_arg)?;
    if plan.wants(plan::RSS_IDLE) {
        // Idle is what has had nothing to do for a while; the lab has just come up.
        thread::sleep(SETTLING);
        paths.note_memory(report, plan::RSS_IDLE)?;
    }
    if plan.wants(plan::IDLE_CONNECTION) {
        for path in [Path::Mesh, Path::Envoy] {
            report.add(plan::IDLE_CONNECTION, path, measure::idle_connection(&paths, path)?);
        }
    }
    rounds(&paths, options, plan, &plan.probes(Agents::Usual), report)?;
    if plan.wants(plan::RSS_LOADED) {
        paths.note_memory(report, plan::RSS_LOADED)?;
    }
    Ok(())
}

fn rounds(
    paths: &Paths,
    options: &Options,
    plan: &Plan,
    probes: &[Probe],
    report: &mut Report,
) -> Result<()> {
    for round in 0..options.rounds {
        say!("round {} of {}", round + 1, options.rounds);
        for &probe in probes {
            for path in Path::in_turn(round) {
                for (metric, value) in measure::run(paths, path, probe, options.seconds)? {
                    if plan.wants(&metric) {
                        report.add(&metric, path, value);
                    }
                }
            }
        }
    }
    Ok(())
}
