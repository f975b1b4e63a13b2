//! What constructs match (section *Matching semantics* of the API).

use crate::mesh::{Mesh, policy};

fn allow(rules: &str) -> Mesh {
    Mesh::with(&[policy("shop/a", &format!("rules: {rules}"))])
}

fn deny(rules: &str) -> Mesh {
    Mesh::with(&[policy("shop/a", &format!("action: DENY, rules: {rules}"))])
}

/// An ALLOW for one source.
fn source(source: &str) -> Mesh {
    allow(&format!("[{{from: [{{source: {{{source}}}}}]}}]"))
}

/// A DENY for one source.
fn not_source(source: &str) -> Mesh {
    deny(&format!("[{{from: [{{source: {{{source}}}}}]}}]"))
}

/// An ALLOW for one operation.
fn operation(operation: &str) -> Mesh {
    allow(&format!("[{{to: [{{operation: {{{operation}}}}}]}}]"))
}

#[test]
fn absent_rules_match_nothing() {
    Mesh::with(&[policy("shop/a", "")]).expect(&["front:80 deny", "plain:80 deny"]);
    allow("[]").expect(&["front:80 deny"]);
    Mesh::with(&[policy("shop/a", "action: AUDIT")]).expect(&["front:80 allow"]);
}

#[test]
fn an_empty_rule_matches_everything() {
    allow("[{}]").expect(&["front:80 allow", "plain:80 allow"]);
    deny("[{}]").expect(&["front:80 deny", "plain:80 deny"]);
}

#[test]
fn from_to_and_when_must_all_match() {
    let mesh = allow(
        "[{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}], \
         when: [{key: source.ip, values: [10.244.1.1]}]}]",
    );
    mesh.expect(&["front:80 allow", "front:81 deny", "back:80 deny", "six:80 deny"]);
}

#[test]
fn an_absent_part_matches_anything() {
    operation("ports: ['80']").expect(&["front:80 allow", "plain:80 allow", "front:81 deny"]);
    source("namespaces: [shop]").expect(&["front:80 allow", "front:81 allow", "back:80 deny"]);
}

#[test]
fn any_entry_of_from_is_enough() {
    let mesh = allow("[{from: [{source: {namespaces: [shop]}}, {source: {ipBlocks: [10.244.3.3]}}]}]");
    mesh.expect(&["front:80 allow", "plain:80 allow", "back:80 deny"]);
}

#[test]
fn any_entry_of_to_is_enough() {
    let mesh = allow("[{to: [{operation: {ports: ['80']}}, {operation: {ports: ['81']}}]}]");
    mesh.expect(&["front:80 allow", "front:81 allow", "front:82 deny"]);
}

#[test]
fn every_entry_of_when_is_needed() {
    let mesh =
        allow("[{when: [{key: destination.port, values: ['80']}, {key: source.namespace, values: [shop]}]}]");
    mesh.expect(&["front:80 allow", "front:81 deny", "back:80 deny"]);
}

#[test]
fn any_rule_is_enough() {
    let mesh = allow("[{to: [{operation: {ports: ['80']}}]}, {from: [{source: {namespaces: [other]}}]}]");
    mesh.expect(&["front:80 allow", "back:81 allow", "front:81 deny"]);
}

#[test]
fn fields_of_a_source_must_all_match() {
    source("namespaces: [shop], ipBlocks: [10.244.1.0/24]").expect(&[
        "front:80 allow",
        "six:80 deny",
        "back:80 deny",
    ]);
}

#[test]
fn values_of_a_field_are_alternatives() {
    source("namespaces: [other, shop]").expect(&["front:80 allow", "back:80 allow", "plain:80 deny"]);
}

#[test]
fn a_not_is_true_when_no_value_matches() {
    source("notNamespaces: [other, third]").expect(&["front:80 allow", "back:80 deny", "plain:80 allow"]);
    operation("notPorts: ['80', '81']").expect(&["front:80 deny", "front:81 deny", "front:82 allow"]);
}

#[test]
fn a_field_and_its_not_must_both_match() {
    let mesh = source("principals: ['*'], notPrincipals: [cluster.local/ns/other/sa/back]");
    mesh.expect(&["front:80 allow", "back:80 deny", "plain:80 deny"]);
    source("ipBlocks: [10.244.0.0/16], notIpBlocks: [10.244.1.0/24]")
        .expect(&["front:80 deny", "back:80 allow"]);
}

#[test]
fn principals_exact() {
    let mesh = source("principals: [cluster.local/ns/shop/sa/front]");
    mesh.expect(&["front:80 allow", "back:80 deny", "foreign:80 deny", "plain:80 deny"]);
}

#[test]
fn principals_by_their_beginning() {
    source("principals: ['cluster.local/ns/shop/*']").expect(&[
        "front:80 allow",
        "back:80 deny",
        "foreign:80 deny",
    ]);
}

#[test]
fn principals_by_their_end() {
    source("principals: ['*/sa/front']").expect(&["front:80 allow", "foreign:80 allow", "back:80 deny"]);
}

#[test]
fn a_star_is_any_authenticated_peer() {
    source("principals: ['*']").expect(&["front:80 allow", "back:80 allow", "plain:80 deny"]);
    not_source("notPrincipals: ['*']").expect(&["front:80 allow", "plain:80 deny"]);
}

#[test]
fn namespaces_take_the_same_forms() {
    source("namespaces: ['sh*']").expect(&["front:80 allow", "back:80 deny"]);
    source("namespaces: ['*op']").expect(&["front:80 allow", "back:80 deny"]);
    source("namespaces: ['*']").expect(&["front:80 allow", "back:80 allow", "plain:80 deny"]);
}

#[test]
fn a_star_within_a_namespace_never_lets_more_through() {
    source("namespaces: ['s*p']").expect(&["front:80 deny", "back:80 deny"]);
    source("notNamespaces: ['s*p']").expect(&["front:80 deny", "back:80 allow"]);
    not_source("namespaces: ['s*p']").expect(&["front:80 deny", "back:80 allow"]);
    not_source("notNamespaces: ['s*p']").expect(&["front:80 deny", "back:80 deny"]);
}

#[test]
fn service_accounts_are_of_the_policys_namespace_unless_said() {
    source("serviceAccounts: [front]").expect(&["front:80 allow", "back:80 deny", "plain:80 deny"]);
    source("serviceAccounts: [other/back]").expect(&["back:80 allow", "front:80 deny"]);
    source("notServiceAccounts: [front]").expect(&["back:80 allow", "front:80 deny", "plain:80 allow"]);
}

#[test]
fn ip_blocks_are_the_direct_peers() {
    source("ipBlocks: [10.244.1.1]").expect(&["front:80 allow", "back:80 deny"]);
    source("ipBlocks: [10.244.1.0/24]").expect(&["front:80 allow", "foreign:80 allow", "back:80 deny"]);
    source("notIpBlocks: [10.244.1.0/24]").expect(&["front:80 deny", "plain:80 allow"]);
}

#[test]
fn ip_blocks_of_both_families() {
    source("ipBlocks: ['fd00:244:1::/64']").expect(&["six:80 allow", "front:80 deny"]);
    source("ipBlocks: ['fd00:244:1::1']").expect(&["six:80 allow", "front:80 deny"]);
    source("ipBlocks: [0.0.0.0/0]").expect(&["front:80 allow", "six:80 deny"]);
}

#[test]
fn a_mapped_address_is_the_ipv4_one() {
    source("ipBlocks: [10.244.1.0/24]").expect(&["mapped:80 allow"]);
    source("ipBlocks: ['::ffff:10.244.1.0/120']").expect(&[
        "mapped:80 allow",
        "front:80 allow",
        "back:80 deny",
    ]);
}

#[test]
fn ports_are_the_workloads() {
    operation("ports: ['80', '443']").expect(&["front:80 allow", "front:443 allow", "front:8080 deny"]);
}

#[test]
fn without_mutual_tls_identities_never_match_and_their_nots_do() {
    for field in ["principals: ['*']", "namespaces: ['*']", "serviceAccounts: [front]"] {
        source(field).expect(&["plain:80 deny"]);
        not_source(field).expect(&["plain:80 allow"]);
    }
    for field in ["notPrincipals: [a]", "notNamespaces: [a]", "notServiceAccounts: [a]"] {
        source(field).expect(&["plain:80 allow"]);
        not_source(field).expect(&["plain:80 deny"]);
    }
}

#[test]
fn trust_domains_never_let_more_through() {
    source("trustDomains: [cluster.local]").expect(&["front:80 deny", "foreign:80 deny"]);
    source("trustDomains: [cluster.local], namespaces: [shop]").expect(&["front:80 deny", "foreign:80 deny"]);
    not_source("trustDomains: [example.org]").expect(&[
        "foreign:80 deny",
        "front:80 allow",
        "plain:80 allow",
    ]);
    not_source("notTrustDomains: [cluster.local]").expect(&[
        "foreign:80 deny",
        "front:80 allow",
        "plain:80 deny",
    ]);
    not_source("trustDomains: ['*.org']").expect(&["foreign:80 deny", "front:80 deny", "plain:80 allow"]);
}
