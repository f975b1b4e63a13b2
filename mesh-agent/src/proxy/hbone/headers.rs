//! What a `CONNECT` request says besides its target: `forwarded` (RFC 7239), `baggage` and `traceparent` (W3C).

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use mesh_api::plan::Workload;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The `forwarded` header for a client, and for the service that it addressed, if it did.
pub fn forwarded(client: SocketAddr, service: Option<&str>) -> (HeaderName, Option<HeaderValue>) {
    let mut text = format!("for=\"{client}\"");
    if let Some(host) = service {
        // Writing to a string does not fail.
        let _written = write!(text, ";host={host}");
    }
    (FORWARDED, HeaderValue::try_from(text).ok())
}

/// The client that a request names, if it names one.
pub fn forwarded_client(headers: &HeaderMap) -> Option<SocketAddr> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    parameter(text, "for")?.trim_matches('"').parse().ok()
}

/// The host name of the service that the client addressed, if it did.
pub fn forwarded_host(headers: &HeaderMap) -> Option<String> {
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
pub fn baggage(workload: &Workload) -> (HeaderName, Option<HeaderValue>) {
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

/// A new trace of one span.
pub fn traceparent() -> (HeaderName, Option<HeaderValue>) {
    let text = format!("00-{:032x}-{:016x}-00", rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    (TRACEPARENT, HeaderValue::try_from(text).ok())
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
            let (_, value) = forwarded(client, Some("web.shop.svc.cluster.local"));
            let headers = HeaderMap::from_iter([(FORWARDED, value.unwrap())]);
            assert_eq!(forwarded_client(&headers), Some(client));
            assert_eq!(forwarded_host(&headers).as_deref(), Some("web.shop.svc.cluster.local"));
        }
    }

    #[test]
    fn what_others_write_is_read_or_ignored() {
        assert_eq!(forwarded_client(&with("For=\"1.2.3.4:5\"; host=a")), Some("1.2.3.4:5".parse().unwrap()));
        for odd in ["", "for=", "for=unknown", "for=\"1.2.3.4\"", "by=3;proto=http", "=;=;", "for=\"[::1\""] {
            assert_eq!(forwarded_client(&with(odd)), None, "{odd}");
        }
    }

    #[test]
    fn a_trace_has_the_standard_form() {
        let (_, value) = traceparent();
        let value = value.unwrap();
        let parts: Vec<&str> = value.to_str().unwrap().split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
    }
}
