use std::net::IpAddr;

use super::*;
use crate::plan::fixture::{octets, of_pod, of_policy, pod, store};
use crate::plan::{Invalid, Snapshot};
use crate::wire::ext;
use crate::wire::security as wire;
use crate::wire::security::string_match::MatchType;
use crate::wire::security::{Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::wire::type_url;
use crate::wire::workload::Extension;
use crate::wire::xds::Resource;

const GUEST: &str = "spiffe://cluster.local/ns/web/sa/guest";

fn text(text: &str) -> StringMatch {
    let kind = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => MatchType::Presence(()),
        (Some(suffix), _) => MatchType::Suffix(suffix.into()),
        (_, Some(prefix)) => MatchType::Prefix(prefix.into()),
        _ => MatchType::Exact(text.into()),
    };
    StringMatch { match_type: Some(kind) }
}

fn texts(values: &[&str]) -> Vec<StringMatch> {
    values.iter().map(|value| text(value)).collect()
}

fn networks(values: &[&str]) -> Vec<wire::Address> {
    let network = |value: &&str| {
        let (ip, length) = value.split_once('/').unwrap();
        wire::Address { address: octets(ip), length: length.parse().unwrap() }
    };
    values.iter().map(network).collect()
}

fn account(namespace: &str, name: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() }]
}

fn clause(matches: &[Match]) -> Clause {
    Clause { matches: matches.to_vec() }
}

fn rule(clauses: &[Clause]) -> Rule {
    Rule { clauses: clauses.to_vec() }
}

/// A rule of one clause of one match.
fn single(one: Match) -> Rule {
    rule(&[clause(&[one])])
}

fn principals(values: &[&str]) -> Match {
    Match { principals: texts(values), ..Match::default() }
}

fn ports(values: &[u32]) -> Match {
    Match { destination_ports: values.to_vec(), ..Match::default() }
}

/// A policy `shop/<name>` for all of its namespace.
fn policy(name: &str, action: wire::Action, rules: &[Rule]) -> Authorization {
    Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: wire::Scope::Namespace.into(),
        action: action.into(),
        rules: rules.to_vec(),
        ..Authorization::default()
    }
}

fn allow(rules: &[Rule]) -> Authorization {
    policy("allow", wire::Action::Allow, rules)
}

fn deny(rules: &[Rule]) -> Authorization {
    policy("deny", wire::Action::Deny, rules)
}

fn scoped(mut policy: Authorization, namespace: &str, scope: wire::Scope) -> Authorization {
    policy.namespace = namespace.into();
    policy.scope = scope.into();
    policy
}

fn dry(mut policy: Authorization) -> Authorization {
    policy.dry_run = true;
    policy
}

fn audit(rules: &[Rule]) -> Authorization {
    let extension = Extension { name: ext::AUDIT.into(), config: None };
    Authorization { extensions: vec![extension], ..dry(policy("audit", wire::Action::Allow, rules)) }
}

fn presence_required() -> Match {
    Match { not_principals: texts(&["*"]), ..Match::default() }
}

/// Who asks: by default `GUEST` at 10.244.2.7, to 10.244.1.3 port 8080.
#[derive(Clone, Copy)]
struct Client {
    identity: Option<&'static str>,
    source: &'static str,
    destination: &'static str,
    port: u16,
}

const CLIENT: Client =
    Client { identity: Some(GUEST), source: "10.244.2.7", destination: "10.244.1.3", port: 8080 };
const PLAINTEXT: Client = Client { identity: None, ..CLIENT };

/// Asks about the pod `shop/db`, which names some policies.
fn ask(policies: &[Authorization], named: &[&str], client: Client) -> Decision {
    let mut db = pod("db", &["10.244.1.3"]);
    db.authorization_policies = named.iter().map(|name| (*name).to_owned()).collect();
    decide(&store(vec![of_pod(db)], policies).snapshot(), client)
}

fn decide(snapshot: &Snapshot, client: Client) -> Decision {
    let identity = client.identity.map(|identity| identity.parse().unwrap());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let peer = Peer {
        identity: identity.as_ref(),
        source_ip: ip(client.source),
        destination_ip: ip(client.destination),
        destination_port: client.port,
    };
    let db = snapshot.workload("cluster//Pod/shop/db").unwrap();
    authorize(snapshot, db, &peer)
}

/// What a decision comes down to: `allow`, `allow by …`, `deny by …` or `deny`.
fn outcome(decision: &Decision) -> String {
    let verdict = if decision.is_allowed() { "allow" } else { "deny" };
    decision.policy().map_or_else(|| verdict.into(), |policy| format!("{verdict} by {policy}"))
}

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

#[test]
fn scopes() {
    use wire::Scope::{Global, Namespace, WorkloadSelector};
    let block = |namespace, scope| scoped(deny(&[rule(&[])]), namespace, scope);
    let asked = |policy, named: &[&str]| outcome(&ask(&[policy], named, CLIENT));
    assert_eq!(asked(block("istio-system", Global), &[]), "deny by istio-system/deny", "mesh");
    assert_eq!(asked(block("shop", Namespace), &[]), "deny by shop/deny", "own namespace");
    assert_eq!(asked(block("ops", Namespace), &[]), "allow", "another namespace");
    assert_eq!(asked(block("shop", WorkloadSelector), &["shop/deny"]), "deny by shop/deny", "named");
    assert_eq!(asked(block("shop", WorkloadSelector), &[]), "allow", "not named");
    assert_eq!(asked(block("root", WorkloadSelector), &["root/deny"]), "deny by root/deny", "root's, named");
    let allowed = ask(&[allow(&[])], &["shop/allow"], CLIENT);
    let Verdict::Deny(denial) = &allowed.verdict else { panic!("{allowed}") };
    let once = DenyReason::NoAllowMatches { policies: ["shop/allow".into()].into() };
    assert_eq!(denial.reason(), &once, "named, though it applies anyway");
}

/// Both forms of `PeerAuthentication`: of a workload, and of its ports.
#[test]
fn peer_authentication() {
    let strict = |name: &str, rules: &[Rule]| {
        scoped(policy(name, wire::Action::Deny, rules), "shop", wire::Scope::WorkloadSelector)
    };
    let asked = |policy: &Authorization, client| {
        let name = format!("shop/{}", policy.name);
        let decision = ask(std::slice::from_ref(policy), &[&name], client);
        match decision.verdict {
            Verdict::Allow(_) => "allow",
            Verdict::Deny(denial) if matches!(denial.reason(), DenyReason::Plaintext { .. }) => "plaintext",
            Verdict::Deny(_) => "deny",
        }
    };
    let other_port = Client { port: 9000, ..PLAINTEXT };
    let base = strict(wire::STRICT, &[single(presence_required())]);
    assert_eq!(asked(&base, PLAINTEXT), "plaintext", "STRICT, plaintext");
    assert_eq!(asked(&base, CLIENT), "allow", "STRICT, mutual TLS");
    let except = Match { not_destination_ports: vec![9000], ..Match::default() };
    let permissive_port = strict(
        "converted_peer_authentication_a",
        &[rule(&[clause(&[presence_required()]), clause(&[except])])],
    );
    assert_eq!(asked(&permissive_port, PLAINTEXT), "plaintext", "STRICT but for 9000, at 8080");
    assert_eq!(asked(&permissive_port, other_port), "allow", "STRICT but for 9000, at 9000");
    let strict_port = strict(
        "converted_peer_authentication_b",
        &[rule(&[clause(&[presence_required()]), clause(&[ports(&[9000])])])],
    );
    assert_eq!(asked(&strict_port, PLAINTEXT), "allow", "PERMISSIVE but for 9000, at 8080");
    assert_eq!(asked(&strict_port, other_port), "plaintext", "PERMISSIVE but for 9000, at 9000");
    assert_eq!(asked(&strict_port, Client { port: 9000, ..CLIENT }), "allow", "PERMISSIVE but for 9000, TLS");
}

#[test]
fn dry_run_and_audit_only_record() {
    let all = || [rule(&[])];
    let none = || [single(ports(&[1]))];
    let would = |decision: &Decision| -> Vec<_> {
        decision.dry_run.iter().map(|dry| format!("{} {}", dry.policy, dry.would)).collect()
    };
    let denied = ask(&[dry(deny(&all()))], &[], CLIENT);
    assert_eq!((outcome(&denied), would(&denied)), ("allow".into(), vec!["shop/deny deny".into()]));
    let matched = ask(&[dry(allow(&all()))], &[], CLIENT);
    assert_eq!((outcome(&matched), would(&matched)), ("allow".into(), vec!["shop/allow allow".into()]));
    let unmatched = ask(&[dry(allow(&none()))], &[], CLIENT);
    assert_eq!((outcome(&unmatched), would(&unmatched)), ("allow".into(), vec!["shop/allow deny".into()]));
    let second = policy("second", wire::Action::Allow, &all());
    let rescued = ask(&[dry(allow(&none())), second], &[], CLIENT);
    assert_eq!((outcome(&rescued), would(&rescued)), ("allow by shop/second".into(), vec![]));
    let audited = ask(&[audit(&all()), deny(&all())], &[], CLIENT);
    assert_eq!(
        (outcome(&audited), &*audited.audited),
        ("deny by shop/deny".into(), &["shop/audit".into()][..])
    );
    let silent = ask(&[audit(&none())], &[], CLIENT);
    assert_eq!((outcome(&silent), silent.audited.len(), silent.dry_run.len()), ("allow".into(), 0, 0));
}

#[test]
fn a_missing_policy_denies_by_name() {
    for name in ["shop/late", "istio-system/istio_converted_static_strict"] {
        let decision = ask(&[], &[name], CLIENT);
        let Verdict::Deny(denial) = &decision.verdict else { panic!("{decision}") };
        assert_eq!(denial.reason(), &DenyReason::Missing { policy: name.into() });
    }
    let both = ask(&[deny(&[rule(&[])])], &["shop/late"], CLIENT);
    assert_eq!(outcome(&both), "deny by shop/deny", "a match says more than an absence");
    let despite = ask(&[allow(&[rule(&[])])], &["shop/late"], CLIENT);
    assert_eq!(outcome(&despite), "deny by shop/late", "an ALLOW does not make up for it");
}

/// Conditions that can't be understood, by what is wrong with them.
fn faults() -> [(Match, Invalid); 6] {
    let ip = |address: Vec<u8>, length| vec![wire::Address { address, length }];
    let v4: IpAddr = "10.0.0.0".parse().unwrap();
    [
        (ports(&[65536]), Invalid::Port { field: "destination_ports", port: 65536 }),
        (ports(&[0]), Invalid::Port { field: "destination_ports", port: 0 }),
        (
            Match { source_ips: ip(vec![1; 5], 8), ..Match::default() },
            Invalid::Address { field: "source_ips", bytes: 5 },
        ),
        (
            Match { not_destination_ips: ip(octets("10.0.0.0"), 33), ..Match::default() },
            Invalid::Prefix { field: "destination_ips", address: v4, length: 33 },
        ),
        (
            Match { principals: vec![StringMatch::default()], ..Match::default() },
            Invalid::EmptyMatch { field: "principals" },
        ),
        (
            Match { extensions: vec![Extension { name: "moon".into(), config: None }], ..ports(&[80]) },
            Invalid::MatchExtension { name: "moon".into() },
        ),
    ]
}

#[test]
fn a_policy_that_is_not_understood_denies_until_a_good_one_comes() {
    for (fault, expected) in faults() {
        let bad = of_policy(&allow(&[rule(&[]), single(fault)]));
        let good = of_policy(&allow(&[rule(&[])]));
        let mut store = store(vec![of_pod(pod("db", &["10.244.1.3"]))], &[]);
        let mut apply = |resource: &Resource| {
            let rejected = store.apply(type_url::AUTHORIZATION, vec![resource.clone()], Vec::new());
            (rejected, outcome(&decide(&store.snapshot(), CLIENT)))
        };
        let (rejected, verdict) = apply(&bad);
        assert_eq!(rejected.first().map(|rejected| &rejected.reason), Some(&expected));
        assert_eq!(verdict, "deny by shop/allow", "{expected}");
        assert_eq!(apply(&good), (vec![], "allow by shop/allow".into()), "{expected}");
        let (rejected, verdict) = apply(&bad);
        assert_eq!((rejected.len(), &*verdict), (1, "allow by shop/allow"), "the good one stays: {expected}");
    }
    let mut ignored = store(vec![of_pod(pod("db", &["10.244.1.3"]))], &[]);
    let bad = dry(deny(&[single(ports(&[0]))]));
    assert_eq!(ignored.apply(type_url::AUTHORIZATION, vec![of_policy(&bad)], Vec::new()).len(), 1);
    assert_eq!(outcome(&decide(&ignored.snapshot(), CLIENT)), "allow", "in dry run it denies nothing");
}

#[test]
fn decisions_read_well() {
    let says = |policies: &[Authorization], named: &[&str], client, expected: &str| {
        assert_eq!(ask(policies, named, client).to_string(), expected);
    };
    let peer = "spiffe://cluster.local/ns/web/sa/guest at 10.244.2.7 to port 8080";
    says(&[], &[], CLIENT, "allowed: no DENY policy matches and no ALLOW policy applies");
    says(&[allow(&[rule(&[])])], &[], CLIENT, "allowed by policy shop/allow (ALLOW)");
    says(
        &[deny(&[single(ports(&[1])), rule(&[])])],
        &[],
        CLIENT,
        &format!("denied by policy shop/deny (DENY): rule 2 matches {peer}"),
    );
    says(
        &[allow(&[]), policy("b", wire::Action::Allow, &[]), dry(deny(&[rule(&[])])), audit(&[rule(&[])])],
        &[],
        CLIENT,
        &format!(
            "denied: no ALLOW policy matches {peer} (2 apply: shop/allow, shop/b); audited by shop/audit; \
             shop/deny (dry run) would deny"
        ),
    );
    let strict = policy(wire::STRICT, wire::Action::Deny, &[single(presence_required())]);
    says(
        &[scoped(strict, "istio-system", wire::Scope::WorkloadSelector)],
        &["istio-system/istio_converted_static_strict"],
        PLAINTEXT,
        "denied by policy istio-system/istio_converted_static_strict: plaintext from 10.244.2.7 to port 8080, \
         STRICT mutual TLS required",
    );
    says(
        &[],
        &["shop/late"],
        PLAINTEXT,
        "denied: policy shop/late applies to the workload but has not arrived; plaintext from 10.244.2.7 to port 8080",
    );
}
