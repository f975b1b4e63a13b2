//! That each field arrives, what is taken as something else, and what is warned of.

mod limits;
mod mistakes;
mod warnings;

use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::*;
use crate::manifest::{ParsedManifest, parse};
use crate::resource::Object;

const EXAMPLE: &str = include_str!("../../../../fuzz/corpus/manifest/VirtualService-web.yaml");

/// What is read of a virtual service with this `spec`.
fn parsed(spec: &str) -> ParsedManifest {
    let head = "apiVersion: networking.istio.io/v1\nkind: VirtualService";
    parse("routes.yaml", &format!("{head}\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"))
}

/// The virtual service, and the fields that are warned of.
fn good(mut parsed: ParsedManifest) -> (VirtualService, Vec<String>) {
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let warned = parsed.warnings.into_iter().filter_map(|warning| warning.field);
    let Object::VirtualService(service) = parsed.objects.remove(0).value else { panic!("another kind") };
    (*service, warned.collect())
}

/// A `spec` with one HTTP route, which has this beside its destination.
fn beside_route(more: &str) -> String {
    format!("{{hosts: [web], http: [{{route: [{{destination: {{host: web}}}}], {more}}}]}}")
}

/// The HTTP route of that.
fn route(more: &str) -> HttpRoute {
    good(parsed(&beside_route(more))).0.http.remove(0)
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

fn destination(host: &str) -> Destination {
    Destination { host: host.to_owned(), subset: None, port: None }
}

fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

#[test]
fn every_version_is_read() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text = EXAMPLE.replace("istio.io/v1", &format!("istio.io/{version}"));
        let (service, warned) = good(parse("a.yaml", &text));
        assert!(warned.is_empty(), "{warned:?}");
        assert_eq!(service.hosts, ["web", "*.web.example"]);
        let edge = GatewayRef::Gateway { namespace: "front".into(), name: "edge".into() };
        assert_eq!(service.gateways, [GatewayRef::Mesh, edge]);
        assert_eq!(service.export_to, ["."]);
        assert_eq!((service.http.len(), service.tls.len(), service.tcp.len()), (4, 1, 1));
    }
}

#[test]
fn conditions_of_a_request_arrive() {
    let (service, _) = good(parse("a.yaml", EXAMPLE));
    let read = &service.http[0].matches[0];
    assert_eq!(read.uri, Some(StringMatch::Regex("/user/[0-9]+(/.*)?".into())));
    let user = (HeaderKey::Header(header("x-user")), ValueMatch::Text(exact("test")));
    assert_eq!(read.headers, [user, (HeaderKey::Header(header("cookie")), ValueMatch::Present)]);
    assert_eq!(read.without_headers, [(HeaderKey::Header(header("x-bot")), ValueMatch::Present)]);
    let debug = ValueMatch::Text(StringMatch::Prefix("t".into()));
    assert_eq!(read.query_params, [("debug".to_owned(), debug)]);
    assert_eq!(read.source_labels["app"], "client");
    let more = "match: [{name: a, scheme: {exact: https}, method: {regex: GET|PUT}, authority: {prefix: web.}, \
                ignoreUriCase: true, port: 80, sourceNamespace: shop, statPrefix: b, headers: {':path': {}}}, \
                {gateways: [mesh, ./edge, edge]}]";
    let [first, second] = &route(more).matches[..] else { panic!("not two") };
    let edge = GatewayRef::Gateway { namespace: "shop".into(), name: "edge".into() };
    assert_eq!(second.gateways, [GatewayRef::Mesh, edge], "the same one twice is one");
    let expected = HttpMatch {
        name: Some("a".into()),
        scheme: Some(exact("https")),
        method: Some(StringMatch::Regex("GET|PUT".into())),
        authority: Some(StringMatch::Prefix("web.".into())),
        ignore_uri_case: true,
        port: Some(80),
        source_namespace: Some("shop".into()),
        stat_prefix: Some("b".into()),
        headers: vec![(HeaderKey::PseudoHeader(PseudoHeader::Path), ValueMatch::Present)],
        ..HttpMatch::default()
    };
    assert_eq!(first, &expected);
}

#[test]
fn what_protobuf_takes_for_absent_is_absent() {
    let read = route(
        "name: '', match: [{name: '', statPrefix: '', sourceNamespace: '', port: 0}], \
         rewrite: {uri: '', authority: a.example}, retries: {attempts: 0, retryOn: ''}",
    );
    assert_eq!((read.name, read.matches), (None, vec![HttpMatch::default()]));
    assert_eq!(read.rewrite, Some(Rewrite { path: None, authority: Some("a.example".into()) }));
    assert!(read.retries.is_some_and(|retries| retries.retry_on.is_empty()));
    assert_eq!(route("retries: {attempts: 1, retryOn: ''}").retries.map(|it| it.retry_on), Some(vec![]));
    let path = route("rewrite: {uri: /a, authority: ''}").rewrite.and_then(|rewrite| rewrite.path);
    assert_eq!(path, Some(PathRewrite::Uri("/a".into())));
    let (mut service, _) = good(parsed(
        "{hosts: [web], http: [{redirect: {uri: '', prefixRewrite: '', authority: b.example, redirectCode: 0}}, \
         {delegate: {name: a, namespace: ''}, match: [{port: 1}]}], \
         tcp: [{match: [{port: 0}], route: [{destination: {host: a, subset: ''}}]}]}",
    ));
    let RouteAction::Redirect(redirect) = service.http.remove(0).action else { panic!("another action") };
    assert_eq!((redirect.path, redirect.status), (None, StatusCode::MOVED_PERMANENTLY));
    let delegate = Delegate { name: "a".into(), namespace: "shop".into() };
    assert_eq!(service.http[0].action, RouteAction::Delegate(delegate));
    assert_eq!(service.tcp[0].matches, [L4Match::default()]);
    assert_eq!(service.tcp[0].route[0].destination, destination("a"));
}

#[test]
fn hosts_may_begin_with_any_wildcard_of_istio() {
    let spec = "{hosts: ['*-EU.a.example', '*b.example', '*.c.example.'], \
                http: [{route: [{destination: {host: '*-eu.a.example'}}]}]}";
    let (service, _) = good(parsed(spec));
    assert_eq!(service.hosts, ["*-eu.a.example", "*b.example", "*.c.example"]);
    let RouteAction::Route(destinations) = &service.http[0].action else { panic!("another action") };
    assert_eq!(destinations[0].destination, destination("*-eu.a.example"));
}

#[test]
fn a_condition_on_the_host_is_one_on_the_authority() {
    for name in ["host", "Host", ":authority"] {
        let read = &route(&format!("match: [{{headers: {{'{name}': {{exact: a}}}}}}]")).matches[0];
        let authority = HeaderKey::PseudoHeader(PseudoHeader::Authority);
        assert_eq!(read.headers, [(authority, ValueMatch::Text(exact("a")))], "{name}");
    }
}

#[test]
fn claims_are_read_in_both_forms() {
    for name in ["@request.auth.claims.a.b", "@request.auth.claims[a][b]"] {
        let spec = format!(
            "{{hosts: [web.example], gateways: [edge], http: [{{match: [{{headers: {{'{name}': {{exact: c}}}}}}], \
             route: [{{destination: {{host: web}}}}]}}]}}"
        );
        let (service, _) = good(parsed(&spec));
        let claim = HeaderKey::Claim(vec!["a".into(), "b".into()]);
        assert_eq!(service.http[0].matches[0].headers, [(claim, ValueMatch::Text(exact("c")))], "{name}");
    }
}

#[test]
fn destinations_and_what_is_done_on_the_way_arrive() {
    let (service, _) = good(parse("a.yaml", EXAMPLE));
    let read = &service.http[0];
    let RouteAction::Route(destinations) = &read.action else { panic!("{:?}", read.action) };
    let v1 = Destination { subset: Some("v1".into()), port: Some(80), ..destination("web") };
    assert_eq!((&destinations[0].destination, destinations[0].weight), (&v1, 90));
    assert_eq!(destinations[1].headers.response.remove, [header("x-internal")]);
    let path = PathRewrite::Regex { pattern: "/user/(.*)".into(), substitution: "/u/\\1".into() };
    assert_eq!(read.rewrite, Some(Rewrite { path: Some(path), authority: None }));
    assert_eq!((read.name.as_deref(), read.timeout), (Some("users"), Some(Duration::from_millis(2500))));
    let retry_on = [
        RetryCondition::ConnectFailure,
        RetryCondition::Status(StatusCode::SERVICE_UNAVAILABLE),
        RetryCondition::Unavailable,
    ];
    let retries = Retries {
        attempts: 3,
        per_try_timeout: Some(Duration::from_millis(500)),
        retry_on: retry_on.to_vec(),
        backoff: Some(Duration::from_millis(25)),
        ignore_previous_hosts: true,
        remote_localities: false,
    };
    assert_eq!(read.retries, Some(retries));
    let share = |parts_per_million| Percentage { parts_per_million };
    let delay = Delay { fixed_delay: Duration::from_secs(1), percentage: share(1000) };
    let abort = Abort { error: AbortError::Grpc(5), percentage: share(10_000) };
    assert_eq!(read.fault, Some(Fault { delay: Some(delay), abort: Some(abort) }));
    let shadow = destination("shadow.shop.svc.cluster.local");
    assert_eq!(read.mirrors, [Mirror { destination: shadow, percentage: share(125_000) }]);
    let request = &read.headers.request;
    assert_eq!(request.set, [(header("x-way"), "mesh".to_owned())]);
    assert_eq!(request.add, [(header("x-hop"), "100%%".to_owned())]);
}

#[test]
fn answers_of_the_mesh_and_delegates_arrive() {
    let (service, _) = good(parse("a.yaml", EXAMPLE));
    let redirect = Redirect {
        path: Some(RedirectPath::Full("/new".into())),
        authority: None,
        port: RedirectPort::FromRequestPort,
        scheme: Some(Scheme::Https),
        status: StatusCode::PERMANENT_REDIRECT,
    };
    assert_eq!(service.http[1].action, RouteAction::Redirect(redirect));
    let response = DirectResponse { status: StatusCode::METHOD_NOT_ALLOWED, body: Some(b"no".to_vec()) };
    assert_eq!(service.http[2].action, RouteAction::DirectResponse(response));
    let delegate = Delegate { name: "rest".into(), namespace: "shop".into() };
    assert_eq!(service.http[3].action, RouteAction::Delegate(delegate));
    let spec = "{hosts: [web], http: [{redirect: {prefixRewrite: /b, authority: b.example, port: 8080}}]}";
    let redirect = Redirect {
        path: Some(RedirectPath::Prefix("/b".into())),
        authority: Some("b.example".into()),
        port: RedirectPort::Number(8080),
        scheme: None,
        status: StatusCode::MOVED_PERMANENTLY,
    };
    assert_eq!(good(parsed(spec)).0.http[0].action, RouteAction::Redirect(redirect));
}

#[test]
fn cross_origin_rules_arrive() {
    let policy = route(
        "corsPolicy: {allowOrigins: [{regex: 'https://.*'}], allowMethods: [GET, '*'], allowHeaders: [x-a], \
         exposeHeaders: [x-b], maxAge: 1m, allowCredentials: true, unmatchedPreflights: IGNORE}",
    );
    let expected = CorsPolicy {
        allow_origins: vec![StringMatch::Regex("https://.*".into())],
        allow_methods: vec!["GET".into(), "*".into()],
        allow_headers: vec!["x-a".into()],
        expose_headers: vec!["x-b".into()],
        max_age: Some(Duration::from_mins(1)),
        allow_credentials: true,
        unmatched_preflights: UnmatchedPreflights::Ignore,
    };
    assert_eq!(policy.cors_policy, Some(expected));
}

#[test]
fn routes_of_connections_arrive() {
    let (service, _) = good(parse("a.yaml", EXAMPLE));
    let tls = &service.tls[0].matches[0];
    assert_eq!((&tls.sni_hosts[..], tls.connection.port), (&["a.web.example".to_owned()][..], Some(443)));
    assert_eq!(tls.connection.destination_subnets, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(service.tls[0].route, [RouteDestination { destination: destination("web"), weight: 1 }]);
    let tcp = &service.tcp[0].matches[0];
    assert_eq!((tcp.port, tcp.gateways.as_slice()), (Some(3306), &[GatewayRef::Mesh][..]));
    assert_eq!(tcp.source_namespace.as_deref(), Some("shop"));
}

#[test]
fn what_is_not_said_has_istios_defaults() {
    let route = route(
        "mirror: {host: Shadow.}, retries: {attempts: 1}, fault: {abort: {httpStatus: 503, percentage: {value: 100}}}",
    );
    let RouteAction::Route(destinations) = &route.action else { panic!("{:?}", route.action) };
    assert_eq!(destinations[0].weight, 1, "the only one gets everything");
    let mirror = Mirror { destination: destination("shadow"), percentage: Percentage::ALL };
    assert_eq!((route.mirrors.as_slice(), route.matches.len()), (&[mirror][..], 0));
    let retries = route.retries.expect("was given");
    assert!(retries.retry_on.is_empty() && retries.ignore_previous_hosts && retries.backoff.is_none());
    let abort = route.fault.and_then(|fault| fault.abort).expect("was given");
    assert_eq!(abort.error, AbortError::Http(StatusCode::SERVICE_UNAVAILABLE));
    let (service, _) = good(parsed("{http: [{route: [{destination: {host: web}, weight: 0}]}]}"));
    assert_eq!((service.hosts.len(), service.gateways.as_slice()), (0, &[GatewayRef::Mesh][..]));
}

#[test]
fn the_authority_is_no_header() {
    let route = route("headers: {request: {set: {Host: web.example, X-A: b}}}");
    let request = route.headers.request;
    assert_eq!(request.authority.as_deref(), Some("web.example"));
    assert_eq!(request.set, [(header("x-a"), "b".to_owned())]);
}

#[test]
fn deprecated_fields_count_where_nothing_else_is_said() {
    let mirrored = |more: &str| route(&format!("mirror: {{host: a}}, {more}")).mirrors[0].percentage;
    let half = Percentage { parts_per_million: 500_000 };
    assert_eq!(mirrored("mirrorPercent: 50"), half);
    assert_eq!(mirrored("mirror_percent: 50"), half);
    assert_eq!(mirrored("mirrorPercentage: {value: 50}, mirrorPercent: 1"), half);
    assert_eq!(mirrored("mirrorPercentage: {value: 0}"), Percentage::NONE);
    let fault = route("fault: {delay: {fixedDelay: 1s, percent: 50}}").fault.and_then(|fault| fault.delay);
    assert_eq!(fault.map(|delay| delay.percentage), Some(half));
    let origins =
        |more: &str| route(&format!("corsPolicy: {{{more}}}")).cors_policy.expect("was given").allow_origins;
    assert_eq!(origins("allowOrigin: ['*']"), [exact("*")]);
    assert_eq!(origins("allowOrigin: [a], allowOrigins: [{exact: b}]"), [exact("b")]);
}
