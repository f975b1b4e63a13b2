//! What people wrote for the mesh and it does not do.

use mesh_api::admin::{InForce, ResourceReport, ResourceStatus, UnenforcedPart, UnreadKind};
use mesh_api::kind::{Kind, Treatment};

use super::Finding;

/// Resources that are named; the rest are counted.
const MOST: usize = 20;

/// Objects that are named where a line is for many.
const EXAMPLES: usize = 3;

/// A finding for each resource that is not in force as it was written, one for the kinds that are not read,
/// and one for each kind of what can be reached past the mesh.
pub fn findings(of: &ResourceReport) -> Vec<Finding> {
    let (policies, others): (Vec<_>, Vec<_>) = of.resources.iter().partition(|it| it.is_policy());
    let amiss: Vec<_> = policies.iter().filter(|it| it.in_force != InForce::AsWritten).collect();
    let mut findings: Vec<_> = amiss.iter().take(MOST).map(|it| finding(it)).collect();
    if amiss.is_empty() {
        let found = format!("{} policies and rules are in force as written", policies.len());
        findings.push(Finding::ok("configuration", found));
    }
    if amiss.len() > MOST {
        let found = format!("{} more are not in force as written", amiss.len() - MOST);
        findings.push(Finding::warn("configuration", found, "`meshctl policies` lists them all"));
    }
    findings.extend(unread(&of.unread));
    findings.extend([Kind::Service, Kind::Pod].into_iter().filter_map(|kind| past_the_mesh(kind, &others)));
    findings
}

/// One line for all objects of a kind: a `DaemonSet` may have such a pod on every node.
fn past_the_mesh(kind: Kind, all: &[&ResourceStatus]) -> Option<Finding> {
    let of_kind: Vec<_> = all.iter().filter(|it| it.kind == kind).collect();
    let one = |it: &ResourceStatus| {
        let parts = it.parts.iter().map(|part| format!("{}: {}", part.field, part.meaning));
        format!("{}/{}: {}", it.namespace, it.name, joined(parts))
    };
    let examples = of_kind.iter().take(EXAMPLES).map(|it| one(it)).collect::<Vec<_>>().join("; ");
    let more = if of_kind.len() > EXAMPLES { "; …" } else { "" };
    (!of_kind.is_empty()).then(|| {
        let found =
            format!("{} of kind {kind} can be reached past the mesh: {examples}{more}", of_kind.len());
        let fixes = of_kind.iter().flat_map(|it| &it.parts).map(|part| part.fix.clone());
        Finding::warn("past the mesh", found, joined(fixes))
    })
}

fn finding(of: &ResourceStatus) -> Finding {
    let state = match of.in_force {
        InForce::AsWritten | InForce::Partly => "not all of it is in force as written",
        InForce::No => "nothing of it is in force",
        InForce::Earlier => "rejected; what it said before is in force",
    };
    let meaning = |part: &UnenforcedPart| format!("{}: {}", part.field, part.meaning);
    let found = format!("{state}: {}", joined(of.parts.iter().map(meaning)));
    Finding::warn(&of.key().to_string(), found, joined(of.parts.iter().map(|part| part.fix.clone())))
}

/// Each once, in order.
fn joined(texts: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = Vec::new();
    for text in texts {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all.join(" | ")
}

fn unread(kinds: &[UnreadKind]) -> Option<Finding> {
    let one = |it: &UnreadKind| {
        let more = if it.objects > it.examples.len() { ", …" } else { "" };
        format!("{} {}.{} ({}{more})", it.objects, it.kind, it.group, it.examples.join(", "))
    };
    let all = kinds.iter().map(one).collect::<Vec<_>>().join("; ");
    (!kinds.is_empty()).then(|| {
        let found = format!("not read, they change nothing about connections in the mesh: {all}");
        let fix = format!(
            "say what is about connections in {}; leave the rest to those whose they are, or remove it",
            used_kinds()
        );
        Finding::warn("other kinds", found, fix)
    })
}

/// In a sentence.
fn used_kinds() -> String {
    let is_used =
        |kind: &Kind| matches!(kind.table_row().treatment, Treatment::Used | Treatment::UsedIfDefined);
    let names: Vec<_> = Kind::ALL.into_iter().filter(is_used).map(Kind::as_str).collect();
    match names.as_slice() {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        names => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    fn resource(name: &str, in_force: InForce) -> ResourceStatus {
        let part = UnenforcedPart {
            field: "spec.host".into(),
            meaning: "is no Service".into(),
            fix: "name one".into(),
        };
        let parts = if in_force == InForce::AsWritten { Vec::new() } else { vec![part] };
        let (kind, namespace, says) = (Kind::DestinationRule, "shop".into(), "nobody".into());
        ResourceStatus { kind, namespace, name: name.into(), says, in_force, parts, parents: Vec::new() }
    }

    #[test]
    fn what_is_not_in_force_is_named_with_field_meaning_and_fix() {
        let resources = vec![resource("good", InForce::AsWritten), resource("bad", InForce::No)];
        let found = findings(&ResourceReport { resources, ..ResourceReport::default() });
        let fix = "name one";
        let detail = "nothing of it is in force: spec.host: is no Service";
        assert_eq!(found, [Finding::warn("DestinationRule shop/bad", detail, fix)]);
        let resources = vec![resource("good", InForce::AsWritten)];
        assert_eq!(
            findings(&ResourceReport { resources, ..ResourceReport::default() })[0].result,
            Verdict::Ok
        );
    }

    #[test]
    fn what_can_be_reached_past_the_mesh_is_one_line_for_each_kind() {
        let of = |kind, name: &str, field: &str, meaning: &str| {
            let part =
                UnenforcedPart { field: field.into(), meaning: meaning.into(), fix: "use the name".into() };
            ResourceStatus { kind, parts: vec![part], ..resource(name, InForce::Partly) }
        };
        let mut resources: Vec<_> =
            (0..9).map(|node| of(Kind::Pod, &format!("web-{node}"), "hostPort", "port 80")).collect();
        resources.push(of(Kind::Service, "web", "spec.externalIPs", "to 192.0.2.1"));
        let found = findings(&ResourceReport { resources, ..ResourceReport::default() });
        let details: Vec<_> = found.iter().map(|it| (it.result, it.detail.as_str())).collect();
        assert_eq!(
            details,
            [
                (Verdict::Ok, "0 policies and rules are in force as written"),
                (
                    Verdict::Warn,
                    "1 of kind Service can be reached past the mesh: shop/web: spec.externalIPs: to 192.0.2.1"
                ),
                (
                    Verdict::Warn,
                    "9 of kind Pod can be reached past the mesh: shop/web-0: hostPort: port 80; shop/web-1: hostPort: \
                     port 80; shop/web-2: hostPort: port 80; …"
                ),
            ]
        );
        assert_eq!(found[1].fix.as_deref(), Some("use the name"));
    }

    #[test]
    fn many_are_counted_and_kinds_that_are_not_read_are_one_line() {
        let resources = (0..MOST + 5).map(|number| resource(&number.to_string(), InForce::Partly)).collect();
        let kind = |kind: &str, objects, examples: &[&str]| UnreadKind {
            kind: kind.into(),
            group: "networking.istio.io".into(),
            objects,
            examples: examples.iter().map(|it| (*it).to_owned()).collect(),
        };
        let unread = vec![kind("WorkloadEntry", 9, &["shop/a", "shop/b"]), kind("Sidecar", 1, &["shop/c"])];
        let found = findings(&ResourceReport { resources, unread, ..ResourceReport::default() });
        assert_eq!(found.len(), MOST + 2);
        assert!(found[MOST].detail.starts_with("5 more"), "{:?}", found[MOST]);
        let last = &found[MOST + 1].detail;
        let both =
            "9 WorkloadEntry.networking.istio.io (shop/a, shop/b, …); 1 Sidecar.networking.istio.io (shop/c)";
        assert!(last.ends_with(both), "{last}");
        let fix = found[MOST + 1].fix.as_deref().unwrap_or_default();
        let kinds = "AuthorizationPolicy, PeerAuthentication, DestinationRule, VirtualService, HTTPRoute and GRPCRoute";
        assert!(fix.contains(&format!(" in {kinds}; ")), "{fix}");
    }
}
