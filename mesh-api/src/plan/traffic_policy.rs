//! How clients treat connections to a service, and requests on them: `DestinationRule`, as the control plane
//! resolved it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::consistent_hash::HashKey;
use super::field_parsing::{self, Invalid};
use super::http_pool::{HttpPool, RetryBudget};
use super::workload::Workload;
use crate::wire::ext as wire;
use crate::wire::{type_url, workload};

/// Default of Istio's `meshConfig.connectTimeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Default of Istio's `outlierDetection.interval`.
const OUTLIER_INTERVAL: Duration = Duration::from_secs(10);
/// Default of Istio's `outlierDetection.baseEjectionTime`.
const BASE_EJECTION_TIME: Duration = Duration::from_secs(30);
/// Longest span of time: 10,000 years, the bound of Protocol Buffers (`google.protobuf.Duration`). A longer
/// one can't be added to the present.
pub(crate) const MAX_DURATION: Duration = Duration::from_hours(87_660_000);

static DEFAULT: LazyLock<Arc<PortPolicy>> = LazyLock::new(Arc::default);

/// How connections to one port of a service are balanced, limited and watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPolicy {
    /// Load balancer.
    pub lb: LoadBalancer,
    /// What decides instead where it is there; none: nothing does.
    pub hash: Option<HashKey>,
    /// Limits of connections.
    pub pool: ConnectionPool,
    /// When a failing endpoint is ejected; none: never.
    pub outlier: Option<OutlierDetection>,
    /// Most retries, instead of those of the pool; none: those count.
    pub retry_budget: Option<RetryBudget>,
}

impl PortPolicy {
    /// Whether it is about HTTP requests, so that connections are read for it.
    pub(super) fn is_of_requests(&self) -> bool {
        self.hash.as_ref().is_some_and(HashKey::is_of_request)
            || self.pool.http != HttpPool::default()
            || self.retry_budget.is_some()
    }

    /// Returns how an endpoint is chosen, in Istio's words.
    pub fn balancing(&self) -> String {
        match &self.hash {
            None => self.lb.to_string(),
            Some(HashKey::Header(name)) => format!("consistent hash of header {name}"),
            Some(HashKey::Cookie(cookie)) => format!("consistent hash of cookie {}", cookie.name),
            Some(HashKey::SourceIp) => "consistent hash of the client's address".to_owned(),
            Some(HashKey::QueryParameter(name)) => format!("consistent hash of query parameter {name}"),
        }
    }
}

/// Load balancer: how an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// Not given: any where the kernel chooses, the less loaded of two where the proxy does.
    #[default]
    Unspecified,
    /// The less loaded of two drawn.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Drawn at random.
    Random,
    /// No choice: the address that the client used.
    Passthrough,
}

/// Limits of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPool {
    /// Most connections open at once.
    pub max_connections: Option<NonZeroU32>,
    /// Timeout of a connect.
    pub connect_timeout: Duration,
    /// Keepalive of idle connections; none: the agent's own setting.
    pub keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Longest time without bytes either way.
    pub idle_timeout: Option<Duration>,
    /// Limits of HTTP requests.
    pub http: HttpPool,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_connections: None,
            connect_timeout: CONNECT_TIMEOUT,
            keepalive: None,
            max_connection_duration: None,
            idle_timeout: None,
            http: HttpPool::default(),
        }
    }
}

/// TCP keepalive; none means the system's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Unanswered probes until the connection is given up.
    pub probes: Option<NonZeroU32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// When a failing endpoint is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row that eject: 5xx, and failures of local origin unless they are split off; none: they
    /// do not count.
    pub consecutive_errors: Option<NonZeroU32>,
    /// The same of 502, 503 and 504 alone.
    pub consecutive_gateway_errors: Option<NonZeroU32>,
    /// Whether failures of local origin (failed connects, missing responses) are counted apart.
    pub splits_local_origin_errors: bool,
    /// Failures of local origin in a row that eject where they are counted apart; none: they do not count.
    pub consecutive_local_origin_failures: Option<NonZeroU32>,
    /// Statuses that are failures instead of 5xx; empty: 5xx are.
    pub http_error_statuses: Vec<u16>,
    /// Time after which one earlier ejection no longer counts.
    pub interval: Duration,
    /// Time of an ejection, multiplied by the number of ejections.
    pub base_ejection_time: Duration,
    /// Most endpoints to eject at once, percent.
    pub max_ejection_percent: u8,
    /// Share of healthy endpoints below which none is ejected, percent.
    pub min_health_percent: u8,
}

/// Policies of single ports of a service.
type PoliciesByPort = BTreeMap<u16, Arc<PortPolicy>>;

/// The policies of a service's ports for some of its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTrafficPolicy {
    namespaces: Vec<String>,
    labels: BTreeMap<String, String>,
    default: Arc<PortPolicy>,
    ports: PoliciesByPort,
    subsets: BTreeMap<String, ServiceSubset>,
}

/// Part of a service: endpoints that have some labels, and the policy for connections to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSubset {
    /// Labels that an endpoint must have, all of them.
    pub labels: Arc<BTreeMap<String, String>>,
    default: Arc<PortPolicy>,
    ports: PoliciesByPort,
}

impl ServiceSubset {
    /// Returns the policy for a port.
    pub(super) fn policy_for_port(&self, port: u16) -> &Arc<PortPolicy> {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

impl ClientTrafficPolicy {
    /// Returns a subset as a client sees it; none if the rule that covers the client has no such one.
    pub(super) fn subset_for<'a>(
        rules: &'a [Self],
        client: &Workload,
        name: &str,
    ) -> Option<&'a ServiceSubset> {
        rules.iter().find(|rule| rule.covers(client))?.subsets.get(name)
    }

    /// Returns the policy for a client of a port: the first rule that covers the client decides alone.
    pub(super) fn policy_or_default_for<'a>(
        rules: &'a [Self],
        client: &Workload,
        port: u16,
    ) -> &'a Arc<PortPolicy> {
        let Some(rule) = rules.iter().find(|rule| rule.covers(client)) else { return &DEFAULT };
        rule.ports.get(&port).unwrap_or(&rule.default)
    }

    /// Iterates over the policies of all clients and ports.
    pub(super) fn policies_outside_subsets(rules: &[Self]) -> impl Iterator<Item = &Arc<PortPolicy>> {
        rules.iter().flat_map(|rule| rule.ports.values().chain([&rule.default]))
    }

    /// Parses the rules in a service's extensions. Errors: see [`Invalid`].
    pub(super) fn decode_all_from_extensions(
        extensions: &[workload::Extension],
    ) -> Result<Box<[Self]>, Invalid> {
        let Some(extension) = extensions.iter().find(|extension| extension.name == wire::TRAFFIC_POLICIES)
        else {
            return Ok(Box::default());
        };
        let config = extension.config.as_ref().ok_or(Invalid::NoContent)?;
        let policies: wire::TrafficPolicies = field_parsing::unpack_any(config, type_url::TRAFFIC_POLICIES)?;
        policies.policies.into_iter().map(Self::try_from).collect()
    }

    fn covers(&self, client: &Workload) -> bool {
        let namespace = &*client.namespace;
        (self.namespaces.is_empty() || self.namespaces.iter().any(|covered| covered == namespace))
            && self.labels.iter().all(|(key, value)| client.labels.get(key) == Some(value))
    }
}

impl TryFrom<wire::TrafficPolicy> for ClientTrafficPolicy {
    type Error = Invalid;

    fn try_from(from: wire::TrafficPolicy) -> Result<Self, Invalid> {
        let subset = |(name, subset): (String, wire::Subset)| {
            let (default, ports) = parse_port_policies(subset.default.as_ref(), &subset.ports)?;
            Ok((name, ServiceSubset { labels: Arc::new(subset.labels), default, ports }))
        };
        let (default, ports) = parse_port_policies(from.default.as_ref(), &from.ports)?;
        Ok(Self {
            default,
            ports,
            subsets: from.subsets.into_iter().map(subset).collect::<Result<_, Invalid>>()?,
            namespaces: from.client_namespaces,
            labels: from.client_labels,
        })
    }
}

/// Parses a policy for all ports, and those of single ones. Errors: see [`Invalid`].
fn parse_port_policies(
    default: Option<&wire::PortPolicy>,
    ports: &BTreeMap<u32, wire::PortPolicy>,
) -> Result<(Arc<PortPolicy>, PoliciesByPort), Invalid> {
    let default = default.map(PortPolicy::try_from).transpose()?;
    let port = |(port, policy): (&u32, &wire::PortPolicy)| {
        Ok((field_parsing::parse_port("ports", *port)?, Arc::new(policy.try_into()?)))
    };
    let ports = ports.iter().map(port).collect::<Result<_, Invalid>>()?;
    Ok((default.map_or_else(|| DEFAULT.clone(), Arc::new), ports))
}

impl TryFrom<&wire::PortPolicy> for PortPolicy {
    type Error = Invalid;

    fn try_from(from: &wire::PortPolicy) -> Result<Self, Invalid> {
        Ok(Self {
            lb: match field_parsing::parse_enum("lb", from.lb)? {
                wire::LoadBalancer::Unspecified => LoadBalancer::Unspecified,
                wire::LoadBalancer::LeastRequest => LoadBalancer::LeastRequest,
                wire::LoadBalancer::RoundRobin => LoadBalancer::RoundRobin,
                wire::LoadBalancer::Random => LoadBalancer::Random,
                wire::LoadBalancer::Passthrough => LoadBalancer::Passthrough,
            },
            hash: from.hash.as_ref().map(HashKey::try_from).transpose()?,
            pool: from.pool.as_ref().map(ConnectionPool::try_from).transpose()?.unwrap_or_default(),
            outlier: from.outlier.as_ref().map(OutlierDetection::try_from).transpose()?,
            retry_budget: from.retry_budget.as_ref().map(RetryBudget::from),
        })
    }
}

impl TryFrom<&wire::ConnectionPool> for ConnectionPool {
    type Error = Invalid;

    fn try_from(from: &wire::ConnectionPool) -> Result<Self, Invalid> {
        let keepalive = |from: &wire::TcpKeepalive| {
            Ok::<_, Invalid>(TcpKeepalive {
                probes: NonZeroU32::new(from.probes),
                time: parse_duration_zero_as_none("keepalive.time", from.time)?,
                interval: parse_duration_zero_as_none("keepalive.interval", from.interval)?,
            })
        };
        Ok(Self {
            max_connections: NonZeroU32::new(from.max_connections),
            connect_timeout: parse_duration_zero_as_none("connect_timeout", from.connect_timeout)?
                .unwrap_or(CONNECT_TIMEOUT),
            keepalive: from.keepalive.as_ref().map(keepalive).transpose()?,
            max_connection_duration: parse_duration_zero_as_none(
                "max_connection_duration",
                from.max_connection_duration,
            )?,
            idle_timeout: parse_duration_zero_as_none("idle_timeout", from.idle_timeout)?,
            http: from.http.as_ref().map(HttpPool::try_from).transpose()?.unwrap_or_default(),
        })
    }
}

impl TryFrom<&wire::OutlierDetection> for OutlierDetection {
    type Error = Invalid;

    fn try_from(from: &wire::OutlierDetection) -> Result<Self, Invalid> {
        Ok(Self {
            consecutive_errors: NonZeroU32::new(from.consecutive_errors),
            consecutive_gateway_errors: NonZeroU32::new(from.consecutive_gateway_errors),
            splits_local_origin_errors: from.splits_local_origin_errors,
            consecutive_local_origin_failures: NonZeroU32::new(from.consecutive_local_origin_failures),
            // What is no status is none that a response has.
            http_error_statuses: from
                .http_error_statuses
                .iter()
                .filter_map(|status| u16::try_from(*status).ok())
                .collect(),
            interval: parse_duration_zero_as_none("interval", from.interval)?.unwrap_or(OUTLIER_INTERVAL),
            base_ejection_time: parse_duration_zero_as_none("base_ejection_time", from.base_ejection_time)?
                .unwrap_or(BASE_EJECTION_TIME),
            max_ejection_percent: percent("max_ejection_percent", from.max_ejection_percent)?,
            min_health_percent: percent("min_health_percent", from.min_health_percent)?,
        })
    }
}

/// Parses a span of time; none if it is absent or zero. Errors: it is negative or too long.
pub(super) fn parse_duration_zero_as_none(
    field: &'static str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    let span = Duration::try_from(value).ok().filter(|span| *span <= MAX_DURATION);
    let span = span.ok_or(Invalid::Span { field })?;
    Ok((!span.is_zero()).then_some(span))
}

fn percent(field: &'static str, value: u32) -> Result<u8, Invalid> {
    u8::try_from(value).ok().filter(|share| *share <= 100).ok_or(Invalid::Percent { field, value })
}

impl fmt::Display for LoadBalancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "default balancing",
            Self::LeastRequest => "LEAST_REQUEST",
            Self::RoundRobin => "ROUND_ROBIN",
            Self::Random => "RANDOM",
            Self::Passthrough => "PASSTHROUGH",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }

    #[test]
    fn what_is_not_said_has_istios_defaults() {
        let pool = wire::ConnectionPool { connect_timeout: Some(span(0)), ..Default::default() };
        let outlier = wire::OutlierDetection::default();
        let keepalive = wire::ConnectionPool { keepalive: Some(wire::TcpKeepalive::default()), ..pool };
        let policy = PortPolicy::try_from(&wire::PortPolicy {
            pool: Some(keepalive),
            outlier: Some(outlier),
            ..Default::default()
        });
        let policy = policy.unwrap();
        assert_eq!(policy.lb, LoadBalancer::Unspecified);
        assert_eq!(policy.pool.connect_timeout, Duration::from_secs(10));
        assert_eq!((policy.pool.max_connections, policy.pool.idle_timeout), (None, None));
        assert_eq!(policy.pool.keepalive, Some(TcpKeepalive { probes: None, time: None, interval: None }));
        let outlier = policy.outlier.unwrap();
        assert_eq!((outlier.interval, outlier.base_ejection_time), (OUTLIER_INTERVAL, BASE_EJECTION_TIME));
        assert_eq!((outlier.consecutive_errors, outlier.max_ejection_percent), (None, 0));
    }

    #[test]
    fn a_span_is_not_negative_and_has_an_end() {
        for (seconds, good) in
            [(315_576_000_000, true), (315_576_000_001, false), (i64::MAX, false), (-1, false)]
        {
            let outlier =
                wire::OutlierDetection { base_ejection_time: Some(span(seconds)), ..Default::default() };
            assert_eq!(OutlierDetection::try_from(&outlier).is_ok(), good, "{seconds}");
        }
    }

    #[test]
    fn what_is_said_is_kept() {
        let from = wire::PortPolicy {
            hash: Some(wire::ConsistentHash { key: Some(wire::consistent_hash::Key::SourceIp(())) }),
            lb: wire::LoadBalancer::RoundRobin.into(),
            pool: Some(wire::ConnectionPool {
                max_connections: 1,
                connect_timeout: Some(span(2)),
                keepalive: Some(wire::TcpKeepalive {
                    probes: 3,
                    time: Some(span(4)),
                    interval: Some(span(5)),
                }),
                max_connection_duration: Some(span(6)),
                idle_timeout: Some(span(7)),
                http: Some(wire::HttpPool {
                    max_requests: 13,
                    max_pending_requests: 14,
                    max_requests_per_connection: 15,
                    max_retries: 16,
                    idle_timeout: Some(span(17)),
                    upgrades_to_http2: true,
                    uses_client_protocol: true,
                }),
            }),
            outlier: Some(wire::OutlierDetection {
                consecutive_errors: 8,
                interval: Some(span(9)),
                base_ejection_time: Some(span(10)),
                max_ejection_percent: 11,
                min_health_percent: 12,
                consecutive_gateway_errors: 18,
                splits_local_origin_errors: true,
                consecutive_local_origin_failures: 19,
                http_error_statuses: vec![429],
            }),
            retry_budget: Some(wire::RetryBudget { share: 20, min_retry_concurrency: 21 }),
        };
        let expected = PortPolicy {
            hash: Some(HashKey::SourceIp),
            lb: LoadBalancer::RoundRobin,
            pool: ConnectionPool {
                max_connections: NonZeroU32::new(1),
                connect_timeout: Duration::from_secs(2),
                keepalive: Some(TcpKeepalive {
                    probes: NonZeroU32::new(3),
                    time: Some(Duration::from_secs(4)),
                    interval: Some(Duration::from_secs(5)),
                }),
                max_connection_duration: Some(Duration::from_secs(6)),
                idle_timeout: Some(Duration::from_secs(7)),
                http: HttpPool {
                    max_requests: NonZeroU32::new(13),
                    max_pending_requests: NonZeroU32::new(14),
                    max_requests_per_connection: NonZeroU32::new(15),
                    max_retries: NonZeroU32::new(16),
                    idle_timeout: Some(Duration::from_secs(17)),
                    upgrades_to_http2: true,
                    uses_client_protocol: true,
                },
            },
            outlier: Some(OutlierDetection {
                consecutive_errors: NonZeroU32::new(8),
                interval: Duration::from_secs(9),
                base_ejection_time: Duration::from_secs(10),
                max_ejection_percent: 11,
                min_health_percent: 12,
                consecutive_gateway_errors: NonZeroU32::new(18),
                splits_local_origin_errors: true,
                consecutive_local_origin_failures: NonZeroU32::new(19),
                http_error_statuses: vec![429],
            }),
            retry_budget: Some(RetryBudget { share: 20, min_retry_concurrency: 21 }),
        };
        assert_eq!(PortPolicy::try_from(&from), Ok(expected));
    }
}
