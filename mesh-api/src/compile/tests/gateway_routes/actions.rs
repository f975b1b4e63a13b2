//! What becomes of requests.

use super::*;
use crate::wire::ext::{HttpForward, HttpRoute, http_redirect, http_rewrite};

/// The only route of `web`.
fn only(rule: &str, beside: &str) -> HttpRoute {
    let mut tables = tables(&(route("shop", "a", "", rule) + beside));
    assert_eq!((tables.len(), tables[0].routes.len()), (1, 1), "{tables:#?}");
    tables.remove(0).routes.remove(0)
}

fn forward(rule: &str) -> HttpForward {
    match only(rule, "").action {
        Some(Action::Forward(forward)) => forward,
        other => panic!("{rule}: {other:?}"),
    }
}

fn direct(rule: &str) -> u32 {
    match only(rule, "").action {
        Some(Action::DirectResponse(response)) => response.status,
        other => panic!("{rule}: {other:?}"),
    }
}

#[test]
fn requests_are_matched_by_what_is_written() {
    let made = only(
        "{matches: [{path: {value: /a/}, method: GET, headers: [{name: Host, value: web}, {name: x, value: y}], queryParams: [{name: q, value: '1'}]}]}",
        "",
    );
    let [matched] = &made.matches[..] else { panic!("{made:?}") };
    let form = |of: &Option<ext::StringMatch>| of.as_ref().and_then(|it| it.form.clone()).unwrap();
    assert_eq!(form(&matched.path), Form::PathPrefix("/a".to_owned()));
    assert_eq!(form(&matched.method), Form::Exact("GET".to_owned()));
    let headers: Vec<_> = matched.headers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(headers, [":authority", "x"]);
    assert_eq!(matched.query[0].name, "q");
}

#[test]
fn requests_go_to_backends_by_weight_and_fail_where_there_is_none() {
    let rule = "{backendRefs: [{name: api, port: 80, weight: 9}, {name: nobody, port: 80}, {name: api, port: 81}, \
                {kind: Secret, name: a}, {name: bank, namespace: other, port: 80}]}";
    let made = forward(rule);
    let shares: Vec<_> =
        made.destinations.iter().map(|it| (it.service.as_str(), it.port, it.weight, it.status)).collect();
    let api = ("shop/api.shop.svc.cluster.local", 80, 9, 0);
    assert_eq!(shares, [api, ("", 0, 1, 500), ("", 0, 1, 500), ("", 0, 1, 500), ("", 0, 1, 500)]);
    assert_eq!(made.destinations[1].host, "Service shop/nobody");
    for nowhere in ["{}", "{backendRefs: []}", "{backendRefs: [{name: api, port: 80, weight: 0}]}"] {
        assert_eq!(direct(nowhere), 500, "{nowhere}");
    }
}

#[test]
fn a_filter_that_is_not_known_has_all_requests_of_its_rule_fail() {
    for filter in ["{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}", "{type: ExternalAuth}"]
    {
        assert_eq!(direct(&format!("{{filters: [{filter}], {TO_API}}}")), 500);
        let share = forward(&format!("{{backendRefs: [{{name: api, port: 80, filters: [{filter}]}}]}}"));
        assert_eq!(share.destinations[0].status, 500, "of a backend: its share");
    }
}

#[test]
fn references_to_other_namespaces_are_granted_there() {
    let to_web = "{backendRefs: [{name: api, namespace: shop, port: 80}]}";
    let status = |grants: &str| {
        let text = object(
            "HTTPRoute",
            "other",
            "a",
            &format!(
                "parentRefs: [{{group: '', kind: Service, name: web, namespace: shop}}], rules: [{to_web}]"
            ),
        );
        let tables = tables(&(text + grants));
        match &tables[0].routes[0].action {
            Some(Action::Forward(forward)) => forward.destinations[0].status,
            other => panic!("{other:?}"),
        }
    };
    for (grants, expected) in [
        (String::new(), 500),
        (grant("other", ALL_SERVICES), 0),
        (grant("other", "{group: '', kind: Service, name: api}"), 0),
        (grant("other", "{group: '', kind: Service, name: web}"), 500),
        (grant("other", "{group: '', kind: Secret}"), 500),
        (grant("third", ALL_SERVICES), 500),
        (grant("other", ALL_SERVICES).replace("kind: HTTPRoute", "kind: GRPCRoute"), 500),
        (grant("other", ALL_SERVICES).replace("namespace: shop}", "namespace: third}"), 500),
    ] {
        assert_eq!(status(&grants), expected, "{grants}");
    }
}

#[test]
fn a_client_s_own_route_may_send_to_the_service_that_it_calls() {
    let to_web = "{backendRefs: [{name: web, namespace: shop, port: 80}]}";
    let tables = tables(&route("client", "a", "", to_web));
    let Some(Action::Forward(forward)) = &tables[0].routes[0].action else { panic!("{tables:?}") };
    assert_eq!(forward.destinations[0].status, 0);
}

#[test]
fn redirects_have_the_ports_that_the_api_says() {
    let redirect = |spec: &str| {
        let rule = format!(
            "{{matches: [{{path: {{value: /a}}}}], filters: [{{type: RequestRedirect, requestRedirect: {{{spec}}}}}]}}"
        );
        match only(&rule, "").action {
            Some(Action::Redirect(redirect)) => redirect,
            other => panic!("{other:?}"),
        }
    };
    let plain = redirect("hostname: new.example");
    assert_eq!((plain.authority.as_str(), plain.status), ("new.example", 302));
    for (spec, port) in [
        ("hostname: a", http_redirect::Port::FromRequest(true)),
        ("scheme: https", http_redirect::Port::Number(443)),
        ("scheme: http", http_redirect::Port::Number(80)),
        ("scheme: https, port: 8443", http_redirect::Port::Number(8443)),
    ] {
        assert_eq!(redirect(spec).port, Some(port), "{spec}");
    }
    let full = redirect("path: {type: ReplaceFullPath, replaceFullPath: /b}, statusCode: 308");
    assert_eq!((full.path, full.status), (Some(http_redirect::Path::FullPath("/b".to_owned())), 308));
    let prefix = redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}");
    assert_eq!(prefix.path, Some(http_redirect::Path::Prefix("/b".to_owned())));
}

#[test]
fn urls_headers_and_copies_are_as_written() {
    let made = forward(&format!(
        "{{matches: [{{path: {{value: /a}}}}], {TO_API}, filters: [\
         {{type: URLRewrite, urlRewrite: {{hostname: new, path: {{type: ReplacePrefixMatch, replacePrefixMatch: ''}}}}}}, \
         {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: a, value: '50%'}}], remove: [b]}}}}, \
         {{type: ResponseHeaderModifier, responseHeaderModifier: {{add: [{{name: c, value: d}}]}}}}, \
         {{type: RequestMirror, requestMirror: {{backendRef: {{name: api, port: 80}}, percent: 25}}}}, \
         {{type: RequestMirror, requestMirror: {{backendRef: {{name: nobody, port: 80}}}}}}]}}"
    ));
    let rewrite = made.rewrite.unwrap();
    assert_eq!(rewrite.path, Some(http_rewrite::Path::Uri(String::new())));
    assert_eq!(rewrite.authority, "new");
    let request = made.request.unwrap();
    assert_eq!((request.set[0].value.as_str(), &request.remove[..]), ("50%", &["b".to_owned()][..]));
    assert_eq!(made.response.unwrap().append[0].name, "c");
    let mirrors: Vec<_> = made.mirrors.iter().map(|it| it.share).collect();
    assert_eq!(mirrors, [250_000], "what is not there gets no copies");
    let full = forward(&format!(
        "{{{TO_API}, filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: ''}}}}}}]}}"
    ));
    assert_eq!(full.rewrite.unwrap().path, Some(http_rewrite::Path::Full("/".to_owned())));
    let host = forward(&format!(
        "{{{TO_API}, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: Host, value: new}}]}}}}]}}"
    ));
    assert_eq!(host.request.map(|it| (it.authority, it.set.len())), Some(("new".to_owned(), 0)));
}

#[test]
fn times_and_retries_are_as_written() {
    assert_eq!(forward(&format!("{{{TO_API}}}")).retries, None, "what is usual in the mesh");
    let timed = forward(&format!("{{{TO_API}, timeouts: {{request: 3s, backendRequest: 1s}}}}"));
    assert_eq!(timed.timeout.map(|it| it.seconds), Some(3));
    let usual = timed.retries.unwrap();
    assert_eq!((usual.attempts, usual.per_try_timeout.map(|it| it.seconds)), (2, Some(1)));
    assert!(!usual.conditions.iter().any(|it| it == "reset"), "{usual:?}");
    let asked = forward(&format!("{{{TO_API}, retry: {{codes: [503], attempts: 5, backoff: 2s}}}}"));
    let asked = asked.retries.unwrap();
    assert_eq!((asked.attempts, &asked.statuses[..]), (5, &[503][..]));
    assert_eq!([asked.backoff, asked.least_backoff].map(|it| it.map(|it| it.seconds)), [Some(2); 2]);
    assert!(asked.conditions.iter().any(|it| it == "reset"), "{asked:?}");
}

#[test]
fn browsers_are_told_what_the_api_says() {
    let cors = |spec: &str| {
        only(&format!("{{{TO_API}, filters: [{{type: CORS, cors: {{{spec}}}}}]}}"), "").cors.unwrap()
    };
    let made = cors("allowOrigins: ['*', 'https://*.a.b'], allowMethods: ['*'], exposeHeaders: [x, y]");
    assert_eq!(made.allow_origins[0].form, Some(Form::Exact("*".to_owned())));
    let pattern = ext::OriginPattern { prefix: "https://".to_owned(), suffix: ".a.b".to_owned() };
    assert_eq!((made.allow_origins.len(), &made.allow_origin_patterns[..]), (1, &[pattern][..]));
    assert_eq!((made.allow_methods.as_str(), made.expose_headers.as_str(), made.max_age), ("*", "x,y", 5));
    assert!(made.answers_unmatched_preflights);
    let made =
        cors("allowOrigins: [https://a.b], allowMethods: ['*'], allowHeaders: ['*'], allowCredentials: true");
    assert!(made.allow_methods.starts_with("GET,HEAD,"), "{made:?}");
    assert!(made.allow_headers.is_empty() && made.allow_requested_headers, "a star would be a name then");
}

#[test]
fn calls_of_grpc_that_can_t_go_anywhere_are_unavailable() {
    let parent = "parentRefs: [{group: '', kind: Service, name: web}]";
    let spec = format!("{parent}, rules: [{{backendRefs: [{{name: nobody, port: 80}}]}}]");
    let tables = tables(&object("GRPCRoute", "shop", "a", &spec));
    assert_eq!(tables[0].source, "GRPCRoute shop/a");
    let Some(Action::Forward(forward)) = &tables[0].routes[0].action else { panic!("{tables:?}") };
    assert_eq!(forward.destinations[0].status, 503);
    let matched = &tables[0].routes[0].matches[0];
    assert!(matched.is_grpc && matched.headers.is_empty(), "{matched:?}");
}

#[test]
fn a_condition_on_the_content_type_of_calls_counts_beside_that_they_are_calls() {
    let parent = "parentRefs: [{group: '', kind: Service, name: web}]";
    let header = "{name: content-type, value: application/grpc+json}";
    let spec = format!("{parent}, rules: [{{matches: [{{headers: [{header}]}}], {TO_API}}}]");
    let tables = tables(&object("GRPCRoute", "shop", "a", &spec));
    let matched = &tables[0].routes[0].matches[0];
    assert_eq!((matched.is_grpc, matched.headers.len()), (true, 1));
}

#[test]
fn changes_of_headers_by_a_rule_come_before_those_of_its_backends() {
    let set = |value: &str| {
        format!(
            "{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: a, value: {value}}}]}}}}"
        )
    };
    let backend = |more: &str| format!("{{name: api, port: 80{more}}}");
    let own = backend(&format!(", filters: [{}]", set("backend")));
    for backends in [own.clone(), format!("{own}, {}", backend(""))] {
        let made = forward(&format!("{{filters: [{}], backendRefs: [{backends}]}}", set("rule")));
        assert_eq!(made.request, None, "{backends}");
        let value = |it: &ext::HttpDestination| Some(it.request.as_ref()?.set[0].value.clone());
        let values: Vec<_> = made.destinations.iter().map(value).collect();
        let expected = ["backend", "rule"].map(|value| Some(value.to_owned()));
        assert_eq!(values, expected[..made.destinations.len()], "{backends}");
    }
}
