//! Which of the pods that an explanation is about are not in the mesh though they should be.

use std::collections::BTreeSet;

use mesh_api::admin::PodStatus;

use super::explain::Explanation;
use crate::reason::reason;
use crate::source::{Mesh, Nodes};
use crate::standing::{self, NotEnrolled};

/// Adds them. What can't be found out is told on standard error.
pub async fn add(explanation: &mut Explanation, mesh: &Mesh) {
    let mut found = of_endpoints(explanation, mesh).await;
    found.extend(of_services(explanation, mesh).await);
    for pod in found {
        if explanation.not_enrolled.iter().all(|it| it.pod != pod.pod) {
            explanation.not_enrolled.push(pod);
        }
    }
}

/// Endpoints are in the mesh by the control plane's word, which goes by labels. Whether they have got there
/// their agents know.
async fn of_endpoints(explanation: &Explanation, mesh: &Mesh) -> Vec<NotEnrolled> {
    let meshed: Vec<_> = explanation.endpoints().filter(|it| it.is_meshed).collect();
    let nodes: BTreeSet<_> = meshed.iter().map(|it| it.node.clone()).collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    match mesh.ask::<Vec<PodStatus>>(&Nodes::these(nodes.into_iter().collect()), "/pods").await {
        Ok(answers) => {
            let all = answers.iter().flat_map(|(node, pods)| {
                pods.iter().filter_map(|pod| NotEnrolled::of_agent(pod, &node.name))
            });
            all.filter(|pod| meshed.iter().any(|it| it.workload == pod.pod)).collect()
        }
        Err(error) => {
            remark!("warning: whether the endpoints are in the mesh is not known: {}", reason(&error));
            Vec::new()
        }
    }
}

/// Pods that would be endpoints of a service that has none.
async fn of_services(explanation: &Explanation, mesh: &Mesh) -> Vec<NotEnrolled> {
    let Mesh::Cluster(cluster) = mesh else { return Vec::new() };
    let mut found = Vec::new();
    for way in explanation.routes.iter().filter(|way| way.endpoints.is_empty()) {
        let Some(service) = &way.service else { continue };
        match standing::of_service(cluster, service).await {
            Ok(pods) => found.extend(pods),
            Err(error) => remark!("warning: the pods of {service} are not known: {}", reason(&error)),
        }
    }
    found
}
