//! Values of policies in the forms that the wire has, and what to write where it has none.

use ipnet::IpNet;

use crate::{
    compile::octets,
    resource::{Pattern, ServiceAccountRef},
    wire::security::{Address, Match, ServiceAccountMatch, StringMatch, string_match::MatchType},
};

/// Which way to err about values that the wire has no form for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Approximation {
    /// Match no more than was written.
    Inside,
    /// Match no less than was written.
    Outside,
}

impl Approximation {
    /// The bound of a value under a `not`.
    pub fn negated(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }
}

/// A match for peers that proved no identity.
pub(super) fn unauthenticated_match() -> Match {
    Match { not_principals: vec![match_any_value()], ..Match::default() }
}

/// Any name, any identity.
pub(super) fn match_any_value() -> StringMatch {
    string(MatchType::Presence(()))
}

/// No name, no identity: none is empty.
pub(super) fn match_no_value() -> StringMatch {
    string(MatchType::Exact(String::new()))
}

/// A list of values to compare a string with. A list that loses all its values becomes one that never
/// matches, since an empty one would ask for nothing.
pub(super) fn string_matches(patterns: &[Pattern], bound: Approximation) -> Vec<StringMatch> {
    let values: Vec<_> = patterns.iter().filter_map(|pattern| string_match(pattern, bound)).collect();
    if values.is_empty() && !patterns.is_empty() { vec![match_no_value()] } else { values }
}

/// Trust domains, as the beginnings of principals that they are. `None` if a value cannot be written so.
pub(super) fn trust_domain_matches(patterns: &[Pattern]) -> Option<Vec<StringMatch>> {
    patterns
        .iter()
        .map(|pattern| match pattern {
            Pattern::Exact(domain) => Some(string(MatchType::Prefix(format!("{domain}/")))),
            Pattern::Prefix(start) => Some(string(MatchType::Prefix(start.clone()))),
            Pattern::Present => Some(match_any_value()),
            Pattern::Suffix(_) | Pattern::Glob(_) => None,
        })
        .collect()
}

pub(super) fn service_account_matches(accounts: &[ServiceAccountRef]) -> Vec<ServiceAccountMatch> {
    let one = |account: &ServiceAccountRef| ServiceAccountMatch {
        namespace: account.namespace.clone(),
        service_account: account.name.clone(),
    };
    accounts.iter().map(one).collect()
}

pub(super) fn address_matches<'a>(blocks: impl IntoIterator<Item = &'a IpNet>) -> Vec<Address> {
    blocks.into_iter().map(address).collect()
}

/// An IPv4 network that is written as a mapped IPv6 one is the IPv4 network.
fn address(block: &IpNet) -> Address {
    const MAPPED: u8 = 96;
    let address = block.network();
    let mapped = address.to_canonical() != address && block.prefix_len() >= MAPPED;
    if !mapped {
        let octets = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        return Address { address: octets, length: block.prefix_len().into() };
    }
    Address { address: octets(address), length: (block.prefix_len() - MAPPED).into() }
}

fn string_match(pattern: &Pattern, bound: Approximation) -> Option<StringMatch> {
    let form = match pattern {
        Pattern::Exact(text) => MatchType::Exact(text.clone()),
        Pattern::Prefix(text) => MatchType::Prefix(text.clone()),
        Pattern::Suffix(text) => MatchType::Suffix(text.clone()),
        Pattern::Present => MatchType::Presence(()),
        Pattern::Glob(_) if bound == Approximation::Inside => return None,
        Pattern::Glob(text) => around(text),
    };
    Some(string(form))
}

/// The narrowest form that takes in all that a star within takes.
fn around(glob: &str) -> MatchType {
    let start = glob.split('*').next().unwrap_or_default();
    let end = glob.rsplit('*').next().unwrap_or_default();
    match (start, end) {
        ("", "") => MatchType::Presence(()),
        ("", end) => MatchType::Suffix(end.to_owned()),
        (start, _) => MatchType::Prefix(start.to_owned()),
    }
}

fn string(form: MatchType) -> StringMatch {
    StringMatch { match_type: Some(form) }
}
