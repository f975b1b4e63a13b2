use std::borrow::Cow;

use super::*;
use crate::plan::fixture::{
    as_web_member, pod, pod_resource, service, service_resource, service_with_traffic_policies, snapshot, web,
};
use crate::plan::outbound::{Destination, Reject};
use crate::regular_expression::RegularExpression;
use crate::wire::ext::{self as wire, http_redirect, http_route, string_match::Form};
use crate::wire::workload::{self as workload_wire, AppProtocol};
use crate::wire::{ext, type_url};

const VIP: &str = "10.96.0.1";

/// A request `METHOD AUTHORITY PATH`, with fields.
struct Request {
    method: &'static str,
    authority: &'static str,
    path: &'static str,
    fields: Vec<(&'static str, &'static str)>,
}

fn get(path: &'static str, fields: &[(&'static str, &'static str)]) -> Request {
    Request { method: "GET", authority: "web:8080", path, fields: fields.to_vec() }
}

impl RequestView for Request {
    fn method(&self) -> &str {
        self.method
    }

    fn scheme(&self) -> &'static str {
        "http"
    }

    fn authority(&self) -> &str {
        self.authority
    }

    fn path(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    fn query(&self) -> Option<&str> {
        Some(self.path.split_once('?')?.1)
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.fields.iter().filter(|(found, _)| *found == name).map(|(_, value)| *value);
        let first = Cow::Borrowed(values.next()?);
        Some(values.fold(first, |joined, value| Cow::Owned(format!("{joined},{value}"))))
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the messages have it")]
fn exact(text: &str) -> Option<wire::StringMatch> {
    Some(wire::StringMatch { form: Some(Form::Exact(text.to_owned())) })
}

#[expect(clippy::unnecessary_wraps, reason = "as the messages have it")]
fn prefix(text: &str) -> Option<wire::StringMatch> {
    Some(wire::StringMatch { form: Some(Form::Prefix(text.to_owned())) })
}

#[expect(clippy::unnecessary_wraps, reason = "as the messages have it")]
fn regex(text: &str) -> Option<wire::StringMatch> {
    Some(wire::StringMatch { form: Some(Form::Regex(text.to_owned())) })
}

#[expect(clippy::unnecessary_wraps, reason = "as the messages have it")]
fn segments(text: &str) -> Option<wire::StringMatch> {
    Some(wire::StringMatch { form: Some(Form::PathPrefix(text.to_owned())) })
}

fn header(name: &str, value: Option<wire::StringMatch>, invert: bool) -> wire::HttpMatch {
    let headers = vec![wire::HeaderMatch { name: name.to_owned(), value, invert }];
    wire::HttpMatch { headers, ..wire::HttpMatch::default() }
}

fn parameter(name: &str, value: Option<wire::StringMatch>) -> wire::HttpMatch {
    let query = vec![wire::QueryMatch { name: name.to_owned(), value }];
    wire::HttpMatch { query, ..wire::HttpMatch::default() }
}

fn forward(name: &str, matches: Vec<wire::HttpMatch>) -> wire::HttpRoute {
    let action = Some(http_route::Action::Forward(wire::HttpForward::default()));
    wire::HttpRoute { name: name.to_owned(), matches, action, ..wire::HttpRoute::default() }
}

fn table(routes: Vec<wire::HttpRoute>) -> HttpRouteTable {
    let source = "VirtualService shop/web".to_owned();
    wire::HttpRouteTable { source, routes, ..wire::HttpRouteTable::default() }.try_into().unwrap()
}

/// A client of `shop`, with the label `app: client`.
fn client() -> Workload {
    let mut client = pod("client", &["10.244.1.9"]);
    let labels = ext::Labels { labels: [("app".to_owned(), "client".to_owned())].into() };
    client.extensions.push(extension(ext::LABELS, type_url::LABELS, &labels));
    client.try_into().unwrap()
}

fn extension(name: &str, type_url: &str, content: &impl prost::Message) -> workload_wire::Extension {
    let config = prost_types::Any { type_url: type_url.to_owned(), value: content.encode_to_vec() };
    workload_wire::Extension { name: name.to_owned(), config: Some(config) }
}

/// Whether a request fits a condition.
fn fits(condition: &wire::HttpMatch, request: &Request) -> bool {
    let table = table(vec![forward("it", vec![condition.clone()])]);
    table.find_route(request, &client(), 80).is_some()
}

#[test]
fn calls_of_grpc_are_told_by_their_type() {
    let condition = wire::HttpMatch { is_grpc: true, ..wire::HttpMatch::default() };
    for (content_type, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc; charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        assert_eq!(
            fits(&condition, &get("/a.B/C", &[("content-type", content_type)])),
            expected,
            "{content_type}"
        );
    }
    assert!(!fits(&condition, &get("/a.B/C", &[])), "none at all");
}

#[test]
fn each_condition_looks_at_its_part_of_the_request() {
    let any = wire::HttpMatch::default;
    let with = |change: &dyn Fn(&mut wire::HttpMatch)| {
        let mut condition = any();
        change(&mut condition);
        condition
    };
    let request = || get("/shop/Cart?a=1&b=x%20y&c", &[("user", "test"), ("user", "two"), ("empty", "")]);
    let labels =
        |key: &str, value: &str| with(&|it| drop(it.client_labels.insert(key.to_owned(), value.to_owned())));
    let cases = [
        ("nothing", any(), true),
        ("uri exact", with(&|it| it.path = exact("/shop/Cart")), true),
        ("uri exact, another case", with(&|it| it.path = exact("/shop/cart")), false),
        ("uri exact does not see the query", with(&|it| it.path = exact("/shop/Cart?a=1&b=x%20y&c")), false),
        ("uri prefix is of the text", with(&|it| it.path = prefix("/sho")), true),
        ("uri prefix", with(&|it| it.path = prefix("/shop/Cart/")), false),
        ("uri regex matches the whole", with(&|it| it.path = regex("/shop/[A-Z]art")), true),
        ("uri regex of a part", with(&|it| it.path = regex("/shop")), false),
        ("ignoreUriCase", with(&|it| (it.path, it.ignore_path_case) = (exact("/SHOP/cart"), true)), true),
        (
            "ignoreUriCase, prefix",
            with(&|it| (it.path, it.ignore_path_case) = (prefix("/SHOP/c"), true)),
            true,
        ),
        (
            "ignoreUriCase, regex",
            with(&|it| (it.path, it.ignore_path_case) = (regex("/SHOP/.*"), true)),
            false,
        ),
        ("scheme", with(&|it| it.scheme = exact("http")), true),
        ("scheme, another", with(&|it| it.scheme = exact("https")), false),
        ("method", with(&|it| it.method = exact("GET")), true),
        ("method, another", with(&|it| it.method = exact("POST")), false),
        ("authority has the port", with(&|it| it.authority = exact("web:8080")), true),
        ("authority prefix", with(&|it| it.authority = prefix("web")), true),
        ("authority, another", with(&|it| it.authority = exact("web")), false),
        ("headers, all values joined", header("user", exact("test,two"), false), true),
        ("headers, one of the values", header("user", exact("test"), false), false),
        ("headers prefix", header("user", prefix("test"), false), true),
        ("headers regex", header("user", regex("t.*"), false), true),
        ("headers present", header("user", Some(wire::StringMatch::default()), false), true),
        ("headers present, empty", header("empty", Some(wire::StringMatch::default()), false), true),
        ("headers absent", header("none", Some(wire::StringMatch::default()), false), false),
        ("headers exact, absent", header("none", exact(""), false), false),
        ("withoutHeaders", header("user", exact("other"), true), true),
        ("withoutHeaders, there", header("user", exact("test,two"), true), false),
        ("withoutHeaders, absent is empty", header("none", exact(""), true), false),
        ("withoutHeaders, absent", header("none", exact("x"), true), true),
        ("withoutHeaders present", header("user", Some(wire::StringMatch::default()), true), false),
        ("withoutHeaders present, absent", header("none", Some(wire::StringMatch::default()), true), true),
        (":method", header(":method", exact("GET"), false), true),
        (":authority", header(":authority", prefix("web"), false), true),
        (":scheme", header(":scheme", exact("http"), false), true),
        (":path has the query", header(":path", exact("/shop/Cart?a=1&b=x%20y&c"), false), true),
        ("queryParams", parameter("a", exact("1")), true),
        ("queryParams are decoded", parameter("b", exact("x y")), true),
        ("queryParams present", parameter("c", Some(wire::StringMatch::default())), true),
        ("queryParams without a value", parameter("c", exact("")), true),
        ("queryParams absent", parameter("d", Some(wire::StringMatch::default())), false),
        ("queryParams regex", parameter("a", regex("[0-9]")), true),
        ("port", with(&|it| it.port = 80), true),
        ("port, another", with(&|it| it.port = 81), false),
        ("sourceLabels", labels("app", "client"), true),
        ("sourceLabels, another", labels("app", "other"), false),
        ("sourceNamespace", with(&|it| it.client_namespace = "shop".to_owned()), true),
        ("sourceNamespace, another", with(&|it| it.client_namespace = "other".to_owned()), false),
        ("all must hold", with(&|it| (it.path, it.method) = (prefix("/"), exact("POST"))), false),
    ];
    for (what, condition, expected) in cases {
        assert_eq!(fits(&condition, &request()), expected, "{what}");
    }
}

#[test]
fn the_first_route_with_any_match_that_fits_counts() {
    let of = |path: &str| wire::HttpMatch {
        path: prefix(path),
        name: path.to_owned(),
        ..wire::HttpMatch::default()
    };
    let routes = table(vec![
        forward("first", vec![of("/a"), of("/b")]),
        forward("second", vec![of("/b/c")]),
        forward("rest", vec![]),
    ]);
    for (path, route, matched) in
        [("/a", "first", Some("/a")), ("/b/c", "first", Some("/b")), ("/c", "rest", None)]
    {
        let found = routes.find_route(&get(path, &[]), &client(), 80).unwrap();
        let matched_by = found.matched.map(|it| &*it.name);
        assert_eq!((&*found.route.name, matched_by), (route, matched), "{path}");
    }
    assert!(table(vec![forward("a", vec![of("/a")])]).find_route(&get("/", &[]), &client(), 80).is_none());
}

#[test]
fn tickets_fall_on_destinations_by_their_weight() {
    let destinations = [1, 0, 2].map(|weight| wire::HttpDestination {
        host: format!("of {weight}"),
        weight,
        ..wire::HttpDestination::default()
    });
    let forward: HttpForward =
        wire::HttpForward { destinations: destinations.into(), ..wire::HttpForward::default() }
            .try_into()
            .unwrap();
    assert_eq!(forward.total_weight(), 3);
    let host = |ticket| forward.destination_for_ticket(ticket).map(|it| &*it.host);
    assert_eq!([0, 1, 2, 3].map(host), [Some("of 1"), Some("of 2"), Some("of 2"), None]);
}

#[test]
fn a_rewrite_replaces_what_the_match_named() {
    let matched = |path: Option<wire::StringMatch>| -> HttpMatch {
        wire::HttpMatch { path, ..wire::HttpMatch::default() }.try_into().unwrap()
    };
    let uri = |text: &str| PathRewrite::Uri(text.into());
    for (rewrite, path, condition, expected) in [
        (uri("/b"), "/a/c", prefix("/a"), "/b/c"),
        (uri("/"), "/a", prefix("/a"), "/"),
        (uri("/b"), "/ac", prefix("/a"), "/bc"),
        (uri("/b"), "/a/c", exact("/a/c"), "/b"),
        (uri("/b"), "/a/c", regex("/a.*"), "/b"),
        (uri("/b/"), "/a", None, "/b/a"),
        (uri("b"), "/a/c", prefix("/a"), "/b/c"),
        (uri("/xyz"), "/foo/bar", segments("/foo"), "/xyz/bar"),
        (uri("/xyz/"), "/foo/bar", segments("/foo/"), "/xyz/bar"),
        (uri("/xyz"), "/foo", segments("/foo"), "/xyz"),
        (uri("/xyz"), "/foo/", segments("/foo"), "/xyz/"),
        (uri(""), "/foo", segments("/foo"), "/"),
        (uri("/"), "/foo/", segments("/foo"), "/"),
        (uri("/"), "/foo/bar", segments("/foo"), "/bar"),
        (uri("/xyz"), "/bar", segments("/"), "/xyz/bar"),
        (PathRewrite::Full("/all".into()), "/foo/bar", segments("/foo"), "/all"),
    ] {
        let rewritten = rewrite.rewritten_path(path, Some(&matched(condition.clone())));
        assert_eq!(rewritten.as_deref(), Some(expected), "{rewrite:?} {condition:?}");
    }
    let pattern = RegularExpression::new("^/v([0-9])/").unwrap();
    let rewritten = PathRewrite::Regex(pattern, r"/\1/".into()).rewritten_path("/v2/a", None);
    assert_eq!(rewritten.as_deref(), Some("/2/a"));
}

#[test]
fn a_redirect_leads_where_it_says() {
    let redirect = |change: &dyn Fn(&mut wire::HttpRedirect)| -> String {
        let mut from = wire::HttpRedirect { status: 301, ..wire::HttpRedirect::default() };
        change(&mut from);
        let matched: HttpMatch =
            wire::HttpMatch { path: prefix("/old"), ..wire::HttpMatch::default() }.try_into().unwrap();
        let redirect = Redirect::try_from(from).unwrap();
        redirect.location(&get("/old/a?b", &[]), Some(&matched), 8080)
    };
    let full = |text: &str| Some(http_redirect::Path::Full(text.to_owned()));
    let full_path = |text: &str| Some(http_redirect::Path::FullPath(text.to_owned()));
    for (location, expected) in [
        (redirect(&|it| it.scheme = "https".to_owned()), "https://web:8080/old/a?b"),
        (redirect(&|it| it.path = full("/new")), "http://web:8080/new"),
        (redirect(&|it| it.path = full_path("/new")), "http://web:8080/new?b"),
        (
            redirect(&|it| it.path = Some(http_redirect::Path::Prefix("/new".to_owned()))),
            "http://web:8080/new/a?b",
        ),
        (redirect(&|it| it.authority = "other".to_owned()), "http://other/old/a?b"),
        (redirect(&|it| it.port = Some(http_redirect::Port::Number(80))), "http://web/old/a?b"),
        (redirect(&|it| it.port = Some(http_redirect::Port::Number(81))), "http://web:81/old/a?b"),
        (redirect(&|it| it.port = Some(http_redirect::Port::FromRequest(true))), "http://web:8080/old/a?b"),
    ] {
        assert_eq!(location, expected);
    }
}

fn routed_web(protocol: AppProtocol, namespaces: &[&str]) -> workload_wire::Service {
    let mut service = service_with_subset(web(&[VIP]));
    service.ports[0].app_protocol = protocol.into();
    let table = wire::HttpRouteTable {
        client_namespaces: namespaces.iter().map(|&it| it.to_owned()).collect(),
        source: "VirtualService shop/web".to_owned(),
        routes: vec![forward("all", vec![])],
        ports: Vec::new(),
    };
    let routes = wire::HttpRoutes { tables: vec![table] };
    service.extensions.push(extension(ext::HTTP_ROUTES, type_url::HTTP_ROUTES, &routes));
    service
}

fn service_with_subset(service: workload_wire::Service) -> workload_wire::Service {
    let subset = |version: &str| {
        let labels = [("version".to_owned(), version.to_owned())].into();
        let lb = ext::LoadBalancer::RoundRobin.into();
        let default = Some(ext::PortPolicy { lb, ..ext::PortPolicy::default() });
        (version.to_owned(), ext::Subset { labels, default, ..ext::Subset::default() })
    };
    let subsets = ["v1", "v2"].map(subset).into();
    service_with_traffic_policies(
        service,
        vec![ext::TrafficPolicy { subsets, ..ext::TrafficPolicy::default() }],
    )
}

#[test]
fn connections_are_read_only_where_routes_are_for_their_client_and_port() {
    for (protocol, namespaces, destination, is_read) in [
        (AppProtocol::Http11, &[][..], "10.96.0.1:80", true),
        (AppProtocol::Unknown, &[], "10.96.0.1:80", true),
        (AppProtocol::Http11, &["shop"], "10.96.0.1:80", true),
        (AppProtocol::Http11, &["other"], "10.96.0.1:80", false),
        (AppProtocol::Http11, &[], "10.96.0.1:81", false),
        (AppProtocol::Http11, &[], "10.96.0.2:80", false),
        (AppProtocol::Tcp, &[], "10.96.0.1:80", false),
        (AppProtocol::Tls, &[], "10.96.0.1:80", false),
        (AppProtocol::Http2, &[], "10.96.0.1:80", true),
        (AppProtocol::Grpc, &[], "10.96.0.1:80", true),
    ] {
        let snapshot = snapshot(vec![service_resource(routed_web(protocol, namespaces))]);
        let found = HttpRoutes::find(&snapshot, &client(), destination.parse().unwrap());
        assert_eq!(found.is_some(), is_read, "{protocol:?} {namespaces:?} {destination}");
    }
}

#[test]
fn connections_are_read_where_a_policy_is_about_requests() {
    use wire::consistent_hash::Key;
    let header = || Key::Header("X-User".to_owned());
    for (protocol, key, is_read) in [
        (AppProtocol::Http11, header(), true),
        (AppProtocol::Unknown, header(), true),
        (AppProtocol::Tcp, header(), false),
        (AppProtocol::Http11, Key::SourceIp(()), false),
    ] {
        let hash = Some(wire::ConsistentHash { key: Some(key.clone()) });
        let default = Some(wire::PortPolicy { hash, ..wire::PortPolicy::default() });
        let policy = wire::TrafficPolicy { default, ..wire::TrafficPolicy::default() };
        let mut service = service_with_traffic_policies(web(&[VIP]), vec![policy]);
        service.ports[0].app_protocol = protocol.into();
        let snapshot = snapshot(vec![service_resource(service)]);
        let found = HttpRoutes::find(&snapshot, &client(), "10.96.0.1:80".parse().unwrap());
        assert_eq!(found.is_some(), is_read, "{protocol:?} {key:?}");
        assert!(found.is_none_or(|found| found.table.is_none()), "requests go to the service itself");
    }
    let http = wire::HttpPool { max_requests: 1, ..wire::HttpPool::default() };
    let pool = Some(wire::ConnectionPool { http: Some(http), ..wire::ConnectionPool::default() });
    let retry_budget = Some(wire::RetryBudget::default());
    let lb = wire::LoadBalancer::Passthrough.into();
    let passing = wire::PortPolicy { lb, pool, ..wire::PortPolicy::default() };
    for (default, is_read) in [
        (wire::PortPolicy::default(), false),
        (passing, false),
        (wire::PortPolicy { pool, ..wire::PortPolicy::default() }, true),
        (wire::PortPolicy { retry_budget, ..wire::PortPolicy::default() }, true),
    ] {
        let policy = wire::TrafficPolicy { default: Some(default), ..wire::TrafficPolicy::default() };
        let service = service_with_traffic_policies(web(&[VIP]), vec![policy]);
        let snapshot = snapshot(vec![service_resource(service)]);
        let found = HttpRoutes::find(&snapshot, &client(), "10.96.0.1:80".parse().unwrap());
        assert_eq!(found.is_some(), is_read);
    }
}

#[test]
fn a_prefix_of_whole_segments_is_no_prefix_of_a_text() {
    for (prefix, path, is_it) in [
        ("/foo", "/foo", true),
        ("/foo", "/foo/", true),
        ("/foo", "/foo/bar", true),
        ("/foo", "/foobar", false),
        ("/foo", "/fo", false),
        ("/foo/", "/foo", true),
        ("/foo/", "/foo/bar", true),
        ("/", "/any/thing", true),
        ("", "*", true),
    ] {
        let condition = wire::HttpMatch { path: segments(prefix), ..wire::HttpMatch::default() };
        assert_eq!(fits(&condition, &get(path, &[])), is_it, "{prefix} {path}");
    }
}

#[test]
fn the_first_table_for_client_and_port_is_used_alone() {
    let table = |source: &str, namespaces: &[&str], ports: &[u32]| -> Arc<HttpRouteTable> {
        let client_namespaces = namespaces.iter().map(|&it| it.to_owned()).collect();
        let (source, ports) = (source.to_owned(), ports.to_vec());
        let table = wire::HttpRouteTable { client_namespaces, source, routes: Vec::new(), ports };
        Arc::new(table.try_into().unwrap())
    };
    let tables = [table("own", &["shop"], &[80]), table("port", &[], &[81]), table("all", &[], &[])];
    let source = |port| HttpRouteTable::covering(&tables, &client(), port).map(|it| it.source.to_string());
    assert_eq!([80, 81, 82].map(source), ["own", "port", "all"].map(|it| Some(it.to_owned())));
    assert!(HttpRouteTable::covering(&tables[..1], &client(), 81).is_none());
}

#[test]
fn a_destination_stands_for_the_endpoints_of_its_subset() {
    let versioned = |name: &str, ip: &str, version: &str| {
        let mut pod = as_web_member(pod(name, &[ip]), 8080);
        let labels = ext::Labels { labels: [("version".to_owned(), version.to_owned())].into() };
        pod.extensions.push(extension(ext::LABELS, type_url::LABELS, &labels));
        pod_resource(pod)
    };
    let snapshot = snapshot(vec![
        service_resource(service_with_subset(web(&[VIP]))),
        service_resource(service("shop", "empty", &["10.96.0.2"])),
        versioned("one", "10.244.1.1", "v1"),
        versioned("two", "10.244.1.2", "v2"),
    ]);
    let found = |service: &str, subset: &str, port: u32| {
        let destination: HttpDestination = wire::HttpDestination {
            service: service.to_owned(),
            host: "written".to_owned(),
            subset: subset.to_owned(),
            port,
            ..wire::HttpDestination::default()
        }
        .try_into()
        .unwrap();
        // The client may have connected to another service, on a port that this one has not.
        destination.endpoints(&snapshot, &client(), "10.96.0.9:8080".parse().unwrap())
    };
    let names = |found: &Destination| match found {
        Destination::Service { endpoints, .. } => {
            endpoints.iter().map(|it| it.workload.name.to_string()).collect()
        }
        other => vec![other.to_string()],
    };
    let web = "shop/web.shop.svc.cluster.local";
    assert_eq!(names(&found(web, "", 0)), ["one", "two"]);
    for _ in 0..2 {
        assert_eq!(names(&found(web, "v1", 0)), ["one"], "also from what was kept");
        assert_eq!(names(&found(web, "v2", 80)), ["two"]);
    }
    assert!(
        matches!(found(web, "v2", 0), Destination::Service { policy, .. } if policy.lb == LoadBalancer::RoundRobin)
    );
    assert!(matches!(found(web, "v3", 0), Destination::Reject(Reject::NoSuchSubset { .. })));
    assert!(matches!(found(web, "v1", 81), Destination::Reject(Reject::NoSuchPort { .. })));
    assert!(
        matches!(found("", "", 0), Destination::Reject(Reject::NoSuchService { host }) if &*host == "written")
    );
    let empty = found("shop/empty.shop.svc.cluster.local", "", 0);
    assert!(matches!(empty, Destination::Reject(Reject::NoEndpoint { .. })));
}

#[test]
fn retry_conditions_are_envoys() {
    let retries = |conditions: &[&str], statuses: &[u32]| -> Retries {
        let conditions = conditions.iter().map(|&it| it.to_owned()).collect();
        let statuses = statuses.to_vec();
        wire::HttpRetries { attempts: 1, conditions, statuses, ..wire::HttpRetries::default() }
            .try_into()
            .unwrap()
    };
    let status = |code: u16| StatusCode::from_u16(code).unwrap();
    for (condition, covered, not) in [
        ("5xx", &[500, 503, 599][..], &[409, 429][..]),
        ("gateway-error", &[502, 503, 504], &[500, 501, 505]),
        ("retriable-4xx", &[409], &[404, 500]),
        ("reset", &[], &[503]),
        ("connect-failure", &[], &[503]),
    ] {
        let conditions = retries(&[condition], &[]).conditions;
        assert!(covered.iter().all(|code| conditions.covers_status(status(*code))), "{condition}");
        assert!(!not.iter().any(|code| conditions.covers_status(status(*code))), "{condition}");
    }
    assert!(retries(&["retriable-status-codes"], &[418]).conditions.covers_status(status(418)));
    let default = retries(&[], &[]).conditions;
    assert!(
        default.covers_connect_failure() && !default.covers_reset() && !default.covers_status(status(503))
    );
    assert!(retries(&["reset-before-request"], &[]).conditions.covers_connect_failure());
    assert!(retries(&["reset"], &[]).conditions.covers_reset());
}

#[test]
fn what_can_not_be_used_is_refused() {
    let bad = |route: wire::HttpRoute| HttpRoute::try_from(route).is_err();
    assert!(bad(wire::HttpRoute::default()), "no action");
    let condition = wire::HttpMatch { path: regex("("), ..wire::HttpMatch::default() };
    assert!(bad(forward("", vec![condition])));
    let condition = wire::HttpMatch { port: 70_000, ..wire::HttpMatch::default() };
    assert!(bad(forward("", vec![condition])));
    for status in [0, 100, 600] {
        let response = wire::HttpDirectResponse { status, body: Vec::new() };
        let action = Some(http_route::Action::DirectResponse(response));
        assert!(bad(wire::HttpRoute { action, ..wire::HttpRoute::default() }), "{status}");
    }
}
