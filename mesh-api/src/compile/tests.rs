use std::sync::Arc;

use prost::Message;

use super::*;
use crate::{
    manifest,
    wire::{
        ext,
        security::{Action, Authorization, Match, Scope, StringMatch, string_match::MatchType},
        workload::{
            IpFamilies, NetworkMode, Service, TunnelProtocol, Workload, WorkloadStatus,
            address::Type,
            load_balancing::{HealthPolicy, Mode},
        },
    },
};

mod authorization;
mod destination_rules;
mod gateway_routes;
mod histories;
mod kinds;
mod mutual_tls;
mod virtual_services;
mod workloads;

/// A pod with the label `app` and an address, ready, in an enrolled namespace if that is `shop`.
fn pod(namespace: &str, app: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {app}-1, namespace: {namespace}, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: node1, serviceAccountName: {app}, containers: [{{name: c}}]}}\n\
         status: {{podIP: {address}, phase: Running, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

fn compiled(text: &str) -> Compiled {
    compiled_for(text, &MeshConfig::default())
}

fn compiled_for(text: &str, mesh: &MeshConfig) -> Compiled {
    let parsed = manifest::parse("test.yaml", text);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    compile(parsed.objects.into_iter().map(Arc::new), mesh)
}

impl Compiled {
    fn workload(&self, uid: &str) -> &Workload {
        match self.addresses.get(uid).and_then(|address| address.r#type.as_ref()) {
            Some(Type::Workload(workload)) => workload,
            _ => panic!("no workload {uid} among {:?}", self.addresses.keys()),
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> &Workload {
        self.workload(&format!("Kubernetes//Pod/{namespace}/{name}"))
    }

    fn service(&self, name: &str) -> &Service {
        match self.addresses.get(name).and_then(|address| address.r#type.as_ref()) {
            Some(Type::Service(service)) => service,
            _ => panic!("no service {name} among {:?}", self.addresses.keys()),
        }
    }

    fn authorization(&self, name: &str) -> &Authorization {
        self.authorizations
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.authorizations.keys()))
    }

    fn reasons(&self) -> Vec<(ConditionEffect, String)> {
        self.conditions.iter().map(|c| (c.effect, format!("{}: {}", c.field, c.reason))).collect()
    }
}
