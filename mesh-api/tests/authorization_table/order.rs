//! Order of evaluation (section *Evaluation order* of the API).

use crate::mesh::{Mesh, policy};

const FROM_FRONT: &str = "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]";

fn allow_front(name: &str) -> String {
    policy(name, FROM_FRONT)
}

fn deny_front(name: &str) -> String {
    policy(name, &format!("action: DENY, {FROM_FRONT}"))
}

#[test]
fn without_policies_all_is_allowed() {
    Mesh::with(&[]).expect(&["front:80 allow", "plain:80 allow"]);
}

#[test]
fn a_custom_policy_is_not_asked() {
    let mesh = Mesh::with(&[policy("shop/a", "action: CUSTOM, provider: {name: x}, rules: [{}]")]);
    mesh.expect(&["front:80 allow", "plain:80 allow"]);
    assert_eq!(mesh.compiled.conditions.len(), 1);
}

#[test]
fn any_matching_deny_denies() {
    Mesh::with(&[deny_front("shop/a")]).expect(&["front:80 deny", "back:80 allow"]);
}

#[test]
fn deny_counts_before_allow() {
    Mesh::with(&[allow_front("shop/a"), deny_front("shop/b")]).expect(&["front:80 deny"]);
    Mesh::with(&[deny_front("shop/a"), allow_front("shop/b")]).expect(&["front:80 deny"]);
}

#[test]
fn without_an_allow_policy_all_else_is_allowed() {
    Mesh::with(&[deny_front("shop/a")]).expect(&["back:80 allow", "plain:80 allow"]);
}

#[test]
fn with_an_allow_policy_one_must_match() {
    Mesh::with(&[allow_front("shop/a")]).expect(&["front:80 allow", "back:80 deny", "plain:80 deny"]);
}

#[test]
fn one_of_several_allow_policies_is_enough() {
    let back = policy("shop/b", "rules: [{from: [{source: {namespaces: [other]}}]}]");
    Mesh::with(&[allow_front("shop/a"), back]).expect(&["front:80 allow", "back:80 allow", "plain:80 deny"]);
}

#[test]
fn audit_logs_and_never_decides() {
    let mesh = Mesh::with(&[policy("shop/a", &format!("action: AUDIT, {FROM_FRONT}"))]);
    mesh.expect(&["front:80 allow", "back:80 allow"]);
    assert_eq!(mesh.ask("front:80").audited.len(), 1);
    assert!(mesh.ask("back:80").audited.is_empty());
}

#[test]
fn scope_gives_no_priority() {
    let root = allow_front("istio-system/a");
    let workload = policy("shop/b", "action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]");
    Mesh::with(&[root, workload]).expect(&["front:80 deny", "front > shop/db:80 allow"]);
    let root = policy("istio-system/a", "action: DENY, rules: [{}]");
    Mesh::with(&[root, allow_front("shop/b")]).expect(&["front:80 deny"]);
}

#[test]
fn a_dry_run_is_reported_and_does_not_decide() {
    for spec in [FROM_FRONT.to_owned(), "action: DENY, rules: [{}]".to_owned()] {
        let annotated =
            policy("shop/a", &spec).replace("name: a}", "name: a, annotations: {istio.io/dry-run: 'true'}}");
        let mesh = Mesh::with(&[annotated]);
        mesh.expect(&["front:80 allow", "back:80 allow"]);
        assert_eq!(mesh.ask("back:80").dry_run.len(), 1, "{spec}");
    }
}
