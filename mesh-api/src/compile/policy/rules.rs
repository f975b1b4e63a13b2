//! Rules of an `AuthorizationPolicy`, as far as connections can be judged by them.
//!
//! A policy may speak of what only HTTP shows. As in Istio's ambient mode, an ALLOW rule that does so is left
//! out, so less is allowed. From a DENY rule only those attributes are left out, so more is denied, unless a
//! whole part of the rule (`from`, `to`, one of `when`) asks for nothing else: then the rule matches nothing
//! here. AUDIT rules are treated as DENY rules. Each such change is reported.
//!
//! Trust domains are the one exception. Istio leaves them out without a word, so that an ALLOW may become
//! wider than it was written. Here they count as an attribute that cannot be judged in ALLOW rules, which are
//! therefore left out. In DENY rules they become the beginnings of principals that they are; where that has
//! no form, or the source names principals as well, the rule is widened, which is reported too.

use crate::{
    compile::{Condition, ConditionEffect},
    manifest::Kind,
    resource::{Action, AuthorizationPolicy, Operation, Pattern, Rule, Source, When, WhenValue},
    wire::security::{self as wire, Clause, Match},
};

use super::matches::{self, Approximation};

/// Converts a policy's rules.
pub(super) fn convert_rules(policy: &AuthorizationPolicy) -> (Vec<wire::Rule>, Vec<Condition>) {
    let mut converter = Converter { policy, conditions: Vec::new() };
    let rules = policy.rules.iter().enumerate();
    let rules: Vec<_> = rules.filter_map(|(index, rule)| converter.rule(index, rule)).collect();
    if rules.is_empty() {
        converter.say_that_none_is_left();
    }
    (rules, converter.conditions)
}

struct Converter<'a> {
    policy: &'a AuthorizationPolicy,
    conditions: Vec<Condition>,
}

impl Converter<'_> {
    fn rule(&mut self, index: usize, rule: &Rule) -> Option<wire::Rule> {
        let path = format!("spec.rules[{index}]");
        let dropped = unjudgeable(rule, self.bound());
        if self.policy.action == Action::Allow && !dropped.is_empty() {
            let reason = format!("rule {} left out: {}", index + 1, unseen(&dropped));
            self.report(path, ConditionEffect::Stricter, reason, BY_CONNECTION);
            return None;
        }
        self.report_globs(&path, rule);
        let clauses = [self.from(&rule.from), to(&rule.to)].into_iter().flatten();
        let clauses: Vec<Clause> = clauses.chain(rule.when.iter().map(|when| self.when(when))).collect();
        let judged: Vec<Clause> = clauses.into_iter().map(without_empty).collect();
        if judged.iter().any(|clause| clause.matches.is_empty()) {
            let reason = format!("rule {} left out, it matches nothing: {}", index + 1, unseen(&dropped));
            self.report(path, ConditionEffect::Ignored, reason, BY_CONNECTION);
            return None;
        }
        if !dropped.is_empty() {
            let reason = format!("rule {} without a part of it: {}", index + 1, unseen(&dropped));
            // An alternative that asked for nothing else is gone; otherwise the rule has become wider.
            let effect =
                if lost_alternative(rule) { ConditionEffect::Weaker } else { ConditionEffect::Stricter };
            self.report(path, effect, reason, BY_CONNECTION);
        }
        Some(wire::Rule { clauses: judged })
    }

    fn from(&self, sources: &[Source]) -> Option<Clause> {
        let matches = sources.iter().map(|source| self.source(source)).collect();
        (!sources.is_empty()).then_some(Clause { matches })
    }

    fn source(&self, source: &Source) -> Match {
        let bound = self.bound();
        let mut made = Match {
            principals: matches::string_matches(&source.principals, bound),
            not_principals: matches::string_matches(&source.not_principals, bound.negated()),
            namespaces: matches::string_matches(&source.namespaces, bound),
            not_namespaces: matches::string_matches(&source.not_namespaces, bound.negated()),
            source_ips: matches::address_matches(&source.ip_blocks),
            not_source_ips: matches::address_matches(&source.not_ip_blocks),
            service_accounts: matches::service_account_matches(&source.service_accounts),
            not_service_accounts: matches::service_account_matches(&source.not_service_accounts),
            ..Match::default()
        };
        // ALLOW rules with trust domains do not get here, so what follows may match more than was written.
        if made.principals.is_empty() && !source.trust_domains.is_empty() {
            let expressed = matches::trust_domain_matches(&source.trust_domains);
            made.principals = expressed.unwrap_or_else(|| vec![matches::match_any_value()]);
        }
        if !source.not_trust_domains.is_empty() {
            let expressed = matches::trust_domain_matches(&source.not_trust_domains);
            made.not_principals.extend(expressed.unwrap_or_else(|| vec![matches::match_no_value()]));
        }
        made
    }

    fn when(&self, when: &When) -> Clause {
        let bound = self.bound();
        let mut made = Match::default();
        match when.key.as_str() {
            "source.ip" => {
                made.source_ips = matches::address_matches(blocks(&when.values));
                made.not_source_ips = matches::address_matches(blocks(&when.not_values));
            }
            "destination.ip" => {
                made.destination_ips = matches::address_matches(blocks(&when.values));
                made.not_destination_ips = matches::address_matches(blocks(&when.not_values));
            }
            "destination.port" => {
                made.destination_ports = ports(&when.values);
                made.not_destination_ports = ports(&when.not_values);
            }
            "source.namespace" => {
                made.namespaces = matches::string_matches(&texts(&when.values), bound);
                made.not_namespaces = matches::string_matches(&texts(&when.not_values), bound.negated());
            }
            "source.principal" => {
                made.principals = matches::string_matches(&texts(&when.values), bound);
                made.not_principals = matches::string_matches(&texts(&when.not_values), bound.negated());
            }
            _ => {}
        }
        Clause { matches: vec![made] }
    }

    /// Says which names of namespaces have no form on the wire.
    fn report_globs(&mut self, path: &str, rule: &Rule) {
        let from = rule.from.iter().flat_map(|source| source.namespaces.iter().chain(&source.not_namespaces));
        let when = rule.when.iter().flat_map(|when| when.values.iter().chain(&when.not_values));
        let when = when.filter_map(|value| if let WhenValue::Text(text) = value { Some(text) } else { None });
        let globs: Vec<_> = from
            .chain(when)
            .filter(|pattern| matches!(pattern, Pattern::Glob(_)))
            .map(ToString::to_string)
            .collect();
        if !globs.is_empty() {
            let reason = format!("{}: a `*` within a name is matched on the safe side", globs.join(", "));
            let fix = "write the names out, or a `*` at the beginning or end alone";
            self.report(path.to_owned(), ConditionEffect::Stricter, reason, fix);
        }
    }

    /// A policy that has lost all its rules allows nothing, or denies nothing: its last condition says which.
    fn say_that_none_is_left(&mut self) {
        let Some(last) = self.conditions.pop() else { return };
        let (comes_to, is_whole) = match self.policy.action {
            Action::Allow => ("so it allows nothing, and what no other policy allows is refused", false),
            Action::Audit => ("so it reports nothing", true),
            Action::Deny | Action::Custom => ("so it denies nothing", true),
        };
        let reason = format!("{}; no rule is left, {comes_to}", last.reason);
        self.conditions.push(Condition { reason, is_whole, ..last });
    }

    fn report(&mut self, field: String, effect: ConditionEffect, reason: String, fix: &str) {
        let kind = Kind::AuthorizationPolicy;
        self.conditions.push(Condition::new(kind, &self.policy.metadata, field, effect, (reason, fix)));
    }

    /// An ALLOW must not match more than it says, a DENY not less.
    fn bound(&self) -> Approximation {
        if self.policy.action == Action::Allow { Approximation::Inside } else { Approximation::Outside }
    }
}

fn to(operations: &[Operation]) -> Option<Clause> {
    let one = |operation: &Operation| Match {
        destination_ports: operation.ports.iter().map(|port| u32::from(*port)).collect(),
        not_destination_ports: operation.not_ports.iter().map(|port| u32::from(*port)).collect(),
        ..Match::default()
    };
    (!operations.is_empty()).then(|| Clause { matches: operations.iter().map(one).collect() })
}

/// A match that asks for nothing matches nothing on the wire; it is left out so that nobody has to know.
fn without_empty(mut clause: Clause) -> Clause {
    clause.matches.retain(|one| *one != Match::default());
    clause
}

/// Whether a source or operation of the rule asks only for what a connection does not show.
fn lost_alternative(rule: &Rule) -> bool {
    let from = rule.from.iter().any(|source| stripped(source) == Source::default());
    let to = rule.to.iter().any(|operation| operation.ports.is_empty() && operation.not_ports.is_empty());
    from || to
}

fn stripped(source: &Source) -> Source {
    Source {
        request_principals: Vec::new(),
        not_request_principals: Vec::new(),
        remote_ip_blocks: Vec::new(),
        not_remote_ip_blocks: Vec::new(),
        ..source.clone()
    }
}

/// What to write instead of what a connection does not show.
const BY_CONNECTION: &str = "ask by principals, serviceAccounts, namespaces, ipBlocks and ports";

/// Attributes that do not show in a connection at any layer, but have no form on the wire.
const NO_FORM: [&str; 2] = ["trustDomains", "notTrustDomains"];

/// Why these attributes are not asked for.
fn unseen(names: &[String]) -> String {
    let are = |names: &[&str]| if names.len() == 1 { "is" } else { "are" };
    let (no_form, layer_7): (Vec<&str>, Vec<&str>) =
        names.iter().map(String::as_str).partition(|name| NO_FORM.contains(name));
    let mut parts = Vec::new();
    if !layer_7.is_empty() {
        parts.push(format!("{} {} layer 7, which is not read", layer_7.join(", "), are(&layer_7)));
    }
    if !no_form.is_empty() {
        parts.push(format!("{} can't be asked for here", no_form.join(", ")));
    }
    parts.join("; ")
}

/// Names of the attributes in a rule that a connection does not show.
fn unjudgeable(rule: &Rule, bound: Approximation) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut note = |name: &str, used: bool| {
        if used && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    for source in &rule.from {
        note("requestPrincipals", !source.request_principals.is_empty());
        note("notRequestPrincipals", !source.not_request_principals.is_empty());
        note("remoteIpBlocks", !source.remote_ip_blocks.is_empty());
        note("notRemoteIpBlocks", !source.not_remote_ip_blocks.is_empty());
        let expressed =
            |domains| bound == Approximation::Outside && matches::trust_domain_matches(domains).is_some();
        let domains = &source.trust_domains;
        let kept = expressed(domains) && source.principals.is_empty();
        note("trustDomains", !domains.is_empty() && !kept);
        let domains = &source.not_trust_domains;
        note("notTrustDomains", !domains.is_empty() && !expressed(domains));
    }
    for operation in &rule.to {
        note("hosts", !operation.hosts.is_empty());
        note("notHosts", !operation.not_hosts.is_empty());
        note("methods", !operation.methods.is_empty());
        note("notMethods", !operation.not_methods.is_empty());
        note("paths", !operation.paths.is_empty());
        note("notPaths", !operation.not_paths.is_empty());
    }
    for when in &rule.when {
        note(&when.key, !JUDGED_KEYS.contains(&when.key.as_str()));
    }
    names
}

/// Attributes of `when` that a connection shows, as Istio's ambient mode counts them.
const JUDGED_KEYS: [&str; 5] =
    ["source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"];

fn blocks(values: &[WhenValue]) -> impl Iterator<Item = &ipnet::IpNet> {
    values.iter().filter_map(|value| if let WhenValue::Address(block) = value { Some(block) } else { None })
}

fn ports(values: &[WhenValue]) -> Vec<u32> {
    let port =
        |value: &WhenValue| if let WhenValue::Port(port) = value { Some(u32::from(*port)) } else { None };
    values.iter().filter_map(port).collect()
}

fn texts(values: &[WhenValue]) -> Vec<Pattern> {
    let text = |value: &WhenValue| if let WhenValue::Text(text) = value { Some(text.clone()) } else { None };
    values.iter().filter_map(text).collect()
}
