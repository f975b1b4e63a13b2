//! A client, the proxy, and servers that are endpoints of a service with routes, over real sockets.

mod fixture;
mod http2;
mod http2_server;
mod limits;
mod retries;
mod routing;

use std::fmt::Write as _;
use std::time::Duration;

use self::fixture::{Mesh, ServerAnswer};
use crate::fixture::run_as_worker;

#[test]
fn requests_on_one_connection_are_answered_in_order_also_if_they_come_at_once() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut client = mesh.connect().await;
        let mut requests = String::new();
        for n in 0..100 {
            let _ = write!(requests, "GET /{n} HTTP/1.1\r\nHost: web\r\n\r\n");
        }
        client.send(&requests).await;
        for n in 0..100 {
            let response = client.response().await;
            assert!(
                response.starts_with("HTTP/1.1 200") && response.contains(&format!(" /{n} ")),
                "{response}"
            );
        }
        assert_eq!(mesh.servers["v1"].connections(), 1, "the upstream connection is used again");
    });
}

#[test]
fn bodies_come_through_in_both_framings_and_of_any_size() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut client = mesh.connect().await;
        for size in [0, 1, 16_384, 1 << 20] {
            let body = "x".repeat(size);
            client
                .send(&format!("POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: {size}\r\n\r\n{body}"))
                .await;
            let response = client.response().await;
            assert!(response.contains(&format!("body={size};")), "{size}: {response:.200}");
            let mut chunks = String::new();
            for chunk in body.as_bytes().chunks(1000) {
                let _ = write!(chunks, "{:x}\r\n{}\r\n", chunk.len(), chunk.escape_ascii());
            }
            let end = "0\r\nX-Sum: 1\r\n\r\n";
            client
                .send(&format!(
                    "POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{end}"
                ))
                .await;
            let response = client.response().await;
            assert!(response.contains(&format!("body={size};")), "{size}: {response:.200}");
        }
    });
}

#[test]
fn what_is_no_request_is_refused_and_no_server_sees_it() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        for (bad, status) in [
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ] {
            let mut client = mesh.connect().await;
            client.send(&format!("{bad}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let all = client.rest().await;
            assert!(all.starts_with(&format!("HTTP/1.1 {status}")), "{bad:?}: {all}");
            assert!(!all.contains("smuggled"), "{bad:?}: {all}");
        }
        assert_eq!(mesh.servers["v1"].connections() + mesh.servers["v2"].connections(), 0);
    });
}

#[test]
fn a_broken_body_ends_the_connection_and_is_not_taken_for_a_request() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut client = mesh.connect().await;
        client
            .send("POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGET /smuggled HTTP/1.1\r\n\r\n")
            .await;
        let all = client.rest().await;
        assert!(all.starts_with("HTTP/1.1 400") && all.contains("Connection: close"), "{all}");
    });
}

#[test]
fn clients_of_http_1_0_get_what_they_can_read() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mut client = mesh.connect().await;
        client.send("GET /chunked HTTP/1.0\r\nHost: web\r\n\r\n").await;
        let all = client.rest().await;
        assert!(!all.contains("chunked\r\n") && all.ends_with("one two"), "{all}");
        let mut client = mesh.connect().await;
        client.send("GET /a HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\n\r\n").await;
        let response = client.response().await;
        assert!(response.contains("Connection: keep-alive"), "{response}");
    });
}

#[test]
fn a_protocol_is_changed_to_when_both_want_it_and_bytes_go_both_ways() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.servers["v1"].answer(ServerAnswer::Echo);
        let mut client = mesh.connect().await;
        client
            .send("GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101") && head.contains("Upgrade: websocket"), "{head}");
        assert_eq!(client.exactly(5).await, "early");
        client.send("and later").await;
        assert_eq!(client.exactly(9).await, "and later");
    });
}

#[test]
fn interim_responses_come_through_before_the_final_one() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let interim =
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        mesh.servers["v1"].answer(ServerAnswer::Bytes(interim.to_owned()));
        let mut client = mesh.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let hints = client.head().await;
        assert!(hints.starts_with("HTTP/1.1 103") && hints.contains("Link: </a>"), "{hints}");
        assert!(client.response().await.ends_with("ok"));
    });
}

#[test]
fn a_response_that_is_cut_off_reaches_the_client_as_cut_off() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            mesh.servers["v1"].answer(ServerAnswer::BytesAndClose(cut.to_owned()));
            let mut client = mesh.connect().await;
            client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert!(client.ends_with_reset().await, "{cut:?}");
        }
    });
}

#[test]
fn an_answer_before_the_body_is_sent_comes_through() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let early = "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        mesh.servers["v1"].answer(ServerAnswer::BytesAndClose(early.to_owned()));
        let mut client = mesh.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nxxx").await;
        assert!(client.response().await.starts_with("HTTP/1.1 413"));
    });
}

#[test]
fn a_request_that_nobody_answers_in_time_gets_504() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.servers["v1"].answer(ServerAnswer::Silence);
        mesh.set_routes(vec![fixture::to("v1", |forward| {
            forward.timeout = Some(fixture::span(Duration::from_millis(50)));
        })]);
        let mut client = mesh.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 504"), "{response}");
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(client.response().await.starts_with("HTTP/1.1 504"), "the connection goes on");
    });
}

#[test]
fn what_follows_a_refused_connect_is_no_request() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let refused = "HTTP/1.1 405 Not Allowed\r\nContent-Length: 0\r\n\r\n";
        mesh.servers["v1"].answer(ServerAnswer::Bytes(refused.to_owned()));
        let mut client = mesh.connect().await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
        client.send(&format!("CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n{smuggled}")).await;
        let all = client.rest().await;
        assert!(all.starts_with("HTTP/1.1 405") && all.matches("HTTP/1.1").count() == 1, "{all}");
        assert_eq!(mesh.servers["v1"].requests().len(), 1);
    });
}

#[test]
fn a_rewrite_that_leads_elsewhere_by_dots_is_refused() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_routes(vec![fixture::rewriting("/static", "/files/")]);
        let mut client = mesh.connect().await;
        assert_eq!(client.ask("/statica", "").await, "v1");
        assert_eq!(client.ask("/static../secret", "").await, "HTTP/1.1 400 Bad Request");
    });
}
