use std::net::IpAddr;

use super::*;
use crate::plan::fixture::{address_bytes, pod, pod_resource, policy_resource, store};
use crate::plan::{Invalid, Snapshot};
use crate::wire::ext;
use crate::wire::security as wire;
use crate::wire::security::string_match::MatchType;
use crate::wire::security::{Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::wire::type_url;
use crate::wire::workload::Extension;
use crate::wire::xds::Resource;

mod rules;
mod verdicts;

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
        wire::Address { address: address_bytes(ip), length: length.parse().unwrap() }
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
    decide(&store(vec![pod_resource(db)], policies).snapshot(), client)
}

fn decide(snapshot: &Snapshot, client: Client) -> Decision {
    let identity = client.identity.map(|identity| identity.parse().unwrap());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let connection = ConnectionAttributes {
        identity: identity.as_ref(),
        source_ip: ip(client.source),
        destination_ip: ip(client.destination),
        destination_port: client.port,
    };
    let db = snapshot.workload("cluster//Pod/shop/db").unwrap();
    authorize(snapshot, &db, &connection)
}

/// What a decision comes down to: `allow`, `allow by …`, `deny by …` or `deny`.
fn outcome(decision: &Decision) -> String {
    let verdict = if decision.is_allowed() { "allow" } else { "deny" };
    decision.policy_name().map_or_else(|| verdict.into(), |policy| format!("{verdict} by {policy}"))
}
