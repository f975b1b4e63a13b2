use super::*;

struct Case {
    name: &'static str,
    policies: Vec<Authorization>,
    client: Client,
    expected: &'static str,
}

fn check(cases: Vec<Case>) {
    for Case { name, policies, client, expected } in cases {
        let decision = ask(&policies, &[], client);
        assert_eq!(outcome(&decision), expected, "{name}: {decision}");
    }
}

macro_rules! cases {
    ($($name:literal: [$($policy:expr),*], $client:expr => $expected:literal;)*) => {
        check(vec![$(Case {
            name: $name,
            policies: vec![$($policy),*],
            client: $client,
            expected: $expected,
        }),*])
    };
}

/// The rows of the evaluation table, in its order, for ALLOW and DENY.
#[test]
fn structure_of_rules() {
    let me = || principals(&["cluster.local/ns/web/sa/guest"]);
    let other = || principals(&["cluster.local/ns/web/sa/other"]);
    cases! {
        "no rules, ALLOW: never matches": [allow(&[])], CLIENT => "deny";
        "no rules, DENY: never matches": [deny(&[])], CLIENT => "allow";
        "a rule without clauses, ALLOW: matches all": [allow(&[rule(&[])])], CLIENT => "allow by shop/allow";
        "a rule without clauses, DENY: matches all": [deny(&[rule(&[])])], CLIENT => "deny by shop/deny";
        "a rule without clauses matches plaintext": [deny(&[rule(&[])])], PLAINTEXT => "deny by shop/deny";
        "a clause without matches is true": [allow(&[rule(&[clause(&[])])])], CLIENT => "allow by shop/allow";
        "a clause without matches does not help another":
            [allow(&[rule(&[clause(&[]), clause(&[other()])])])], CLIENT => "deny";
        "an empty match does not match, ALLOW": [allow(&[single(Match::default())])], CLIENT => "deny";
        "an empty match does not match, DENY": [deny(&[single(Match::default())])], CLIENT => "allow";
        "an empty match beside one that matches":
            [allow(&[rule(&[clause(&[Match::default(), me()])])])], CLIENT => "allow by shop/allow";
        "a clause of empty matches makes its rule match never":
            [deny(&[rule(&[clause(&[me()]), clause(&[Match::default()])])])], CLIENT => "allow";
        "matches of a clause: one is enough":
            [allow(&[rule(&[clause(&[other(), me()])])])], CLIENT => "allow by shop/allow";
        "clauses of a rule: all are needed":
            [allow(&[rule(&[clause(&[me()]), clause(&[ports(&[8080])])])])], CLIENT => "allow by shop/allow";
        "clauses of a rule: one that fails is enough to fail":
            [allow(&[rule(&[clause(&[me()]), clause(&[ports(&[81])])])])], CLIENT => "deny";
        "rules: one is enough": [allow(&[single(other()), single(me())])], CLIENT => "allow by shop/allow";
        "fields of a match: all hold":
            [allow(&[single(Match { destination_ports: vec![8080], ..me() })])], CLIENT => "allow by shop/allow";
        "fields of a match: one fails":
            [allow(&[single(Match { destination_ports: vec![81], ..me() })])], CLIENT => "deny";
        "values of a list: one is enough":
            [allow(&[single(ports(&[80, 8080]))])], CLIENT => "allow by shop/allow";
        "values of a list: none": [allow(&[single(ports(&[80, 81]))])], CLIENT => "deny";
    }
}

#[test]
fn negative_lists() {
    let except = |ports: &[u32]| Match { not_destination_ports: ports.to_vec(), ..Match::default() };
    let both = |values: &[u32], not: &[u32]| Match { not_destination_ports: not.to_vec(), ..ports(values) };
    cases! {
        "holds if no value matches": [deny(&[single(except(&[80, 81]))])], CLIENT => "deny by shop/deny";
        "fails if one value matches": [deny(&[single(except(&[80, 8080]))])], CLIENT => "allow";
        "with a positive list: both hold": [deny(&[single(both(&[8080], &[80]))])], CLIENT => "deny by shop/deny";
        "with a positive list: the negative fails": [deny(&[single(both(&[8080], &[8080]))])], CLIENT => "allow";
        "with a positive list: the positive fails": [deny(&[single(both(&[80], &[81]))])], CLIENT => "allow";
        "not_namespaces, another": [deny(&[single(Match { not_namespaces: texts(&["ops"]), ..Match::default() })])],
            CLIENT => "deny by shop/deny";
        "not_namespaces, this": [deny(&[single(Match { not_namespaces: texts(&["web"]), ..Match::default() })])],
            CLIENT => "allow";
        "not_service_accounts, another":
            [deny(&[single(Match { not_service_accounts: account("web", "x"), ..Match::default() })])],
            CLIENT => "deny by shop/deny";
        "not_service_accounts, this":
            [deny(&[single(Match { not_service_accounts: account("web", "guest"), ..Match::default() })])],
            CLIENT => "allow";
        "not_source_ips, outside":
            [deny(&[single(Match { not_source_ips: networks(&["10.244.1.0/24"]), ..Match::default() })])],
            CLIENT => "deny by shop/deny";
        "not_source_ips, inside":
            [deny(&[single(Match { not_source_ips: networks(&["10.244.2.0/24"]), ..Match::default() })])],
            CLIENT => "allow";
        "not_destination_ips, inside":
            [deny(&[single(Match { not_destination_ips: networks(&["10.244.1.3/32"]), ..Match::default() })])],
            CLIENT => "allow";
    }
}

#[test]
fn without_an_identity() {
    let namespaces = |values: &[&str]| Match { namespaces: texts(values), ..Match::default() };
    let accounts = |name| Match { service_accounts: account("web", name), ..Match::default() };
    cases! {
        "principals do not match": [allow(&[single(principals(&["*cluster*"]))])], PLAINTEXT => "deny";
        "presence does not match": [allow(&[single(principals(&["*"]))])], PLAINTEXT => "deny";
        "namespaces do not match": [allow(&[single(namespaces(&["web"]))])], PLAINTEXT => "deny";
        "presence of a namespace does not match": [allow(&[single(namespaces(&["*"]))])], PLAINTEXT => "deny";
        "accounts do not match": [allow(&[single(accounts("guest"))])], PLAINTEXT => "deny";
        "a DENY of principals does not match": [deny(&[single(principals(&["*"]))])], PLAINTEXT => "allow";
        "not_principals holds": [deny(&[single(Match { not_principals: texts(&["x"]), ..Match::default() })])],
            PLAINTEXT => "deny by shop/deny";
        "not_namespaces holds": [deny(&[single(Match { not_namespaces: texts(&["x"]), ..Match::default() })])],
            PLAINTEXT => "deny by shop/deny";
        "not_service_accounts holds":
            [deny(&[single(Match { not_service_accounts: account("x", "y"), ..Match::default() })])],
            PLAINTEXT => "deny by shop/deny";
        "not_principals: presence holds": [deny(&[single(presence_required())])], PLAINTEXT => "deny by shop/deny";
        "not_principals: presence fails with one": [deny(&[single(presence_required())])], CLIENT => "allow";
        "addresses match all the same":
            [allow(&[single(Match { source_ips: networks(&["10.244.2.7/32"]), ..Match::default() })])],
            PLAINTEXT => "allow by shop/allow";
    }
}

#[test]
fn texts_addresses_and_ports() {
    let namespaces =
        |values: &[&str]| allow(&[single(Match { namespaces: texts(values), ..Match::default() })]);
    let principal = |value: &str| allow(&[single(principals(&[value]))]);
    let source = |value: &str| allow(&[single(Match { source_ips: networks(&[value]), ..Match::default() })]);
    let target =
        |value: &str| allow(&[single(Match { destination_ips: networks(&[value]), ..Match::default() })]);
    let accounts = |namespace, name| {
        allow(&[single(Match { service_accounts: account(namespace, name), ..Match::default() })])
    };
    let v6 = Client { source: "fd00:244:2::7", ..CLIENT };
    let mapped = Client { source: "::ffff:10.244.2.7", destination: "::ffff:10.244.1.3", ..CLIENT };
    cases! {
        "exact": [namespaces(&["web"])], CLIENT => "allow by shop/allow";
        "exact, only a part": [namespaces(&["we"])], CLIENT => "deny";
        "exact, case counts": [namespaces(&["Web"])], CLIENT => "deny";
        "prefix": [namespaces(&["we*"])], CLIENT => "allow by shop/allow";
        "prefix, elsewhere": [namespaces(&["eb*"])], CLIENT => "deny";
        "suffix": [namespaces(&["*eb"])], CLIENT => "allow by shop/allow";
        "suffix, elsewhere": [namespaces(&["*we"])], CLIENT => "deny";
        "presence": [namespaces(&["*"])], CLIENT => "allow by shop/allow";
        "principal, any": [principal("*")], CLIENT => "allow by shop/allow";
        "principal, without scheme": [principal("cluster.local/ns/web/sa/guest")], CLIENT => "allow by shop/allow";
        "principal, with scheme": [principal(GUEST)], CLIENT => "deny";
        "principal, suffix": [principal("*/sa/guest")], CLIENT => "allow by shop/allow";
        "principal, prefix": [principal("cluster.local/ns/web/*")], CLIENT => "allow by shop/allow";
        "principal, another trust domain": [principal("other/ns/web/sa/guest")], CLIENT => "deny";
        "account": [accounts("web", "guest")], CLIENT => "allow by shop/allow";
        "account of another namespace": [accounts("shop", "guest")], CLIENT => "deny";
        "account, no wildcard": [accounts("web", "*")], CLIENT => "deny";
        "address": [source("10.244.2.7/32")], CLIENT => "allow by shop/allow";
        "address, another": [source("10.244.2.8/32")], CLIENT => "deny";
        "range": [source("10.244.2.0/24")], CLIENT => "allow by shop/allow";
        "range, host bits are ignored": [source("10.244.2.99/24")], CLIENT => "allow by shop/allow";
        "any IPv4": [source("0.0.0.0/0")], CLIENT => "allow by shop/allow";
        "any IPv6 is not IPv4": [source("::/0")], CLIENT => "deny";
        "IPv6": [source("fd00:244:2::/64")], v6 => "allow by shop/allow";
        "any IPv4 is not IPv6": [source("0.0.0.0/0")], v6 => "deny";
        "a mapped client is IPv4": [source("10.244.2.0/24")], mapped => "allow by shop/allow";
        "a mapped range is IPv4": [source("::ffff:10.244.2.0/120")], CLIENT => "allow by shop/allow";
        "destination": [target("10.244.1.0/24")], CLIENT => "allow by shop/allow";
        "destination, mapped": [target("10.244.1.3/32")], mapped => "allow by shop/allow";
        "destination, another": [target("10.244.2.7/32")], CLIENT => "deny";
        "highest port": [allow(&[single(ports(&[65535]))])], Client { port: 65535, ..CLIENT } => "allow by shop/allow";
    }
}

#[test]
fn order_of_actions() {
    let all = || [rule(&[])];
    let none = || [single(ports(&[1]))];
    let second = |rules: &[Rule]| policy("second", wire::Action::Allow, rules);
    cases! {
        "no policy": [], CLIENT => "allow";
        "DENY matches, ALLOW matches": [allow(&all()), deny(&all())], CLIENT => "deny by shop/deny";
        "DENY does not match, no ALLOW": [deny(&none())], CLIENT => "allow";
        "DENY does not match, ALLOW matches": [allow(&all()), deny(&none())], CLIENT => "allow by shop/allow";
        "DENY does not match, ALLOW neither": [allow(&none()), deny(&none())], CLIENT => "deny";
        "of two ALLOW one matches": [allow(&none()), second(&all())], CLIENT => "allow by shop/second";
        "of two ALLOW none matches": [allow(&none()), second(&none())], CLIENT => "deny";
    }
}
