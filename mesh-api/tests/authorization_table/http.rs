//! Attributes that only HTTP shows, on connections that are judged without it: an ALLOW rule with one is
//! dropped, from a DENY or AUDIT rule only the attribute is.

use crate::mesh::{Mesh, policy};
use mesh_api::compile::ConditionEffect;

/// Each attribute in a rule of its own, beside a port.
const OPERATIONS: [&str; 6] = [
    "hosts: [a]",
    "notHosts: [a]",
    "methods: [GET]",
    "notMethods: [GET]",
    "paths: [/a]",
    "notPaths: ['/a/{*}']",
];
const SOURCES: [&str; 4] = [
    "requestPrincipals: ['*']",
    "notRequestPrincipals: ['*']",
    "remoteIpBlocks: [10.0.0.0/8]",
    "notRemoteIpBlocks: [10.0.0.0/8]",
];
const CONDITIONS: [&str; 9] = [
    "request.headers[X-Id]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[a][b]",
    "experimental.envoy.filters.a.b[key]",
    "remote.ip",
    "connection.sni",
    "source.serviceAccount",
];

fn value(key: &str) -> &'static str {
    if key == "remote.ip" { "10.0.0.0/8" } else { "shop/front" }
}

#[test]
fn an_allow_rule_with_an_operation_of_http_is_dropped() {
    for attribute in OPERATIONS {
        let rule = format!("rules: [{{to: [{{operation: {{ports: ['80'], {attribute}}}}}]}}]");
        let mesh = Mesh::with(&[policy("shop/a", &rule)]);
        mesh.expect(&["front:80 deny"]);
        assert_eq!(mesh.compiled.conditions[0].effect, ConditionEffect::Stricter, "{attribute}");
    }
}

#[test]
fn an_allow_rule_with_a_source_of_http_is_dropped() {
    for attribute in SOURCES {
        let rule = format!("rules: [{{from: [{{source: {{namespaces: [shop], {attribute}}}}}]}}]");
        Mesh::with(&[policy("shop/a", &rule)]).expect(&["front:80 deny"]);
    }
}

#[test]
fn an_allow_rule_with_a_condition_of_http_is_dropped() {
    for key in CONDITIONS {
        let rule = format!("rules: [{{when: [{{key: '{key}', values: ['{}']}}]}}]", value(key));
        Mesh::with(&[policy("shop/a", &rule)]).expect(&["front:80 deny"]);
    }
}

#[test]
fn other_rules_of_the_allow_policy_stay() {
    let spec = "rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [shop]}}]}]";
    Mesh::with(&[policy("shop/a", spec)]).expect(&["front:80 allow", "back:80 deny"]);
}

#[test]
fn a_deny_rule_loses_only_the_attribute_of_an_operation() {
    for attribute in OPERATIONS {
        let rule = format!("action: DENY, rules: [{{to: [{{operation: {{ports: ['80'], {attribute}}}}}]}}]");
        let mesh = Mesh::with(&[policy("shop/a", &rule)]);
        mesh.expect(&["front:80 deny", "front:81 allow"]);
        assert_eq!(mesh.compiled.conditions[0].effect, ConditionEffect::Stricter, "{attribute}");
    }
}

#[test]
fn a_deny_rule_loses_only_the_attribute_of_a_source() {
    for attribute in SOURCES {
        let rule =
            format!("action: DENY, rules: [{{from: [{{source: {{namespaces: [shop], {attribute}}}}}]}}]");
        Mesh::with(&[policy("shop/a", &rule)]).expect(&["front:80 deny", "back:80 allow"]);
    }
}

#[test]
fn a_deny_rule_with_a_part_of_http_alone_matches_nothing() {
    for attribute in OPERATIONS {
        let rule = format!(
            "action: DENY, rules: [{{from: [{{source: {{namespaces: [shop]}}}}], to: [{{operation: {{{attribute}}}}}]}}]"
        );
        let mesh = Mesh::with(&[policy("shop/a", &rule)]);
        mesh.expect(&["front:80 allow", "back:80 allow"]);
        assert_eq!(mesh.compiled.conditions[0].effect, ConditionEffect::Ignored, "{attribute}");
    }
    for attribute in SOURCES {
        let rule = format!("action: DENY, rules: [{{from: [{{source: {{{attribute}}}}}]}}]");
        Mesh::with(&[policy("shop/a", &rule)]).expect(&["front:80 allow"]);
    }
}

#[test]
fn a_deny_rule_with_a_condition_of_http_matches_nothing() {
    for key in CONDITIONS {
        let rule = format!(
            "action: DENY, rules: [{{from: [{{source: {{namespaces: [shop]}}}}], when: [{{key: '{key}', values: ['{}']}}]}}]",
            value(key)
        );
        let mesh = Mesh::with(&[policy("shop/a", &rule)]);
        mesh.expect(&["front:80 allow"]);
        assert_eq!(mesh.compiled.conditions[0].effect, ConditionEffect::Ignored, "{key}");
    }
}

#[test]
fn an_audit_rule_loses_only_the_attribute() {
    let spec = "action: AUDIT, rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]";
    let mesh = Mesh::with(&[policy("shop/a", spec)]);
    assert_eq!(mesh.ask("front:80").audited.len(), 1);
    assert!(mesh.ask("front:81").audited.is_empty());
}
