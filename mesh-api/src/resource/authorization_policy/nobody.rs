//! Values that can match nobody: in a DENY they let everybody in, and in an ALLOW nobody, without a word.
//!
//! A value counts as one only if no name that Kubernetes and SPIFFE allow could ever match it. That nobody of
//! that name is there now says nothing.

mod meant;

use super::{Action, AuthorizationPolicy, Pattern, Rule, ServiceAccountRef, Source, When, WhenValue};
use crate::{
    identity::is_trust_domain,
    resource::metadata::{is_label, is_subdomain},
};

/// A value that can match nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nobody {
    /// What is wrong with it.
    pub problem: String,
    /// What was probably meant.
    pub fix: String,
}

impl AuthorizationPolicy {
    /// The values that can match nobody, each with the path of its field.
    pub(crate) fn values_for_nobody(&self) -> Vec<(String, Nobody)> {
        let rules = self.rules.iter().enumerate();
        rules.flat_map(|(index, rule)| of_rule(&format!("spec.rules[{index}]"), rule)).collect()
    }

    /// What a value that can match nobody comes to, as the end of a sentence.
    pub(crate) fn without_effect(&self) -> &'static str {
        match self.action {
            Action::Allow => "this value allows nobody, and excludes nobody where it is a `not`",
            Action::Deny => "this value denies nobody, and exempts nobody where it is a `not`",
            Action::Audit | Action::Custom => "this value concerns nobody",
        }
    }
}

fn of_rule(path: &str, rule: &Rule) -> Vec<(String, Nobody)> {
    let sources = rule.from.iter().enumerate();
    let sources = sources.flat_map(|(index, it)| of_source(&format!("{path}.from[{index}].source"), it));
    let whens = rule.when.iter().enumerate();
    sources.chain(whens.flat_map(|(index, it)| of_when(&format!("{path}.when[{index}]"), it))).collect()
}

fn of_source(path: &str, source: &Source) -> Vec<(String, Nobody)> {
    let mut found = Vec::new();
    for (field, patterns, judge) in [
        ("principals", &source.principals, principal as fn(&Pattern) -> Option<Nobody>),
        ("notPrincipals", &source.not_principals, principal),
        ("namespaces", &source.namespaces, namespace),
        ("notNamespaces", &source.not_namespaces, namespace),
        ("trustDomains", &source.trust_domains, trust_domain),
        ("notTrustDomains", &source.not_trust_domains, trust_domain),
    ] {
        found.extend(of_list(&format!("{path}.{field}"), patterns, judge));
    }
    for (field, accounts) in
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)]
    {
        found.extend(of_list(&format!("{path}.{field}"), accounts, service_account));
    }
    found
}

fn of_when(path: &str, when: &When) -> Vec<(String, Nobody)> {
    let judge = |value: &WhenValue| match value {
        WhenValue::Text(pattern) => of_attribute(&when.key, pattern),
        WhenValue::ServiceAccount(account) => service_account(account),
        WhenValue::Address(_) | WhenValue::Port(_) => None,
    };
    let mut found = of_list(&format!("{path}.values"), &when.values, judge);
    found.extend(of_list(&format!("{path}.notValues"), &when.not_values, judge));
    found
}

fn of_list<T>(path: &str, values: &[T], judge: impl Fn(&T) -> Option<Nobody>) -> Vec<(String, Nobody)> {
    let values = values.iter().enumerate();
    values.filter_map(|(index, value)| Some((format!("{path}[{index}]"), judge(value)?))).collect()
}

/// Judges a value of the attribute `key` of a `when`.
pub(super) fn of_attribute(key: &str, pattern: &Pattern) -> Option<Nobody> {
    match key {
        "source.principal" => principal(pattern),
        "source.namespace" => namespace(pattern),
        "source.trustDomain" => trust_domain(pattern),
        _ => None,
    }
}

/// Judges a principal: `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, the end or the beginning of which may be left
/// open.
pub(super) fn principal(pattern: &Pattern) -> Option<Nobody> {
    if is_principal(pattern) {
        return None;
    }
    let form = "a principal is `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`";
    Some(Nobody { problem: problem(pattern, form), fix: meant::principal(pattern) })
}

/// Judges the name of a namespace.
pub(super) fn namespace(pattern: &Pattern) -> Option<Nobody> {
    if is_part(pattern, is_label) {
        return None;
    }
    let form = "a namespace is at most 63 lower-case letters, digits and `-`";
    Some(Nobody { problem: problem(pattern, form), fix: meant::namespace(pattern) })
}

/// Judges a trust domain.
pub(super) fn trust_domain(pattern: &Pattern) -> Option<Nobody> {
    if is_part(pattern, is_trust_domain) {
        return None;
    }
    let form = "a trust domain is lower-case letters, digits, `.`, `-` and `_`";
    Some(Nobody { problem: problem(pattern, form), fix: meant::trust_domain(pattern) })
}

/// Judges a service account, whose namespace is good.
pub(super) fn service_account(account: &ServiceAccountRef) -> Option<Nobody> {
    if is_subdomain(&account.name) {
        return None;
    }
    let form = "a service account is lower-case letters, digits, `-` and `.`";
    let name = Pattern::Exact(account.name.clone());
    Some(Nobody { problem: problem(&name, form), fix: meant::service_account(&account.name) })
}

fn problem(pattern: &Pattern, form: &str) -> String {
    let text = pattern.to_string();
    match meant::stranger(&text) {
        Some(what) => format!("{text:?} can match nobody, since it has {what}: {form}"),
        None => format!("{text:?} can match nobody: {form}"),
    }
}

/// Whether some principal matches.
fn is_principal(pattern: &Pattern) -> bool {
    let check: [fn(&str) -> bool; 5] =
        [is_trust_domain, |text| text == "ns", is_label, |text| text == "sa", is_subdomain];
    match pattern {
        Pattern::Present => true,
        Pattern::Exact(text) => {
            let segments: Vec<_> = text.split('/').collect();
            segments.len() == check.len() && segments.iter().zip(check).all(|(text, is)| is(text))
        }
        Pattern::Prefix(text) => {
            let segments: Vec<_> = text.split('/').collect();
            let last = segments.len() - 1;
            let is = |(at, text): (usize, &&str)| {
                check.get(at).is_some_and(|is| if at == last { begins(text, at, *is) } else { is(text) })
            };
            segments.iter().enumerate().all(is)
        }
        Pattern::Suffix(text) => {
            let segments: Vec<_> = text.rsplit('/').collect();
            let first = segments.len() - 1;
            let is = |(back, text): (usize, &&str)| {
                let Some(at) = check.len().checked_sub(back + 1) else { return false };
                if back == first { ends(text, at, check[at]) } else { check[at](text) }
            };
            segments.iter().enumerate().all(is)
        }
        Pattern::Glob(_) => false,
    }
}

/// Whether something that is a segment at this place of a principal begins with `text`.
fn begins(text: &str, at: usize, is: fn(&str) -> bool) -> bool {
    match word(at) {
        Some(word) => word.starts_with(text),
        None => is(text) || is(&format!("{text}a")),
    }
}

/// Whether something that is a segment at this place of a principal ends with `text`.
fn ends(text: &str, at: usize, is: fn(&str) -> bool) -> bool {
    match word(at) {
        Some(word) => word.ends_with(text),
        None => is(text) || is(&format!("a{text}")),
    }
}

/// The word that stands at a place of a principal.
fn word(at: usize) -> Option<&'static str> {
    match at {
        1 => Some("ns"),
        3 => Some("sa"),
        _ => None,
    }
}

/// Whether some name matches, `is` being what makes it a name.
fn is_part(pattern: &Pattern, is: fn(&str) -> bool) -> bool {
    match pattern {
        Pattern::Present => true,
        Pattern::Exact(text) => is(text),
        Pattern::Prefix(text) => is(text) || is(&format!("{text}a")),
        Pattern::Suffix(text) => is(text) || is(&format!("a{text}")),
        Pattern::Glob(text) => is(&text.replace('*', "")) || is(&text.replace('*', "a")),
    }
}

#[cfg(test)]
mod tests;
