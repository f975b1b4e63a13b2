//! Istio's rules of layer 4 a second time, as plainly as they can be said: nothing is compiled, looked up or
//! ordered. Slow, and made to be compared with.

use mesh_api::wire::security::string_match::MatchType;
use mesh_api::wire::security::{Action, Authorization, Match, Rule, Scope, StringMatch};
use mesh_api::wire::{ext, security, workload};

/// What is asked, in the simplest form that there is.
#[derive(Clone, Debug)]
pub struct Question {
    /// Trust domain, namespace and service account.
    pub identity: Option<[String; 3]>,
    /// Four bytes or sixteen.
    pub source: Vec<u8>,
    /// Four bytes or sixteen.
    pub destination: Vec<u8>,
    /// Port of the workload.
    pub port: u16,
}

/// Whether a workload takes a connection, by all policies that there are.
pub fn allows(policies: &[Authorization], workload: &workload::Workload, question: &Question) -> bool {
    let name = |policy: &Authorization| format!("{}/{}", policy.namespace, policy.name);
    let names_it = |policy: &Authorization| workload.authorization_policies.contains(&name(policy));
    let applies = |policy: &&Authorization| match policy.scope() {
        Scope::Global => true,
        Scope::Namespace => policy.namespace == workload.namespace || names_it(policy),
        Scope::WorkloadSelector => names_it(policy),
    };
    let counts = |policy: &&Authorization| {
        !policy.dry_run && !policy.extensions.iter().any(|extension| extension.name == ext::AUDIT)
    };
    let missing =
        workload.authorization_policies.iter().any(|named| !policies.iter().any(|held| name(held) == *named));
    let in_force: Vec<_> = policies.iter().filter(applies).filter(counts).collect();
    let faulty = in_force.iter().any(|policy| !understood(policy));
    let matching = |policy: &Authorization| policy.rules.iter().any(|rule| rule_holds(rule, question));
    let denied = in_force.iter().any(|policy| policy.action() == Action::Deny && matching(policy));
    let mut allowing = in_force.iter().filter(|policy| policy.action() == Action::Allow).peekable();
    let allowed = allowing.peek().is_none() || allowing.any(|policy| matching(policy));
    !missing && !faulty && !denied && allowed
}

/// Whether every condition of a policy can be understood.
fn understood(policy: &Authorization) -> bool {
    let matches = policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
    matches.into_iter().all(match_is_understood)
}

fn match_is_understood(of: &Match) -> bool {
    let texts = [&of.namespaces, &of.not_namespaces, &of.principals, &of.not_principals];
    let networks = [&of.source_ips, &of.not_source_ips, &of.destination_ips, &of.not_destination_ips];
    let ports = [&of.destination_ports, &of.not_destination_ports];
    of.extensions.is_empty()
        && texts.into_iter().flatten().all(|text| text.match_type.is_some())
        && networks.into_iter().flatten().all(|network| prefix(network).is_some())
        && ports.into_iter().flatten().all(|port| (1..=65_535).contains(port))
}

/// All clauses, of each of which one match is enough.
fn rule_holds(rule: &Rule, question: &Question) -> bool {
    rule.clauses.iter().all(|clause| {
        clause.matches.is_empty()
            || clause.matches.iter().any(|one| *one != Match::default() && match_holds(one, question))
    })
}

fn match_holds(of: &Match, question: &Question) -> bool {
    let namespace = |text: &StringMatch| question.identity.as_ref().is_some_and(|[_, ns, _]| fits(text, ns));
    let principal = |text: &StringMatch| {
        question.identity.as_ref().is_some_and(|[td, ns, sa]| fits(text, &format!("{td}/ns/{ns}/sa/{sa}")))
    };
    let account = |wanted: &security::ServiceAccountMatch| {
        let [_, ns, sa] = question.identity.as_ref()?;
        Some(wanted.namespace == *ns && wanted.service_account == *sa)
    };
    let source = |network: &security::Address| within(&question.source, network);
    let destination = |network: &security::Address| within(&question.destination, network);
    let port = |port: &u32| *port == u32::from(question.port);
    yes_and_no(&of.namespaces, &of.not_namespaces, namespace)
        && yes_and_no(&of.principals, &of.not_principals, principal)
        && yes_and_no(&of.service_accounts, &of.not_service_accounts, |a| account(a).unwrap_or(false))
        && yes_and_no(&of.source_ips, &of.not_source_ips, source)
        && yes_and_no(&of.destination_ips, &of.not_destination_ips, destination)
        && yes_and_no(&of.destination_ports, &of.not_destination_ports, port)
}

/// One of `wanted`, if any is wanted, and none of `unwanted`.
fn yes_and_no<T>(wanted: &[T], unwanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&fits)) && !unwanted.iter().any(&fits)
}

fn fits(wanted: &StringMatch, text: &str) -> bool {
    match &wanted.match_type {
        Some(MatchType::Exact(exact)) => text == exact,
        Some(MatchType::Prefix(prefix)) => text.starts_with(prefix.as_str()),
        Some(MatchType::Suffix(suffix)) => text.ends_with(suffix.as_str()),
        Some(MatchType::Presence(())) => !text.is_empty(),
        None => false,
    }
}

/// The bits that an address has to begin with; none if the network makes no sense.
fn prefix(network: &security::Address) -> Option<Vec<bool>> {
    let (bytes, mut length) = (canonical(&network.address), usize::try_from(network.length).ok()?);
    if bytes.len() < network.address.len() {
        length = length.checked_sub(96)?;
    }
    let possible = matches!(bytes.len(), 4 | 16) && length <= bytes.len() * 8;
    possible.then(|| bits(&bytes)[..length].to_vec())
}

fn within(address: &[u8], network: &security::Address) -> bool {
    let (address, family) = (canonical(address), canonical(&network.address).len());
    address.len() == family && prefix(network).is_some_and(|prefix| bits(&address).starts_with(&prefix))
}

/// IPv4-mapped IPv6 addresses are IPv4 addresses.
fn canonical(bytes: &[u8]) -> Vec<u8> {
    let mapped = bytes.len() == 16 && bytes[..10] == [0; 10] && bytes[10..12] == [0xff; 2];
    if mapped { bytes[12..].to_vec() } else { bytes.to_vec() }
}

fn bits(bytes: &[u8]) -> Vec<bool> {
    bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
}
