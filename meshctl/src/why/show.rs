//! An explanation as people read it.

use super::explain::{Endpoint, Explanation, Way};

/// The text.
pub fn text(of: &Explanation) -> String {
    let who = match &of.identity {
        Some(identity) => format!("as {identity}"),
        None => "not in the mesh: in plaintext, with no identity".to_owned(),
    };
    let mut lines: Vec<_> = of.not_enrolled.iter().map(ToString::to_string).collect();
    if of.routes.is_empty() {
        return lines.join("\n") + "\n";
    }
    if !lines.is_empty() {
        lines.push("If all of them were:".to_owned());
    }
    lines.push(format!("{} on {}, {who}", of.from, of.node));
    for way in &of.routes {
        lines.push(format!("  {}", heading(&of.to, way)));
        if let Some(request) = &way.request {
            lines.push(format!("    by {}:", request.routes_of));
            lines.extend(request.tried.iter().chain(&request.outcome).map(|line| format!("      {line}")));
        }
        for endpoint in &way.endpoints {
            lines.push(format!("    {}", place(endpoint)));
            lines.push(format!("      {}", endpoint.reason));
            lines.extend(endpoint.not_in_force.iter().map(|it| format!("      not in force: {it}")));
        }
    }
    lines.join("\n") + "\n"
}

fn heading(to: &str, way: &Way) -> String {
    let address = way.address.to_string();
    let at = if to == address { String::new() } else { format!(" at {address}") };
    let service = way.service.as_ref().map(|service| format!(", service {service}")).unwrap_or_default();
    let balancing = match (&way.balancing, way.endpoints.len()) {
        (Some(balancing), count @ 2..) => format!(", {balancing} over {count} endpoints"),
        _ => String::new(),
    };
    let note = way.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
    format!("to {to}{at}{service}{balancing}{note}")
}

fn place(endpoint: &Endpoint) -> String {
    let Endpoint { workload, node, address, transport, .. } = endpoint;
    let note = endpoint.note.as_ref().map(|note| format!(", {note}")).unwrap_or_default();
    let how = match *transport {
        "hbone" => format!("over mutual TLS with {}{note}", endpoint.server_identities.join(" or ")),
        "local" => format!("on the same node{note}, not encrypted"),
        _ => "in plaintext".to_owned(),
    };
    format!("{workload} at {address} on {node}, {how}")
}
