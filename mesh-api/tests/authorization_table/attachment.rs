//! Which workloads a policy applies to (section *Policy attachment* of the API).

use crate::mesh::{Mesh, policy};

const DENY: &str = "action: DENY, rules: [{}]";

#[test]
fn without_a_selector_the_namespace() {
    let mesh = Mesh::with(&[policy("shop/a", DENY)]);
    mesh.expect(&["front > shop/web:80 deny", "front > shop/db:80 deny", "front > other/web:80 allow"]);
}

#[test]
fn without_a_selector_in_the_root_namespace_the_mesh() {
    let mesh = Mesh::with(&[policy("istio-system/a", DENY)]);
    mesh.expect(&["front > shop/web:80 deny", "front > shop/db:80 deny", "front > other/web:80 deny"]);
}

#[test]
fn an_empty_selector_is_none() {
    for selector in ["{}", "{matchLabels: {}}"] {
        let mesh = Mesh::with(&[policy("shop/a", &format!("selector: {selector}, {DENY}"))]);
        mesh.expect(&["front > shop/web:80 deny", "front > shop/db:80 deny", "front > other/web:80 allow"]);
    }
}

#[test]
fn a_selector_chooses_in_its_namespace() {
    let mesh = Mesh::with(&[policy("shop/a", &format!("selector: {{matchLabels: {{app: web}}}}, {DENY}"))]);
    mesh.expect(&["front > shop/web:80 deny", "front > shop/db:80 allow", "front > other/web:80 allow"]);
}

#[test]
fn a_selector_needs_every_label() {
    let both = format!("selector: {{matchLabels: {{app: web, tier: front}}}}, {DENY}");
    Mesh::with(&[policy("shop/a", &both)]).expect(&["front:80 deny"]);
    let other = format!("selector: {{matchLabels: {{app: web, tier: back}}}}, {DENY}");
    Mesh::with(&[policy("shop/a", &other)]).expect(&["front:80 allow"]);
}

#[test]
fn a_selector_in_the_root_namespace_chooses_everywhere() {
    let mesh =
        Mesh::with(&[policy("istio-system/a", &format!("selector: {{matchLabels: {{app: web}}}}, {DENY}"))]);
    mesh.expect(&["front > shop/web:80 deny", "front > other/web:80 deny", "front > shop/db:80 allow"]);
}

#[test]
fn targets_are_not_for_workloads() {
    for target in [
        "targetRefs: [{kind: Service, name: web}]",
        "targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}",
        "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]",
        "targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: web}]",
    ] {
        let mesh = Mesh::with(&[policy("shop/a", &format!("{target}, {DENY}"))]);
        mesh.expect(&["front:80 allow"]);
        assert_eq!(mesh.compiled.conditions[0].field, "spec.targetRefs", "{target}");
    }
}
