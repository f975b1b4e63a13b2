//! Whether the kernel can enforce the traffic policy of a service's port by itself, so that connections from
//! pod to pod need no proxy.

use std::fmt;

use super::traffic_policy::{ConnectionPool, LoadBalancer, PortPolicy};

/// Why connections to a service's port go through the proxy even if both pods are on one node: the part of
/// the policy that the kernel can't enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyRequiredReason {
    /// It reads no requests.
    HttpRoutes,
    /// It reads no requests, which the policy is about.
    HttpPolicy,
    /// It does not know which of several endpoints has fewer connections.
    LeastRequest,
    /// It hashes nothing.
    ConsistentHash,
    /// It draws among endpoints, and should draw none.
    Passthrough,
    /// It counts no connections.
    MaxConnections,
    /// It does not end connections by their age.
    MaxConnectionDuration,
    /// It does not end connections by their silence.
    IdleTimeout,
    /// It does not set probes: the sockets are the application's own.
    Keepalive,
}

impl fmt::Display for ProxyRequiredReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::HttpRoutes => "routes of HTTP requests",
            Self::HttpPolicy => "what the DestinationRule says of HTTP requests",
            Self::LeastRequest => "loadBalancer LEAST_REQUEST among several endpoints",
            Self::ConsistentHash => "loadBalancer consistentHash",
            Self::Passthrough => "loadBalancer PASSTHROUGH",
            Self::MaxConnections => "connectionPool.tcp.maxConnections",
            Self::MaxConnectionDuration => "connectionPool.tcp.maxConnectionDuration",
            Self::IdleTimeout => "connectionPool.tcp.idleTimeout",
            Self::Keepalive => "connectionPool.tcp.tcpKeepalive",
        })
    }
}

/// Checks that the kernel can enforce a policy for connections to a service with that many `endpoints`.
/// Errors: the first part of it that it can't.
pub fn check_traffic_policy_kernel_enforceable(
    policy: &PortPolicy,
    endpoints: usize,
) -> Result<(), ProxyRequiredReason> {
    // Field by field: a new part of a policy has to be considered here.
    // Endpoints that are ejected are left out of what the kernel draws among. Retries are of requests.
    let PortPolicy { lb, hash, pool, outlier: _, retry_budget: _ } = policy;
    // The connect timeout is up to the application where it connects itself.
    let ConnectionPool {
        max_connections,
        connect_timeout: _,
        keepalive,
        max_connection_duration,
        idle_timeout,
        // Of requests, on connections that are read for their routes.
        http: _,
    } = pool;
    let kept = match lb {
        LoadBalancer::LeastRequest if endpoints > 1 => Some(ProxyRequiredReason::LeastRequest),
        LoadBalancer::Passthrough => Some(ProxyRequiredReason::Passthrough),
        LoadBalancer::Unspecified
        | LoadBalancer::LeastRequest
        | LoadBalancer::RoundRobin
        | LoadBalancer::Random => None,
    };
    let asked = [
        hash.as_ref().map(|_| ProxyRequiredReason::ConsistentHash),
        kept,
        max_connections.map(|_| ProxyRequiredReason::MaxConnections),
        max_connection_duration.map(|_| ProxyRequiredReason::MaxConnectionDuration),
        idle_timeout.map(|_| ProxyRequiredReason::IdleTimeout),
        keepalive.map(|_| ProxyRequiredReason::Keepalive),
    ];
    asked.into_iter().flatten().next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::super::consistent_hash::HashKey;
    use super::*;

    #[test]
    fn what_the_kernel_can_not_do_is_named() {
        let with = |change: fn(&mut PortPolicy)| {
            let mut policy = PortPolicy::default();
            change(&mut policy);
            check_traffic_policy_kernel_enforceable(&policy, 2)
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|it| it.lb = LoadBalancer::RoundRobin), Ok(()));
        assert_eq!(with(|it| it.lb = LoadBalancer::LeastRequest), Err(ProxyRequiredReason::LeastRequest));
        assert_eq!(with(|it| it.lb = LoadBalancer::Passthrough), Err(ProxyRequiredReason::Passthrough));
        let limit = with(|it| it.pool.max_connections = NonZeroU32::new(1));
        assert_eq!(limit, Err(ProxyRequiredReason::MaxConnections));
        let idle = with(|it| it.pool.idle_timeout = Some(Duration::from_secs(1)));
        assert_eq!(idle, Err(ProxyRequiredReason::IdleTimeout));
        let hash = with(|it| it.hash = Some(HashKey::SourceIp));
        assert_eq!(hash, Err(ProxyRequiredReason::ConsistentHash));
        let one = PortPolicy { lb: LoadBalancer::LeastRequest, ..PortPolicy::default() };
        assert_eq!(check_traffic_policy_kernel_enforceable(&one, 1), Ok(()), "there is no choice to make");
    }
}
