//! `connectionPool.http` and `retryBudget`: how many requests there may be, and on which connections.

use std::time::Duration;

use super::read::INT32;
use crate::document::cursor::Cursor;

/// Requests that may be retries, in percent, and the least of them, unless it is said otherwise.
const DEFAULT_BUDGET: (f64, u32) = (20.0, 3);

/// `connectionPool.http`. Unset means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpPool {
    /// Most requests to the service that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Most requests to the service that are under way.
    pub max_requests: Option<u32>,
    /// Most requests on one connection.
    pub max_requests_per_connection: Option<u32>,
    /// Most retries to the service that are under way.
    pub max_retries: Option<u32>,
    /// How long a connection to an endpoint may have no request. Unset: as of TCP.
    pub idle_timeout: Option<Duration>,
    /// Whether endpoints are spoken to in HTTP/2 whatever their port declares (`UPGRADE`).
    pub upgrades_to_http2: bool,
    /// Whether endpoints are spoken to in what the client speaks; beats the upgrade.
    pub uses_client_protocol: bool,
}

/// `retryBudget`: most retries, as a share of the requests to the service that are under way or wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// The share, in percent.
    pub percent: f64,
    /// Retries that there may be at once, whatever the share comes to.
    pub min_retry_concurrency: u32,
}

impl HttpPool {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        const LATER: [&str; 2] = ["maxConcurrentStreams", "http2KeepAlive"];
        const UPGRADES: [(&str, bool); 3] =
            [("DEFAULT", false), ("DO_NOT_UPGRADE", false), ("UPGRADE", true)];
        let fields = at.fields(&[
            "http1MaxPendingRequests",
            "http2MaxRequests",
            "maxRequestsPerConnection",
            "maxRetries",
            "idleTimeout",
            "h2UpgradePolicy",
            "useClientProtocol",
            LATER[0],
            LATER[1],
        ]);
        fields.warn_unsupported_fields(&LATER);
        // Zero stands for the default, as everywhere in Istio.
        let count = |key: &str| fields.get(key).and_then(|at| at.integer(INT32)).filter(|n| *n != 0);
        let idle = fields.get("idleTimeout").and_then(|at| at.duration_or_zero());
        Self {
            max_pending_requests: count("http1MaxPendingRequests"),
            max_requests: count("http2MaxRequests"),
            max_requests_per_connection: count("maxRequestsPerConnection"),
            max_retries: count("maxRetries"),
            idle_timeout: idle.filter(|timeout| !timeout.is_zero()),
            upgrades_to_http2: fields
                .get("h2UpgradePolicy")
                .and_then(|at| at.enum_value(&UPGRADES))
                .unwrap_or_default(),
            uses_client_protocol: fields
                .get("useClientProtocol")
                .and_then(|at| at.boolean())
                .unwrap_or_default(),
        }
    }
}

impl RetryBudget {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["percent", "minRetryConcurrency", "budgetInterval"]);
        fields.warn_unsupported_fields(&["budgetInterval"]);
        let (percent, least) = DEFAULT_BUDGET;
        Self {
            percent: fields.get("percent").and_then(|at| at.number(0.0..=100.0)).unwrap_or(percent),
            min_retry_concurrency: fields
                .get("minRetryConcurrency")
                .and_then(|at| at.integer(0..=u32::MAX))
                .unwrap_or(least),
        }
    }
}
