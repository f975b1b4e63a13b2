//! The same by the Gateway API: an `HTTPRoute` whose parent is a Service.

use super::{answers, answers_so_far, only, world};
use crate::world::{SOON, World, eventually};

/// A Service of one version.
fn service(version: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{version}, namespace: app}}\nspec: {{selector: {{app: web, version: {version}}}, ports: [{{name: http, port: 80, targetPort: 8080}}], ipFamilyPolicy: PreferDualStack}}\n"
    )
}

/// A namespace of the mesh with a client of its own.
const OTHERS: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: others, labels: {nodemesh.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: others, labels: {app: client}}
spec: {nodeName: node1, containers: [{name: main, command: [sleep, infinity]}]}
";

/// A route of `web` in `app`.
fn route(namespace: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: {namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: web, namespace: app}}]\n  rules:\n{rules}"
    )
}

fn to(version: &str) -> String {
    format!("  - backendRefs: [{{name: web-{version}, namespace: app, port: 80}}]\n")
}

/// What a client gets for a request, with its head.
fn ask(world: &World, namespace: &str, arguments: &[&str]) -> String {
    let mut program = vec!["curl", "-sS", "-m", "10", "-i"];
    program.extend(arguments);
    world.exec(namespace, "client", &program).text
}

#[test]
fn requests_go_where_the_route_of_their_service_says() {
    let world = world("gatewayapi");
    world.apply(&(service("v1") + &service("v2")));
    world.apply(&route(
        "app",
        "
  - matches: [{path: {type: Exact, value: /a}, headers: [{name: user, value: test}]}]
    backendRefs: [{name: web-v2, port: 80}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
  - matches: [{path: {value: /api}}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: inner, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-added, value: '2'}]}}
    backendRefs: [{name: web-v2, port: 80}]
  - matches: [{path: {value: /broken}}]
    backendRefs: [{name: nobody, port: 80}]
  - matches: [{path: {type: Exact, value: /a}}]
    backendRefs: [{name: web-v1, port: 80}]
",
    ));
    eventually("the route is in force", || {
        ask(&world, "app", &["http://web/none"]).starts_with("HTTP/1.1 404")
    });
    assert_eq!(answers(&world, "client", 100, &[]), only("v1", 100), "each, and not most of them");
    assert_eq!(answers(&world, "client", 100, &["-H", "User: test"]), only("v2", 100));
    assert!(ask(&world, "app", &["http://web/none"]).starts_with("HTTP/1.1 404"));
    assert!(ask(&world, "app", &["http://web/apiary"]).starts_with("HTTP/1.1 404"), "segments are whole");
    assert!(ask(&world, "app", &["http://web/broken"]).starts_with("HTTP/1.1 500"));
    let redirect = ask(&world, "app", &["http://web/old/x?a=1"]);
    assert!(
        redirect.starts_with("HTTP/1.1 302") && redirect.contains("location: http://web/new/x?a=1\r\n"),
        "{redirect}"
    );
    let rewritten = ask(&world, "app", &["http://web/api/cart?a=1"]);
    for part in ["x-added: 2", "\"path\": \"/cart?a=1\"", "\"host\": \"inner\"", "\"server\": \"v2\""] {
        assert!(rewritten.contains(part), "{part}: {rewritten}");
    }
}

#[test]
fn clients_follow_the_route_of_their_own_namespace_once_what_it_names_is_granted() {
    let world = world("consumers");
    world.apply(&(service("v1") + &service("v2")));
    world.apply(OTHERS);
    world.lab.wait_ready(SOON).unwrap();
    world.apply(&(route("app", &to("v1")) + &route("others", &to("v2"))));
    // On one connection each, which else may all go to one version by chance.
    let each = &["-H", "Connection: close"];
    eventually("the producer's route is in force", || {
        answers_so_far(&world, "client", 20, each).0 == only("v1", 20)
    });
    let consumer = || ask(&world, "others", &["http://web.app/a"]);
    eventually("no grant lets the consumer's route name its backend", || {
        consumer().starts_with("HTTP/1.1 500")
    });
    world.apply(
        "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: others, namespace: app}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: others}]\n  to: [{group: '', kind: Service}]\n",
    );
    eventually("it is granted", || consumer().contains("\"server\": \"v2\""));
    assert_eq!(answers(&world, "client", 100, &[]), only("v1", 100), "others are not concerned");
    // A backend without endpoints that are ready is no mistake of the route's.
    world.apply(&(service("v3") + &route("others", &to("v3"))));
    eventually("nobody is ready", || consumer().starts_with("HTTP/1.1 503"));
}
