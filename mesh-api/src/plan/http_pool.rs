//! Limits of HTTP requests to a service's port: `connectionPool.http` and `retryBudget` of a
//! `DestinationRule`.

use std::num::NonZeroU32;
use std::time::Duration;

use super::field_parsing::Invalid;
use super::traffic_policy::parse_duration_zero_as_none;
use crate::wire::ext as wire;

/// Shares are in parts of this.
const MILLION: u64 = 1_000_000;

/// Limits of HTTP requests, and how endpoints are spoken to. None is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpPool {
    /// Most requests under way at once.
    pub max_requests: Option<NonZeroU32>,
    /// Most requests that wait for a connection.
    pub max_pending_requests: Option<NonZeroU32>,
    /// Most requests on one connection.
    pub max_requests_per_connection: Option<NonZeroU32>,
    /// Most retries under way at once.
    pub max_retries: Option<NonZeroU32>,
    /// How long a connection to an endpoint may have no request.
    pub idle_timeout: Option<Duration>,
    /// Whether endpoints are spoken to in HTTP/2, whatever their port declares.
    pub upgrades_to_http2: bool,
    /// Whether endpoints are spoken to in what the client speaks; beats the upgrade.
    pub uses_client_protocol: bool,
}

/// Most retries under way, as a share of the requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// The share, in parts per million.
    pub share: u32,
    /// Retries that there may be at once, whatever the share comes to.
    pub min_retry_concurrency: u32,
}

impl HttpPool {
    /// Iterates over the limits of requests that are set: field of the rule, and number.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let all = [
            ("http2MaxRequests", self.max_requests),
            ("http1MaxPendingRequests", self.max_pending_requests),
            ("maxRequestsPerConnection", self.max_requests_per_connection),
            ("maxRetries", self.max_retries),
        ];
        all.into_iter().filter_map(|(field, most)| Some((field, most?.get())))
    }
}

impl RetryBudget {
    /// Returns how many retries there may be while so many requests are under way or wait for a connection.
    pub fn most(self, requests: u32) -> u32 {
        let share = u64::from(requests) * u64::from(self.share) / MILLION;
        u32::try_from(share).unwrap_or(u32::MAX).max(self.min_retry_concurrency)
    }
}

impl TryFrom<&wire::HttpPool> for HttpPool {
    type Error = Invalid;

    fn try_from(from: &wire::HttpPool) -> Result<Self, Invalid> {
        Ok(Self {
            max_requests: NonZeroU32::new(from.max_requests),
            max_pending_requests: NonZeroU32::new(from.max_pending_requests),
            max_requests_per_connection: NonZeroU32::new(from.max_requests_per_connection),
            max_retries: NonZeroU32::new(from.max_retries),
            idle_timeout: parse_duration_zero_as_none("http.idle_timeout", from.idle_timeout)?,
            upgrades_to_http2: from.upgrades_to_http2,
            uses_client_protocol: from.uses_client_protocol,
        })
    }
}

impl From<&wire::RetryBudget> for RetryBudget {
    fn from(from: &wire::RetryBudget) -> Self {
        let wire::RetryBudget { share, min_retry_concurrency } = *from;
        Self { share, min_retry_concurrency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_of_the_requests_and_no_less_than_its_least() {
        let budget = RetryBudget { share: 250_000, min_retry_concurrency: 3 };
        assert_eq!([0, 8, 15, 16, 100].map(|requests| budget.most(requests)), [3, 3, 3, 4, 25]);
        let none = RetryBudget { share: 0, min_retry_concurrency: 0 };
        assert_eq!(none.most(1000), 0);
        assert_eq!(RetryBudget { share: 1_000_000, ..none }.most(u32::MAX), u32::MAX);
    }
}
