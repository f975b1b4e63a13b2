//! What a `CONNECT` request of HBONE says: its target, `forwarded` (RFC 7239) and `baggage` (W3C).
//!
//! All of it is written by a peer whose certificate is good but whose program may be anybody's. Nothing in
//! here does more than read.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;

use crate::plan::{Service, Snapshot, Workload};

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Why a CONNECT request has no target that can be used. It is the peer's mistake.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidConnectTarget {
    /// It asks for something else than a stream.
    #[error("method {0} instead of CONNECT")]
    Method(Method),
    /// Its target can't be read.
    #[error("authority {0:?} is not an address and port")]
    Authority(String),
}

/// The address and port that a request asks for, canonical.
pub fn parse_connect_target(
    method: &Method,
    authority: Option<&str>,
) -> Result<SocketAddr, InvalidConnectTarget> {
    if method != Method::CONNECT {
        return Err(InvalidConnectTarget::Method(method.clone()));
    }
    let authority = authority.unwrap_or_default();
    let address: SocketAddr =
        authority.parse().map_err(|_| InvalidConnectTarget::Authority(authority.to_owned()))?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The client that a request comes from, canonical. Only the request knows its port; but one that claims
/// another address than the one that connected is not believed.
pub fn believed_client(claimed: Option<SocketAddr>, peer: SocketAddr) -> SocketAddr {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let peer = canonical(peer);
    claimed.map(canonical).filter(|claimed| claimed.ip() == peer.ip()).unwrap_or(peer)
}

/// The service that has a host name, if there is one.
pub fn service_by_hostname(host: &str, snapshot: &Snapshot) -> Option<Arc<Service>> {
    // Kubernetes host names have their namespace as second label.
    let namespace = host.split('.').nth(1)?;
    snapshot.service_by_name(namespace, host)
}

/// The `forwarded` header for a client, and for the service that it addressed, if it did.
pub fn forwarded_header(client: SocketAddr, service: Option<&str>) -> (HeaderName, Option<HeaderValue>) {
    let mut text = format!("for=\"{client}\"");
    if let Some(host) = service {
        // Writing to a string does not fail.
        let _written = write!(text, ";host={host}");
    }
    (FORWARDED, HeaderValue::try_from(text).ok())
}

/// The client that a request names, if it names one.
pub fn parse_forwarded_client(headers: &HeaderMap) -> Option<SocketAddr> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    parameter(text, "for")?.trim_matches('"').parse().ok()
}

/// The host name of the service that the client addressed, if it did.
pub fn parse_forwarded_host(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    parameter(text, "host").map(str::to_owned)
}

fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split([';', ',']).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The `baggage` header that describes a workload.
pub fn baggage_header(workload: &Workload) -> (HeaderName, Option<HeaderValue>) {
    let members = [
        ("k8s.cluster.name", &*workload.cluster),
        ("k8s.namespace.name", &*workload.namespace),
        ("k8s.deployment.name", &*workload.workload_name),
        ("service.name", &*workload.canonical_name),
        ("service.version", &*workload.canonical_revision),
    ];
    let text = members
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",");
    (BAGGAGE, HeaderValue::try_from(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(FORWARDED, HeaderValue::from_str(text).unwrap())])
    }

    #[test]
    fn forwarded_survives_the_round_trip() {
        for client in ["10.244.1.5:40000", "[fd00:244:1::5]:40000"] {
            let client: SocketAddr = client.parse().unwrap();
            let (_, value) = forwarded_header(client, Some("web.shop.svc.cluster.local"));
            let headers = HeaderMap::from_iter([(FORWARDED, value.unwrap())]);
            assert_eq!(parse_forwarded_client(&headers), Some(client));
            assert_eq!(parse_forwarded_host(&headers).as_deref(), Some("web.shop.svc.cluster.local"));
        }
    }

    #[test]
    fn what_others_write_is_read_or_ignored() {
        assert_eq!(
            parse_forwarded_client(&with("For=\"1.2.3.4:5\"; host=a")),
            Some("1.2.3.4:5".parse().unwrap())
        );
        for odd in ["", "for=", "for=unknown", "for=\"1.2.3.4\"", "by=3;proto=http", "=;=;", "for=\"[::1\""] {
            assert_eq!(parse_forwarded_client(&with(odd)), None, "{odd}");
        }
    }

    #[test]
    fn a_client_can_lend_nobody_its_name() {
        let peer = "[::ffff:10.0.0.1]:15".parse().unwrap();
        for (claim, expected) in [
            ("for=\"10.0.0.1:40000\"", "10.0.0.1:40000"),
            ("for=\"[::ffff:10.0.0.1]:40000\"", "10.0.0.1:40000"),
            ("for=\"10.0.0.2:40000\"", "10.0.0.1:15"),
            ("for=\"10.0.0.2:40000\", for=\"10.0.0.1:40000\"", "10.0.0.1:15"),
            ("for=unknown", "10.0.0.1:15"),
        ] {
            assert_eq!(
                believed_client(parse_forwarded_client(&with(claim)), peer).to_string(),
                expected,
                "{claim}"
            );
        }
    }

    #[test]
    fn a_target_is_an_address_and_a_port() {
        let connect = |authority| parse_connect_target(&Method::CONNECT, authority);
        assert_eq!(connect(Some("[::ffff:10.0.0.1]:80")), Ok("10.0.0.1:80".parse().unwrap()));
        assert_eq!(connect(Some("[fd00::1]:80")), Ok("[fd00::1]:80".parse().unwrap()));
        for odd in ["", "10.0.0.1", "web:80", "10.0.0.1:65536", "fd00::1:80", "u@10.0.0.1:80", "10.0.0.01:80"]
        {
            assert_eq!(connect(Some(odd)), Err(InvalidConnectTarget::Authority(odd.to_owned())));
        }
        assert_eq!(connect(None), Err(InvalidConnectTarget::Authority(String::new())));
        assert_eq!(
            parse_connect_target(&Method::GET, Some("10.0.0.1:80")),
            Err(InvalidConnectTarget::Method(Method::GET))
        );
    }
}
