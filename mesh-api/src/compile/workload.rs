//! Pods, and endpoints that are no pods, as agents see them.

use super::{
    MeshConfig, World,
    membership::{Membership, Other},
    naming, octets,
    policy::Policies,
    traffic::Traffic,
};
use crate::{
    resource::{Pod, enrolment},
    wire::workload::{Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType},
};

/// What workloads are made of.
pub(super) struct Context<'a> {
    pub world: &'a World<'a>,
    pub mesh: &'a MeshConfig,
    pub policies: &'a Policies<'a>,
    pub traffic: &'a Traffic,
    pub membership: &'a Membership<'a>,
}

/// Every live pod that has an address, and every endpoint that is no pod.
pub(super) fn all<'a>(context: &'a Context<'a>) -> impl Iterator<Item = Workload> {
    let pods = context.world.live_pods().filter_map(|pod| context.pod(pod));
    pods.chain(context.membership.others.iter().map(|other| context.other(other)))
}

impl Context<'_> {
    fn pod(&self, pod: &Pod) -> Option<Workload> {
        let addresses = pod.addresses();
        if addresses.is_empty() {
            return None;
        }
        let metadata = &pod.metadata;
        let (namespace, name) = (&metadata.namespace, &metadata.name);
        let healthy = pod.is_ready() && !pod.is_terminating();
        let services = self.membership.pods.get(&(namespace.as_str(), name.as_str())).cloned();
        Some(Workload {
            uid: format!("{}//Pod/{namespace}/{name}", self.mesh.cluster_id),
            addresses: addresses.into_iter().map(octets).collect(),
            tunnel_protocol: self.tunnel(pod).into(),
            service_account: pod.service_account().to_owned(),
            node: pod.spec.node_name.clone(),
            canonical_name: naming::canonical_name(pod).to_owned(),
            canonical_revision: naming::canonical_revision(pod).to_owned(),
            workload_name: naming::workload_name(pod).to_owned(),
            authorization_policies: self.policies.of_pod(pod),
            status: status(healthy).into(),
            services: services.unwrap_or_default(),
            locality: self.locality(&pod.spec.node_name),
            network_mode: network_mode(pod).into(),
            extensions: self.traffic.client_labels(metadata).into_iter().collect(),
            ..self.anything(name.clone(), namespace.clone())
        })
    }

    fn other(&self, other: &Other<'_>) -> Workload {
        let metadata = &other.slice.metadata;
        let (namespace, slice, address) = (&metadata.namespace, &metadata.name, other.address);
        Workload {
            uid: format!(
                "{}/discovery.k8s.io/EndpointSlice/{namespace}/{slice}/{address}",
                self.mesh.cluster_id
            ),
            addresses: vec![octets(address)],
            status: status(other.ready).into(),
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
        let namespace = self.world.namespace_labels(&pod.metadata.namespace);
        let enrolment = enrolment::is_enrolled(namespace, &pod.metadata.labels, pod.spec.host_network);
        if enrolment.is_selected() { TunnelProtocol::Hbone } else { TunnelProtocol::None }
    }

    fn locality(&self, node: &str) -> Option<Locality> {
        let locality = self.world.nodes.get(node)?.locality();
        let known = !locality.region.is_empty() || !locality.zone.is_empty() || !locality.subzone.is_empty();
        known.then_some(Locality { region: locality.region, zone: locality.zone, subzone: locality.subzone })
    }
}

fn status(healthy: bool) -> WorkloadStatus {
    if healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }
}

fn network_mode(pod: &Pod) -> NetworkMode {
    if pod.spec.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard }
}
