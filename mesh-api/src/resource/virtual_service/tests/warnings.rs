//! What is taken, and has less effect than its author may think, or none.

use super::{beside_route, good, parsed};

#[test]
fn what_has_less_effect_than_it_may_seem_is_warned_of() {
    for (spec, fields) in [
        (beside_route("mirrorPercentage: {value: 1}"), &["mirrorPercentage"][..]),
        (beside_route("mirror: {host: a}, mirrorPercentage: {}"), &["mirrorPercentage"]),
        (beside_route("mirror: {host: a}, mirror_percent: 1"), &["mirror_percent"]),
        (beside_route("retries: {}"), &["retries"]),
        (beside_route("fault: {delay: {fixedDelay: 1s}}"), &["fault.delay"]),
        (beside_route("fault: {delay: {fixedDelay: 1s, percent: 1}}"), &["fault.delay.percent"]),
        (beside_route("fault: {abort: {percentage: {value: 1}}}"), &["fault.abort"]),
        (beside_route("corsPolicy: {allowOrigin: [a]}"), &["corsPolicy.allowOrigin"]),
        (beside_route("headers: {request: {add: {host: a}}}"), &["headers.request.add.host"]),
        (
            beside_route("match: [{gateways: [mesh], sourceLabels: {a: b}, sourceNamespace: c}]"),
            &["match[0].sourceLabels", "match[0].sourceNamespace"],
        ),
        (beside_route("match: [{gateways: [edge.front.svc.cluster.local]}]"), &["match[0].gateways[0]"]),
        ("{hosts: [a], http: [{redirect: {uri: /}, mirror: {host: a}}]}".to_owned(), &["mirror"]),
        (
            "{hosts: [a], http: [{route: [{destination: {host: a}, weight: 1}, {destination: {host: b}}]}]}"
                .to_owned(),
            &["route[1]"],
        ),
        (
            format!(
                "{{hosts: [a], http: [{{directResponse: {{status: 200, body: {{string: {}}}}}}}]}}",
                "a".repeat(102_401)
            ),
            &["directResponse.body"],
        ),
    ] {
        let (_, warned) = good(parsed(&spec));
        let expected: Vec<_> = fields.iter().map(|field| format!("spec.http[0].{field}")).collect();
        assert_eq!(warned, expected, "{spec:.200}");
    }
    for (rest, field) in [
        (
            "tcp: [{match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: a}}]}]",
            "tcp[0].match[0].sourceSubnet",
        ),
        (
            "tls: [{match: [{sniHosts: [10.0.0.1]}], route: [{destination: {host: a}}]}]",
            "tls[0].match[0].sniHosts[0]",
        ),
    ] {
        let (_, warned) = good(parsed(&format!("{{hosts: [a], {rest}}}")));
        assert_eq!(warned, [format!("spec.{field}")], "{rest}");
    }
}

#[test]
fn routes_and_matches_that_nothing_reaches_are_warned_of() {
    let warned = |matches: &[&str]| {
        let route = |it: &&str| format!("{{{it}route: [{{destination: {{host: a}}}}]}}");
        let routes: Vec<_> = matches.iter().map(route).collect();
        good(parsed(&format!("{{hosts: [a], http: [{}]}}", routes.join(", ")))).1.join(" ")
    };
    let dead = "spec.http[1]";
    for (matches, expected) in [
        (["", ""], dead),
        (["", "match: [{uri: {exact: /}}], "], dead),
        (["match: [{}], ", "match: [{uri: {regex: /a}}], "], dead),
        (["match: [{uri: {prefix: /}}], ", "match: [{uri: {regex: /a}, port: 1}], "], dead),
        (["match: [{uri: {prefix: /a}}], ", "match: [{uri: {exact: /ab}}], "], dead),
        (["match: [{uri: {prefix: /a}}], ", "match: [{uri: {prefix: /ab}, port: 1}], "], dead),
        (["match: [{uri: {exact: /a}, port: 1}], ", "match: [{name: b, uri: {exact: /a}, port: 1}], "], dead),
        (["match: [{uri: {prefix: /ab}}, {uri: {prefix: /a}}], ", "match: [{uri: {prefix: /ac}}], "], dead),
        (["match: [{uri: {regex: '.*'}}], ", ""], dead),
        (
            ["match: [{uri: {exact: /a}}], ", "match: [{uri: {exact: /a}}, {uri: {exact: /b}}], "],
            "spec.http[1].match[0]",
        ),
        (["match: [{uri: {exact: /a}}, {uri: {exact: /a}}], ", ""], "spec.http[0].match[1]"),
        (["match: [{uri: {exact: /a}}], ", "match: [{uri: {exact: /ab}}], "], ""),
        (["match: [{uri: {prefix: /ab}}], ", "match: [{uri: {prefix: /a}}], "], ""),
        (["match: [{uri: {prefix: /a}, port: 1}], ", "match: [{uri: {prefix: /ab}}], "], ""),
        (["match: [{uri: {prefix: /a}}], ", "match: [{uri: {regex: /ab}}], "], ""),
        (["match: [{uri: {regex: /a}}], ", "match: [{uri: {regex: /ab}}], "], ""),
        (["match: [{uri: {prefix: /}}], ", ""], ""),
        (["match: [{uri: {prefix: /a}}], ", "match: [{uri: {prefix: /ab}, ignoreUriCase: true}], "], ""),
        (["match: [{uri: {exact: /a}}], ", "match: [{uri: {exact: /a}, ignoreUriCase: true}], "], ""),
        (["match: [{uri: {prefix: /}}], ", "match: [{uri: {prefix: /ab}, ignoreUriCase: true}], "], dead),
        (["match: [{uri: {prefix: ''}}], ", "match: [{uri: {prefix: /ab}, ignoreUriCase: true}], "], dead),
        (["match: [{uri: {prefix: /A}, ignoreUriCase: true}], ", "match: [{uri: {prefix: /ab}}], "], dead),
        (
            [
                "match: [{uri: {prefix: /A}, ignoreUriCase: true}], ",
                "match: [{uri: {exact: /aB}, ignoreUriCase: true}], ",
            ],
            dead,
        ),
    ] {
        assert_eq!(warned(&matches), expected, "{matches:?}");
    }
    let delegating = "{hosts: [a], http: [{delegate: {name: b}}, {route: [{destination: {host: a}}]}]}";
    assert!(good(parsed(delegating)).1.is_empty());
    let connections =
        "{hosts: [a], tcp: [{route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]}";
    assert_eq!(good(parsed(connections)).1, ["spec.tcp[1]"]);
}

#[test]
fn a_match_that_its_own_route_takes_before_is_to_be_removed() {
    let matches = "match: [{uri: {exact: /a}}, {uri: {exact: /a}, port: 1}]";
    let parsed = parsed(&beside_route(matches));
    let warning = parsed.warnings.iter().find(|it| it.field.as_deref() == Some("spec.http[0].match[1]"));
    let warning = warning.expect("nothing reaches it");
    assert!(warning.problem.contains("an earlier match of this route"), "{warning}");
    assert_eq!(warning.fix, "remove it");
}
