//! Limits of a service's requests, and of the connections that they go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::wire::ext;
use mesh_api::wire::workload::AppProtocol;

use super::fixture::{Client, Mesh, ServerAnswer, WEB, prefix_match, span, to};
use super::http2;
use crate::fixture::{run_as_worker, wait_until};
use crate::telemetry::{AccessLog, AgentMetrics};

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
/// A request of which the last byte of the body is missing, so that its server does not answer yet.
const HELD: &str = "POST /held HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\n1";

fn of_pool(change: impl FnOnce(&mut ext::ConnectionPool)) -> ext::PortPolicy {
    let mut pool = ext::ConnectionPool::default();
    change(&mut pool);
    ext::PortPolicy { pool: Some(pool), ..ext::PortPolicy::default() }
}

fn of_requests(http: ext::HttpPool) -> ext::PortPolicy {
    of_pool(|pool| pool.http = Some(http))
}

impl Mesh {
    /// Slots of the service that are taken, and how many requests wait for one: of connections, requests and
    /// retries.
    fn taken(&self) -> [(u32, u32); 3] {
        let limits = &self.node.worker.shared.service_limits;
        let key = (format!("{}/{}", WEB.0, WEB.1).into(), 80);
        [&limits.connections, &limits.requests, &limits.retries].map(|slots| slots.counts(&key))
    }

    /// The value of a metric with a label.
    fn metric(&self, name: &str, label: &str) -> String {
        let workers = vec![Arc::clone(&self.node.worker.metrics)];
        let text = AgentMetrics::new(workers, AccessLog::disabled()).render_prometheus().unwrap();
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
        line.map_or("none", |line| line.rsplit(' ').next().unwrap()).to_owned()
    }
}

/// A client whose request has come to its server, and waits there for the rest of its body.
async fn hold(mesh: &Mesh) -> Client {
    let before = mesh.servers["v1"].requests().len();
    let mut client = mesh.connect().await;
    client.send(HELD).await;
    wait_until("the server has it", || mesh.servers["v1"].requests().len() > before).await;
    client
}

async fn is_refused(client: &mut Client) -> bool {
    client.send("GET /more HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let response = client.response().await.to_ascii_lowercase();
    response.starts_with("http/1.1 503") && response.contains("x-envoy-overloaded: true")
}

#[test]
fn a_service_with_one_connection_serves_one_request_after_the_other() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_policy(of_pool(|pool| pool.max_connections = 1));
        let closing = "HTTP/1.1 200 OK\r\nX-Server: v1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        mesh.servers["v1"].answer(ServerAnswer::BytesAndClose(closing.to_owned()));
        let mut client = mesh.connect().await;
        for _ in 0..5 {
            assert_eq!(client.ask("/", "").await, "v1", "after a connection that was closed");
        }
        mesh.servers["v1"].answer(ServerAnswer::Describe);
        let mut other = mesh.connect().await;
        for _ in 0..5 {
            assert_eq!(client.ask("/", "").await, "v1", "after one that is kept");
            assert_eq!(other.ask("/", "").await, "v1", "of another client");
        }
    });
}

#[test]
fn requests_wait_for_a_connection_in_turn_and_no_more_than_may() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_policy(of_pool(|pool| {
            pool.max_connections = 1;
            pool.http = Some(ext::HttpPool { max_pending_requests: 2, ..ext::HttpPool::default() });
        }));
        let mut held = hold(&mesh).await;
        let mut waiting = Vec::new();
        for count in 1..=2 {
            let mut client = mesh.connect().await;
            client.send(&format!("GET /{count} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            wait_until("it waits", || mesh.taken()[0] == (1, count)).await;
            waiting.push(client);
        }
        assert!(is_refused(&mut mesh.connect().await).await, "two wait");
        assert_eq!(mesh.servers["v1"].requests().len(), 1, "the others have not come to the server");
        held.send("2").await;
        assert!(held.response().await.contains("body=2;"));
        for client in &mut waiting {
            assert!(client.response().await.starts_with("HTTP/1.1 200"));
        }
        let paths: Vec<_> = mesh.servers["v1"].requests().iter().map(|head| head[..7].to_owned()).collect();
        assert_eq!(paths, ["POST /h", "GET /1 ", "GET /2 "]);
        assert_eq!(mesh.taken()[0], (0, 0));
        let counted = |limit: &str| mesh.metric("nodemesh_requests_over_limit_total", limit);
        assert_eq!((&*counted("http1MaxPendingRequests"), &*counted("http2MaxRequests")), ("1", "0"));
        assert_eq!(mesh.metric("istio_requests_total", "response_flags=\"UO\""), "1");
    });
}

#[test]
fn a_request_waits_no_longer_than_it_has_and_its_endpoint_is_not_blamed() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut policy = of_pool(|pool| pool.max_connections = 1);
        policy.outlier = Some(ext::OutlierDetection {
            consecutive_errors: 1,
            max_ejection_percent: 100,
            ..ext::OutlierDetection::default()
        });
        mesh.set_policy(policy);
        let mut held = hold(&mesh).await;
        let timeout = Some(span(Duration::from_millis(50)));
        mesh.set_routes(vec![to("v1", |forward| forward.timeout = timeout)]);
        assert_eq!(mesh.connect().await.ask("/", "").await, "HTTP/1.1 504 Gateway Timeout");
        assert_eq!(mesh.taken()[0], (1, 0), "it has left the queue");
        held.send("2").await;
        assert!(held.response().await.contains("body=2;"));
        assert_eq!(held.ask("/", "").await, "v1", "the endpoint is not ejected");
    });
}

#[test]
fn a_request_has_its_time_while_it_waits_with_its_body_unread() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_policy(of_pool(|pool| pool.max_connections = 1));
        let _held = hold(&mesh).await;
        let timeout = Some(span(Duration::from_millis(50)));
        mesh.set_routes(vec![to("v1", |forward| forward.timeout = timeout)]);
        let mut client = mesh.connect().await;
        client.send(HELD).await;
        assert!(client.response().await.starts_with("HTTP/1.1 504"));
    });
}

#[test]
fn a_client_that_resets_its_connection_waits_no_more_and_one_that_half_closes_it_does() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_policy(of_pool(|pool| pool.max_connections = 1));
        let mut held = hold(&mesh).await;
        let mut clients = Vec::new();
        for count in 1..=2 {
            let mut client = mesh.connect().await;
            client.send("GET /waits HTTP/1.1\r\nHost: web\r\n\r\n").await;
            wait_until("it waits", || mesh.taken()[0] == (1, count)).await;
            clients.push(client);
        }
        let mut stays = clients.remove(0);
        stays.close_writing().await;
        clients.remove(0).reset();
        wait_until("one is gone", || mesh.taken()[0] == (1, 1)).await;
        held.send("2").await;
        assert!(held.response().await.contains("body=2;"));
        assert!(stays.response().await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_request_of_http2_that_waits_gets_the_first_stream_that_is_free() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.declare(AppProtocol::Http2);
        mesh.set_policy(of_pool(|pool| pool.max_connections = 1));
        let (client, other) = (mesh.connect_http2().await, mesh.connect_http2().await);
        let mut held = Vec::new();
        for _ in 0..100 {
            let request = http::Request::builder().method("POST").uri("http://web/held").body(()).unwrap();
            held.push(client.clone().ready().await.unwrap().send_request(request, false).unwrap());
        }
        let requests = || mesh.servers["v1"].http2.requests.borrow().len();
        wait_until("the server has them", || requests() == 100).await;
        let waiting = tokio::task::spawn_local(async move {
            http2::ask(&other, http2::get("/waits"), b"", None).await.unwrap()
        });
        wait_until("it waits", || mesh.taken()[0] == (1, 1)).await;
        let (response, mut body) = held.pop().unwrap();
        body.send_data(bytes::Bytes::new(), true).unwrap();
        assert!(response.await.unwrap().status().is_success());
        let served = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        assert!(served.expect("99 others go on").unwrap().body.starts_with("v1: GET /waits"));
        assert_eq!(mesh.taken()[0], (1, 0));
    });
}

#[test]
fn requests_of_http2_wait_for_a_connection_too() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.declare(AppProtocol::Http2);
        mesh.set_policy(of_pool(|pool| pool.max_connections = 1));
        let mut elsewhere = to("v2", |_| ());
        elsewhere.matches.push(prefix_match("/v2"));
        mesh.set_routes(vec![elsewhere, to("v1", |_| ())]);
        let client = mesh.connect_http2().await;
        let request = http::Request::builder().method("POST").uri("http://web/held").body(()).unwrap();
        let (response, mut body) =
            client.clone().ready().await.unwrap().send_request(request, false).unwrap();
        wait_until("the server has it", || !mesh.servers["v1"].http2.requests.borrow().is_empty()).await;
        let beside = http2::ask(&client, http2::get("/beside"), b"", None).await.unwrap();
        assert!(beside.body.starts_with("v1: GET /beside"), "it shares the connection");
        let client = client.clone();
        let waiting = tokio::task::spawn_local(async move {
            http2::ask(&client, http2::get("/v2"), b"", None).await.unwrap()
        });
        wait_until("it waits", || mesh.taken()[0] == (1, 1)).await;
        body.send_data(bytes::Bytes::new(), true).unwrap();
        assert!(response.await.unwrap().status().is_success());
        assert!(waiting.await.unwrap().body.starts_with("v2: GET /v2"));
        wait_until("all is given back", || mesh.taken()[0] == (0, 0)).await;
    });
}

#[test]
fn so_many_requests_are_under_way_and_no_more_of_either_protocol() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_policy(of_requests(ext::HttpPool { max_requests: 1, ..ext::HttpPool::default() }));
        let mut held = hold(&mesh).await;
        let mut other = mesh.connect().await;
        assert!(is_refused(&mut other).await);
        let http2 = mesh.connect_http2().await;
        let refused = http2::ask(&http2, http2::get("/"), b"", None).await.unwrap();
        assert_eq!(refused.field("x-envoy-overloaded"), "true");
        held.send("2").await;
        assert!(held.response().await.contains("body=2;"));
        for _ in 0..3 {
            assert_eq!(other.ask("/", "").await, "v1", "its turn has come");
        }
        let served = http2::ask(&http2, http2::get("/"), b"", None).await.unwrap();
        assert!(served.body.starts_with("v1"), "{served:?}");
        let over = mesh.metric("nodemesh_requests_over_limit_total", "http2MaxRequests");
        assert_eq!((&*over, mesh.taken()[1]), ("2", (0, 0)));
    });
}

#[test]
fn a_connection_has_so_many_requests_and_is_closed_then() {
    run_as_worker(async {
        for (most, connections) in [(1, 6), (2, 3), (0, 1)] {
            let limit = ext::HttpPool { max_requests_per_connection: most, ..ext::HttpPool::default() };
            for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
                let mesh = Mesh::new().await;
                mesh.declare(protocol);
                mesh.set_policy(of_requests(limit));
                let client = mesh.connect_http2().await;
                for _ in 0..6 {
                    let served = http2::ask(&client, http2::get("/"), b"", None).await.unwrap();
                    assert!(served.body.starts_with("v1"), "{served:?}");
                }
                assert_eq!(mesh.servers["v1"].connections(), connections, "{most} of {protocol:?}");
            }
        }
    });
}

#[test]
fn idle_connections_are_closed_when_the_policy_says_so() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let idle_timeout = Some(span(Duration::from_millis(20)));
        mesh.set_policy(of_requests(ext::HttpPool { idle_timeout, ..ext::HttpPool::default() }));
        let began = Instant::now();
        assert_eq!(mesh.connect().await.ask("/", "").await, "v1");
        let idle = &mesh.node.worker.http_connections;
        assert_eq!(idle.len(), 1, "it is kept at first");
        wait_until("it is closed", || {
            idle.close_idle();
            idle.is_empty()
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(3), "no longer than without the limit");
    });
}

/// A route that sends requests again an hour after they failed.
fn retrying_late() -> ext::HttpRoute {
    let retries = ext::HttpRetries {
        attempts: 3,
        conditions: vec!["5xx".to_owned()],
        least_backoff: Some(span(Duration::from_hours(1))),
        ..ext::HttpRetries::default()
    };
    to("v1", |forward| forward.retries = Some(retries))
}

#[test]
fn so_many_requests_are_sent_again_at_once_and_the_others_fail() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.servers["v1"].answer(ServerAnswer::Bytes(UNAVAILABLE.to_owned()));
        mesh.set_policy(of_requests(ext::HttpPool { max_retries: 1, ..ext::HttpPool::default() }));
        mesh.set_routes(vec![retrying_late()]);
        let mut first = mesh.connect().await;
        first.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        wait_until("it is to be sent again", || mesh.taken()[2] == (1, 0)).await;
        assert_eq!(mesh.connect().await.ask("/", "").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(mesh.servers["v1"].requests().len(), 2);
        assert_eq!(mesh.metric("nodemesh_requests_over_limit_total", "maxRetries"), "1");
        assert_eq!(mesh.metric("istio_requests_total", "response_flags=\"UO\""), "1");
    });
}

#[test]
fn a_budget_of_retries_is_a_share_of_the_requests() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut policy = of_requests(ext::HttpPool { max_retries: 9, ..ext::HttpPool::default() });
        policy.retry_budget = Some(ext::RetryBudget { share: 500_000, min_retry_concurrency: 0 });
        mesh.set_policy(policy);
        let mut held = [hold(&mesh).await, hold(&mesh).await];
        mesh.servers["v1"].answer(ServerAnswer::Bytes(UNAVAILABLE.to_owned()));
        mesh.set_routes(vec![retrying_late()]);
        let mut first = mesh.connect().await;
        first.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        wait_until("it is one of three, of which half may", || mesh.taken()[2] == (1, 0)).await;
        // Again there are three.
        assert_eq!(mesh.connect().await.ask("/", "").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(mesh.metric("nodemesh_requests_over_limit_total", "retryBudget"), "1");
        for client in &mut held {
            client.send("2").await;
            assert!(client.response().await.starts_with("HTTP/1.1 200"));
        }
        wait_until("nothing else is under way", || mesh.taken()[1] == (0, 0)).await;
    });
}

#[test]
fn the_policy_says_what_endpoints_are_spoken_to_in() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.declare(AppProtocol::Http11);
        let upgrading = ext::HttpPool { upgrades_to_http2: true, ..ext::HttpPool::default() };
        mesh.set_policy(of_requests(upgrading));
        let server = &mesh.servers["v1"];
        let mut client = mesh.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(client.until("0\r\n").await.contains("v1: GET /"));
        assert_eq!((server.requests().len(), server.http2.requests.borrow().len()), (0, 1));
        server.answer(ServerAnswer::Echo);
        let mut socket = mesh.connect().await;
        socket
            .send("GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
            .await;
        assert!(socket.head().await.starts_with("HTTP/1.1 101"), "what becomes a tunnel stays HTTP/1");
        server.answer(ServerAnswer::Describe);

        mesh.set_policy(of_requests(ext::HttpPool { uses_client_protocol: true, ..upgrading }));
        mesh.declare(AppProtocol::Http2);
        assert_eq!(mesh.connect().await.ask("/", "").await, "v1");
        assert_eq!((server.requests().len(), server.http2.requests.borrow().len()), (2, 1));
        mesh.declare(AppProtocol::Http11);
        let http2 = mesh.connect_http2().await;
        http2::ask(&http2, http2::get("/"), b"", None).await.unwrap();
        assert_eq!((server.requests().len(), server.http2.requests.borrow().len()), (2, 2));
    });
}

#[test]
fn an_endpoint_is_ejected_for_the_statuses_that_the_policy_names() {
    run_as_worker(async {
        let status =
            |line: &str| ServerAnswer::Bytes(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n"));
        for (line, gateway, statuses) in [("503 No", 5, vec![]), ("429 No", 0, vec![429])] {
            let mesh = Mesh::new().await;
            mesh.servers["v1"].answer(status(line));
            let policy = |outlier| ext::PortPolicy { outlier: Some(outlier), ..ext::PortPolicy::default() };
            let outlier = ext::OutlierDetection {
                consecutive_errors: if statuses.is_empty() { 0 } else { 5 },
                consecutive_gateway_errors: gateway,
                http_error_statuses: statuses,
                max_ejection_percent: 100,
                ..ext::OutlierDetection::default()
            };
            mesh.set_policy(policy(outlier));
            let mut client = mesh.connect().await;
            for _ in 0..5 {
                assert_eq!(client.ask("/", "").await, format!("HTTP/1.1 {line}"));
            }
            assert_eq!(client.ask("/", "").await, "HTTP/1.1 503 Service Unavailable", "nobody is left");
            assert_eq!(mesh.servers["v1"].requests().len(), 5);
            mesh.set_routes(vec![to("", |_| ())]);
            for _ in 0..8 {
                assert_eq!(client.ask("/", "").await, "v2");
            }
        }
    });
}
