//! Precedence and meaning of `PeerAuthentication` (section of that name).

use crate::mesh::{Mesh, mode, policy};

const STRICT: &str = "mtls: {mode: STRICT}";
const PERMISSIVE: &str = "mtls: {mode: PERMISSIVE}";
const WEB: &str = "selector: {matchLabels: {app: web}}";

#[test]
fn the_default_takes_both() {
    Mesh::with(&[]).expect(&["front:80 allow", "plain:80 allow"]);
}

#[test]
fn strict_refuses_plaintext() {
    Mesh::with(&[mode("shop/default", STRICT)]).expect(&["front:80 allow", "plain:80 deny"]);
}

#[test]
fn permissive_takes_both() {
    Mesh::with(&[mode("shop/default", PERMISSIVE)]).expect(&["front:80 allow", "plain:80 allow"]);
}

#[test]
fn disable_is_taken_for_permissive() {
    Mesh::with(&[mode("shop/default", "mtls: {mode: DISABLE}")])
        .expect(&["front:80 allow", "plain:80 allow"]);
}

#[test]
fn the_root_namespace_sets_the_whole_mesh() {
    let mesh = Mesh::with(&[mode("istio-system/default", STRICT)]);
    mesh.expect(&["plain:80 deny", "plain > shop/db:80 deny", "plain > other/web:80 deny", "front:80 allow"]);
}

#[test]
fn the_namespace_counts_before_the_mesh() {
    let mesh = Mesh::with(&[mode("istio-system/default", STRICT), mode("shop/default", PERMISSIVE)]);
    mesh.expect(&["plain:80 allow", "plain > other/web:80 deny"]);
}

#[test]
fn the_workload_counts_before_its_namespace() {
    let mesh = Mesh::with(&[mode("shop/default", STRICT), mode("shop/web", &format!("{WEB}, {PERMISSIVE}"))]);
    mesh.expect(&["plain:80 allow", "plain > shop/db:80 deny"]);
    let mesh = Mesh::with(&[mode("shop/web", &format!("{WEB}, {STRICT}"))]);
    mesh.expect(&["plain:80 deny", "plain > shop/db:80 allow", "plain > other/web:80 allow"]);
}

#[test]
fn unset_inherits_from_the_next_level() {
    let mesh = Mesh::with(&[
        mode("istio-system/default", STRICT),
        mode("shop/default", "mtls: {mode: UNSET}"),
        mode("shop/web", WEB),
    ]);
    mesh.expect(&["plain:80 deny"]);
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored() {
    let mesh = Mesh::with(&[mode("istio-system/web", &format!("{WEB}, {STRICT}"))]);
    mesh.expect(&["plain:80 allow"]);
}

#[test]
fn the_oldest_of_a_level_counts() {
    let dated = |name: &str, day: u8, spec: &str| {
        mode(name, spec)
            .replace("}\nspec", &format!(", creationTimestamp: '2026-01-0{day}T00:00:00Z'}}\nspec"))
    };
    Mesh::with(&[dated("shop/a", 2, STRICT), dated("shop/b", 1, PERMISSIVE)]).expect(&["plain:80 allow"]);
    Mesh::with(&[dated("shop/a", 1, STRICT), dated("shop/b", 2, PERMISSIVE)]).expect(&["plain:80 deny"]);
    let (strict, permissive) = (format!("{WEB}, {STRICT}"), format!("{WEB}, {PERMISSIVE}"));
    Mesh::with(&[dated("shop/a", 2, &strict), dated("shop/b", 1, &permissive)]).expect(&["plain:80 allow"]);
    Mesh::with(&[dated("istio-system/a", 1, STRICT), dated("istio-system/b", 2, PERMISSIVE)])
        .expect(&["plain:80 deny"]);
}

#[test]
fn a_port_may_be_open_on_a_strict_workload() {
    let spec = format!("{WEB}, {STRICT}, portLevelMtls: {{8080: {{mode: PERMISSIVE}}}}");
    Mesh::with(&[mode("shop/web", &spec)]).expect(&[
        "plain:80 deny",
        "plain:8080 allow",
        "front:80 allow",
        "front:8080 allow",
    ]);
}

#[test]
fn a_port_may_be_strict_on_a_permissive_workload() {
    let spec = format!("{WEB}, portLevelMtls: {{8080: {{mode: STRICT}}, 9090: {{mode: STRICT}}}}");
    let mesh = Mesh::with(&[mode("shop/web", &spec)]);
    mesh.expect(&["plain:80 allow", "plain:8080 deny", "plain:9090 deny", "front:8080 allow"]);
}

#[test]
fn an_unset_port_has_the_mode_of_its_workload() {
    let spec =
        format!("{WEB}, {STRICT}, portLevelMtls: {{8080: {{mode: UNSET}}, 9090: {{mode: PERMISSIVE}}}}");
    Mesh::with(&[mode("shop/web", &spec)]).expect(&["plain:8080 deny", "plain:9090 allow"]);
}

#[test]
fn ports_that_are_not_listed_have_the_inherited_mode() {
    let ports = format!("{WEB}, portLevelMtls: {{8080: {{mode: PERMISSIVE}}}}");
    let mesh = Mesh::with(&[mode("istio-system/default", STRICT), mode("shop/web", &ports)]);
    mesh.expect(&["plain:80 deny", "plain:8080 allow"]);
}

#[test]
fn strict_and_authorization_both_count() {
    let allow = policy("shop/a", "rules: [{to: [{operation: {ports: ['80']}}]}]");
    let mesh = Mesh::with(&[mode("shop/default", STRICT), allow]);
    mesh.expect(&["front:80 allow", "front:81 deny", "plain:80 deny"]);
}
