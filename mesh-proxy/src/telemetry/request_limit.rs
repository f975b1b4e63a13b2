//! Limits of a service's port that requests can be over.

use std::fmt;

/// A limit of the requests to a service's port: which breaker opened, in Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestLimit {
    /// So many wait for one of the service's connections.
    PendingRequests,
    /// So many are under way.
    Requests,
    /// So many retries are under way.
    Retries,
    /// So many retries are under way for the requests that there are.
    RetryBudget,
}

impl RequestLimit {
    /// All of them, in their order.
    pub(super) const ALL: [Self; 4] =
        [Self::PendingRequests, Self::Requests, Self::Retries, Self::RetryBudget];

    /// Returns the field of a `DestinationRule` that sets it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PendingRequests => "http1MaxPendingRequests",
            Self::Requests => "http2MaxRequests",
            Self::Retries => "maxRetries",
            Self::RetryBudget => "retryBudget",
        }
    }
}

impl fmt::Display for RequestLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
