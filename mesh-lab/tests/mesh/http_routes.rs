//! Requests go where a `VirtualService` says, from pods of ordinary programs, on one node and across.

mod consistent_hash;
mod gateway_api;
mod limits;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use crate::sockets::go_build;
use crate::world::{SOON, World, eventually};

/// An HTTP/1.1 server that says its name and what it got.
const SERVER: &str = "
import http.server, json, socket, sys

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_GET(self):
        length = int(self.headers.get('Content-Length', 0))
        body = self.rfile.read(length)
        fields = {name.lower(): value for name, value in self.headers.items()}
        text = json.dumps({'server': sys.argv[1], 'path': self.path, 'body': len(body), 'fields': fields})
        status = int(sys.argv[2]) if len(sys.argv) > 2 else 200
        self.send_response(status)
        self.send_header('Content-Length', str(len(text) + 1))
        self.end_headers()
        self.wfile.write(text.encode() + b'\\n')

    do_POST = do_GET

    def log_message(self, *_):
        pass

Server(('::', 8080), Answer).serve_forever()
";

/// A pod of the Service `web` with a version, which answers with a status.
fn web_pod(version: &str, node: &str, status: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-{version}-{node}, namespace: app, labels: {{app: web, version: {version}}}}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: main\n    command: [python3, -c, {SERVER:?}, {version}, '{status}']\n    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n"
    )
}

const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}], ipFamilyPolicy: PreferDualStack}\n";

const SUBSETS: &str = "
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: app}
spec:
  host: web
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
";

fn virtual_service(http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: app}}\nspec:\n  hosts: [web]\n  http:\n{http}"
    )
}

const TESTERS: &str = "
  - match:
    - headers:
        user:
          exact: test
    route:
    - destination:
        host: web
        subset: v2
  - route:
    - destination:
        host: web
        subset: v1
";

fn split(one: u32, two: u32) -> String {
    virtual_service(&format!(
        "  - route:\n    - destination: {{host: web, subset: v1}}\n      weight: {one}\n    - destination: {{host: web, subset: v2}}\n      weight: {two}\n"
    ))
}

/// Both versions on both nodes.
fn world(name: &str) -> World {
    let world = World::new(name);
    let mut manifests = SERVICE.to_owned() + SUBSETS;
    for node in ["node1", "node2"] {
        for version in ["v1", "v2"] {
            manifests += &web_pod(version, node, 200);
        }
    }
    world.apply(&manifests);
    world.lab.wait_ready(SOON).unwrap();
    world
}

/// Sends so many requests with curl on one connection, and counts who answered, or with which status.
fn answers(world: &World, pod: &str, count: usize, arguments: &[&str]) -> BTreeMap<String, usize> {
    let (counts, error) = answers_so_far(world, pod, count, arguments);
    assert!(error.is_empty(), "{error}: {counts:?}");
    counts
}

/// The same where requests may fail still, and why they do.
fn answers_so_far(
    world: &World,
    pod: &str,
    count: usize,
    arguments: &[&str],
) -> (BTreeMap<String, usize>, String) {
    let url = format!("http://web/a?n=[1-{count}]");
    let mut program = vec!["curl", "-sS", "-m", "20", "-w", "%{http_code}\n"];
    program.extend(arguments);
    program.push(&url);
    let ran = world.exec("app", pod, &program);
    let mut counts = BTreeMap::new();
    for line in ran.text.lines() {
        let server = serde_json::from_str::<serde_json::Value>(line).ok();
        let who = match server.as_ref().and_then(|it| it["server"].as_str()) {
            Some(server) => server.to_owned(),
            None if line != "200" => line.to_owned(),
            None => continue,
        };
        *counts.entry(who).or_default() += 1;
    }
    let error = if ran.ok { String::new() } else { format!("curl: {}", ran.error) };
    (counts, error)
}

fn only(name: &str, count: usize) -> BTreeMap<String, usize> {
    [(name.to_owned(), count)].into()
}

/// The manifest of the project's first promise.
#[test]
fn testers_get_version_2_and_all_others_version_1() {
    let world = world("testers");
    world.apply(&virtual_service(TESTERS));
    for pod in ["client", "neighbour"] {
        eventually("the routes are in force", || answers_so_far(&world, pod, 4, &[]).0 == only("v1", 4));
        assert_eq!(answers(&world, pod, 200, &[]), only("v1", 200), "{pod}");
        assert_eq!(answers(&world, pod, 200, &["-H", "User: test"]), only("v2", 200), "{pod}");
        assert_eq!(answers(&world, pod, 20, &["-H", "user: tester"]), only("v1", 20), "{pod}");
        assert_eq!(answers(&world, pod, 20, &["-6", "-H", "user: test"]), only("v2", 20), "{pod}");
        assert_eq!(answers(&world, pod, 20, &["-0"]), only("v1", 20), "HTTP/1.0 of {pod}");
        let http2 = ["--http2-prior-knowledge", "-H", "user: test"];
        assert_eq!(answers(&world, pod, 1, &http2), only("v2", 1), "HTTP/2 of {pod}");
    }
    let counted = |what: &str| {
        ["node1", "node2"].map(|node| world.metric(node, "istio_requests_total", what)).iter().sum::<f64>()
    };
    assert!(counted("destination_version=\"v2\"") >= 440.0);
    assert!(counted("response_code=\"503\"") < 1.0);
}

/// Sends requests of HTTP/2 on one connection, some at once, and counts who answered.
fn http2_answers(
    world: &World,
    program: &str,
    pod: &str,
    count: usize,
    field: &str,
) -> BTreeMap<String, usize> {
    let ran = world.exec("app", pod, &[program, "ask", "http://web/a", &count.to_string(), "20", field]);
    assert!(ran.ok, "{ran:?}");
    let lines = ran.text.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(count, who)| (who.to_owned(), count.parse().unwrap())).collect()
}

#[test]
fn requests_of_http2_go_where_each_is_routed_though_they_share_a_connection() {
    let world = World::new("http2");
    let scratch = std::env::temp_dir().join(format!("nodemesh-http2-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let program = scratch.join("http2").to_str().unwrap().to_owned();
    go_build(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/http_routes/http2.go"), &program);
    let mut manifests = SERVICE.replace("name: http,", "name: grpc,") + SUBSETS;
    for (version, node) in [("v1", "node1"), ("v1", "node2"), ("v2", "node1"), ("v2", "node2")] {
        let _ = writeln!(
            manifests,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-{version}-{node}, namespace: app, labels: {{app: web, version: {version}}}}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: main\n    command: [{program}, serve, '8080', {version}]\n    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}"
        );
    }
    world.apply(&manifests);
    world.lab.wait_ready(SOON).unwrap();
    world.apply(&virtual_service(TESTERS));
    for pod in ["client", "neighbour"] {
        let ask = |count, field| http2_answers(&world, &program, pod, count, field);
        eventually("the routes are in force", || ask(20, "") == only("v1", 20));
        assert_eq!(ask(300, ""), only("v1", 300), "{pod}");
        assert_eq!(ask(300, "user=test"), only("v2", 300), "{pod}");
    }
    // HTTP/1 of the client is translated.
    let ran = world.exec("app", "client", &["curl", "-sS", "-m", "20", "-H", "user: test", "http://web/a"]);
    assert_eq!(ran.text.trim(), "v2", "{ran:?}");
    world.apply(&split(80, 20));
    eventually("the weights are in force", || http2_answers(&world, &program, "client", 100, "").len() == 2);
    let counts = http2_answers(&world, &program, "client", 2000, "");
    // Five standard deviations of the binomial distribution.
    assert!((310..490).contains(&counts["v2"]) && counts["v1"] + counts["v2"] == 2000, "{counts:?}");
    let _gone = std::fs::remove_dir_all(scratch);
}

#[test]
fn weights_hold_and_a_change_of_them_loses_no_request() {
    let world = world("weights");
    for (one, two) in [(80, 20), (1, 99)] {
        world.apply(&split(one, two));
        let share = |counts: &BTreeMap<String, usize>| counts.get("v2").copied().unwrap_or(0);
        let expected = f64::from(two) / f64::from(one + two);
        eventually("the weights are in force", || {
            let (counts, _) = answers_so_far(&world, "client", 200, &[]);
            #[expect(clippy::cast_precision_loss, reason = "at most 200")]
            let found = share(&counts) as f64 / 200.0;
            (found - expected).abs() < 0.15
        });
        let counts = answers(&world, "client", 5000, &[]);
        #[expect(clippy::cast_precision_loss, reason = "at most 5000")]
        let found = share(&counts) as f64;
        // Five standard deviations of the binomial distribution.
        let deviation = (5000.0 * expected * (1.0 - expected)).sqrt();
        assert!((found - 5000.0 * expected).abs() < 5.0 * deviation, "{counts:?}");
        assert_eq!(counts.values().sum::<usize>(), 5000, "{counts:?}");
    }
    std::thread::scope(|scope| {
        let load = scope.spawn(|| answers(&world, "client", 5000, &[]));
        for (one, two) in [(1, 0), (0, 1), (1, 1)].into_iter().cycle() {
            if load.is_finished() {
                break;
            }
            world.apply(&split(one, two));
        }
        let counts = load.join().unwrap();
        assert!(counts.keys().all(|who| who == "v1" || who == "v2"), "{counts:?}");
        assert_eq!(counts.values().sum::<usize>(), 5000, "{counts:?}");
    });
}

#[test]
fn a_failing_pod_is_hidden_by_retries_and_left_out_by_outlier_detection() {
    let world = world("failing");
    world.apply(&web_pod("broken", "node1", 503));
    world.lab.wait_ready(SOON).unwrap();
    let with_retries = |retries: &str| {
        virtual_service(&format!("  - route: [{{destination: {{host: web}}}}]\n    retries: {retries}\n"))
    };
    world.apply(&with_retries("{attempts: 0}"));
    eventually("without retries it shows", || {
        answers_so_far(&world, "client", 60, &[]).0.contains_key("broken")
    });
    world.apply(&with_retries("{attempts: 4, retryOn: '5xx', perTryTimeout: 2s}"));
    eventually("with retries it does not", || !answers(&world, "client", 60, &[]).contains_key("broken"));
    let counts = answers(&world, "client", 300, &[]);
    assert!(!counts.contains_key("broken") && !counts.contains_key("503"), "{counts:?}");
    let broken = || world.metric("node1", "istio_requests_total", "response_code=\"503\"");
    let before = broken();
    let ejecting = SUBSETS.replace(
        "  subsets:",
        "    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 60s, maxEjectionPercent: 100}\n  subsets:",
    );
    world.apply(&(ejecting + &with_retries("{attempts: 0}")));
    eventually("it is ejected", || !answers(&world, "client", 60, &[]).contains_key("broken"));
    let counts = answers(&world, "client", 300, &[]);
    assert!(!counts.contains_key("broken"), "{counts:?}");
    assert!(broken() > before, "it failed some requests before that");
}

#[test]
fn what_a_route_does_to_requests_and_responses_is_seen_at_both_ends() {
    let world = world("edits");
    world.apply(&virtual_service(
        "
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {prefix: /tea}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /slow}}]
    fault: {delay: {fixedDelay: 300ms, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /api/}}]
    rewrite: {uri: /, authority: inner}
    headers: {request: {set: {x-set: '1'}, remove: [x-gone]}, response: {add: {x-added: '2'}}}
    route: [{destination: {host: web, subset: v2}}]
",
    ));
    let curl = |arguments: &[&str]| {
        let mut program = vec!["curl", "-sS", "-m", "10", "-i"];
        program.extend(arguments);
        world.exec("app", "client", &program).text
    };
    eventually("the routes are in force", || curl(&["http://web/tea"]).contains("short and stout"));
    assert!(curl(&["http://web/tea"]).starts_with("HTTP/1.1 418"));
    let redirect = curl(&["http://web/old/x"]);
    assert!(
        redirect.starts_with("HTTP/1.1 308") && redirect.contains("location: http://web/new"),
        "{redirect}"
    );
    assert!(curl(&["http://web/fault"]).starts_with("HTTP/1.1 555"));
    assert!(curl(&["http://web/none"]).starts_with("HTTP/1.1 404"));
    let began = Instant::now();
    assert!(curl(&["http://web/slow"]).starts_with("HTTP/1.1 200"));
    assert!(began.elapsed().as_millis() >= 300, "{:?}", began.elapsed());
    let edited = curl(&["http://web/api/cart?a=1", "-H", "X-Gone: 1", "-d", "12345"]);
    for part in
        ["x-added: 2", "\"path\": \"/cart?a=1\"", "\"host\": \"inner\"", "\"x-set\": \"1\"", "\"body\": 5"]
    {
        assert!(edited.contains(part), "{part}: {edited}");
    }
    assert!(!edited.contains("x-gone"), "{edited}");
}

/// Bytes that are no HTTP go where they went before.
#[test]
fn other_protocols_on_a_port_that_is_not_declared_pass() {
    let world = World::new("undeclared");
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: plain, namespace: app}\nspec: {selector: {app: server}, ports: [{port: 7000}]}\n";
    let routes = virtual_service("  - route: [{destination: {host: plain}}]\n").replace("[web]", "[plain]");
    world.apply(&(service.to_owned() + &routes));
    eventually("bytes pass", || world.client("app", "client", &["who", "plain", "7000"]).ok);
    let mut text = String::new();
    for _ in 0..3 {
        let _ = writeln!(text, "{:?}", world.client("app", "client", &["who", "plain", "7000"]));
    }
    assert!(!text.contains("ok: false"), "{text}");
}
