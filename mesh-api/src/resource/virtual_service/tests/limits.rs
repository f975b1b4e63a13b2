//! That none costs much, whatever is written into it.

use super::{RetryCondition, beside_route, good, parsed, route};

/// Each error's field, and whether its problem has this in it.
fn errors(spec: &str, problem: &str) -> Vec<(String, bool)> {
    let errors = parsed(spec).errors.into_iter();
    errors.map(|error| (error.field.unwrap_or_default(), error.problem.contains(problem))).collect()
}

fn one(field: &str) -> Vec<(String, bool)> {
    vec![(field.to_owned(), true)]
}

#[test]
fn an_object_with_too_many_values_is_not_read() {
    let destination = "route: [{destination: {host: web}}]";
    let problem = "more than 10000 values";
    let hosts = |count: usize| {
        let hosts: Vec<_> = (0..count).map(|n| format!("h{n}")).collect();
        format!("{{hosts: [{}], http: [{{{destination}}}]}}", hosts.join(", "))
    };
    good(parsed(&hosts(9_999)));
    assert_eq!(errors(&hosts(10_000), problem), one("spec.http"));
    assert_eq!(errors(&hosts(10_001), problem), one("spec.hosts"));
    // What can't be read is counted, too.
    let unknown = |n: usize| format!("x{n}: ");
    let fields: Vec<_> = (0..10_001).map(unknown).collect();
    let route = format!("{{hosts: [web], http: [{{{destination}, {}}}]}}", fields.join(", "));
    assert_eq!(errors(&route, problem), one("spec.http"));
    let route = format!("{{hosts: [web], http: [{}]}}", vec!["{}"; 10_000].join(", "));
    assert_eq!(errors(&route, problem), one("spec.http"));
}

#[test]
fn after_fifty_findings_the_rest_is_counted() {
    let routes =
        |count: usize, route: &str| format!("{{hosts: [web], http: [{}]}}", vec![route; count].join(", "));
    let broken = parsed(&routes(60, "{}"));
    assert_eq!((broken.objects.len(), broken.errors.len()), (0, 51));
    assert_eq!(broken.errors[49].field.as_deref(), Some("spec.http[49]"));
    assert_eq!(broken.errors[50].problem, "and 10 more like these");
    let warned = parsed(&routes(60, "{delegate: {name: a}, retries: {}}"));
    assert_eq!((warned.objects.len(), warned.warnings.len()), (1, 51));
    assert_eq!(warned.warnings[50].problem, "and 10 more like these");
}

#[test]
fn reasons_to_try_again_count_once_each() {
    let retries = |words: &str| format!("retries: {{attempts: 1, retryOn: '{words}'}}");
    let field = "spec.http[0].retries.retryOn";
    assert_eq!(errors(&beside_route(&retries("a,b,a,a,b")), "no reason"), [one(field), one(field)].concat());
    let read = route(&retries("reset,5xx,reset,5xx")).retries.expect("was given");
    assert_eq!(read.retry_on, [RetryCondition::Reset, RetryCondition::ServerError]);
    let distinct = retries("a,b,c,d,e,f,g,h,i,j,k,l");
    assert_eq!(errors(&beside_route(&distinct), "no reason").len(), 10);
    let long = retries(&"x,".repeat(513));
    assert_eq!(errors(&beside_route(&long), "longer than 1024 bytes"), one(field));
}

#[test]
fn nothing_below_a_long_name_is_looked_at() {
    let name = "x".repeat(257);
    for (more, field) in [
        (format!("match: [{{headers: {{{name}: {{a: b}}}}}}]"), "match[0].headers"),
        (format!("match: [{{withoutHeaders: {{{name}: {{a: b}}}}}}]"), "match[0].withoutHeaders"),
        (format!("match: [{{queryParams: {{{name}: {{a: b}}}}}}]"), "match[0].queryParams"),
        (format!("match: [{{headers: {{'@request.auth.claims.{name}': {{a: b}}}}}}]"), "match[0].headers"),
        (format!("headers: {{request: {{set: {{{name}: 1}}}}}}"), "headers.request.set"),
        (format!("headers: {{response: {{add: {{{name}: 1}}}}}}"), "headers.response.add"),
    ] {
        let expected = one(&format!("spec.http[0].{field}"));
        assert_eq!(errors(&beside_route(&more), "longer than 256 bytes"), expected);
    }
    let name = &name[1..];
    route(&format!("match: [{{headers: {{{name}: {{}}}}}}]"));
}

#[test]
fn values_of_headers_have_a_limit() {
    let set = |length: usize| format!("headers: {{request: {{set: {{x-a: {}}}}}}}", "b".repeat(length));
    route(&set(16_384));
    let field = "spec.http[0].headers.request.set.x-a";
    assert_eq!(errors(&beside_route(&set(16_385)), "longer than 16384 bytes"), one(field));
}

#[test]
fn messages_repeat_no_long_texts() {
    let text = "é".repeat(5_000);
    for spec in [
        format!("{{hosts: [{text}], http: [{{delegate: {{name: a}}}}]}}"),
        format!("{{hosts: [a], gateways: [{text}], http: [{{delegate: {{name: a}}}}]}}"),
        format!("{{hosts: [a], http: [{{route: [{{destination: {{host: {text}}}}}]}}]}}"),
        format!("{{hosts: [a], http: [{{route: [{{destination: {{host: a, subset: {text}}}}}]}}]}}"),
        format!(
            "{{hosts: [a], tls: [{{match: [{{sniHosts: ['a{text}']}}], route: [{{destination: {{host: a}}}}]}}]}}"
        ),
        format!(
            "{{hosts: [a], tcp: [{{match: [{{destinationSubnets: [{text}]}}], route: [{{destination: {{host: a}}}}]}}]}}"
        ),
        beside_route(&format!("match: [{{sourceNamespace: {text}}}]")),
        beside_route(&format!("match: [{{sourceLabels: {{a: {text}}}}}]")),
        beside_route(&format!("match: [{{uri: {{regex: '({}'}}}}]", "a".repeat(1000))),
        beside_route(&format!("match: [{{headers: {{'{}': {{}}}}}}]", " ".repeat(200) + ".")),
        beside_route(&format!("headers: {{request: {{remove: [{text}]}}}}")),
        beside_route(&format!("headers: {{request: {{remove: [':{text}']}}}}")),
        beside_route(&format!("corsPolicy: {{allowMethods: [{text}]}}")),
        beside_route(&format!("corsPolicy: {{unmatchedPreflights: {text}}}")),
        beside_route(&format!("retries: {{attempts: 1, retryOn: {}}}", "a".repeat(1000))),
        beside_route(&format!("timeout: {text}")),
        beside_route(&format!("rewrite: {text}")),
    ] {
        let parsed = parsed(&spec);
        let [error] = &parsed.errors[..] else { panic!("{spec:.100}: {} errors", parsed.errors.len()) };
        assert!(error.problem.chars().count() < 200, "{error}");
    }
}
