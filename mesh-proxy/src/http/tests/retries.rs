//! What is sent again, and what never.

use std::time::Duration;

use mesh_api::wire::ext;

use super::fixture::{Mesh, ServerAnswer, span, to};
use crate::fixture::run_as_worker;

fn retrying(conditions: &[&str]) -> ext::HttpRoute {
    let retries = ext::HttpRetries {
        attempts: 3,
        conditions: conditions.iter().map(|&it| it.to_owned()).collect(),
        backoff: Some(span(Duration::from_millis(1))),
        ..ext::HttpRetries::default()
    };
    to("", |forward| forward.retries = Some(retries))
}

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_status_that_the_route_names_is_retried_at_another_endpoint() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.servers["v1"].answer(ServerAnswer::Bytes(UNAVAILABLE.to_owned()));
        mesh.set_routes(vec![retrying(&["5xx"])]);
        let mut client = mesh.connect().await;
        for size in [0, 1024, 65_536] {
            let body = "x".repeat(size);
            for _ in 0..8 {
                client
                    .send(&format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {size}\r\n\r\n{body}"))
                    .await;
                let response = client.response().await;
                assert!(response.contains(&format!("v2: POST / HTTP/1.1 body={size};")), "{response}");
            }
        }
        assert!(!mesh.servers["v1"].requests().is_empty(), "some were tried there first");
    });
}

#[test]
fn without_such_a_condition_the_response_is_the_servers() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        for server in mesh.servers.values() {
            server.answer(ServerAnswer::Bytes(UNAVAILABLE.to_owned()));
        }
        mesh.set_routes(vec![to("", |_| ())]);
        let mut client = mesh.connect().await;
        assert_eq!(client.ask("/", "").await, "HTTP/1.1 503 Service Unavailable");
        let requests: usize = mesh.servers.values().map(|server| server.requests().len()).sum();
        assert_eq!(requests, 1);
    });
}

#[test]
fn a_body_that_is_too_large_to_keep_is_not_sent_again() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        for server in mesh.servers.values() {
            server.answer(ServerAnswer::Bytes(UNAVAILABLE.to_owned()));
        }
        mesh.set_routes(vec![retrying(&["5xx"])]);
        let mut client = mesh.connect().await;
        let size = 200_000;
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {size}\r\n\r\n{}",
                "x".repeat(size)
            ))
            .await;
        assert!(client.response().await.starts_with("HTTP/1.1 503"));
    });
}

#[test]
fn a_kept_connection_that_the_server_closed_costs_no_request() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut client = mesh.connect().await;
        let closing = "HTTP/1.1 200 OK\r\nX-Server: v1\r\nContent-Length: 0\r\n\r\n";
        for _ in 0..20 {
            // It says nothing of the close that follows.
            mesh.servers["v1"].answer(ServerAnswer::BytesAndClose(closing.to_owned()));
            assert_eq!(client.ask("/", "").await, "v1");
        }
        assert_eq!(mesh.servers["v1"].connections(), 20);
    });
}

#[test]
fn who_resets_is_retried_only_if_the_route_says_so() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.servers["v1"].answer(ServerAnswer::BytesAndClose(String::new()));
        mesh.set_routes(vec![to("v1", |_| ())]);
        let mut client = mesh.connect().await;
        assert_eq!(client.ask("/", "").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(mesh.servers["v1"].requests().len(), 1);
        mesh.set_routes(vec![retrying(&["reset"])]);
        for _ in 0..8 {
            assert_eq!(client.ask("/", "").await, "v2");
        }
    });
}
