//! `meshctl policies`: what people wrote, with how much of it is in force, and what the agents do with it.
//!
//! Agents know compiled policies, whose names are not always those that somebody wrote: one stands for every
//! `PeerAuthentication` that is STRICT.

use std::collections::BTreeMap;

use mesh_api::admin::{InForce, PolicyStatus, ResourceReport, ResourceStatus, UnenforcedPart};
use mesh_api::manifest::{Kind, ObjectKey};
use mesh_api::wire::security::{PORT_LEVEL_STRICT, STRICT};
use serde::Serialize;

use crate::output::Table;
use crate::resources::strict_in;

/// A policy as somebody wrote it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Kind.
    pub kind: Kind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The action, the mode of mutual TLS, or the host.
    action: String,
    /// How much of it is in force, if the control plane says so.
    in_force: Option<InForce>,
    /// What is not, or not as written.
    parts: Vec<UnenforcedPart>,
    /// `mesh`, `namespace` or `workload`, if agents have it.
    scope: Option<String>,
    rules: Option<usize>,
    /// Workloads that it applies to; none where that can't be said of it alone.
    workloads: Option<usize>,
}

/// Joins what the agents have with what was written. Without a control plane, what the agents have.
pub fn join(held: Vec<PolicyStatus>, written: Option<&ResourceReport>) -> Vec<Policy> {
    let resources = written.iter().flat_map(|written| &written.resources).filter(|it| it.is_policy());
    let mut all: BTreeMap<ObjectKey, Policy> =
        resources.map(|resource| (resource.key(), Policy::written(resource))).collect();
    for policy in held {
        if let (Some(written), STRICT) = (written, policy.name.as_str()) {
            share(&mut all, &policy, written);
        } else {
            let key = owner(&policy);
            all.entry(key.clone()).or_insert_with(|| Policy::unknown(key, &policy)).take(&policy);
        }
    }
    all.into_values().collect()
}

/// Gives the workloads that require mutual TLS to the policies that have them do so.
fn share(all: &mut BTreeMap<ObjectKey, Policy>, strict: &PolicyStatus, written: &ResourceReport) {
    for (namespace, count) in &strict.by_namespace {
        let owners = strict_in(written, namespace, &strict.namespace);
        for owner in &owners {
            if let Some(row) = all.get_mut(&owner.key()) {
                // Of several in one namespace only the workloads' labels say which it is.
                row.workloads = (owners.len() == 1).then(|| row.workloads.unwrap_or_default() + count);
            }
        }
    }
}

/// Who wrote what an agent has.
fn owner(policy: &PolicyStatus) -> ObjectKey {
    let namespace = policy.namespace.clone();
    if let Some(name) = policy.name.strip_prefix(PORT_LEVEL_STRICT) {
        return ObjectKey { kind: Kind::PeerAuthentication, namespace, name: name.to_owned() };
    }
    if policy.name == STRICT {
        // It stands for all of them.
        let (namespace, name) = ("*".to_owned(), "*".to_owned());
        return ObjectKey { kind: Kind::PeerAuthentication, namespace, name };
    }
    ObjectKey { kind: Kind::AuthorizationPolicy, namespace, name: policy.name.clone() }
}

impl Policy {
    fn written(of: &ResourceStatus) -> Self {
        Self {
            kind: of.kind,
            namespace: of.namespace.clone(),
            name: of.name.clone(),
            action: of.says.clone(),
            in_force: Some(of.in_force),
            parts: of.parts.clone(),
            scope: None,
            rules: None,
            workloads: None,
        }
    }

    fn unknown(key: ObjectKey, of: &PolicyStatus) -> Self {
        let ObjectKey { kind, namespace, name } = key;
        let action = match kind {
            Kind::PeerAuthentication => "STRICT".to_owned(),
            _ if of.dry_run => format!("{} (dry run)", of.action),
            _ => of.action.clone(),
        };
        let (in_force, parts) = (None, Vec::new());
        Self { kind, namespace, name, action, in_force, parts, scope: None, rules: None, workloads: None }
    }

    fn take(&mut self, held: &PolicyStatus) {
        self.scope = Some(held.scope.clone());
        self.rules = Some(held.rules);
        self.workloads = Some(held.workloads);
    }
}

/// A line for each.
pub fn table(all: &[Policy]) -> String {
    let heading =
        ["KIND", "NAMESPACE", "NAME", "IN FORCE", "ACTION", "SCOPE", "RULES", "WORKLOADS", "NOT IN FORCE"];
    let mut table = Table::new(&heading);
    let number = |number: Option<usize>| number.map(|number| number.to_string()).unwrap_or_default();
    for it in all {
        table.row([
            it.kind.to_string(),
            it.namespace.clone(),
            it.name.clone(),
            it.in_force.map(|it| it.to_string()).unwrap_or_default(),
            it.action.clone(),
            it.scope.clone().unwrap_or_default(),
            number(it.rules),
            number(it.workloads),
            it.parts
                .iter()
                .map(|part| format!("{}: {}", part.field, part.meaning))
                .collect::<Vec<_>>()
                .join(" | "),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: Kind, namespace: &str, name: &str, says: &str) -> ResourceStatus {
        ResourceStatus {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            says: says.into(),
            in_force: InForce::AsWritten,
            parts: Vec::new(),
            parents: Vec::new(),
        }
    }

    fn held(namespace: &str, name: &str, workloads: &[(&str, usize)]) -> PolicyStatus {
        PolicyStatus {
            namespace: namespace.into(),
            name: name.into(),
            scope: "workload".into(),
            action: "DENY".into(),
            dry_run: false,
            rules: 1,
            workloads: workloads.iter().map(|(_, count)| count).sum(),
            by_namespace: workloads.iter().map(|(namespace, count)| ((*namespace).into(), *count)).collect(),
        }
    }

    fn rows(all: &[Policy]) -> Vec<(String, Option<usize>)> {
        all.iter().map(|it| (format!("{} {}/{}", it.kind, it.namespace, it.name), it.workloads)).collect()
    }

    #[test]
    fn strict_is_shown_as_somebody_wrote_it() {
        let strict = held("istio-system", STRICT, &[("bookstore", 2), ("shop", 3), ("two", 1)]);
        let port = held("shop", &format!("{PORT_LEVEL_STRICT}ports"), &[("shop", 1)]);
        let peer = Kind::PeerAuthentication;
        let resources = vec![
            resource(peer, "bookstore", "default", "STRICT"),
            resource(peer, "istio-system", "default", "STRICT"),
            resource(peer, "two", "default", "STRICT"),
            resource(peer, "two", "web", "STRICT"),
            resource(peer, "shop", "ports", "PERMISSIVE (some ports differ)"),
        ];
        let written = ResourceReport { resources, ..ResourceReport::default() };
        let all = join(vec![strict.clone(), port.clone()], Some(&written));
        let name = |name: &str| format!("PeerAuthentication {name}");
        assert_eq!(
            rows(&all),
            [
                (name("bookstore/default"), Some(2)),
                (name("istio-system/default"), Some(3)),
                (name("shop/ports"), Some(1)),
                (name("two/default"), None),
                (name("two/web"), None),
            ]
        );
        let alone = join(vec![strict, port], None);
        assert_eq!(rows(&alone), [(name("*/*"), Some(6)), (name("shop/ports"), Some(1))]);
    }

    #[test]
    fn what_no_agent_has_is_shown_with_the_reason() {
        let mut custom = resource(Kind::AuthorizationPolicy, "shop", "ask", "CUSTOM");
        custom.in_force = InForce::No;
        custom.parts = vec![UnenforcedPart {
            field: "spec.action".into(),
            meaning: "not supported".into(),
            fix: "x".into(),
        }];
        let resources = vec![custom, resource(Kind::AuthorizationPolicy, "shop", "web", "ALLOW")];
        let written = ResourceReport { resources, ..ResourceReport::default() };
        let shown = table(&join(vec![held("shop", "web", &[("shop", 2)])], Some(&written)));
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..5], ["AuthorizationPolicy", "shop", "ask", "no", "CUSTOM"]);
        assert!(shown.contains("spec.action: not supported"), "{shown}");
        assert_eq!(
            lines[2],
            ["AuthorizationPolicy", "shop", "web", "yes", "ALLOW", "workload", "1", "2", "-"]
        );
    }
}
