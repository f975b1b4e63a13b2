//! The rules of a policy, compiled so that evaluation only compares.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ConnectionAttributes;
use crate::plan::field_parsing::{self, Invalid};
use crate::wire::security as wire;
use crate::wire::security::string_match::MatchType;

/// A rule, which matches if all of its clauses do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule(Box<[Clause]>);

/// One condition, or several alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Clause {
    Always,
    /// Matches if one of these does; empty if all of them were empty: then it never matches.
    OneOf(Box<[Match]>),
}

/// A condition, which matches if each of its parts does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Match {
    namespaces: Values<Text>,
    principals: Values<Text>,
    accounts: Values<Account>,
    source_ips: Values<IpNet>,
    destination_ips: Values<IpNet>,
    destination_ports: Values<u16>,
}

/// Matches if one of the first does (or there are none) and none of the second does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Values<T> {
    any_of: Box<[T]>,
    none_of: Box<[T]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    namespace: String,
    name: String,
}

impl Rule {
    pub(super) fn matches(&self, connection: &ConnectionAttributes<'_>) -> bool {
        self.0.iter().all(|clause| match clause {
            Clause::Always => true,
            Clause::OneOf(matches) => matches.iter().any(|one| one.holds(connection)),
        })
    }
}

impl Match {
    /// Whether it matches. Without an identity no part about one matches, so their negations do.
    fn holds(&self, connection: &ConnectionAttributes<'_>) -> bool {
        let id = connection.identity;
        let contains = |network: &IpNet, ip: IpAddr| network.contains(&ip);
        self.destination_ports.hold(|port| *port == connection.destination_port)
            && self.namespaces.hold(|text| id.is_some_and(|id| text.matches(id.namespace())))
            && self.principals.hold(|text| id.is_some_and(|id| text.matches(id.principal())))
            && self.accounts.hold(|account| {
                id.is_some_and(|id| {
                    account.namespace == id.namespace() && account.name == id.service_account()
                })
            })
            && self.source_ips.hold(|network| contains(network, connection.source_ip))
            && self.destination_ips.hold(|network| contains(network, connection.destination_ip))
    }

    fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.principals.is_empty()
            && self.accounts.is_empty()
            && self.source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.destination_ports.is_empty()
    }
}

impl<T> Values<T> {
    fn compile<W>(
        any_of: &[W],
        none_of: &[W],
        compile: impl Fn(&W) -> Result<T, Invalid>,
    ) -> Result<Self, Invalid> {
        Ok(Self {
            any_of: any_of.iter().map(&compile).collect::<Result<_, _>>()?,
            none_of: none_of.iter().map(&compile).collect::<Result<_, _>>()?,
        })
    }

    fn hold(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(&matches)) && !self.none_of.iter().any(&matches)
    }

    fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }
}

impl Text {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Present => !text.is_empty(),
        }
    }

    fn compile(field: &'static str, from: &wire::StringMatch) -> Result<Self, Invalid> {
        Ok(match from.match_type.clone().ok_or(Invalid::EmptyMatch { field })? {
            MatchType::Exact(text) => Self::Exact(text),
            MatchType::Prefix(text) => Self::Prefix(text),
            MatchType::Suffix(text) => Self::Suffix(text),
            MatchType::Presence(()) => Self::Present,
        })
    }
}

impl TryFrom<&wire::Rule> for Rule {
    type Error = Invalid;

    fn try_from(from: &wire::Rule) -> Result<Self, Invalid> {
        Ok(Self(from.clauses.iter().map(Clause::try_from).collect::<Result<_, _>>()?))
    }
}

impl TryFrom<&wire::Clause> for Clause {
    type Error = Invalid;

    fn try_from(from: &wire::Clause) -> Result<Self, Invalid> {
        if from.matches.is_empty() {
            return Ok(Self::Always);
        }
        let matches = from.matches.iter().map(Match::try_from).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::OneOf(matches.into_iter().filter(|one| !one.is_empty()).collect()))
    }
}

impl TryFrom<&wire::Match> for Match {
    type Error = Invalid;

    fn try_from(from: &wire::Match) -> Result<Self, Invalid> {
        if let Some(extension) = from.extensions.first() {
            return Err(Invalid::MatchExtension { name: extension.name.clone() });
        }
        let text = |field| move |text: &_| Text::compile(field, text);
        let network = |field| {
            move |ip: &wire::Address| field_parsing::parse_network(field, &ip.address, Some(ip.length))
        };
        Ok(Self {
            namespaces: Values::compile(&from.namespaces, &from.not_namespaces, text("namespaces"))?,
            principals: Values::compile(&from.principals, &from.not_principals, text("principals"))?,
            accounts: Values::compile(&from.service_accounts, &from.not_service_accounts, |account| {
                Ok(Account { namespace: account.namespace.clone(), name: account.service_account.clone() })
            })?,
            source_ips: Values::compile(&from.source_ips, &from.not_source_ips, network("source_ips"))?,
            destination_ips: Values::compile(
                &from.destination_ips,
                &from.not_destination_ips,
                network("destination_ips"),
            )?,
            destination_ports: Values::compile(
                &from.destination_ports,
                &from.not_destination_ports,
                |port| field_parsing::parse_port("destination_ports", *port),
            )?,
        })
    }
}
