//! HTTP/2 at either side, or both.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use mesh_api::wire::workload::AppProtocol;

use super::fixture::{Mesh, ServerAnswer, span, to};
use super::http2_server::Http2Answer;
use crate::fixture::{run_as_worker, wait_until};
use crate::telemetry::{AccessLog, AgentMetrics};

/// A whole response.
#[derive(Debug)]
pub struct Whole {
    head: Response<()>,
    pub body: String,
    trailers: Option<HeaderMap>,
}

impl Whole {
    pub fn field(&self, name: &str) -> &str {
        self.head.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn outcome(&self) -> &str {
        let in_trailers = self.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        in_trailers.map_or_else(|| self.field("grpc-status"), |value| value.to_str().unwrap())
    }
}

pub fn get(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://web{path}")).body(()).unwrap()
}

fn call(path: &str) -> Request<()> {
    let request = Request::builder().method("POST").uri(format!("http://web{path}"));
    request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// Sends a request with a body and trailers, and reads the response.
pub async fn ask(
    requests: &SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<Whole, h2::Error> {
    let mut ready = requests.clone().ready().await?;
    let has_none = body.is_empty() && trailers.is_none();
    let (response, mut send) = ready.send_request(request, has_none)?;
    if !has_none {
        let mut left = Bytes::copy_from_slice(body);
        while !left.is_empty() {
            send.reserve_capacity(left.len());
            let most = std::future::poll_fn(|context| send.poll_capacity(context)).await.unwrap()?;
            send.send_data(left.split_to(most.min(left.len())), false)?;
        }
        send.send_trailers(trailers.unwrap_or_default())?;
    }
    let (head, mut receive) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = receive.data().await {
        let data = data?;
        body.extend_from_slice(&data);
        receive.flow_control().release_capacity(data.len())?;
    }
    let trailers = receive.trailers().await?;
    Ok(Whole { head: Response::from_parts(head, ()), body: String::from_utf8(body).unwrap(), trailers })
}

#[test]
fn requests_of_http2_go_on_as_such_and_share_a_connection() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let client = mesh.connect_http2().await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let whole = ask(&client, call("/a?b=c"), &vec![b'x'; 1 << 20], Some(trailers)).await.unwrap();
        assert_eq!(whole.body, "v1: POST /a?b=c body=1048576 sum=Some(\"7\");");
        assert_eq!((whole.field("x-server"), whole.outcome()), ("v1", "0"));
        let paths: Vec<_> = (0..50).map(|n| format!("/{n}")).collect();
        let all = paths.iter().map(|path| ask(&client, get(path), b"", None));
        for (path, whole) in paths.iter().zip(futures_util::future::join_all(all).await) {
            assert!(whole.unwrap().body.contains(&format!("GET {path} ")));
        }
        assert_eq!(mesh.servers["v1"].connections(), 1, "one connection for all");
        let seen = mesh.servers["v1"].http2.requests.borrow();
        assert!(seen[0].headers().contains_key("x-request-id") && seen[0].headers()["te"] == "trailers");
    });
}

#[test]
fn what_a_port_declares_is_spoken_whatever_the_client_speaks() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.declare(AppProtocol::Http11);
        let client = mesh.connect_http2().await;
        let whole = ask(&client, get("/a"), b"", None).await.unwrap();
        assert!(
            whole.body.contains("GET /a HTTP/1.1 body=0") && !whole.field("content-length").is_empty(),
            "{whole:?}"
        );
        let whole = ask(&client, call("/b"), &vec![b'x'; 100_000], None).await.unwrap();
        assert!(whole.body.contains("POST /b HTTP/1.1 body=100000"), "{whole:?}");
        let whole = ask(&client, get("/chunked"), b"", None).await.unwrap();
        assert_eq!(whole.body, "one two");

        mesh.declare(AppProtocol::Http2);
        let mut client = mesh.connect().await;
        client.send("POST /c HTTP/1.1\r\nHost: web\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 3\r\n\r\nabc").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("Transfer-Encoding: chunked"), "{head}");
        assert!(client.until("grpc-status: 0\r\n\r\n").await.contains("v1: POST /c body=3"));
        client.send("POST /d HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n").await;
        client.head().await;
        assert!(client.until("0\r\n\r\n").await.contains("v1: POST /d body=3 sum=Some(\"9\")"));
        let seen = mesh.servers["v1"].http2.requests.borrow();
        assert!(!seen[0].headers().contains_key("x-hop") && seen[0].headers()["content-length"] == "3");
    });
}

#[test]
fn a_call_of_grpc_that_fails_is_told_in_its_words() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let client = mesh.connect_http2().await;
        let mut elsewhere = to("v1", |_| ());
        elsewhere.matches.push(super::fixture::prefix_match("/elsewhere"));
        mesh.set_routes(vec![elsewhere]);
        let whole = ask(&client, call("/a.B/C"), b"", None).await.unwrap();
        assert_eq!((whole.head.status().as_u16(), whole.outcome()), (200, "12"));
        // It is counted as the client saw it.
        let metrics = AgentMetrics::new(vec![Arc::clone(&mesh.node.worker.metrics)], AccessLog::disabled());
        let text = metrics.render_prometheus().unwrap();
        let counted = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
        for label in ["response_code=\"200\"", "grpc_response_status=\"12\"", "response_flags=\"NR\""] {
            assert!(counted.contains(label), "{label} is not in {counted}");
        }

        mesh.set_routes(vec![to("v1", |forward| forward.timeout = Some(span(Duration::from_millis(50))))]);
        mesh.servers["v1"].http2.answer(Http2Answer::Silence);
        let whole = ask(&client, call("/a.B/C"), b"", None).await.unwrap();
        assert_eq!((whole.outcome(), whole.field("content-type")), ("4", "application/grpc"));
        let whole = ask(&client, get("/a"), b"", None).await.unwrap();
        assert_eq!(whole.head.status(), 504);

        mesh.set_routes(vec![to("v1", |_| ())]);
        let mut hurried = call("/a.B/C");
        hurried.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
        assert_eq!(ask(&client, hurried, b"", None).await.unwrap().outcome(), "4");
        let server = &mesh.servers["v1"].http2;
        wait_until("the endpoint is told", || server.was_cancelled.get()).await;
    });
}

#[test]
fn what_an_endpoint_has_not_begun_with_is_sent_again() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let client = mesh.connect_http2().await;
        let server = &mesh.servers["v1"].http2;
        server.answer_times(Http2Answer::Reset(Reason::REFUSED_STREAM), 1);
        assert_eq!(ask(&client, call("/a"), b"abc", None).await.unwrap().outcome(), "0");
        server.answer_times(Http2Answer::Outcome("14"), 2);
        assert_eq!(ask(&client, call("/b"), b"abc", None).await.unwrap().outcome(), "0");
        assert!(server.requests.borrow().len() == 5);
        server.answer_times(Http2Answer::Outcome("13"), 1);
        assert_eq!(
            ask(&client, call("/c"), b"abc", None).await.unwrap().outcome(),
            "13",
            "it may have worked"
        );
        server.answer_times(Http2Answer::Reset(Reason::INTERNAL_ERROR), 1);
        assert_eq!(ask(&client, call("/d"), b"abc", None).await.unwrap().outcome(), "14");
    });
}

#[test]
fn a_response_that_breaks_off_is_no_whole_one() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let client = mesh.connect_http2().await;
        mesh.servers["v1"].http2.answer(Http2Answer::BreakAfter(1000));
        assert!(ask(&client, get("/a"), b"", None).await.unwrap_err().is_reset());
        mesh.declare(AppProtocol::Http11);
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_owned();
        mesh.servers["v1"].answer(ServerAnswer::BytesAndClose(cut));
        assert!(ask(&client, get("/a"), b"", None).await.unwrap_err().is_reset());
    });
}

#[test]
fn a_client_that_leaves_cancels_its_request_alone() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let client = mesh.connect_http2().await;
        let server = &mesh.servers["v1"].http2;
        server.answer_times(Http2Answer::Silence, 1);
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(call("/a"), false).unwrap();
        wait_until("it came", || server.requests.borrow().len() == 1).await;
        send.send_reset(Reason::CANCEL);
        wait_until("the endpoint is told", || server.was_cancelled.get()).await;
        assert!(response.await.is_err());
        assert_eq!(ask(&client, get("/b"), b"", None).await.unwrap().head.status(), 200);
        assert_eq!(mesh.servers["v1"].connections(), 1);
    });
}

#[test]
fn bytes_behind_a_head_without_a_body_are_nobodys_response() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.declare(AppProtocol::Http2);
        let mut client = mesh.connect().await;
        let smuggled = "HTTP/1.1 200 OK\r\nX-Server: smuggled\r\nContent-Length: 0\r\n\r\n";
        mesh.servers["v1"].http2.answer_times(Http2Answer::NoContentAndBytes(smuggled), 1);
        client.send("GET /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 204"));
        client.send("GET /b HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-server: v1"), "{head}");
    });
}

#[test]
fn an_outcome_behind_no_content_is_told() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let client = mesh.connect_http2().await;
        mesh.servers["v1"].http2.answer(Http2Answer::EmptyAndOutcome("5"));
        assert_eq!(ask(&client, call("/a"), b"abc", None).await.unwrap().outcome(), "5");
    });
}
