//! `DestinationRule`: how clients connect to a service (Istio's `networking.istio.io`), as far as connections
//! and HTTP requests go. What it says of TLS to outside services is accepted, with a warning that it has no
//! effect yet.

mod consistent_hash;
mod http_pool;
mod read;

use std::{collections::BTreeMap, time::Duration};

use super::{LabelSelector, Labels, Metadata};

pub use consistent_hash::{HashCookie, HashKey};
pub use http_pool::{HttpPool, RetryBudget};

/// A destination rule.
#[derive(Clone, Debug)]
pub struct DestinationRule {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Host of the service as written; may begin with `*.`, or be a short name of the rule's namespace.
    pub host: String,
    /// What applies to the service as a whole.
    pub policy: TrafficPolicy,
    /// Named parts of the service.
    pub subsets: Vec<Subset>,
    /// Namespaces whose clients it applies to; empty and `*` mean all, `.` its own.
    pub export_to: Vec<String>,
    /// Client pods that it applies to, in its own namespace.
    pub workload_selector: Option<LabelSelector>,
}

/// A named part of a service, for routes to name.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Name.
    pub name: String,
    /// Labels of its endpoints.
    pub labels: Labels,
    /// What applies to it instead of the service's own policy, block by block.
    pub policy: TrafficPolicy,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// For all ports that have nothing of their own.
    pub settings: TrafficSettings,
    /// For single ports of the service. They replace `settings`: what they leave out is unset, not inherited.
    pub ports: BTreeMap<u16, TrafficSettings>,
}

impl TrafficPolicy {
    /// Whether it asks for nothing but what is the default: all that it says may be of what is not acted
    /// upon.
    pub fn is_nothing(&self) -> bool {
        self.settings.is_nothing() && self.ports.values().all(TrafficSettings::is_nothing)
    }
}

impl TrafficSettings {
    fn is_nothing(&self) -> bool {
        let pool = self.pool.as_ref().is_none_or(|pool| *pool == ConnectionPool::default());
        let balances = self.load_balancer.as_ref().is_some_and(|lb| *lb != LoadBalancer::Unspecified);
        !balances && pool && self.outlier.is_none() && self.retry_budget.is_none()
    }
}

/// The blocks of a traffic policy. One that says nothing which is acted upon is there all the same: it
/// replaces that of the whole service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficSettings {
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections.
    pub pool: Option<ConnectionPool>,
    /// When an endpoint is left out for a while.
    pub outlier: Option<OutlierDetection>,
    /// Most retries, instead of `maxRetries`. What is said of a port does not replace it.
    pub retry_budget: Option<RetryBudget>,
}

/// `loadBalancer`: how an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// Whatever is usual.
    #[default]
    Unspecified,
    /// The endpoint of two random ones that has fewer connections.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The address that the client asked for.
    Passthrough,
    /// That which a key of the request or connection stands for.
    ConsistentHash(HashKey),
}

/// `connectionPool`: its `tcp`, and `http`. Unset means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPool {
    /// Most connections to the service from one proxy.
    pub max_connections: Option<u32>,
    /// Time to connect; 10 s unless set.
    pub connect_timeout: Option<Duration>,
    /// Kernel keepalive on the connection to the endpoint.
    pub keepalive: Option<TcpKeepalive>,
    /// Age at which a connection is closed.
    pub max_connection_duration: Option<Duration>,
    /// Silence after which a connection is closed. Unset: none does.
    pub idle_timeout: Option<Duration>,
    /// Limits of requests.
    pub http: HttpPool,
}

/// `connectionPool.tcp.tcpKeepalive`. Unset means the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes without an answer before the connection is given up.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// `outlierDetection`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row that put an endpoint out; 0 for never: 5xx, and unless they are split off, failures
    /// of local origin.
    pub consecutive_errors: u32,
    /// The same of 502, 503 and 504; 0 for never.
    pub consecutive_gateway_errors: u32,
    /// Whether failed connects and missing responses (of local origin) are counted apart.
    pub splits_local_origin_errors: bool,
    /// Failures of local origin in a row that put an endpoint out, where they are split off; 0 for never.
    pub consecutive_local_origin_failures: u32,
    /// Statuses that are failures instead of 5xx; empty: 5xx are.
    pub http_error_statuses: Vec<u16>,
    /// Time between looks.
    pub interval: Duration,
    /// Time out, multiplied by the number of times that it happened.
    pub base_ejection_time: Duration,
    /// Most endpoints that may be out, in percent.
    pub max_ejection_percent: u32,
    /// Share of healthy endpoints, in percent, below which all are used.
    pub min_health_percent: u32,
}

impl Default for OutlierDetection {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            consecutive_gateway_errors: 0,
            splits_local_origin_errors: false,
            consecutive_local_origin_failures: 5,
            http_error_statuses: Vec::new(),
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}
