//! What each command does.

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};

use super::{
    args::{Command, Output, Up},
    become_program, get, logs,
};
use crate::{
    api::{Document, PodEntry, ProgramStatus, Report},
    client::Client,
    enter::Place,
    launch::{self, LabOptions, MeshOptions, Swept},
    layout::Layout,
};

/// Runs a command that is not internal.
pub fn run(command: Command, layout: &Layout, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(up) => bring_up(up, layout, client)?,
        Command::Down => match launch::down(layout)? {
            Swept::Removed => mesh_log::write(&format!("lab {} is down\n", layout.name()))?,
            Swept::Nothing => mesh_log::write(&format!("lab {} was not up\n", layout.name()))?,
        },
        Command::Apply { file } => return report(&client.apply(documents(&file)?)?),
        Command::Delete { file, kind, object, namespace } => {
            let reported = match kind.zip(object) {
                Some((kind, object)) => {
                    let namespace = if kind.0.is_namespaced() { namespace.namespace.as_str() } else { "" };
                    client.delete_object(kind.0, namespace, &object)?
                }
                None => client.delete(documents(&file)?)?,
            };
            return report(&reported);
        }
        Command::Exec { namespace, container, pod, program } => {
            let entry = client.enter(&namespace.namespace, &pod, container.as_deref())?;
            return Ok(exec(entry, &program));
        }
        Command::Node { node, program } => return on_node(layout, &node, &program),
        Command::Logs { namespace, container, follow, pod } => {
            logs::show(client, layout, &namespace.namespace, &pod, container.as_deref(), follow)?;
        }
        Command::Get { kind, object, namespace, all_namespaces, output } => {
            let namespace = (!all_namespaces).then_some(namespace.namespace.as_str());
            get::show(client, kind.0, object.as_deref(), namespace, output)?;
        }
        Command::Wait { namespace, timeout } => client.wait_ready(namespace.as_deref(), timeout)?,
        Command::Agent { action, proxy, node } => {
            let action = action.of(proxy).map_err(anyhow::Error::msg)?;
            show_program(&client.agent(&node, action)?)?;
        }
        Command::Control { action } => show_program(&client.control(action.into())?)?,
        Command::Status { output } => status(client, output)?,
        Command::Internal(_) => unreachable!("dealt with before"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes a program of a pod.
fn exec(entry: PodEntry, program: &[OsString]) -> ExitCode {
    let mut environment = entry.environment;
    // The terminal is the user's, not the container's.
    environment.extend(std::env::var("TERM").map(|term| ("TERM".to_owned(), term)));
    let place = Place {
        cgroup: Some(entry.cgroup),
        like: Some(entry.pid),
        netns: None,
        workdir: Some(entry.workdir),
    };
    become_program(&place, program, Some(environment))
}

/// Becomes a program of a node. Needs no daemon, so that a crashed lab can be looked into.
fn on_node(layout: &Layout, node: &str, program: &[OsString]) -> anyhow::Result<ExitCode> {
    let netns = layout.netns(node);
    if !layout.owns_netns(&layout.netns_name(node)) || !netns.exists() {
        bail!("the lab {} has no node {node:?}", layout.name());
    }
    let cgroup = Some(layout.node(node).system_cgroup()).filter(|cgroup| cgroup.exists());
    let place = Place { cgroup, netns: Some(netns), like: None, workdir: None };
    Ok(become_program(&place, program, None))
}

fn bring_up(up: Up, layout: &Layout, client: &Client) -> anyhow::Result<()> {
    let beside = |program: &str| -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe().context("find this program's directory")?;
        Ok(own.with_file_name(program))
    };
    let mesh = if up.no_mesh {
        None
    } else {
        Some(MeshOptions {
            agent_binary: up.agent.map_or_else(|| beside("mesh-agent"), |path| Ok(path.canonicalize()?))?,
            control_binary: up
                .control
                .map_or_else(|| beside("mesh-control"), |path| Ok(path.canonicalize()?))?,
            workload_cert_ttl: up.workload_cert_ttl,
            agent_arguments: up.agent_arguments,
            control_arguments: up.control_arguments,
        })
    };
    launch::up(layout, &LabOptions { nodes: up.nodes, mesh })?;
    status(client, Output::Table)
}

/// Reads files; a directory stands for the manifests below it, `-` for standard input.
fn documents(files: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for file in files {
        if file.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            documents.push(Document { file: "-".to_owned(), text });
        } else if file.is_dir() {
            collect(file, &mut documents)?;
        } else {
            documents.push(read(file)?);
        }
    }
    Ok(documents)
}

fn collect(directory: &Path, documents: &mut Vec<Document>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    paths.sort();
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            collect(&path, documents)?;
        } else if matches!(extension, Some("yaml" | "yml" | "json")) {
            documents.push(read(&path)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Document> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(Document { file: path.display().to_string(), text })
}

/// Tells what was done; the status is 1 if something was left out.
fn report(report: &Report) -> anyhow::Result<ExitCode> {
    let lines = report.changes.iter().map(|it| format!("{} {}\n", it.resource, it.outcome.as_str()));
    mesh_log::write(&lines.collect::<String>())?;
    for warning in &report.warnings {
        mesh_log::remark(format_args!("warning: {warning}"));
    }
    for error in &report.errors {
        mesh_log::remark(format_args!("error: {error}"));
    }
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status(client: &Client, output: Output) -> anyhow::Result<()> {
    let status = client.status()?;
    if output == Output::Json {
        return Ok(mesh_log::write(&(serde_json::to_string_pretty(&status)? + "\n"))?);
    }
    let head = format!("lab {}  state {}  daemon {}\n", status.name, status.state.display(), status.daemon);
    let control = status.control.as_ref().map(|control| format!("control plane: {}\n", describe(control)));
    let rows = status.nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            node.pod_networks.join(","),
            format!("{}/{}", node.ready_pods, node.pods),
            node.agent.as_ref().map_or_else(|| "none".to_owned(), describe),
        ]
    });
    let table = get::table(&["NODE", "ADDRESSES", "POD NETWORKS", "READY", "AGENT"], rows);
    Ok(mesh_log::write(&(head + &control.unwrap_or_default() + &table))?)
}

fn show_program(program: &ProgramStatus) -> std::io::Result<()> {
    mesh_log::write(&(describe(program) + "\n"))
}

fn describe(program: &ProgramStatus) -> String {
    match (program.pid, &program.ended) {
        (Some(pid), _) => format!("running (pid {pid})"),
        (None, Some(ended)) => format!("ended ({ended})"),
        (None, None) => "not started".to_owned(),
    }
}
