//! The data path of nodemesh: carries connections between pods over mutual TLS, under the mesh's policy.
//!
//! # A connection, step by step
//!
//! A pod calls `connect()`. The kernel redirects the connection to the proxy of the pod's node, which takes
//! it to the proxy of the destination's node, which delivers it to the application there:
//!
//! 1. [`worker`]: threads that serve the node's pods, each with a runtime of its own. Each listens in every
//!    pod: on port 15001 for connections that the pod opens, on 15006 for plaintext from others and on 15008
//!    for mutual TLS ([`worker::run_worker`]). A connection stays on the thread that accepted it; what it
//!    uses there is in [`worker::Worker`].
//! 2. [`accept_loop`]: accepts connections below the [limits of worker and
//!    pod](worker_and_pod_connection_limits); each gets a task. With [`deferred_accept`] the way is opened
//!    first (steps 3 and 4) and the connection accepted afterwards, so that `connect()` fails where nobody
//!    listens.
//! 3. [`outbound`]: a connection that a pod opened. Its original destination is told by the
//!    [`surroundings`], and what that is by the plan
//!    ([`destination_of`](mesh_api::plan::outbound::destination_of)): a workload, a service, an address
//!    outside of the mesh, or one that it must not reach. For a service [`balance`] hands out endpoints,
//!    which are tried one after the other.
//! 4. [`connect_to_endpoint`]: opens the way to one endpoint, as the pod itself. To a pod of the same node,
//!    unless the surroundings want that encrypted too, it is the policy and the delivery of step 5. To a
//!    workload that is reached plainly, or an address outside of the mesh, it is a TCP connection. To all
//!    others it is a [`tunnel`]: a stream on a connection of the [`tunnel_pool`], or on a new one, whose
//!    handshake ([`tls`]) proves who both ends are and chooses the framing, [`mux`] or [`hbone`].
//! 5. [`inbound`]: the connection arrives in the other pod. Over mutual TLS its
//!    [handshake](handshake_limit) needs a place, and then, since the peer is known, its
//!    [session](peer_connection_shares); a peer that has just flooded is refused at once
//!    ([`flood_penalty`]). Of each stream on it, as of a plaintext connection, the policy is asked
//!    ([`authorized_connections`]); with its permit [`connect_to_application`] connects to the application.
//! 6. [`stream`]: what carries the bytes, a socket or a stream in either framing. [`relay`] moves bytes
//!    between it and the application's socket, for as long as the policy and
//!    [timeouts](idle_and_duration_timeouts) allow it.
//!
//! Where a service has routes for HTTP, step 3 reads the connection's requests instead ([`http`]), and each
//! of them takes steps 4 to 6, on connections that serve one request after the other.
//!
//! At its end a connection has one outcome, which [`telemetry`] counts and logs.
//!
//! # What the steps need
//!
//! - [`surroundings`]: the place where the proxy runs, as one trait. On a node, sockets in pods and what eBPF
//!   tells; in a test or a gateway, plain sockets. Nothing here assumes that it serves all pods of its node.
//! - [`xds`]: the configuration from the control plane; [`certs`]: keys and certificates of the
//!   [pods](local_pod_identity). [`inheritance`] leaves both to the next proxy.
//! - [`balance`]: state of load balancing; [`connection_address_types`]: types that keep a connection's
//!   addresses apart.
//! - [`telemetry`]: metrics and the access log; [`liveness`]: whether the workers' threads still run.
//! - [`urgent_data_and_min_rtt`] and [`file_version`]: system calls, and whether a file has changed.
#![deny(unsafe_code)]

pub mod accept_loop;
pub mod authorized_connections;
pub mod balance;
pub mod certs;
pub mod connect_to_application;
pub mod connect_to_endpoint;
pub mod connection_address_types;
pub mod deferred_accept;
pub mod file_version;
#[cfg(test)]
mod fixture;
pub mod flood_penalty;
pub mod handshake_limit;
pub mod hbone;
pub mod http;
pub mod idle_and_duration_timeouts;
pub mod inbound;
pub mod inheritance;
pub mod liveness;
pub mod local_pod_identity;
pub mod mux;
pub mod outbound;
pub mod peer_connection_shares;
pub mod relay;
pub mod stream;
pub mod surroundings;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod tunnel_pool;
pub mod urgent_data_and_min_rtt;
pub mod worker;
pub mod worker_and_pod_connection_limits;
pub mod xds;
