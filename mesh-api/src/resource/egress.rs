//! Strict egress: pods that may open connections only to what the mesh knows, and to what their namespace
//! names.
//!
//! A namespace decides for all of its pods, and a pod may only be stricter: whoever may make pods is not
//! whoever may let them out. What is excepted is the namespace's to say alone.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Labels, Metadata};

/// The label, on a namespace or a pod: `enabled` or `disabled`.
pub const LABEL: &str = "nodemesh.io/strict-egress";
/// The annotation of a namespace that names what its strict pods may go to all the same.
pub const ALLOW: &str = "nodemesh.io/egress-allow";
/// Most entries of the annotation.
pub const MOST_ALLOWED: usize = 64;

/// A pod whose egress is strict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrictEgress {
    /// Why it is.
    pub by: By,
    /// What it may go to all the same.
    pub allowed: Vec<Allowed>,
    /// What is wrong with the namespace's annotation: then nothing is excepted.
    pub problem: Option<String>,
}

/// What makes a pod's egress strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The label of its namespace.
    Namespace,
    /// Its own label.
    Pod,
}

/// Addresses outside of the mesh, on one port or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The addresses.
    pub net: IpNet,
    /// The port; none: all.
    pub port: Option<u16>,
}

/// What is wrong with an entry or a label, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What is wrong.
    pub problem: String,
    /// What to write.
    pub fix: String,
}

impl StrictEgress {
    /// Whether and why a pod's egress is strict. A value without a meaning counts as `enabled`: somebody
    /// wanted something.
    pub fn of(namespace: &Metadata, pod: &Labels) -> Option<Self> {
        let wants = |labels: &Labels| labels.get(LABEL).is_some_and(|value| value != "disabled");
        let by = match (wants(&namespace.labels), wants(pod)) {
            (true, _) => By::Namespace,
            (false, true) => By::Pod,
            (false, false) => return None,
        };
        let (allowed, problem) = match allowed(namespace) {
            Ok(allowed) => (allowed, None),
            Err(wrong) => (Vec::new(), Some(format!("annotation {ALLOW}: {}", wrong.problem))),
        };
        Some(Self { by, allowed, problem })
    }

    /// Whether a destination that the mesh does not know is excepted.
    pub fn allows(&self, destination: SocketAddr) -> bool {
        let (address, port) = (destination.ip().to_canonical(), destination.port());
        self.allowed.iter().any(|it| it.net.contains(&address) && it.port.is_none_or(|only| only == port))
    }
}

/// What a namespace names. Errors: all of it counts for nothing, since nobody knows what was meant.
pub fn allowed(namespace: &Metadata) -> Result<Vec<Allowed>, Wrong> {
    let text = namespace.annotations.get(ALLOW).map_or("", String::as_str);
    let entries = text.split([',', ' ', '\n', '\t']).filter(|entry| !entry.is_empty());
    let entries: Vec<_> = entries.map(str::parse).collect::<Result<_, _>>()?;
    if entries.len() > MOST_ALLOWED {
        let problem = format!("{} entries, of {MOST_ALLOWED} that there may be", entries.len());
        return Err(Wrong { problem, fix: "name larger networks".to_owned() });
    }
    Ok(entries)
}

/// What is wrong with a label, if something is.
pub fn check_label(labels: &Labels) -> Result<(), Wrong> {
    match labels.get(LABEL).map(String::as_str) {
        None | Some("enabled" | "disabled") => Ok(()),
        Some(other) => Err(Wrong {
            problem: format!("{other:?} has no meaning, and counts as `enabled`"),
            fix: "write `enabled` or `disabled`".to_owned(),
        }),
    }
}

impl std::str::FromStr for Allowed {
    type Err = Wrong;

    /// `10.0.0.0/8`, `10.0.0.0/8:443`, `192.0.2.1:443`, `2001:db8::/32`, `[2001:db8::/32]:443`.
    fn from_str(text: &str) -> Result<Self, Wrong> {
        let (net, port) = split(text).ok_or_else(|| unknown(text))?;
        let net = match (net.parse::<IpNet>(), net.parse::<IpAddr>()) {
            (Ok(net), _) => net,
            (_, Ok(address)) => IpNet::from(address),
            _ => return Err(unknown(text)),
        };
        if net.addr() != net.network() {
            let problem = format!("{text:?} names an address inside of a network");
            return Err(Wrong { problem, fix: format!("write {}, or the address alone", net.trunc()) });
        }
        if net.addr() != net.addr().to_canonical() {
            let problem = format!("{text:?} is an IPv4 network in the form of IPv6");
            return Err(Wrong { problem, fix: "write it as IPv4".to_owned() });
        }
        Ok(Self { net, port })
    }
}

/// The network, and the port behind it.
fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0 && !text.starts_with('+'));
    if let Some(rest) = text.strip_prefix('[') {
        let (net, behind) = rest.split_once(']')?;
        let net = net.contains(':').then_some(net)?;
        return match behind.strip_prefix(':') {
            Some(behind) => Some((net, Some(port(behind)?))),
            None => behind.is_empty().then_some((net, None)),
        };
    }
    match text.split_once(':') {
        // Several: an IPv6 network, which is in brackets if a port is behind it.
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((net, behind)) => Some((net, Some(port(behind)?))),
        None => Some((text, None)),
    }
}

fn unknown(text: &str) -> Wrong {
    Wrong {
        problem: format!("{text:?} is no network"),
        fix: "write networks and ports like `10.0.0.0/8`, `192.0.2.1:443`, `[2001:db8::/32]:443`, with commas between"
            .to_owned(),
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.net) {
            (None, net) => write!(f, "{net}"),
            (Some(port), IpNet::V4(net)) => write!(f, "{net}:{port}"),
            (Some(port), IpNet::V6(net)) => write!(f, "[{net}]:{port}"),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "namespace",
            Self::Pod => "pod",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn labels(value: &str) -> Labels {
        [(LABEL.to_owned(), value.to_owned())].into()
    }

    fn namespace(label: Option<&str>, allow: &str) -> Metadata {
        Metadata {
            labels: Arc::new(label.map(labels).unwrap_or_default()),
            annotations: [(ALLOW.to_owned(), allow.to_owned())].into(),
            ..Metadata::default()
        }
    }

    fn by(namespace_says: Option<&str>, pod: &Labels) -> Option<By> {
        StrictEgress::of(&namespace(namespace_says, ""), pod).map(|strict| strict.by)
    }

    #[test]
    fn a_pod_can_only_be_stricter_than_its_namespace() {
        let none = Labels::default();
        assert_eq!(by(None, &none), None);
        assert_eq!(by(Some("enabled"), &none), Some(By::Namespace));
        assert_eq!(by(Some("enabled"), &labels("disabled")), Some(By::Namespace));
        assert_eq!(by(Some("disabled"), &labels("enabled")), Some(By::Pod));
        assert_eq!(by(Some("disabled"), &labels("disabled")), None);
    }

    #[test]
    fn a_value_without_a_meaning_is_the_stricter_one() {
        assert_eq!(by(Some("true"), &Labels::default()), Some(By::Namespace));
        assert_eq!(by(None, &labels("")), Some(By::Pod));
        assert!(check_label(&labels("true")).unwrap_err().problem.contains("true"));
        assert!(check_label(&labels("disabled")).is_ok() && check_label(&Labels::default()).is_ok());
    }

    #[test]
    fn what_is_named_is_excepted() {
        let text = "10.0.0.0/8, 192.0.2.1:443\n2001:db8::/32 [2001:db9::/32]:80,[::1],fd00::7";
        let strict = StrictEgress::of(&namespace(Some("enabled"), text), &Labels::default()).unwrap();
        assert_eq!(strict.problem, None);
        let shown: Vec<_> = strict.allowed.iter().map(ToString::to_string).collect();
        let expected = [
            "10.0.0.0/8",
            "192.0.2.1/32:443",
            "2001:db8::/32",
            "[2001:db9::/32]:80",
            "::1/128",
            "fd00::7/128",
        ];
        assert_eq!(shown, expected);
        for shown in shown {
            assert!(shown.parse::<Allowed>().is_ok(), "{shown}");
        }
        let allows = |to: &str| strict.allows(to.parse().unwrap());
        for to in
            ["10.1.2.3:1", "[::ffff:10.1.2.3]:1", "192.0.2.1:443", "[2001:db8::1]:9", "[2001:db9::1]:80"]
        {
            assert!(allows(to), "{to}");
        }
        for to in ["11.0.0.1:1", "192.0.2.1:80", "192.0.2.2:443", "[2001:db9::1]:81", "[2001:dba::1]:80"] {
            assert!(!allows(to), "{to}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_and_excepts_nothing() {
        for (text, fix) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/8:0", "`10.0.0.0/8`"),
            ("10.0.0.0/8:65536", "`10.0.0.0/8`"),
            ("10.0.0.0/8:+1", "`10.0.0.0/8`"),
            ("10.0.0.0/33", "`10.0.0.0/8`"),
            ("example.org:443", "`10.0.0.0/8`"),
            ("[10.0.0.0/8]:443", "`10.0.0.0/8`"),
            ("[2001:db8::/32]443", "`10.0.0.0/8`"),
            ("*", "`10.0.0.0/8`"),
            ("::ffff:10.0.0.0/104", "IPv4"),
        ] {
            let namespace = namespace(Some("enabled"), &format!("192.0.2.1, {text}"));
            let wrong = allowed(&namespace).unwrap_err();
            assert!(wrong.problem.contains(text) && wrong.fix.contains(fix), "{text}: {wrong:?}");
            let strict = StrictEgress::of(&namespace, &Labels::default()).unwrap();
            assert!(strict.problem.is_some() && !strict.allows("192.0.2.1:80".parse().unwrap()));
        }
        let many: Vec<_> = (0..=MOST_ALLOWED).map(|last| format!("192.0.2.{last}")).collect();
        assert!(allowed(&namespace(None, &many.join(","))).is_err());
        assert!(allowed(&namespace(None, &many[1..].join(","))).is_ok());
    }
}
