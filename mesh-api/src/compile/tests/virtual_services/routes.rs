//! What routes come to.

use crate::wire::ext::{
    self, HeaderMatch, HttpDestination, HttpForward, HttpMatch, HttpRoute, QueryMatch, http_redirect,
    http_rewrite, http_route::Action, string_match::Form,
};

use super::*;

/// The routes of `web` by a virtual service with these.
fn routes(http: &str) -> Vec<HttpRoute> {
    let mut tables = tables(&service("a", "shop", &format!("hosts: [web], http: [{http}]")));
    assert!(tables.len() <= 1, "{tables:#?}");
    tables.pop().map(|table| table.routes).unwrap_or_default()
}

/// The match of a route with one.
fn matched(conditions: &str) -> HttpMatch {
    let http = format!("{{match: [{{{conditions}}}], route: [{{destination: {{host: api}}}}]}}");
    let [route] = &routes(&http)[..] else { panic!("not one route") };
    let [matched] = &route.matches[..] else { panic!("not one match") };
    matched.clone()
}

/// How requests of a route go on that has this beside `route`.
fn forward(route: &str, more: &str) -> HttpForward {
    let Some(HttpRoute { action: Some(Action::Forward(forward)), .. }) =
        routes(&format!("{{route: [{route}], {more}}}")).into_iter().next()
    else {
        panic!("not forwarded")
    };
    forward
}

fn text(form: Form) -> ext::StringMatch {
    ext::StringMatch { form: Some(form) }
}

fn span(seconds: i64, millis: i32) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: millis * 1_000_000 }
}

#[test]
fn conditions_of_requests_are_sent() {
    let exact = |value: &str| Some(text(Form::Exact(value.to_owned())));
    let found = matched(
        "name: m, uri: {prefix: /a}, ignoreUriCase: true, scheme: {exact: http}, method: {regex: GET|PUT}, \
         authority: {exact: web}, port: 80, sourceLabels: {app: front}, sourceNamespace: client, \
         headers: {X-User: {exact: u}, cookie: {}, host: {exact: h}}, withoutHeaders: {x-bot: {prefix: b}}, \
         queryParams: {q: {exact: '1'}, r: {}}",
    );
    let header = |name: &str, value, invert| HeaderMatch { name: name.to_owned(), value, invert };
    let mut headers = found.headers.clone();
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(
        headers,
        [
            header(":authority", exact("h"), false),
            header("cookie", None, false),
            header("x-bot", Some(text(Form::Prefix("b".into()))), true),
            header("x-user", exact("u"), false),
        ]
    );
    let expected = HttpMatch {
        is_grpc: false,
        name: "m".into(),
        path: Some(text(Form::Prefix("/a".into()))),
        ignore_path_case: true,
        scheme: exact("http"),
        method: Some(text(Form::Regex("GET|PUT".into()))),
        authority: exact("web"),
        headers: found.headers.clone(),
        query: vec![
            QueryMatch { name: "q".into(), value: exact("1") },
            QueryMatch { name: "r".into(), value: None },
        ],
        port: 80,
        client_labels: [("app".to_owned(), "front".to_owned())].into(),
        client_namespace: "client".into(),
    };
    assert_eq!(found, expected);
    assert_eq!(matched(""), HttpMatch::default());
}

#[test]
fn a_match_with_gateways_does_not_look_at_the_client() {
    let found =
        matched("gateways: [edge, mesh], sourceLabels: {app: front}, sourceNamespace: client, port: 80");
    assert_eq!(found, HttpMatch { port: 80, ..HttpMatch::default() });
}

#[test]
fn what_is_for_gateways_alone_is_left_out() {
    let to = |name: &str, matches: &str| {
        format!("{{name: {name}, {matches}route: [{{destination: {{host: api}}}}]}}")
    };
    let gateway = "match: [{gateways: [edge], uri: {exact: /a}}], ";
    let one_of_two = "match: [{gateways: [edge], uri: {exact: /b}}, {uri: {exact: /c}}], ";
    let found = routes(&[to("a", gateway), to("b", one_of_two), to("c", "")].join(", "));
    let kept: Vec<_> = found.iter().map(|route| (route.name.as_str(), route.matches.len())).collect();
    assert_eq!(kept, [("b", 1), ("c", 0)]);
    assert_eq!(found[0].matches[0].path, Some(text(Form::Exact("/c".into()))));
}

#[test]
fn routes_stay_in_their_order_without_those_that_delegate() {
    let found = routes(
        "{match: [{uri: {exact: /a}}], delegate: {name: other}}, \
         {match: [{uri: {exact: /b}}], redirect: {uri: /c}}, {route: [{destination: {host: api}}]}",
    );
    assert!(matches!(found[0].action, Some(Action::Redirect(_))), "{found:#?}");
    assert!(matches!(found[1].action, Some(Action::Forward(_))) && found.len() == 2, "{found:#?}");
}

#[test]
fn destinations_are_services_where_there_can_be_one() {
    let found = forward(
        "{destination: {host: api, subset: v1, port: {number: 8080}}, weight: 90}, \
         {destination: {host: other.bank.svc.cluster.local}, weight: 10}, {destination: {host: bank.example}, weight: 0}",
        "",
    );
    let destination = |service: &str, host: &str, weight| HttpDestination {
        service: service.into(),
        host: host.into(),
        weight,
        ..HttpDestination::default()
    };
    let api = "api.shop.svc.cluster.local";
    let other = "other.bank.svc.cluster.local";
    assert_eq!(
        found.destinations,
        [
            HttpDestination {
                subset: "v1".into(),
                port: 8080,
                ..destination("shop/api.shop.svc.cluster.local", api, 90)
            },
            destination("bank/other.bank.svc.cluster.local", other, 10),
            destination("", "bank.example", 0),
        ]
    );
    assert_eq!(forward("{destination: {host: api}}", "").destinations[0].weight, 1);
}

#[test]
fn what_is_done_to_requests_is_sent() {
    let found = forward(
        "{destination: {host: api}}",
        "timeout: 2.5s, rewrite: {uri: /b, authority: a.example}, \
         retries: {attempts: 3, perTryTimeout: 500ms, retryOn: '5xx,503,reset', backoff: 10ms}, \
         fault: {delay: {fixedDelay: 1s, percentage: {value: 0.1}}, abort: {httpStatus: 503, percentage: {value: 50}}}",
    );
    assert_eq!(found.timeout, Some(span(2, 500)));
    let rewrite = found.rewrite.expect("was given");
    assert_eq!(
        (rewrite.path, rewrite.authority.as_str()),
        (Some(http_rewrite::Path::Uri("/b".into())), "a.example")
    );
    let retries = found.retries.expect("was given");
    let expected = ext::HttpRetries {
        attempts: 3,
        per_try_timeout: Some(span(0, 500)),
        conditions: ["5xx", "reset", "retriable-status-codes"].map(str::to_owned).to_vec(),
        statuses: vec![503],
        backoff: Some(span(0, 10)),
        least_backoff: None,
    };
    assert_eq!(retries, expected);
    let expected = ext::HttpFault {
        delay: Some(span(1, 0)),
        delay_share: 1000,
        abort_status: 503,
        abort_share: 500_000,
    };
    assert_eq!(found.fault, Some(expected));
}

#[test]
fn what_is_not_said_is_not_sent_but_for_reasons_to_try_again() {
    let found = forward("{destination: {host: api}}", "");
    let expected = HttpForward { destinations: found.destinations.clone(), ..HttpForward::default() };
    assert_eq!(found, expected);
    let retries =
        |retries: &str| forward("{destination: {host: api}}", &format!("retries: {retries}")).retries;
    let usual = retries("{attempts: 1}").expect("was given");
    assert_eq!(
        (usual.conditions.join(","), usual.statuses.len(), usual.backoff),
        ("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes".to_owned(), 0, None)
    );
    assert_eq!(retries("{attempts: 0}").map(|it| it.attempts), Some(0));
    let no_share = "fault: {delay: {fixedDelay: 1s, percentage: {value: 0}}, \
                    abort: {httpStatus: 503, percentage: {value: 0}}}";
    assert_eq!(forward("{destination: {host: api}}", no_share).fault, None);
}

/// Each change as `operation name=value`.
fn told(edits: Option<&ext::HeaderEdits>) -> Vec<String> {
    let Some(edits) = edits else { return Vec::new() };
    let values = |operation: &str, values: &[ext::HeaderValue]| -> Vec<String> {
        values.iter().map(|it| format!("{operation} {}={}", it.name, it.value)).collect()
    };
    let removed = edits.remove.iter().map(|name| format!("remove {name}"));
    let authority = Some(&edits.authority).filter(|it| !it.is_empty()).map(|it| format!("authority {it}"));
    let changes = [values("set", &edits.set), values("append", &edits.append)].concat();
    removed.chain(changes).chain(authority).collect()
}

const ROUTE_HEADERS: &str = "headers: {request: {set: {X-A: route}, add: {x-b: '5%%'}, remove: [x-c]}, \
                             response: {remove: [x-d]}}";

#[test]
fn the_only_destination_changes_headers_after_the_route_in_one_list() {
    let found = forward(
        "{destination: {host: api}, headers: {request: {set: {x-a: its, host: its.example}, remove: [x-e]}, \
         response: {add: {x-f: f}}}}",
        ROUTE_HEADERS,
    );
    let request = [
        "remove x-c",
        "remove x-e",
        "set x-a=route",
        "set x-a=its",
        "append x-b=5%",
        "authority its.example",
    ];
    assert_eq!(told(found.request.as_ref()), request);
    assert_eq!(told(found.response.as_ref()), ["remove x-d", "append x-f=f"]);
    let destination = &found.destinations[0];
    assert_eq!((&destination.request, &destination.response), (&None, &None));
}

#[test]
fn several_destinations_change_headers_by_themselves() {
    let headers = |of: &str| format!("headers: {{request: {{set: {{x-a: {of}, host: {of}.example}}}}}}");
    let several = format!(
        "{{destination: {{host: api}}, weight: 1, {}}}, {{destination: {{host: web}}, weight: 1}}",
        headers("one")
    );
    let found = forward(&several, ROUTE_HEADERS);
    assert_eq!(told(found.request.as_ref()), ["remove x-c", "set x-a=route", "append x-b=5%"]);
    let own = told(found.destinations[0].request.as_ref());
    assert_eq!(own, ["set x-a=one", "authority one.example"]);
    assert_eq!(found.destinations[1].request, None);
    // The route's authority is instead of the destination's.
    for route in [headers("route"), "rewrite: {authority: route.example}".to_owned()] {
        let found = forward(&several, &route);
        assert_eq!(told(found.destinations[0].request.as_ref()), ["set x-a=one"], "{route}");
        let alone = forward(&format!("{{destination: {{host: api}}, {}}}", headers("one")), &route);
        let authority = alone.request.map(|request| request.authority).unwrap_or_default();
        assert_ne!(authority, "one.example", "{route}");
    }
}

#[test]
fn answers_of_the_mesh_are_sent() {
    let [redirect, prefix, response] = &routes(
        "{match: [{uri: {prefix: /a}}], redirect: {uri: /b, authority: b.example, port: 8080, scheme: https, redirectCode: 308}}, \
         {match: [{uri: {prefix: /b}}], redirect: {prefixRewrite: /c, derivePort: FROM_REQUEST_PORT}}, \
         {name: r, directResponse: {status: 405, body: {string: 'no'}}}",
    )[..] else {
        panic!("not three")
    };
    let expected = ext::HttpRedirect {
        path: Some(http_redirect::Path::Full("/b".into())),
        authority: "b.example".into(),
        port: Some(http_redirect::Port::Number(8080)),
        scheme: "https".into(),
        status: 308,
    };
    assert_eq!(redirect.action, Some(Action::Redirect(expected)));
    let expected = ext::HttpRedirect {
        path: Some(http_redirect::Path::Prefix("/c".into())),
        port: Some(http_redirect::Port::FromRequest(true)),
        status: 301,
        ..ext::HttpRedirect::default()
    };
    assert_eq!(prefix.action, Some(Action::Redirect(expected)));
    let expected = ext::HttpDirectResponse { status: 405, body: b"no".to_vec() };
    assert_eq!((response.name.as_str(), &response.action), ("r", &Some(Action::DirectResponse(expected))));
}

#[test]
fn a_rewrite_by_a_regular_expression_is_sent() {
    let found = forward(
        "{destination: {host: api}}",
        "rewrite: {uriRegexRewrite: {match: '/(.*)', rewrite: '/u/\\1'}}",
    );
    let regex = ext::RegexRewrite { pattern: "/(.*)".into(), substitution: "/u/\\1".into() };
    assert_eq!(found.rewrite.and_then(|rewrite| rewrite.path), Some(http_rewrite::Path::Regex(regex)));
}

#[test]
fn an_expression_that_agents_cannot_use_takes_its_match_along() {
    let to_api = "route: [{destination: {host: api}}]";
    let http =
        format!("{{match: [{{uri: {{regex: 'a\\C'}}}}, {{uri: {{exact: /b}}}}], {to_api}}}, {{{to_api}}}");
    let found = routes(&http);
    let kept: Vec<_> = found.iter().map(|route| route.matches.len()).collect();
    assert_eq!(kept, [1, 0], "the other match, and the other route: {found:#?}");
    assert_eq!(found[0].matches[0].path, Some(text(Form::Exact("/b".into()))));
    let only =
        format!("{{match: [{{headers: {{x-a: {{regex: 'a\\C'}}}}}}], {to_api}}}, {{name: z, {to_api}}}");
    let found = routes(&only);
    assert_eq!(found.iter().map(|route| route.name.as_str()).collect::<Vec<_>>(), ["z"]);
    let rewrite =
        forward("{destination: {host: api}}", "rewrite: {uriRegexRewrite: {match: 'a\\C', rewrite: b}}");
    assert_eq!(rewrite.rewrite, None, "the path stays");
}

#[test]
fn all_that_is_sent_agents_take() {
    use crate::{plan::Store, wire::type_url, wire::xds::Resource};
    let example = include_str!("../../../../../fuzz/corpus/manifest/VirtualService-web.yaml");
    let compiled = compiled(&format!("{SERVICES}---\n{example}"));
    let resources = compiled.addresses.iter().map(|(name, address)| Resource {
        resource: Some(prost_types::Any {
            type_url: type_url::ADDRESS.to_owned(),
            value: address.encode_to_vec(),
        }),
        name: name.clone(),
        ..Resource::default()
    });
    assert_eq!(Store::default().apply_response(type_url::ADDRESS, resources.collect(), Vec::new()), []);
}
