//! Pods, and endpoints that are no pods, as agents see them.

use super::{
    Condition, ConditionEffect, MeshConfig,
    asked_labels::AskedLabels,
    canonical_names,
    object_store::{NamespacedName, ObjectStore, namespaced_name},
    octets,
    policy::PodPolicies,
    service::bypass_reason_and_fix,
    service_membership::{self, NonPodEndpoint},
};
use crate::{
    manifest::Kind,
    plan::Health,
    resource::{Pod, enrolment},
    wire::ext,
    wire::workload::{
        Extension, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
    },
};

/// What workloads are made of.
pub(super) struct WorkloadCompiler<'a> {
    pub objects: &'a ObjectStore,
    pub mesh: &'a MeshConfig,
    pub policies: &'a PodPolicies<'a>,
    pub asked: &'a AskedLabels,
}

/// Uid of a pod's workload.
pub(super) fn uid_of_pod((namespace, name): &NamespacedName, mesh: &MeshConfig) -> String {
    format!("{}//Pod/{namespace}/{name}", mesh.cluster_id)
}

impl WorkloadCompiler<'_> {
    /// A live pod; nothing if it has no address.
    pub fn compile_pod(&self, pod: &Pod) -> Option<Workload> {
        let addresses = pod.addresses();
        if addresses.is_empty() {
            return None;
        }
        let metadata = &pod.metadata;
        let health = match (pod.is_ready(), pod.is_terminating()) {
            (true, false) => Health::Healthy,
            (true, true) => Health::Terminating,
            (false, _) => Health::Unhealthy,
        };
        Some(Workload {
            uid: uid_of_pod(&namespaced_name(metadata), self.mesh),
            addresses: addresses.into_iter().map(octets).collect(),
            tunnel_protocol: self.tunnel(pod).into(),
            service_account: pod.service_account().to_owned(),
            node: pod.spec.node_name.clone(),
            canonical_name: canonical_names::canonical_name(pod).to_owned(),
            canonical_revision: canonical_names::canonical_revision(pod).to_owned(),
            workload_name: canonical_names::workload_name(pod).to_owned(),
            authorization_policies: self.policies.names_for_pod(pod),
            status: status(health).into(),
            services: service_membership::services_of_pod(self.objects, self.mesh, pod),
            locality: self.locality(&pod.spec.node_name),
            network_mode: network_mode(pod).into(),
            extensions: self.asked.extension(metadata).into_iter().chain(terminating(health)).collect(),
            ..self.anything(metadata.name.clone(), metadata.namespace.clone())
        })
    }

    /// What of a pod in the mesh has no effect: ports of its node that lead to it.
    pub fn conditions_of_pod(&self, pod: &Pod) -> Vec<Condition> {
        let ports = pod.host_ports();
        if ports.is_empty() || !is_pod_enrolled(self.objects, pod) {
            return Vec::new();
        }
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let words =
            bypass_reason_and_fix(&format!("port {ports} of its node"), "let pods use a Service's name");
        let field = "spec.containers.ports.hostPort";
        vec![Condition::new(Kind::Pod, &pod.metadata, field, ConditionEffect::Ignored, words)]
    }

    /// An endpoint that is no pod.
    pub fn compile_non_pod(&self, other: &NonPodEndpoint<'_>) -> Workload {
        let metadata = &other.slice.metadata;
        let (namespace, slice, address) = (&metadata.namespace, &metadata.name, other.address);
        let health = match (other.ready, other.terminating) {
            (true, _) => Health::Healthy,
            (false, true) => Health::Terminating,
            (false, false) => Health::Unhealthy,
        };
        Workload {
            uid: format!(
                "{}/discovery.k8s.io/EndpointSlice/{namespace}/{slice}/{address}",
                self.mesh.cluster_id
            ),
            addresses: vec![octets(address)],
            status: status(health).into(),
            extensions: terminating(health).into_iter().collect(),
            services: other.services.clone(),
            ..self.anything(format!("{slice}/{address}"), namespace.clone())
        }
    }

    fn anything(&self, name: String, namespace: String) -> Workload {
        // Istio leaves its own default away; so agents that only know that form are served as well.
        let trust_domain = Some(&self.mesh.trust_domain).filter(|domain| *domain != "cluster.local");
        Workload {
            name,
            namespace,
            network: self.mesh.network.clone(),
            trust_domain: trust_domain.cloned().unwrap_or_default(),
            workload_type: WorkloadType::Pod.into(),
            cluster_id: self.mesh.cluster_id.clone(),
            ..Workload::default()
        }
    }

    fn tunnel(&self, pod: &Pod) -> TunnelProtocol {
        if is_pod_enrolled(self.objects, pod) { TunnelProtocol::Hbone } else { TunnelProtocol::None }
    }

    fn locality(&self, node: &str) -> Option<Locality> {
        let locality = self.objects.node(node)?.locality();
        let known = !locality.region.is_empty() || !locality.zone.is_empty() || !locality.subzone.is_empty();
        known.then_some(Locality { region: locality.region, zone: locality.zone, subzone: locality.subzone })
    }
}

/// Whether labels take a pod into the mesh.
pub(super) fn is_pod_enrolled(objects: &ObjectStore, pod: &Pod) -> bool {
    let namespace = objects.namespace_labels(&pod.metadata.namespace);
    enrolment::is_enrolled(namespace, &pod.metadata.labels, pod.spec.host_network).is_selected()
}

fn status(health: Health) -> WorkloadStatus {
    match health {
        Health::Healthy => WorkloadStatus::Healthy,
        Health::Terminating | Health::Unhealthy => WorkloadStatus::Unhealthy,
    }
}

/// Istio has no word for it.
fn terminating(health: Health) -> Option<Extension> {
    (health == Health::Terminating).then(|| Extension { name: ext::TERMINATING.to_owned(), config: None })
}

fn network_mode(pod: &Pod) -> NetworkMode {
    if pod.spec.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard }
}
