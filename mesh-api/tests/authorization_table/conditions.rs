//! Keys of `when` that a connection shows (section *`when` keys* of the API).

use crate::mesh::{Mesh, policy};

fn when(condition: &str) -> Mesh {
    Mesh::with(&[policy("shop/a", &format!("rules: [{{when: [{{{condition}}}]}}]"))])
}

#[test]
fn source_ip() {
    when("key: source.ip, values: [10.244.1.0/24]").expect(&["front:80 allow", "back:80 deny"]);
    when("key: source.ip, notValues: [10.244.1.0/24]").expect(&["front:80 deny", "back:80 allow"]);
}

#[test]
fn source_namespace() {
    when("key: source.namespace, values: [shop]").expect(&[
        "front:80 allow",
        "back:80 deny",
        "plain:80 deny",
    ]);
    when("key: source.namespace, notValues: [shop]").expect(&[
        "front:80 deny",
        "back:80 allow",
        "plain:80 allow",
    ]);
}

#[test]
fn source_principal() {
    let mesh = when("key: source.principal, values: ['*/sa/front']");
    mesh.expect(&["front:80 allow", "back:80 deny", "plain:80 deny"]);
    when("key: source.principal, notValues: ['*']").expect(&["front:80 deny", "plain:80 allow"]);
}

#[test]
fn destination_ip() {
    let root = |condition: &str| {
        Mesh::with(&[policy("istio-system/a", &format!("rules: [{{when: [{{{condition}}}]}}]"))])
    };
    let mesh = root("key: destination.ip, values: [10.244.9.1]");
    mesh.expect(&["front > shop/web:80 allow", "front > shop/db:80 deny"]);
    let mesh = root("key: destination.ip, notValues: [10.244.9.1/32]");
    mesh.expect(&["front > shop/web:80 deny", "front > shop/db:80 allow"]);
}

#[test]
fn destination_port() {
    when("key: destination.port, values: ['80', '81']").expect(&[
        "front:80 allow",
        "front:81 allow",
        "front:82 deny",
    ]);
    when("key: destination.port, notValues: ['80']").expect(&["front:80 deny", "front:81 allow"]);
}

#[test]
fn values_and_not_values_must_both_hold() {
    let mesh = when("key: source.ip, values: [10.244.0.0/16], notValues: [10.244.1.0/24]");
    mesh.expect(&["front:80 deny", "back:80 allow", "six:80 deny"]);
}
