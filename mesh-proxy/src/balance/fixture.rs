//! Endpoints for the tests of this module.

use std::sync::Arc;

use mesh_api::plan::{Endpoint, Endpoints, TunnelProtocol, Workload};
use mesh_api::wire::workload as wire;

/// Endpoints by the names of their workloads, with their weights.
pub fn weighted_endpoints(of: &[(&str, u32)]) -> Endpoints {
    of.iter().map(|(name, weight)| endpoint(name, *weight)).collect()
}

fn endpoint(name: &str, weight: u32) -> Endpoint {
    let (name, namespace) = (name.to_owned(), "shop".to_owned());
    let workload = wire::Workload { uid: name.clone(), name, namespace, ..wire::Workload::default() };
    Endpoint {
        workload: Arc::new(Workload::try_from(workload).unwrap()),
        address: "10.0.0.1:80".parse().unwrap(),
        tunnel_protocol: TunnelProtocol::Plain,
        expected_identities: Arc::new([]),
        weight,
    }
}
