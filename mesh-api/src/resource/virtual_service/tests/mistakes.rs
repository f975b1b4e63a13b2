//! Each mistake is named by field and problem, with a way out.

use super::{beside_route, parsed};

fn check(spec: &str, field: &str, problem: &str) {
    let parsed = parsed(spec);
    let [error] = &parsed.errors[..] else { panic!("{spec}: {:#?}", parsed.errors) };
    assert_eq!(error.resource.as_deref(), Some("VirtualService shop/web"), "{spec}");
    assert_eq!(error.field.as_deref(), Some(field), "{spec}: {error}");
    assert!(error.problem.contains(problem), "{spec}: {error}");
    assert!(!error.fix.is_empty(), "{spec}: {error}");
}

#[test]
fn mistakes_of_the_whole_are_named() {
    const ROUTE: &str = "http: [{route: [{destination: {host: a}}]}]";
    const CONNECTION: &str = "[{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]";
    for (rest, field, problem) in [
        ("hosts: [a], hostz: []", "spec.hostz", "unknown field"),
        ("hosts: ['a b']", "spec.hosts[0]", "not a host"),
        ("hosts: [a.*]", "spec.hosts[0]", "not a host"),
        ("hosts: [a, A.]", "spec.hosts[1]", "already there"),
        ("hosts: ['*.b', a.b]", "spec.hosts[1]", "\"*.b\" includes"),
        ("hosts: ['*.a.b', '*.b']", "spec.hosts[0]", "\"*.b\" includes"),
        ("hosts: ['*']", "spec.hosts", "clients in the mesh"),
        ("hosts: ['*'], gateways: [edge, mesh]", "spec.hosts", "clients in the mesh"),
        ("hosts: [a], gateways: [A/b]", "spec.gateways[0]", "not a gateway"),
        // What is no gateway does not mean clients in the mesh.
        ("hosts: ['*'], gateways: [A/b]", "spec.gateways[0]", "not a gateway"),
        ("hosts: ['*'], gateways: edge", "spec.gateways", "must be a list"),
        ("hosts: ['*.']", "spec.hosts[0]", "not a host"),
        ("hosts: ['*-eu.b', a-eu.b]", "spec.hosts[1]", "\"*-eu.b\" includes"),
        ("hosts: [a], gateways: [a/b/c]", "spec.gateways[0]", "not a gateway"),
        ("hosts: [a], gateways: [a/]", "spec.gateways[0]", "not a gateway"),
        ("gateways: [edge]", "spec.gateways", "without `hosts`"),
        ("hosts: [a], exportTo: ['~']", "spec.exportTo[0]", "`~`"),
        ("hosts: [a], exportTo: ['*', b]", "spec.exportTo[0]", "includes the others"),
    ] {
        check(&format!("{{{rest}, {ROUTE}}}"), field, problem);
    }
    check("a", "spec", "must be a map");
    for (hosts, field, problem) in [
        ("a", "spec.hosts", "must be a list"),
        ("['a b']", "spec.hosts[0]", "not a host"),
        ("[1]", "spec.hosts[0]", "must be a string"),
    ] {
        check(&format!("{{hosts: {hosts}, http: [{{delegate: {{name: a}}}}]}}"), field, problem);
        check(&format!("{{hosts: {hosts}, tls: {CONNECTION}}}"), field, problem);
    }
    check("{hosts: [a]}", "spec", "no route");
    check("{hosts: [a], http: [], tcp: []}", "spec", "no route");
    check(&format!("{{tls: {CONNECTION}}}"), "spec.tls", "without `hosts`");
    check("{tcp: [{route: [{destination: {host: a}}]}]}", "spec.tcp", "without `hosts`");
}

#[test]
fn mistakes_of_a_match_are_named() {
    for (condition, field, problem) in [
        ("url: {exact: /}", ".url", "unknown field"),
        ("uri: {}", ".uri", "what to compare with"),
        ("uri: {exakt: /}", ".uri.exakt", "unknown field"),
        ("uri: {exact: /, prefix: /}", ".uri", "exclude each other"),
        ("uri: {regex: '/(a'}", ".uri.regex", "a `(` is not closed"),
        ("uri: {regex: ''}", ".uri.regex", "is empty"),
        ("method: {prefix: ''}", ".method.prefix", "is empty"),
        ("method: {exact: 1}", ".method.exact", "must be a string"),
        ("headers: {x-a: {regex: '*'}}", ".headers.x-a.regex", "nothing before"),
        ("headers: {x-a: }", ".headers.x-a", "no value"),
        ("headers: {'x a': {}}", ".headers.x a", "not a header's name"),
        ("headers: {'@request.auth.claims.a': {}}", ".headers[\"@request.auth.claims.a\"]", "gateways only"),
        ("withoutHeaders: {x-a: {prefix: ''}}", ".withoutHeaders.x-a.prefix", "is empty"),
        ("queryParams: {a: }", ".queryParams.a", "no value"),
        ("ignoreUriCase: 'yes'", ".ignoreUriCase", "true or false"),
        ("port: 70000", ".port", "out of range"),
        ("uri: /path", ".uri", "must be a map"),
        ("headers: {x-a: b}", ".headers.x-a", "must be a map"),
        ("name: \"a\\nb\"", ".name", "control characters"),
        ("statPrefix: \"a\\x7f\"", ".statPrefix", "control characters"),
        ("sourceLabels: {a: 'b*'}", ".sourceLabels.a", "no pod can have"),
        ("sourceLabels: {a: }", ".sourceLabels.a", "no value"),
        ("sourceNamespace: A", ".sourceNamespace", "not a namespace"),
        ("gateways: ['']", ".gateways[0]", "is empty"),
    ] {
        let spec = beside_route(&format!("match: [{{{condition}}}]"));
        check(&spec, &format!("spec.http[0].match[0]{field}"), problem);
    }
    let at_gateway = |name: &str| {
        format!(
            "{{hosts: [web], gateways: [edge], http: [{{match: [{{headers: {{'{name}': {{}}}}}}], \
             route: [{{destination: {{host: web}}}}]}}]}}"
        )
    };
    let claim = at_gateway("@request.auth.claims.a").replace("[edge]", "[A/b]");
    check(&claim, "spec.gateways[0]", "not a gateway");
    for name in ["@request.auth.claims", "@request.auth.claims[]", "@request.auth.claims.a..b"] {
        check(&at_gateway(name), &format!("spec.http[0].match[0].headers[{name:?}]"), "which claim");
    }
    let long = format!("match: [{{uri: {{regex: {}}}}}]", "a".repeat(1025));
    check(&beside_route(&long), "spec.http[0].match[0].uri.regex", "longer than 1024");
}

#[test]
fn mistakes_of_destinations_are_named() {
    for (list, field, problem) in [
        ("[]", "", "what becomes of requests"),
        ("[{}]", ".route[0]", "`destination` is missing"),
        ("[{destination: {}}]", ".route[0].destination", "`host` is missing"),
        ("[{destination: {host: '*'}}]", ".route[0].destination.host", "not a host"),
        ("[{destination: {host: a, subset: b.c}}]", ".route[0].destination.subset", "not a subset"),
        ("[{destination: {host: a, port: 80}}]", ".route[0].destination.port", "must be a map"),
        ("[{destination: {host: a, port: {}}}]", ".route[0].destination.port", "`number` is missing"),
        ("[{destination: {host: a}, weight: -1}]", ".route[0].weight", "out of range"),
        ("[{destination: {host: a}}, {destination: {host: b}}]", ".route", "all weights are 0"),
        (
            "[{destination: {host: a}, weight: 2147483647}, {destination: {host: b}, weight: 2147483647}, \
             {destination: {host: c}, weight: 2}]",
            ".route",
            "add up to",
        ),
        (
            "[{destination: {host: a}, headers: {request: {add: {':path': b}}}}]",
            ".route[0].headers.request.add.:path",
            "can't be changed",
        ),
    ] {
        check(
            &format!("{{hosts: [web], http: [{{route: {list}}}]}}"),
            &format!("spec.http[0]{field}"),
            problem,
        );
    }
}

#[test]
fn mistakes_of_what_is_done_on_the_way_are_named() {
    for (more, field, problem) in [
        ("timeout: 0s", "timeout", "not a duration"),
        ("timeout: 1500us", "timeout", "finer than a millisecond"),
        ("name: \"a\\nb\"", "name", "control characters"),
        ("rewrite: {}", "rewrite", "rewrites nothing"),
        ("rewrite: {uri: ''}", "rewrite", "rewrites nothing"),
        ("rewrite: /x", "rewrite", "must be a map"),
        ("rewrite: {uri: '/a b'}", "rewrite.uri", "a URL has no"),
        ("rewrite: {authority: \"a\\r\\nb\"}", "rewrite.authority", "a URL has no"),
        (
            "rewrite: {uriRegexRewrite: {match: a, rewrite: 'é'}}",
            "rewrite.uriRegexRewrite.rewrite",
            "a URL has no",
        ),
        (
            "rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}",
            "rewrite.uriRegexRewrite",
            "exclude each other",
        ),
        ("rewrite: {uriRegexRewrite: {match: a}}", "rewrite.uriRegexRewrite", "`rewrite` is missing"),
        ("rewrite: {uriRegexRewrite: {match: '[', rewrite: b}}", "rewrite.uriRegexRewrite.match", "`[`"),
        (
            "rewrite: {uriRegexRewrite: {match: a, rewrite: '\\a'}}",
            "rewrite.uriRegexRewrite.rewrite",
            "backslash",
        ),
        (
            "rewrite: {authority: a}, headers: {request: {set: {host: b}}}",
            "headers",
            "already set by `rewrite`",
        ),
        (
            "headers: {request: {set: {host: a, ':authority': b}}}",
            "headers.request.set.:authority",
            "already set",
        ),
        ("headers: {response: {set: {host: a}}}", "headers.response.set.host", "can't be changed"),
        ("headers: {request: {remove: [Host]}}", "headers.request.remove[0]", "can't be changed"),
        ("headers: {request: {set: {'a b': c}}}", "headers.request.set.a b", "not a header's name"),
        ("headers: {request: {set: {a: \"b\\nc\"}}}", "headers.request.set.a", "control characters"),
        ("headers: {request: {set: {a: '5%'}}}", "headers.request.set.a", "a `%` stands alone"),
        ("headers: {request: {set: {a: }}}", "headers.request.set.a", "no value"),
        ("retries: {attempts: -1}", "retries.attempts", "out of range"),
        ("retries: {retryOn: 5xx}", "retries", "without `attempts`"),
        ("retries: {attempts: 0, perTryTimeout: 1s}", "retries", "without `attempts`"),
        ("retries: {attempts: 1, retryOn: '5xx, reset'}", "retries.retryOn", "\" reset\""),
        ("retries: {attempts: 1, retryOn: 999}", "retries.retryOn", "must be a string"),
        ("retries: {attempts: 1, retryOn: '999'}", "retries.retryOn", "no reason"),
        ("fault: {}", "fault", "does nothing"),
        ("fault: 1", "fault", "must be a map"),
        ("fault: {delay: {percentage: {value: 1}}}", "fault.delay", "`fixedDelay` is missing"),
        ("fault: {delay: {exponentialDelay: 1s}}", "fault.delay.exponentialDelay", "never made"),
        ("fault: {abort: {http2Error: a, percentage: {value: 1}}}", "fault.abort.http2Error", "never made"),
        (
            "fault: {abort: {httpStatus: 99, percentage: {value: 1}}}",
            "fault.abort.httpStatus",
            "out of range",
        ),
        ("fault: {abort: {grpcStatus: '17', percentage: {value: 1}}}", "fault.abort.grpcStatus", "17 is not"),
        (
            "fault: {abort: {grpcStatus: NOTFOUND, percentage: {value: 1}}}",
            "fault.abort.grpcStatus",
            "not a value",
        ),
        (
            "fault: {abort: {httpStatus: 503, grpcStatus: OK, percentage: {value: 1}}}",
            "fault.abort.grpcStatus",
            "in one way",
        ),
        (
            "fault: {abort: {httpStatus: 503, percentage: {value: 101}}}",
            "fault.abort.percentage.value",
            "out of range",
        ),
        (
            "mirror: {host: a}, mirrorPercentage: {value: 0.00009}",
            "mirrorPercentage.value",
            "less than one request in a million",
        ),
        ("mirror: {host: a}, mirrors: [{destination: {host: a}}]", "mirror", "exclude each other"),
        ("mirrors: [{}]", "mirrors[0]", "`destination` is missing"),
        ("mirror: {host: a}, mirrorPercentage: {value: -1}", "mirrorPercentage.value", "out of range"),
        ("corsPolicy: {allowOrigins: [{exact: ''}]}", "corsPolicy.allowOrigins[0]", "origin is empty"),
        ("corsPolicy: {allowMethods: [get]}", "corsPolicy.allowMethods[0]", "\"get\""),
        ("corsPolicy: {allowHeaders: ['a b']}", "corsPolicy.allowHeaders[0]", "\"a b\""),
        ("corsPolicy: {maxAge: 1500ms}", "corsPolicy.maxAge", "finer than a second"),
        ("corsPolicy: {unmatchedPreflights: DROP}", "corsPolicy.unmatchedPreflights", "\"DROP\""),
        ("redirect: {uri: /}", "redirect", "`route` and `redirect` exclude"),
        ("directResponse: {status: 200}", "directResponse", "`route` and `directResponse` exclude"),
        ("delegate: {name: a}", "delegate", "`route` and `delegate` exclude"),
    ] {
        check(&beside_route(more), &format!("spec.http[0].{field}"), problem);
    }
}

#[test]
fn mistakes_of_answers_and_delegates_are_named() {
    for (route, field, problem) in [
        ("{redirect: {redirectCode: 302}}", ".redirect", "where to"),
        ("{redirect: {uri: ''}}", ".redirect", "where to"),
        ("{redirect: /x}", ".redirect", "must be a map"),
        ("{redirect: {url: /x}}", ".redirect.url", "unknown field"),
        ("{redirect: {uri: \"/a\\nb\"}}", ".redirect.uri", "a URL has no"),
        ("{redirect: {prefixRewrite: /é}}", ".redirect.prefixRewrite", "a URL has no"),
        ("{redirect: {authority: a b}}", ".redirect.authority", "a URL has no"),
        ("{redirect: {uri: /, redirectCode: 200}}", ".redirect.redirectCode", "out of range"),
        ("{redirect: {uri: /, redirectCode: 304}}", ".redirect.redirectCode", "no redirect"),
        ("{redirect: {uri: /, scheme: ftp}}", ".redirect.scheme", "\"ftp\""),
        ("{redirect: {uri: /, prefixRewrite: /}}", ".redirect.prefixRewrite", "exclude each other"),
        (
            "{redirect: {port: 1, derivePort: FROM_REQUEST_PORT}}",
            ".redirect.derivePort",
            "exclude each other",
        ),
        ("{redirect: {uri: /}, rewrite: {uri: /}}", ".rewrite", "`rewrite` and `redirect` exclude"),
        (
            "{redirect: {uri: /}, fault: {abort: {httpStatus: 503, percentage: {value: 1}}}}",
            ".fault",
            "`fault` and `redirect` exclude",
        ),
        ("{redirect: {uri: /}, directResponse: {status: 200}}", ".directResponse", "exclude each other"),
        ("{redirect: {uri: /}, delegate: {name: a}}", ".delegate", "exclude each other"),
        ("{directResponse: {}}", ".directResponse", "`status` is missing"),
        ("{directResponse: {status: 100}}", ".directResponse.status", "out of range"),
        ("{directResponse: {status: 200, body: {bytes: '?'}}}", ".directResponse.body.bytes", "not base64"),
        (
            "{directResponse: {status: 200, body: {string: a, bytes: YQ==}}}",
            ".directResponse.body.bytes",
            "exclude each other",
        ),
        ("{directResponse: {status: 200}, rewrite: {uri: /}}", ".rewrite", "exclude each other"),
        ("{delegate: {namespace: a}}", ".delegate", "`name` is missing"),
        ("{delegate: {name: a, namespace: B}}", ".delegate.namespace", "not a namespace"),
        ("{timeout: 1s}", "", "what becomes of requests"),
    ] {
        check(&format!("{{hosts: [web], http: [{route}]}}"), &format!("spec.http[0]{field}"), problem);
    }
    check("{http: [{delegate: {name: a}}]}", "spec.http[0].delegate", "can't delegate further");
    let body =
        format!("{{directResponse: {{status: 200, body: {{string: {}}}}}}}", "a".repeat((1 << 20) + 1));
    check(&format!("{{hosts: [a], http: [{body}]}}"), "spec.http[0].directResponse.body", "1048576 bytes");
}

#[test]
fn mistakes_of_routes_of_connections_are_named() {
    for (route, field, problem) in [
        ("tls: [{route: [{destination: {host: a}}]}]", "tls[0]", "`match` is missing"),
        ("tls: [{match: [], route: [{destination: {host: a}}]}]", "tls[0]", "for which hosts"),
        (
            "tls: [{match: [{}], route: [{destination: {host: a}}]}]",
            "tls[0].match[0]",
            "`sniHosts` is missing",
        ),
        (
            "tls: [{match: [{sniHosts: []}], route: [{destination: {host: a}}]}]",
            "tls[0].match[0].sniHosts",
            "empty",
        ),
        (
            "tls: [{match: [{sniHosts: [b.example]}], route: [{destination: {host: a}}]}]",
            "tls[0].match[0].sniHosts[0]",
            "no host of the virtual service includes",
        ),
        ("tls: [{match: [{sniHosts: [a]}]}]", "tls[0]", "`route` is missing"),
        ("tcp: [{}]", "tcp[0]", "`route` is missing"),
        ("tcp: [{route: []}]", "tcp[0].route", "no destination"),
        (
            "tcp: [{route: [{destination: {host: a}, headers: {}}]}]",
            "tcp[0].route[0].headers",
            "unknown field",
        ),
        (
            "tcp: [{match: [{destinationSubnets: [10.0.0.0/33]}], route: [{destination: {host: a}}]}]",
            "tcp[0].match[0].destinationSubnets[0]",
            "neither an IP address nor a CIDR",
        ),
        (
            "tcp: [{match: [{port: 70000}], route: [{destination: {host: a}}]}]",
            "tcp[0].match[0].port",
            "out of range",
        ),
    ] {
        check(&format!("{{hosts: [a], {route}}}"), &format!("spec.{field}"), problem);
    }
}
