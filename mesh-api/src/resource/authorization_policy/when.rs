//! `when`: conditions on one attribute each.

use ipnet::IpNet;

use super::{Pattern, ServiceAccountRef};

/// A condition on one attribute: any of the values, and none of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    /// The attribute's name as written.
    pub key: String,
    /// Values, one of which must match; none means no demand.
    pub values: Vec<WhenValue>,
    /// Values that must not match.
    pub not_values: Vec<WhenValue>,
}

/// A value of a condition, typed by the attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhenValue {
    /// `source.ip`, `remote.ip`, `destination.ip`.
    Address(IpNet),
    /// `destination.port`.
    Port(u16),
    /// `source.serviceAccount`.
    ServiceAccount(ServiceAccountRef),
    /// Everything else.
    Text(Pattern),
}

/// Which kind of value an attribute takes.
#[derive(Clone, Copy)]
pub(super) enum Attribute {
    Address,
    Port,
    ServiceAccount,
    Text,
}

/// Attributes with a fixed name.
pub(super) const NAMES: [&str; 13] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.headers[NAME]",
];

impl Attribute {
    /// Finds the attribute that `key` names.
    pub fn of(key: &str) -> Option<Self> {
        Some(match key {
            "source.ip" | "remote.ip" | "destination.ip" => Self::Address,
            "destination.port" => Self::Port,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.namespace"
            | "source.principal"
            | "source.trustDomain"
            | "request.auth.principal"
            | "request.auth.audiences"
            | "request.auth.presenter"
            | "connection.sni" => Self::Text,
            _ => return is_indexed(key).then_some(Self::Text),
        })
    }
}

/// `request.headers[x]`, `request.auth.claims[a][b]` and Envoy's metadata, each with at least one index.
fn is_indexed(key: &str) -> bool {
    let Some((name, rest)) = key.split_once('[') else { return false };
    let several = name == "request.auth.claims";
    let known = several || name == "request.headers" || name.starts_with("experimental.envoy.filters.");
    let Some(inner) = rest.strip_suffix(']') else { return false };
    let parts: Vec<_> = inner.split("][").collect();
    known && (several || parts.len() == 1) && parts.iter().all(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in [
            "request.headers[X-Id]",
            "request.auth.claims[a][b]",
            "experimental.envoy.filters.a.b[key]",
            "source.ip",
        ] {
            assert!(Attribute::of(good).is_some(), "{good}");
        }
        for bad in
            ["request.headers", "request.headers[]", "request.headers[a][b]", "destination.name", "x[y]", ""]
        {
            assert!(Attribute::of(bad).is_none(), "{bad}");
        }
    }
}
