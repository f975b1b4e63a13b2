//! `meshctl status`.

use std::process::ExitCode;

use anyhow::Result;
use mesh_api::admin::{AgentStatus, ControlLink, ControlStatus};
use serde::Serialize;

use crate::ask::Endpoint;
use crate::output::{Format, Table, age};
use crate::source::Source;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    control: Option<ControlStatus>,
    agents: Vec<AgentStatus>,
    unreachable: Vec<Unreachable>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unreachable {
    endpoint: String,
    error: String,
}

/// Shows the state of everything. The exit status is 1 if something is not there or not ready.
pub async fn show(source: &Source, format: Format) -> Result<ExitCode> {
    let mut unreachable = Vec::new();
    let mut control = None;
    if let Some(endpoint) = source.control() {
        control = note(&endpoint, endpoint.json("/status").await, &mut unreachable);
    }
    let mut agents: Vec<AgentStatus> = Vec::new();
    for endpoint in source.agents()? {
        agents.extend(note(&endpoint, endpoint.json("/status").await, &mut unreachable));
    }
    let status = Status { control, agents, unreachable };
    format.print(&status, table)?;
    let well = status.unreachable.is_empty()
        && status.agents.iter().all(|agent| agent.ready && agent.control.connected);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn note<T>(endpoint: &Endpoint, answer: Result<T>, unreachable: &mut Vec<Unreachable>) -> Option<T> {
    answer
        .map_err(|error| {
            unreachable.push(Unreachable { endpoint: endpoint.to_string(), error: format!("{error:#}") });
        })
        .ok()
}

fn table(status: &Status) -> String {
    let control = status.control.as_ref().map(control_line).unwrap_or_default();
    let mut text = control + &agents_table(&status.agents);
    for Unreachable { error, .. } in &status.unreachable {
        text.extend(["no answer: ", error.as_str(), "\n"]);
    }
    text
}

fn control_line(of: &ControlStatus) -> String {
    let ControlStatus { version, source, objects, errors, roots, agents } = of;
    let (roots, agents) = (roots.len(), agents.len());
    format!(
        "control plane {version}: {objects} objects from {source}, errors: {errors}, trusted roots: {roots}, \
         agents connected: {agents}\n\n"
    )
}

fn agents_table(agents: &[AgentStatus]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "VERSION",
        "READY",
        "CONTROL PLANE",
        "GENERATION",
        "PODS",
        "CONNECTIONS",
        "WORKERS",
        "UP",
    ]);
    for agent in agents {
        table.row([
            agent.node.clone(),
            agent.version.clone(),
            if agent.ready { "yes" } else { "no" }.into(),
            link(&agent.control),
            agent.generation.to_string(),
            agent.enrolled_pods.to_string(),
            agent.open_connections.to_string(),
            agent.workers.to_string(),
            age(agent.uptime_seconds),
        ]);
    }
    table.render()
}

fn link(of: &ControlLink) -> String {
    let since = age(of.since_seconds);
    match (&of.error, of.connected) {
        (_, true) => format!("connected for {since}"),
        (Some(error), false) => format!("lost for {since}: {error}"),
        (None, false) => format!("not connected for {since}"),
    }
}
