//! Handlers of the endpoints that show the configuration in force: workloads, services and policies, and a
//! dump of all of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use mesh_api::admin::{PolicyStatus, ServiceStatus, WorkloadStatus};
use mesh_api::plan::policy::{Policy, Scope};
use mesh_api::plan::{Health, Service, Snapshot, TunnelProtocol, Workload};

use super::Shared;

pub(super) async fn get_workloads(state: Shared) -> Json<Vec<WorkloadStatus>> {
    let snapshot = state.xds.snapshot.load();
    let mut list: Vec<_> = snapshot.workloads().map(|it| workload(&it)).collect();
    list.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Json(list)
}

pub(super) async fn get_services(state: Shared) -> Json<Vec<ServiceStatus>> {
    let snapshot = state.xds.snapshot.load();
    let mut list: Vec<_> = snapshot.services().map(|it| service(&snapshot, &it)).collect();
    list.sort_by(|a, b| (&a.namespace, &a.hostname).cmp(&(&b.namespace, &b.hostname)));
    Json(list)
}

pub(super) async fn get_policies(state: Shared) -> Json<Vec<PolicyStatus>> {
    let snapshot = state.xds.snapshot.load();
    let here: Vec<_> = snapshot.workloads_on_node(&state.config.node_name).collect();
    let mut list: Vec<_> = snapshot.all_policies().map(|it| policy(&snapshot, &here, it)).collect();
    list.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Json(list)
}

/// Returns the configuration's resources, from which a reader can rebuild the state that decides here:
/// length-delimited `DeltaDiscoveryResponse`s.
pub(super) async fn get_config_dump(state: Shared) -> Response {
    ([(header::CONTENT_TYPE, "application/x-protobuf")], state.xds.dump_resources()).into_response()
}

fn workload(of: &Workload) -> WorkloadStatus {
    WorkloadStatus {
        uid: of.uid.to_string(),
        namespace: of.namespace.to_string(),
        name: of.name.to_string(),
        addresses: of.addresses.iter().map(ToString::to_string).collect(),
        node: of.node.to_string(),
        tunnel: match of.tunnel_protocol {
            TunnelProtocol::Hbone => "hbone".to_owned(),
            TunnelProtocol::Plain => "plain".to_owned(),
        },
        identity: of.identity.to_string(),
        healthy: of.health == Health::Healthy,
        services: of.services.keys().map(ToString::to_string).collect(),
    }
}

fn service(snapshot: &Snapshot, of: &Service) -> ServiceStatus {
    let (endpoints, ready_endpoints) = snapshot.workload_and_ready_counts_of(of);
    ServiceStatus {
        namespace: of.namespace.to_string(),
        hostname: of.hostname.to_string(),
        addresses: of.addresses.iter().map(|net| net.addr().to_string()).collect(),
        ports: of
            .ports
            .iter()
            .map(|port| match port.target {
                Some(target) if target != port.port => format!("{}:{target}", port.port),
                _ => port.port.to_string(),
            })
            .collect(),
        ready_endpoints,
        endpoints,
    }
}

fn policy(snapshot: &Snapshot, here: &[Arc<Workload>], of: &Policy) -> PolicyStatus {
    let applies = |workload: &Workload| {
        snapshot.policies_of(workload).any(|policy| {
            policy.namespaced_name() == of.namespaced_name() && policy.namespace() == of.namespace()
        })
    };
    let mut by_namespace = BTreeMap::new();
    for workload in here.iter().filter(|workload| applies(workload)) {
        *by_namespace.entry(workload.namespace.to_string()).or_default() += 1;
    }
    PolicyStatus {
        namespace: of.namespace().to_owned(),
        name: bare_name(of).to_owned(),
        scope: match of.scope() {
            Scope::Mesh => "mesh".to_owned(),
            Scope::Namespace => "namespace".to_owned(),
            Scope::Workload => "workload".to_owned(),
        },
        action: of.action().to_string(),
        dry_run: of.is_dry_run(),
        rules: of.rule_count(),
        workloads: by_namespace.values().sum(),
        by_namespace,
    }
}

/// Returns the policy's own name; the plan's is `namespace/name`.
fn bare_name(of: &Policy) -> &str {
    of.namespaced_name()
        .strip_prefix(of.namespace())
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or(of.namespaced_name())
}
