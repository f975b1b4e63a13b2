//! Where requests go.

use mesh_api::wire::ext::{self, http_redirect, http_rewrite, http_route, string_match::Form};

use super::fixture::{Mesh, ServerAnswer, destination, route, span, to};
use crate::fixture::{run_as_worker, wait_until};

fn matching(mut route: ext::HttpRoute, condition: ext::HttpMatch) -> ext::HttpRoute {
    route.matches.push(condition);
    route
}

fn header(name: &str, value: &str) -> ext::HttpMatch {
    let value = Some(ext::StringMatch { form: Some(Form::Exact(value.to_owned())) });
    let header = ext::HeaderMatch { name: name.to_owned(), value, invert: false };
    ext::HttpMatch { headers: vec![header], ..ext::HttpMatch::default() }
}

fn prefix(path: &str) -> ext::HttpMatch {
    let path = Some(ext::StringMatch { form: Some(Form::Prefix(path.to_owned())) });
    ext::HttpMatch { path, ..ext::HttpMatch::default() }
}

#[test]
fn testers_go_to_v2_by_a_header_and_all_others_to_v1_on_one_connection() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.set_routes(vec![matching(to("v2", |_| ()), header("user", "test")), to("v1", |_| ())]);
        let mut client = mesh.connect().await;
        for (field, server) in
            [("User: test\r\n", "v2"), ("", "v1"), ("user: other\r\n", "v1"), ("USER: test\r\n", "v2")]
        {
            assert_eq!(client.ask("/", field).await, server, "{field}");
        }
    });
}

#[test]
fn weights_are_kept_and_a_change_counts_on_open_connections() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let split = |one, two| {
            to("", |forward| forward.destinations = vec![destination("v1", one), destination("v2", two)])
        };
        mesh.set_routes(vec![split(80, 20)]);
        let mut client = mesh.connect().await;
        let mut of_v2 = 0;
        for _ in 0..1000 {
            of_v2 += usize::from(client.ask("/", "").await == "v2");
        }
        // Five standard deviations of the binomial distribution.
        assert!((137..=263).contains(&of_v2), "{of_v2}");
        mesh.set_routes(vec![split(0, 1)]);
        assert_eq!(client.ask("/", "").await, "v2");
    });
}

#[test]
fn a_route_answers_redirects_or_has_requests_fail() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let direct = http_route::Action::DirectResponse(ext::HttpDirectResponse {
            status: 418,
            body: b"tea".to_vec(),
        });
        let redirect = http_route::Action::Redirect(ext::HttpRedirect {
            path: Some(http_redirect::Path::Prefix("/new".to_owned())),
            authority: "other:8080".to_owned(),
            status: 308,
            ..ext::HttpRedirect::default()
        });
        let fault = ext::HttpFault { abort_status: 555, abort_share: 1_000_000, ..ext::HttpFault::default() };
        mesh.set_routes(vec![
            matching(route(direct), prefix("/tea")),
            matching(route(redirect), prefix("/old")),
            matching(to("v1", |forward| forward.fault = Some(fault)), prefix("/fault")),
            matching(to("v3", |_| ()), prefix("/nowhere")),
            matching(to("v1", |forward| forward.destinations[0].status = 500), prefix("/refused")),
        ]);
        let mut client = mesh.connect().await;
        client.send("POST /tea HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc").await;
        let tea = client.response().await;
        assert!(tea.starts_with("HTTP/1.1 418") && tea.ends_with("\r\n\r\ntea"), "{tea}");
        client.send("GET /old/a?b HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let redirect = client.response().await;
        assert!(redirect.contains("location: http://other:8080/new/a?b\r\n"), "{redirect}");
        assert_eq!(client.ask("/fault", "").await, "HTTP/1.1 555 ");
        assert_eq!(client.ask("/nowhere", "").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(client.ask("/refused", "").await, "HTTP/1.1 500 Internal Server Error");
        assert_eq!(client.ask("/other", "").await, "HTTP/1.1 404 Not Found");
        assert_eq!(mesh.servers["v1"].connections(), 0);
    });
}

#[test]
fn what_the_server_gets_is_what_the_route_says() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let value =
            |name: &str, value: &str| ext::HeaderValue { name: name.to_owned(), value: value.to_owned() };
        let edits = ext::HeaderEdits {
            set: vec![value("x-set", "1")],
            remove: vec!["x-gone".to_owned()],
            ..ext::HeaderEdits::default()
        };
        let rewrite = ext::HttpRewrite {
            path: Some(http_rewrite::Path::Uri("/b".to_owned())),
            authority: "new".to_owned(),
        };
        let response = ext::HeaderEdits { set: vec![value("X-Answer", "2")], ..ext::HeaderEdits::default() };
        mesh.set_routes(vec![matching(
            to("v1", |forward| {
                (forward.request, forward.response, forward.rewrite) =
                    (Some(edits), Some(response), Some(rewrite));
            }),
            prefix("/a"),
        )]);
        let mut client = mesh.connect().await;
        client
            .send("GET /a/x/../c?q HTTP/1.1\r\nHost: web\r\nX-Gone: 1\r\nX-Set: 0\r\nX-Case: Kept\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n")
            .await;
        let response = client.response().await;
        assert!(response.contains("x-answer: 2"), "{response}");
        let [request] = &mesh.servers["v1"].requests()[..] else { panic!("one request") };
        let lines: Vec<&str> = request.lines().collect();
        assert_eq!(&lines[..2], ["GET /b/c?q HTTP/1.1", "Host: new"], "{request}");
        for (line, is_there) in [
            ("x-set: 1", true),
            ("X-Case: Kept", true),
            ("X-Gone: 1", false),
            ("X-Set: 0", false),
            ("X-Hop: 1", false),
        ] {
            assert_eq!(lines.contains(&line), is_there, "{line}: {request}");
        }
        let added = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!((added("x-request-id: "), added("x-forwarded-proto: http")), (1, 1), "{request}");
    });
}

#[test]
fn routes_that_go_leave_connections_that_are_read_with_the_service_itself() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        mesh.servers["v2"].answer(ServerAnswer::Describe);
        let mut client = mesh.connect().await;
        assert_eq!(client.ask("/", "").await, "v1");
        let delay = ext::HttpFault {
            delay: Some(span(std::time::Duration::from_millis(30))),
            delay_share: 1_000_000,
            ..ext::HttpFault::default()
        };
        mesh.set_routes(vec![to("v2", |forward| forward.fault = Some(delay))]);
        let began = std::time::Instant::now();
        assert_eq!(client.ask("/", "").await, "v2");
        assert!(began.elapsed() >= std::time::Duration::from_millis(30), "{:?}", began.elapsed());
    });
}

#[test]
fn browsers_are_told_which_pages_may_read_a_response() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let exact = |text: &str| ext::StringMatch { form: Some(Form::Exact(text.to_owned())) };
        let cors = |answers_unmatched_preflights| ext::CorsPolicy {
            allow_origins: vec![exact("https://shop.example")],
            allow_methods: "GET,PUT".to_owned(),
            allow_headers: "x-id".to_owned(),
            expose_headers: "x-server".to_owned(),
            max_age: 60,
            allow_credentials: true,
            answers_unmatched_preflights,
            ..ext::CorsPolicy::default()
        };
        let set =
            |answers| mesh.set_routes(vec![ext::HttpRoute { cors: Some(cors(answers)), ..to("v1", |_| ()) }]);
        set(false);
        let mut client = mesh.connect().await;
        let preflight = "Access-Control-Request-Method: PUT\r\n";
        for (method, origin, more, told, from_server) in [
            ("GET", "https://shop.example", "", &["access-control-expose-headers: x-server"][..], true),
            ("GET", "https://evil.example", "", &[], true),
            (
                "OPTIONS",
                "https://shop.example",
                preflight,
                &["access-control-allow-methods: GET,PUT", "access-control-max-age: 60"],
                false,
            ),
            ("OPTIONS", "https://shop.example", "", &["access-control-allow-credentials: true"], true),
            ("OPTIONS", "https://evil.example", preflight, &[], true),
        ] {
            client.send(&format!("{method} / HTTP/1.1\r\nHost: web\r\nOrigin: {origin}\r\n{more}\r\n")).await;
            let response = client.response().await;
            assert!(told.iter().all(|line| response.contains(line)), "{method} {origin}: {response}");
            let allows = response.contains(&format!("access-control-allow-origin: {origin}"));
            assert_eq!(allows, !told.is_empty(), "{method} {origin}: {response}");
            assert_eq!(response.contains("X-Server: v1"), from_server, "{method} {origin}: {response}");
        }
        set(true);
        client
            .send(&format!(
                "OPTIONS / HTTP/1.1\r\nHost: web\r\nOrigin: https://evil.example\r\n{preflight}\r\n"
            ))
            .await;
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 200") && !response.contains("access-control"), "{response}");
        let requested =
            ext::CorsPolicy { allow_requested_headers: true, allow_headers: String::new(), ..cors(true) };
        mesh.set_routes(vec![ext::HttpRoute { cors: Some(requested), ..to("v1", |_| ()) }]);
        client
            .send(&format!(
                "OPTIONS / HTTP/1.1\r\nHost: web\r\nOrigin: https://shop.example\r\n{preflight}\
                 Access-Control-Request-Headers: x-a, x-b\r\n\r\n"
            ))
            .await;
        let response = client.response().await;
        assert!(response.contains("access-control-allow-headers: x-a, x-b"), "{response}");
    });
}

#[test]
fn a_mirror_gets_whole_copies_and_costs_the_request_nothing() {
    run_as_worker(async {
        let mesh = Mesh::new().await;
        let mirror =
            |subset: &str, share| ext::HttpMirror { destination: Some(destination(subset, 1)), share };
        mesh.set_routes(vec![to("v1", |forward| {
            forward.mirrors = vec![mirror("v2", 1_000_000), mirror("v2", 0)];
        })]);
        let mut client = mesh.connect().await;
        for answer in
            [ServerAnswer::Describe, ServerAnswer::Silence, ServerAnswer::BytesAndClose(String::new())]
        {
            mesh.servers["v2"].answer(answer);
            let before = mesh.servers["v2"].requests().len();
            assert_eq!(client.ask("/a", "X-One: 1\r\n").await, "v1");
            client.send("POST /b HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
            assert!(client.response().await.contains("v1: POST /b HTTP/1.1 body=3;"));
            wait_until("the copies came", || mesh.servers["v2"].requests().len() >= before + 2).await;
            let copies = mesh.servers["v2"].requests()[before..].join("\n");
            for part in ["GET /a HTTP/1.1", "POST /b HTTP/1.1", "Host: web-shadow", "X-One: 1"] {
                assert!(copies.contains(part), "{part}: {copies}");
            }
        }
        mesh.servers["v2"].answer(ServerAnswer::Describe);
        assert_eq!(client.ask("/a", "").await, "v1");
    });
}
