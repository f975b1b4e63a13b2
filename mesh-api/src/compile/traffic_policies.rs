//! Traffic policies as agents see them.

use std::collections::BTreeMap;

use prost_types::{Any, Duration};

use crate::resource::{
    ConnectionPool, HashCookie, HashKey, HttpPool, LoadBalancer, OutlierDetection, RetryBudget, Subset,
    TcpKeepalive, TrafficPolicy, TrafficSettings,
};
use crate::wire::ext::{self, consistent_hash::Key};
use crate::wire::workload::Extension;

/// The policies for ports of their own.
pub(super) fn port_policies(policy: &TrafficPolicy) -> BTreeMap<u32, ext::PortPolicy> {
    policy.ports.iter().map(|(port, settings)| (u32::from(*port), port_policy(settings))).collect()
}

/// A subset, with the policies that are in force for it beside that of the whole service: its blocks replace
/// those of the service, for all ports and for single ones; what it says of a port replaces all of that.
pub(super) fn subset_policy(service: &TrafficPolicy, subset: &Subset) -> ext::Subset {
    let of_subset =
        |settings: &TrafficSettings| port_policy(&with_blocks_of(settings, &subset.policy.settings));
    let mut ports: BTreeMap<u32, ext::PortPolicy> =
        service.ports.iter().map(|(port, settings)| (u32::from(*port), of_subset(settings))).collect();
    ports.extend(port_policies(&subset.policy));
    let budget = subset.policy.settings.retry_budget.or(service.settings.retry_budget);
    ports.values_mut().for_each(|policy| policy.retry_budget = budget.as_ref().map(retry_budget));
    ext::Subset { labels: subset.labels.clone(), default: Some(of_subset(&service.settings)), ports }
}

/// `settings` with those of `other` that are there.
fn with_blocks_of(settings: &TrafficSettings, other: &TrafficSettings) -> TrafficSettings {
    TrafficSettings {
        load_balancer: other.load_balancer.as_ref().or(settings.load_balancer.as_ref()).cloned(),
        pool: other.pool.as_ref().or(settings.pool.as_ref()).cloned(),
        outlier: other.outlier.as_ref().or(settings.outlier.as_ref()).cloned(),
        retry_budget: other.retry_budget.or(settings.retry_budget),
    }
}

/// The policy for one port.
pub(super) fn port_policy(settings: &TrafficSettings) -> ext::PortPolicy {
    let hash = match &settings.load_balancer {
        Some(LoadBalancer::ConsistentHash(key)) => Some(consistent_hash(key)),
        _ => None,
    };
    let lb = match settings.load_balancer.as_ref().unwrap_or(&LoadBalancer::Unspecified) {
        LoadBalancer::Unspecified => ext::LoadBalancer::Unspecified,
        LoadBalancer::LeastRequest => ext::LoadBalancer::LeastRequest,
        LoadBalancer::RoundRobin => ext::LoadBalancer::RoundRobin,
        // What has no key to hash is drawn at random, as in Envoy.
        LoadBalancer::Random | LoadBalancer::ConsistentHash(_) => ext::LoadBalancer::Random,
        LoadBalancer::Passthrough => ext::LoadBalancer::Passthrough,
    };
    ext::PortPolicy {
        lb: lb.into(),
        pool: settings.pool.as_ref().map(pool),
        outlier: settings.outlier.as_ref().map(outlier),
        hash,
        retry_budget: settings.retry_budget.as_ref().map(retry_budget),
    }
}

fn consistent_hash(key: &HashKey) -> ext::ConsistentHash {
    let key = match key {
        HashKey::Header(name) => Key::Header(name.as_str().to_owned()),
        HashKey::Cookie(HashCookie { name, path, ttl, attributes }) => Key::Cookie(ext::HashCookie {
            name: name.clone(),
            path: path.clone(),
            ttl: ttl.and_then(duration),
            attributes: attributes
                .iter()
                .map(|(name, value)| ext::CookieAttribute { name: name.clone(), value: value.clone() })
                .collect(),
        }),
        HashKey::SourceIp => Key::SourceIp(()),
        HashKey::QueryParameter(name) => Key::QueryParameter(name.clone()),
    };
    ext::ConsistentHash { key: Some(key) }
}

fn pool(pool: &ConnectionPool) -> ext::ConnectionPool {
    ext::ConnectionPool {
        max_connections: pool.max_connections.unwrap_or_default(),
        connect_timeout: pool.connect_timeout.and_then(duration),
        keepalive: pool.keepalive.as_ref().map(keepalive),
        max_connection_duration: pool.max_connection_duration.and_then(duration),
        idle_timeout: pool.idle_timeout.and_then(duration),
        http: (pool.http != HttpPool::default()).then(|| http_pool(&pool.http)),
    }
}

fn http_pool(pool: &HttpPool) -> ext::HttpPool {
    ext::HttpPool {
        max_requests: pool.max_requests.unwrap_or_default(),
        max_pending_requests: pool.max_pending_requests.unwrap_or_default(),
        max_requests_per_connection: pool.max_requests_per_connection.unwrap_or_default(),
        max_retries: pool.max_retries.unwrap_or_default(),
        idle_timeout: pool.idle_timeout.and_then(duration),
        upgrades_to_http2: pool.upgrades_to_http2,
        uses_client_protocol: pool.uses_client_protocol,
    }
}

fn retry_budget(budget: &RetryBudget) -> ext::RetryBudget {
    // A percentage of at most 100 fits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1,000,000")]
    let share = (budget.percent * 10_000.0).round() as u32;
    ext::RetryBudget { share, min_retry_concurrency: budget.min_retry_concurrency }
}

fn keepalive(keepalive: &TcpKeepalive) -> ext::TcpKeepalive {
    ext::TcpKeepalive {
        probes: keepalive.probes.unwrap_or_default(),
        time: keepalive.time.and_then(duration),
        interval: keepalive.interval.and_then(duration),
    }
}

fn outlier(outlier: &OutlierDetection) -> ext::OutlierDetection {
    ext::OutlierDetection {
        consecutive_errors: outlier.consecutive_errors,
        interval: duration(outlier.interval),
        base_ejection_time: duration(outlier.base_ejection_time),
        max_ejection_percent: outlier.max_ejection_percent,
        min_health_percent: outlier.min_health_percent,
        consecutive_gateway_errors: outlier.consecutive_gateway_errors,
        splits_local_origin_errors: outlier.splits_local_origin_errors,
        consecutive_local_origin_failures: outlier.consecutive_local_origin_failures,
        http_error_statuses: outlier.http_error_statuses.iter().copied().map(u32::from).collect(),
    }
}

/// A duration beyond what the wire can say (292 billion years) is as good as none.
pub(super) fn duration(duration: std::time::Duration) -> Option<Duration> {
    duration.try_into().ok()
}

pub(super) fn encoded_extension(name: &str, type_url: &str, value: Vec<u8>) -> Extension {
    Extension { name: name.to_owned(), config: Some(Any { type_url: type_url.to_owned(), value }) }
}
