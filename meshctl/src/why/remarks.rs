//! What the configuration that the agents have can't say: which parts of policies are not in it, and who
//! wrote the rest.

use mesh_api::admin::{InForce, ResourceReport, ResourceStatus};
use mesh_api::manifest::Kind;
use mesh_api::plan::{Snapshot, Workload};
use mesh_api::wire::security::{PORT_LEVEL_STRICT, STRICT};

use super::explain::{Endpoint, Explanation};
use crate::resources::strict_in;

/// Adds to each endpoint what of the policies for it is not in force, and names who wrote the one that
/// decides.
pub fn add(explanation: &mut Explanation, snapshot: &Snapshot, written: &ResourceReport) {
    for endpoint in explanation.routes.iter_mut().flat_map(|way| &mut way.endpoints) {
        let server =
            snapshot.workloads().find(|it| format!("{}/{}", it.namespace, it.name) == endpoint.workload);
        let Some(server) = server else { continue };
        endpoint.not_in_force = not_in_force(snapshot, &server, written);
        name_owner(endpoint, &server, written);
    }
}

fn not_in_force(snapshot: &Snapshot, server: &Workload, written: &ResourceReport) -> Vec<String> {
    let amiss = written.resources.iter().filter(|it| it.in_force != InForce::AsWritten);
    let about = amiss.filter(|it| concerns(snapshot, server, it, &written.root_namespace));
    about
        .flat_map(|it| {
            let key = it.key();
            it.parts.iter().map(move |part| format!("{key}: {}: {}", part.field, part.meaning))
        })
        .collect()
}

/// Whether a policy is about the workload. Which workloads one is about that no agent has is not known: it
/// may be about any of its namespace, or of the mesh, if it is in the root namespace.
fn concerns(snapshot: &Snapshot, server: &Workload, policy: &ResourceStatus, root: &str) -> bool {
    let is_beside = policy.namespace == *server.namespace || policy.namespace == root;
    match policy.kind {
        Kind::AuthorizationPolicy => {
            let name = format!("{}/{}", policy.namespace, policy.name);
            let applies = snapshot.policies_of(server).any(|it| **it.namespaced_name() == *name);
            applies || is_beside && !snapshot.all_policies().any(|it| **it.namespaced_name() == *name)
        }
        Kind::PeerAuthentication => is_beside,
        _ => false,
    }
}

/// One policy of the agents stands for every `PeerAuthentication` that is STRICT.
fn name_owner(endpoint: &mut Endpoint, server: &Workload, written: &ResourceReport) {
    let Some(policy) = endpoint.policy.clone() else { return };
    let Some((namespace, name)) = policy.split_once('/') else { return };
    let owner = if let Some(name) = name.strip_prefix(PORT_LEVEL_STRICT) {
        format!("{namespace}/{name}")
    } else if name == STRICT {
        let owners = strict_in(written, &server.namespace, namespace);
        let names: Vec<_> = owners.iter().map(|it| format!("{}/{}", it.namespace, it.name)).collect();
        if names.is_empty() {
            return;
        }
        names.join(" or ")
    } else {
        return;
    };
    let owner = format!("PeerAuthentication {owner}");
    endpoint.reason = endpoint.reason.replace(&format!("policy {policy}"), &owner);
    endpoint.policy = Some(owner);
}
