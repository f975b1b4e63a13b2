//! That each field arrives, and which mistakes are named.

use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::manifest::{ParsedManifest, parse};
use crate::resource::Object;
use crate::resource::virtual_service::{Scheme, StringMatch};

const EXAMPLE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs:
  - {group: '', kind: Service, name: web, port: 80}
  - {name: edge}
  - {group: core, kind: Service, name: api, namespace: other, sectionName: http}
  rules:
  - name: first
    matches:
    - path: {type: Exact, value: /cart}
      headers: [{name: User, value: test}, {type: RegularExpression, name: x-a, value: 'a.*'}]
      queryParams: [{name: debug, value: '1'}]
      method: GET
    - path: {value: /cart/}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X-A, value: 100%}], add: [{name: x-b, value: b}], remove: [x-c]}
    - type: RequestMirror
      requestMirror: {backendRef: {name: copy, port: 80}, fraction: {numerator: 1, denominator: 8}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: copy, port: 81}, percent: 30}
    backendRefs:
    - name: v1
      port: 8080
      weight: 9
    - name: v2
      namespace: other
      port: 8080
      filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-d]}}]
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {codes: [500, 503], attempts: 3, backoff: 100ms}
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect:
        scheme: https
        hostname: new.example
        path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}
        statusCode: 307
";

fn good(text: &str) -> (GatewayRoute, Vec<String>) {
    let mut parsed = parse("routes.yaml", text);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let warned = parsed.warnings.into_iter().filter_map(|warning| warning.field).collect();
    let route = match parsed.objects.remove(0).value {
        Object::HTTPRoute(it) => it.route,
        Object::GRPCRoute(it) => it.route,
        other => panic!("{other:?}"),
    };
    (route, warned)
}

fn parsed(kind: &str, spec: &str) -> ParsedManifest {
    let head = format!("apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}");
    parse("routes.yaml", &format!("{head}\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"))
}

const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: web}]";

#[test]
fn what_is_written_arrives() {
    for version in ["v1", "v1beta1"] {
        let (route, warned) = good(&EXAMPLE.replace("k8s.io/v1", &format!("k8s.io/{version}")));
        assert!(warned.is_empty(), "{warned:?}");
        let parents: Vec<_> =
            route.parents.iter().map(|it| (it.index, it.namespace.as_str(), it.name.as_str())).collect();
        assert_eq!(parents, [(0, "shop", "web"), (2, "other", "api")], "the Gateway is others'");
        assert_eq!(route.parents[0].port, Some(80));
        assert_eq!(route.parents[1].section_name.as_deref(), Some("http"));
        let [first, second] = &route.rules[..] else { panic!("not two") };
        assert_eq!(first.name.as_deref(), Some("first"));
        let [exact, prefix] = &first.matches[..] else { panic!("not two") };
        assert_eq!(exact.path, PathMatch::Exact("/cart".to_owned()));
        assert_eq!(exact.method.as_deref(), Some("GET"));
        assert_eq!(exact.headers[0].1, StringMatch::Exact("test".to_owned()));
        assert_eq!(exact.headers[1].1, StringMatch::Regex("a.*".to_owned()));
        assert_eq!(exact.query, [("debug".to_owned(), StringMatch::Exact("1".to_owned()))]);
        assert_eq!(prefix.path, PathMatch::Prefix("/cart/".to_owned()));
        let [RouteFilter::RequestHeaders(headers), RouteFilter::Mirror(eighth), RouteFilter::Mirror(third)] =
            &first.filters[..]
        else {
            panic!("{:?}", first.filters)
        };
        assert_eq!((headers.set[0].0.as_str(), headers.set[0].1.as_str()), ("x-a", "100%"));
        assert_eq!((headers.add.len(), headers.remove.len()), (1, 1));
        assert_eq!((eighth.parts_per_million, third.parts_per_million), (125_000, 300_000));
        let [v1, v2] = &first.backends[..] else { panic!("not two") };
        assert_eq!((v1.weight, v1.object.port, v2.weight), (9, Some(8080), 1));
        assert_eq!(v2.object.namespace.as_deref(), Some("other"));
        assert!(matches!(&v2.filters[..], [RouteFilter::ResponseHeaders(_)]));
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!((first.timeout, first.try_timeout), (seconds(10), seconds(2)));
        let retry = first.retry.as_ref().unwrap();
        assert_eq!((&retry.codes[..], retry.attempts), (&[500, 503][..], Some(3)));
        let [RouteFilter::Redirect(redirect)] = &second.filters[..] else { panic!("no redirect") };
        assert_eq!(
            redirect,
            &RedirectFilter {
                scheme: Some(Scheme::Https),
                hostname: Some("new.example".to_owned()),
                path: Some(PathChange::Prefix("/new".to_owned())),
                port: None,
                status: StatusCode::TEMPORARY_REDIRECT,
            }
        );
    }
}

#[test]
fn a_route_without_a_service_among_its_parents_is_others() {
    for parents in
        ["", "parentRefs: [{name: edge}], ", "parentRefs: [{group: x.y, kind: Z, name: a, more: 1}], "]
    {
        let spec = format!("{{{parents}rules: [{{whatever: its controller knows}}]}}");
        let text = parsed("HTTPRoute", &spec);
        assert!(text.errors.is_empty() && text.warnings.is_empty(), "{:#?}", text.errors);
        let Object::HTTPRoute(route) = &text.objects[0].value else { panic!("another kind") };
        assert!(route.route.parents.is_empty(), "{parents}");
    }
    let slip = parsed("HTTPRoute", "{parentRefs: [{kind: Service, name: web}]}");
    assert_eq!(slip.warnings[0].field.as_deref(), Some("spec.parentRefs[0]"));
    assert!(slip.warnings[0].fix.contains("group: ''"), "{:?}", slip.warnings);
}

#[test]
fn what_is_not_said_is_what_the_api_fills_in() {
    let route = |rules: &str| {
        let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web}";
        good(&format!("{head}\nspec: {{{PARENT}{rules}}}\n")).0
    };
    for rules in ["", ", rules: []", ", rules: [{}]", ", rules: [{matches: [{}]}]"] {
        let route = route(rules);
        assert_eq!(route.rules.len(), 1, "{rules}");
        assert_eq!(route.rules[0].matches, [RouteMatch::default()], "{rules}");
    }
    let unknown =
        route(", rules: [{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]}]");
    assert_eq!(unknown.rules[0].filters, [RouteFilter::Unknown("ExtensionRef".to_owned())]);
    let none = route(", rules: [{timeouts: {request: 0s}}]");
    assert_eq!(none.rules[0].timeout, None);
}

#[test]
fn calls_of_grpc_are_posts_to_a_path() {
    let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: web}";
    for (method, path) in [
        ("{service: a.B, method: C}", PathMatch::Exact("/a.B/C".to_owned())),
        ("{service: a.B}", PathMatch::Prefix("/a.B".to_owned())),
        ("{method: C}", PathMatch::Regex("/[^/]+/C".to_owned())),
        ("{type: RegularExpression, service: 'a.*'}", PathMatch::Regex("/(?:a.*)/[^/]+".to_owned())),
    ] {
        let spec = format!(
            "{{{PARENT}, rules: [{{matches: [{{method: {method}, headers: [{{name: a, value: b}}]}}]}}]}}"
        );
        let (route, _) = good(&format!("{head}\nspec: {spec}\n"));
        let matched = &route.rules[0].matches[0];
        assert_eq!((&matched.path, matched.method.as_deref()), (&path, Some("POST")), "{method}");
        assert!(matched.is_grpc);
        assert_eq!(matched.headers[0].1, StringMatch::Exact("b".to_owned()));
    }
}

#[test]
fn other_kinds_of_the_api_are_no_slips() {
    for kind in ["TCPRoute", "TLSRoute", "UDPRoute", "Gateway", "GatewayClass"] {
        let text = parsed(kind, "{}");
        assert!(text.errors.is_empty() && text.warnings.len() == 1, "{kind}: {:#?}", text.errors);
    }
    let slip = parsed("HTTPRout", "{}");
    assert!(slip.errors[0].fix.contains("did you mean `HTTPRoute`?"), "{:#?}", slip.errors);
}

#[test]
fn grants_are_read_in_both_versions() {
    for version in ["v1", "v1beta1"] {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/{version}\nkind: ReferenceGrant\nmetadata: {{name: a}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}}]\n  \
             to: [{{group: '', kind: Service}}, {{group: core, kind: Service, name: web}}]\n"
        );
        let mut parsed = parse("grants.yaml", &text);
        assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
        let Object::ReferenceGrant(grant) = parsed.objects.remove(0).value else { panic!("another kind") };
        assert_eq!(grant.from[0].namespace, "shop");
        let to: Vec<_> = grant.to.iter().map(|to| (to.group.as_str(), to.name.as_deref())).collect();
        assert_eq!(to, [("", None), ("", Some("web"))]);
    }
}

/// Holds a mistake in the spec of an `HTTPRoute` to what is said of it.
fn assert_named(spec: &str, field: &str, problem: &str, fix: &str) {
    let errors = parsed("HTTPRoute", spec).errors;
    let [error] = &errors[..] else { panic!("{spec}: not one error: {errors:#?}") };
    assert_eq!(error.resource.as_deref(), Some("HTTPRoute shop/web"));
    assert_eq!(error.field.as_deref(), Some(field), "{spec}: {error}");
    assert!(error.problem.contains(problem) && error.fix.contains(fix), "{spec}: {error}");
}

fn with_rule(rule: &str) -> String {
    format!("{{{PARENT}, rules: [{rule}]}}")
}

fn with_filter(filter: &str) -> String {
    with_rule(&format!("{{filters: [{filter}]}}"))
}

const PREFIX: &str =
    "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}";

#[test]
fn each_mistake_of_a_match_or_backend_is_named_with_field_and_fix() {
    let with_match = |matched: &str| with_rule(&format!("{{matches: [{matched}]}}"));
    for (spec, field, problem, fix) in [
        (with_rule("{matchs: []}"), "spec.rules[0].matchs", "unknown field", "did you mean `matches`?"),
        (
            with_match("{path: {type: Prefix, value: /}}"),
            "spec.rules[0].matches[0].path.type",
            "\"Prefix\"",
            "PathPrefix",
        ),
        (
            with_match("{path: {value: cart}}"),
            "spec.rules[0].matches[0].path.value",
            "not a path",
            "begin it with `/`",
        ),
        (
            with_match("{path: {value: /a//b}}"),
            "spec.rules[0].matches[0].path.value",
            "no request's path",
            "the server gets",
        ),
        (
            with_match("{path: {type: RegularExpression, value: '('}}"),
            "spec.rules[0].matches[0].path.value",
            "not closed",
            "RE2",
        ),
        (with_match("{method: get}"), "spec.rules[0].matches[0].method", "\"get\"", "`GET`"),
        (
            with_match("{headers: [{name: 'a b', value: c}]}"),
            "spec.rules[0].matches[0].headers[0].name",
            "not a header",
            "letters",
        ),
        (
            with_match("{headers: [{name: a}]}"),
            "spec.rules[0].matches[0].headers[0]",
            "`value` is missing",
            "add `value`",
        ),
        (with_rule("{backendRefs: [{name: a}]}"), "spec.rules[0].backendRefs[0]", "which port", "add `port`"),
        (
            with_rule("{backendRefs: [{port: 80}]}"),
            "spec.rules[0].backendRefs[0]",
            "`name` is missing",
            "add `name`",
        ),
        (
            with_rule("{backendRefs: [{name: a, port: 80, weight: -1}]}"),
            "spec.rules[0].backendRefs[0].weight",
            "out of range",
            "from 0",
        ),
    ] {
        assert_named(&spec, field, problem, fix);
    }
}

#[test]
fn each_mistake_of_a_filter_or_policy_is_named_with_field_and_fix() {
    for (spec, field, problem, fix) in [
        (with_filter("{requestRedirect: {}}"), "spec.rules[0].filters[0]", "`type` is missing", "add `type`"),
        (with_filter("{type: CORS}"), "spec.rules[0].filters[0]", "`cors` is missing", "add `cors`"),
        (
            with_filter("{type: RequestRedirect, requestRedirect: {statusCode: 304}}"),
            "spec.rules[0].filters[0].requestRedirect.statusCode",
            "no redirect",
            "301",
        ),
        (
            with_filter(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /}}}",
            ),
            "spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch",
            "does not go with",
            "`replaceFullPath`",
        ),
        (
            with_filter("{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}"),
            "spec.rules[0].filters[1]",
            "exclude each other",
            "remove one",
        ),
        (
            with_filter("{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}"),
            "spec.rules[0].filters[1]",
            "already",
            "both in one",
        ),
        (
            with_rule(&format!("{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{PREFIX}]}}")),
            "spec.rules[0]",
            "exactly one match",
            "a rule of its own",
        ),
        (
            with_filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, fraction: {numerator: 101}}}",
            ),
            "spec.rules[0].filters[0].requestMirror.fraction",
            "more than all",
            "`numerator`",
        ),
        (
            with_filter("{type: CORS, cors: {allowOrigins: [shop.example]}}"),
            "spec.rules[0].filters[0].cors.allowOrigins[0]",
            "does not belong",
            "https://",
        ),
        (
            with_rule("{timeouts: {request: 1s, backendRequest: 2s}}"),
            "spec.rules[0].timeouts.backendRequest",
            "more time",
            "at most",
        ),
        (with_rule("{retry: {codes: [200]}}"), "spec.rules[0].retry.codes[0]", "out of range", "400"),
        (
            "{parentRefs: [{group: '', kind: Service, name: web, section: a}]}".to_owned(),
            "spec.parentRefs[0].section",
            "unknown field",
            "`sectionName`",
        ),
        (format!("{{{PARENT}, rules: [{}]}}", ["{}"; 17].join(", ")), "spec.rules", "more than 16", "fewer"),
    ] {
        assert_named(&spec, field, problem, fix);
    }
}

#[test]
fn each_mistake_of_the_other_kinds_is_named_with_its_field() {
    for (kind, spec, field) in [
        ("GRPCRoute", with_rule("{matches: [{method: {}}]}"), "spec.rules[0].matches[0].method"),
        (
            "GRPCRoute",
            with_rule("{matches: [{method: {service: a/b}}]}"),
            "spec.rules[0].matches[0].method.service",
        ),
        ("GRPCRoute", with_filter(PREFIX), "spec.rules[0]"),
        ("ReferenceGrant", "{from: []}".to_owned(), "spec"),
        ("ReferenceGrant", "{from: [{group: '', kind: A}], to: []}".to_owned(), "spec.from[0]"),
    ] {
        let errors = parsed(kind, &spec).errors;
        assert_eq!(errors.first().and_then(|it| it.field.as_deref()), Some(field), "{spec}: {errors:#?}");
    }
}
