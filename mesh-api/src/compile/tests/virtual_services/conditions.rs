//! What is said of virtual services that are not in force as they are written.

use std::fmt::Write as _;

use super::*;

/// The fields that are said to have no effect, with `!` if nothing has. Each has a reason and a fix.
fn fields(text: &str) -> Vec<String> {
    let conditions = compiled(&(SERVICES.to_owned() + text)).conditions;
    assert!(conditions.iter().all(|it| !it.reason.is_empty() && !it.fix.is_empty()), "{conditions:#?}");
    let field = |it: &Condition| format!("{}{}", it.field, if it.is_whole { "!" } else { "" });
    conditions.iter().map(field).collect()
}

fn of_spec(spec: &str) -> Vec<String> {
    fields(&service("a", "shop", spec))
}

/// The fields that are said of a route with this beside its destination, without the route's own path.
fn of_route(more: &str) -> Vec<String> {
    let route = format!("{{route: [{{destination: {{host: api}}}}], {more}}}");
    let all = of_spec(&format!("hosts: [web], http: [{route}]"));
    let in_route = |field: &String| field.strip_prefix("spec.http[0].").map(str::to_owned);
    all.iter().map(|field| in_route(field).unwrap_or_else(|| field.clone())).collect()
}

#[test]
fn of_what_is_in_force_as_written_nothing_is_said() {
    for more in [
        "name: a, match: [{name: b, uri: {prefix: /}, headers: {a: {regex: '[a-z]+'}}, sourceLabels: {app: a}}]",
        "rewrite: {uri: /, authority: a}, timeout: 1s",
        "retries: {attempts: 1, retryOn: '5xx,unavailable'}",
        "fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {httpStatus: 503, percentage: {value: 1}}}",
        "headers: {request: {set: {a: '100%%', host: b}}, response: {add: {c: d}, remove: [e]}}",
        "mirrors: [{destination: {host: api}, percentage: {value: 0}}]",
        "fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {grpcStatus: OK, percentage: {value: 0}}}",
    ] {
        assert!(of_route(more).is_empty(), "{more}: {:?}", of_route(more));
    }
    let answers = "hosts: [web], http: [{match: [{uri: {exact: /}}], redirect: {uri: /a}}, {directResponse: {status: 404}}]";
    assert!(of_spec(answers).is_empty());
}

#[test]
fn fields_of_routes_that_have_no_effect_yet_are_named() {
    for (more, field) in [
        ("retries: {attempts: 1, retryRemoteLocalities: true}", "retries.retryRemoteLocalities"),
        ("retries: {attempts: 1, retryIgnorePreviousHosts: false}", "retries.retryIgnorePreviousHosts"),
        ("fault: {abort: {grpcStatus: NOT_FOUND, percentage: {value: 1}}}", "fault.abort.grpcStatus"),
        ("match: [{statPrefix: a}]", "match[0].statPrefix"),
        ("match: [{port: 1}, {gateways: [edge]}]", "match[1].gateways"),
        ("match: [{port: 1}, {uri: {regex: 'a\\C'}}]", "match[1].uri.regex"),
        ("match: [{port: 1}, {withoutHeaders: {X-A: {regex: 'a\\C'}}}]", "match[1].withoutHeaders.x-a.regex"),
        ("match: [{port: 1}, {queryParams: {q: {regex: 'a\\C'}}}]", "match[1].queryParams.q.regex"),
        ("rewrite: {uriRegexRewrite: {match: 'a\\C', rewrite: b}}", "rewrite.uriRegexRewrite.match"),
        ("corsPolicy: {allowOrigins: [{exact: a}, {regex: 'a\\C'}]}", "corsPolicy.allowOrigins[1].regex"),
        ("headers: {request: {set: {X-A: '%HOSTNAME%'}}}", "headers.request.set.x-a"),
        ("headers: {response: {add: {X-A: 'a %REQ(b)%'}}}", "headers.response.add.x-a"),
    ] {
        assert_eq!(of_route(more), [field], "{more}");
    }
    for (route, field) in [
        ("delegate: {name: other}", "delegate"),
        ("redirect: {uri: /}, headers: {response: {remove: [a]}}", "headers"),
        (
            "route: [{destination: {host: api}, headers: {request: {add: {x-a: '%HOSTNAME%'}}}}]",
            "route[0].headers.request.add.x-a",
        ),
    ] {
        let last = "{route: [{destination: {host: api}}]}";
        let found = of_spec(&format!("hosts: [web], http: [{{match: [{{port: 1}}], {route}}}, {last}]"));
        assert_eq!(found, [format!("spec.http[0].{field}")], "{route}");
    }
}

#[test]
fn what_is_for_others_than_requests_in_the_mesh_is_named() {
    let tcp = "tcp: [{route: [{destination: {host: api}}]}]";
    let tls = "tls: [{match: [{sniHosts: [web]}], route: [{destination: {host: api}}]}]";
    let at_gateways =
        "{match: [{gateways: [edge]}], mirror: {host: api}, route: [{destination: {host: api}}]}";
    for (spec, expected) in [
        (TO_API.to_owned(), &["spec.hosts!"][..]),
        (format!("hosts: [web], gateways: [edge], {TO_API}"), &["spec.gateways!"]),
        (format!("hosts: [web], gateways: [edge, mesh], {TO_API}"), &["spec.gateways"]),
        (format!("hosts: [web], {TO_API}, {tcp}, {tls}"), &["spec.tls", "spec.tcp"]),
        (format!("hosts: [web], {tcp}"), &["spec.tcp!"]),
        ("hosts: [web], http: [{delegate: {name: a}}]".to_owned(), &["spec.http!", "spec.http[0].delegate"]),
        (
            format!("hosts: [web], gateways: [edge, mesh], http: [{at_gateways}]"),
            &["spec.http!", "spec.gateways"],
        ),
    ] {
        assert_eq!(of_spec(&spec), expected, "{spec}");
    }
}

#[test]
fn hosts_that_no_request_goes_to_are_named() {
    let services = "\
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.3, ports: [{name: tcp, port: 80}, {name: tls-a, port: 81}, {name: https, port: 82},
  {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: mixed, namespace: shop}
spec: {clusterIP: 10.96.0.4, ports: [{name: tcp, port: 80}, {name: metrics, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: example.org}
";
    for (hosts, expected) in [
        ("web", &[][..]),
        ("'*.shop.svc.cluster.local'", &[]),
        ("'*.svc.cluster.local', '*.example.org'", &["spec.hosts[1]"]),
        ("mixed", &[]),
        ("nobody", &["spec.hosts[0]!"]),
        ("outside", &["spec.hosts[0]!"]),
        ("10.96.0.1", &["spec.hosts[0]!"]),
        ("'*.bank.svc.cluster.local'", &["spec.hosts[0]!"]),
        ("web, nobody", &["spec.hosts[1]"]),
        ("nobody, web.example", &["spec.hosts[0]!", "spec.hosts[1]"]),
        ("headless", &["spec.hosts[0]!"]),
        ("db", &["spec.hosts[0]!"]),
        ("db, web", &["spec.hosts[0]"]),
    ] {
        let text = services.to_owned() + &service("a", "shop", &format!("hosts: [{hosts}], {TO_API}"));
        assert_eq!(fields(&text), expected, "{hosts}");
    }
}

#[test]
fn destinations_that_get_no_request_are_named() {
    const RULES: &str = "\
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: shop}
spec: {host: api, subsets: [{name: v1}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all, namespace: shop}
spec: {host: '*.shop.svc.cluster.local', subsets: [{name: v2}]}
";
    for (destination, field) in [
        ("host: api", ""),
        ("host: api, port: {number: 8080}", ""),
        ("host: api, subset: v1", ""),
        ("host: api, subset: v2", ""),
        ("host: api, subset: v3", "subset"),
        ("host: web, subset: v1", "subset"),
        ("host: api, port: {number: 81}", "port"),
        ("host: nobody", "host"),
        ("host: bank.example, subset: v1", "host"),
        ("host: '*.shop.svc.cluster.local'", "host"),
    ] {
        let http = format!("{{route: [{{destination: {{{destination}}}}}]}}");
        let text = RULES.to_owned() + &service("a", "shop", &format!("hosts: [web], http: [{http}]"));
        let expected = format!("spec.http[0].route[0].destination.{field}");
        let found = fields(&text);
        assert_eq!(found.concat(), if field.is_empty() { "" } else { &expected }, "{destination}");
    }
    // Nothing goes where nothing is to go.
    let spec = "hosts: [web], http: [{match: [{port: 1}], delegate: {name: a}}, {route: [{destination: {host: api}, weight: 1}, \
                {destination: {host: nobody}, weight: 0}, {destination: {host: nobody}, weight: 1}]}]";
    assert_eq!(of_spec(spec), ["spec.http[0].delegate", "spec.http[1].route[2].destination.host"]);
}

#[test]
fn one_that_others_hide_is_named_with_the_one_that_counts() {
    let conditions = |text: &str| {
        let conditions = compiled(&(SERVICES.to_owned() + text)).conditions;
        let one = |it: &Condition| {
            let words = it.reason.split(" is for ").next().unwrap_or_default().to_owned();
            (it.name.clone(), format!("{}{}", it.field, if it.is_whole { "!" } else { "" }), words)
        };
        conditions.iter().map(one).collect::<Vec<_>>()
    };
    let hidden = |name: &str, field: &str, by: &str| {
        (name.to_owned(), field.to_owned(), format!("VirtualService {by}"))
    };
    let all = for_host("a", "shop", "web", "") + &for_host("b", "other", HOST, "");
    assert_eq!(conditions(&all), [hidden("b", "spec.hosts[0]!", "shop/a")]);
    let private = for_host("a", "shop", "web", "[., client]") + &for_host("b", "shop", HOST, "[.]");
    assert_eq!(conditions(&private), [hidden("b", "spec.hosts[0]!", "shop/a")]);
    let wildcards = for_host("a", "shop", "*.local", "") + &for_host("b", "shop", "*.local", "");
    assert_eq!(conditions(&wildcards), [hidden("b", "spec.hosts[0]!", "shop/a")]);
    let partly =
        for_host("a", "shop", "web", "") + &service("b", "shop", &format!("hosts: [api, web], {TO_API}"));
    assert_eq!(conditions(&partly), [hidden("b", "spec.hosts[1]", "shop/a")]);
    for beside in [
        for_host("b", "shop", "web", "[client]"),
        for_host("b", "shop", "*.shop.svc.cluster.local", ""),
        for_host("b", "shop", "api", ""),
    ] {
        assert_eq!(conditions(&(for_host("a", "shop", "web", "") + &beside)), [], "{beside}");
    }
}

#[test]
fn one_that_would_cost_agents_much_is_not_in_force() {
    let body = |bytes: usize| {
        format!("http: [{{directResponse: {{status: 200, body: {{string: {}}}}}}}]", "x".repeat(bytes))
    };
    for (hosts, http, is_in_force) in [
        ("web", body(1 << 20), true),
        ("'*.shop.svc.cluster.local'", body(128_000), true),
        ("'*.shop.svc.cluster.local'", body(132_000), false),
        ("web, api, a, b, c, d, e, f, g", body(1 << 20), false),
    ] {
        let spec = format!("hosts: [{hosts}], {http}");
        let found = of_spec(&spec);
        assert_eq!(!found.iter().any(|field| field == "spec.http!"), is_in_force, "{spec:.60}: {found:?}");
        assert_eq!(!tables(&service("a", "shop", &spec)).is_empty(), is_in_force, "{spec:.60}");
    }
    let expressions = |count: usize| {
        let mut http = String::new();
        for number in 0..count {
            write!(http, "{{match: [{{uri: {{regex: '/{number}'}}}}], redirect: {{uri: /}}}}, ").unwrap();
        }
        format!("hosts: [web], http: [{http}{{route: [{{destination: {{host: api}}}}]}}]")
    };
    assert!(of_spec(&expressions(100)).is_empty());
    assert_eq!(of_spec(&expressions(101)), ["spec.http!"]);
    assert!(tables(&service("a", "shop", &expressions(101))).is_empty());
}

#[test]
fn after_fifty_conditions_the_rest_is_counted() {
    let hosts: Vec<_> = (0..60).map(|number| format!("h{number}")).collect();
    let text = service("a", "shop", &format!("hosts: [{}], {TO_API}", hosts.join(", ")));
    let conditions = compiled(&(SERVICES.to_owned() + &text)).conditions;
    assert_eq!(conditions.len(), 51);
    assert!(conditions[0].is_whole, "{:?}", conditions[0]);
    assert_eq!(conditions[50].reason, "and 10 more like these");
}
