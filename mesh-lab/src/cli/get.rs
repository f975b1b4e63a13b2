//! `get`: objects as a table, or in Kubernetes' own shape.

use anyhow::bail;
use mesh_api::manifest::Kind;
use serde_json::{Value, json};

use super::args::Output;
use crate::client::Client;

/// Shows the objects of a kind, or one of them.
pub fn show(
    client: &Client,
    kind: Kind,
    object: Option<&str>,
    namespace: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let mut items = client.list(kind, namespace)?;
    if let Some(name) = object {
        items.retain(|item| item["metadata"]["name"] == name);
        let Some(found) = items.first() else {
            bail!("there is no {kind} {name:?} in the namespace {}", namespace.unwrap_or("(any)"))
        };
        if output == Output::Json {
            return Ok(mesh_log::write(&(serde_json::to_string_pretty(found)? + "\n"))?);
        }
    }
    let text = match output {
        Output::Json => {
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items});
            serde_json::to_string_pretty(&list)? + "\n"
        }
        Output::Table => table(columns(kind), items.iter().map(|item| row(kind, item))),
    };
    Ok(mesh_log::write(&text)?)
}

fn columns(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod => &["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "IP", "NODE"],
        Kind::Service => &["NAMESPACE", "NAME", "CLUSTER-IP", "PORTS"],
        Kind::Deployment => &["NAMESPACE", "NAME", "READY"],
        Kind::EndpointSlice => &["NAMESPACE", "NAME", "PORTS", "READY ENDPOINTS"],
        Kind::Namespace | Kind::Node => &["NAME", "LABELS"],
        _ => &["NAMESPACE", "NAME"],
    }
}

fn row(kind: Kind, item: &Value) -> Vec<String> {
    let metadata = &item["metadata"];
    let mut row = vec![text(&metadata["namespace"]), text(&metadata["name"])];
    match kind {
        Kind::Pod => row.extend(pod(item)),
        Kind::Service => {
            row.extend([join(&item["spec"]["clusterIPs"], text), join(&item["spec"]["ports"], port)]);
        }
        Kind::Deployment => {
            let (ready, wanted) = (&item["status"]["readyReplicas"], &item["spec"]["replicas"]);
            row.push(format!("{}/{}", ready.as_u64().unwrap_or(0), wanted.as_u64().unwrap_or(1)));
        }
        Kind::EndpointSlice => {
            let ready = item["endpoints"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|e| e["conditions"]["ready"] == true);
            let addresses: Vec<String> = ready.map(|endpoint| join(&endpoint["addresses"], text)).collect();
            row.extend([join(&item["ports"], port), addresses.join(",")]);
        }
        Kind::Namespace | Kind::Node => {
            row.remove(0);
            let labels = metadata["labels"].as_object().into_iter().flatten();
            row.push(
                labels.map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(","),
            );
        }
        _ => {}
    }
    row
}

fn pod(item: &Value) -> [String; 5] {
    let status = &item["status"];
    let containers = status["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = containers.iter().filter(|container| container["ready"] == true).count();
    let waiting = containers.iter().find_map(|container| container["state"]["waiting"]["reason"].as_str());
    let word = match waiting {
        _ if metadata_is_terminating(item) => "Terminating".to_owned(),
        Some(reason) => reason.to_owned(),
        None => text(&status["phase"]),
    };
    let restarts: u64 = containers.iter().filter_map(|container| container["restartCount"].as_u64()).sum();
    let addresses = join(&status["podIPs"], |ip| text(&ip["ip"]));
    let all = item["spec"]["containers"].as_array().map_or(0, Vec::len);
    [format!("{ready}/{all}"), word, restarts.to_string(), addresses, text(&item["spec"]["nodeName"])]
}

fn metadata_is_terminating(item: &Value) -> bool {
    item["metadata"]["deletionTimestamp"].is_string()
}

fn port(port: &Value) -> String {
    format!("{}/{}", text(&port["port"]), port["protocol"].as_str().unwrap_or("TCP"))
}

fn join(list: &Value, show: impl Fn(&Value) -> String) -> String {
    list.as_array().into_iter().flatten().map(show).collect::<Vec<_>>().join(",")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Rows in columns, each a line.
pub fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
