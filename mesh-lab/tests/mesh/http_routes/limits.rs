//! Limits of a service's requests, and ejection by statuses: what a `DestinationRule` says of them.

use std::process::{Child, Stdio};

use crate::world::{SOON, World, eventually};

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/http_routes/limits.py");

/// A service with routes, and a `DestinationRule` if it says anything. Its pod is the one of all others.
fn service(name: &str, policy: &str) -> String {
    let service = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: app}}\nspec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    );
    if policy.is_empty() {
        return service;
    }
    service
        + &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: app}}\nspec: {{host: {name}, trafficPolicy: {{{policy}}}}}\n"
        )
}

/// The routes of the service, one of which tells that they are in force.
fn routes(name: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: app}}\nspec:\n  hosts: [{name}]\n  http:\n  - match: [{{uri: {{exact: /tea}}}}]\n    directResponse: {{status: 418}}\n  - route: [{{destination: {{host: {name}}}}}]\n    retries: {{attempts: 1, retryOn: '503'}}\n"
    )
}

/// A world with one web pod, and services with these policies.
fn world(name: &str, services: &[(&str, &str)]) -> World {
    let world = World::new(name);
    let pod = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: app, labels: {{app: web}}}}\nspec:\n  nodeName: node2\n  containers:\n  - name: main\n    command: [python3, -u, {SERVER}]\n    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n"
    );
    world.apply(&services.iter().fold(pod, |all, (name, policy)| all + &service(name, policy)));
    world.lab.wait_ready(SOON).unwrap();
    // After their policies, so that these are in force where the routes are.
    world.apply(&services.iter().map(|(name, _)| routes(name)).collect::<String>());
    for (name, _) in services {
        eventually("the routes are in force", || {
            ask(&world, "client", &format!("{name}/tea")).starts_with("HTTP/1.1 418")
        });
    }
    world
}

fn curl(url: &str) -> [String; 6] {
    ["curl", "-sS", "-i", "-m", "25", &format!("http://{url}")].map(str::to_owned)
}

/// What a pod gets for a request, with its head.
fn ask(world: &World, pod: &str, url: &str) -> String {
    let program = curl(url);
    world.exec("app", pod, &program.each_ref().map(String::as_str)).text
}

fn begin(world: &World, url: &str) -> Child {
    let program = curl(url);
    let mut command = world.lab.exec_command("app", "client", &program.each_ref().map(String::as_str));
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn end(child: Child) -> String {
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// What the server says of itself.
fn told(world: &World, path: &str) -> usize {
    let url = format!("http://127.0.0.1:8081{path}");
    world.exec("app", "web", &["curl", "-sS", "-m", "5", &url]).text.parse().unwrap()
}

/// A request of `client` that the server holds.
fn hold(world: &World, service: &str, path: &str) -> Child {
    let held = begin(world, &format!("{service}{path}?{service}"));
    eventually("the server holds it", || told(world, &format!("/held?{service}")) == 1);
    held
}

/// Lets it go, and checks that it was answered.
fn let_go(world: &World, service: &str, held: Child) {
    told(world, &format!("/release?{service}"));
    let response = end(held);
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

fn is_overflow(response: &str) -> bool {
    response.starts_with("HTTP/1.1 503") && response.contains("x-envoy-overloaded: true")
}

fn over_limit(world: &World, limit: &str) -> f64 {
    world.metric("node1", "nodemesh_requests_over_limit_total", &format!("limit=\"{limit}\""))
}

/// Requests to a service that failed by a limit.
fn overflows(world: &World, service: &str) -> f64 {
    let url = "http://127.0.0.1:15020/metrics";
    let output = world.lab.node_exec("node1", &["curl", "-sS", "-m", "5", url]).unwrap();
    let is_one = |line: &&str| {
        line.starts_with("istio_requests_total")
            && line.contains("response_flags=\"UO\"")
            && line.contains(&format!("destination_service_name=\"{service}\""))
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(is_one).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn requests_beyond_a_limit_of_their_service_fail_and_those_to_others_do_not() {
    let world = world(
        "pools",
        &[
            ("free", ""),
            ("requests", "connectionPool: {http: {http2MaxRequests: 1}}"),
            ("pending", "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}"),
            ("retries", "connectionPool: {http: {maxRetries: 1}}"),
            ("single", "connectionPool: {http: {maxRequestsPerConnection: 1}}"),
        ],
    );
    let is_free = |pod: &str| {
        let response = ask(&world, pod, "free/a");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    };

    let held = hold(&world, "requests", "/held");
    let refused = ask(&world, "client", "requests/a");
    assert!(is_overflow(&refused), "{refused}");
    ["client", "other"].into_iter().for_each(is_free);
    let_go(&world, "requests", held);
    eventually("there is room again", || ask(&world, "client", "requests/a").starts_with("HTTP/1.1 200"));
    assert!(over_limit(&world, "http2MaxRequests") >= 1.0);

    let held = hold(&world, "pending", "/held");
    let mut others: Vec<_> = (0..5).map(|_| begin(&world, "pending/a")).collect();
    let mut refused = Vec::new();
    eventually("all but the one that waits are refused", || {
        let ended = others.extract_if(.., |child| child.try_wait().unwrap().is_some());
        refused.extend(ended.map(end));
        refused.len() == 4
    });
    assert!(refused.iter().all(|response| is_overflow(response)), "{refused:?}");
    ["client", "other"].into_iter().for_each(is_free);
    let_go(&world, "pending", held);
    let response = end(others.pop().unwrap());
    assert!(response.starts_with("HTTP/1.1 200"), "its turn comes: {response}");
    assert_eq!((over_limit(&world, "http1MaxPendingRequests"), overflows(&world, "pending")), (4.0, 4.0));

    let held = hold(&world, "retries", "/flaky");
    let failed = ask(&world, "client", "retries/flaky?another");
    assert!(failed.starts_with("HTTP/1.1 503") && failed.ends_with("done"), "the server's: {failed}");
    assert_eq!(told(&world, "/flaky?another"), 1, "it was not sent again");
    ["client", "other"].into_iter().for_each(is_free);
    let_go(&world, "retries", held);
    assert_eq!((over_limit(&world, "maxRetries"), overflows(&world, "retries")), (1.0, 1.0));

    let connections = |url: &str| {
        let before = told(&world, "/connections");
        let url = format!("http://{url}?n=[1-6]");
        assert!(world.exec("app", "client", &["curl", "-sS", "-m", "20", &url]).ok);
        told(&world, "/connections") - before
    };
    // Probes make some, too.
    assert!(connections("single/a") >= 6, "each request has a connection of its own");
    assert!(overflows(&world, "requests") >= 1.0 && overflows(&world, "free") < 1.0);
}

#[test]
fn five_failures_in_a_row_eject_an_endpoint_and_it_comes_back() {
    let policy = "outlierDetection: {consecutive5xxErrors: 5, interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 100}";
    let world = world("ejected", &[("frail", policy), ("free", "")]);
    // Each is sent once more.
    let fail = |requests: usize| {
        for _ in 0..requests {
            let response = ask(&world, "client", "frail/fail");
            assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        }
    };
    let is_served = || ask(&world, "client", "frail/a").starts_with("HTTP/1.1 200");
    fail(2);
    assert!(is_served(), "four failures are not five");
    fail(2);
    assert!(is_served(), "it has answered in between");
    fail(3);
    let ejected = ask(&world, "client", "frail/a");
    assert!(ejected.starts_with("HTTP/1.1 503") && ejected.ends_with("no healthy upstream"), "{ejected}");
    assert!(
        ask(&world, "client", "free/a").starts_with("HTTP/1.1 200"),
        "another service has no such policy"
    );
    eventually("it comes back", is_served);
}
