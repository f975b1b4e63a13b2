//! The annotation by which agents tell Istio's own parts that a pod is in the mesh. Agents take it off when
//! the mesh is removed; where they could not, as of a node that is down, it is taken off here.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use mesh_api::resource::enrolment::{REDIRECTION, REDIRECTION_WRITER, redirection};

use crate::cluster::Cluster;

/// Takes it off all pods that an agent put it on; how many those are.
pub async fn take_off(cluster: &Cluster) -> Result<usize> {
    let everywhere: Api<Pod> = Api::all(cluster.client.clone());
    let pods = everywhere.list_metadata(&ListParams::default()).await.context("can't list pods")?;
    let ours: Vec<_> = pods.items.iter().filter(|pod| is_ours(*pod)).collect();
    for pod in &ours {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
        let said = Patch::Apply(redirection(&name, &pod.uid().unwrap_or_default(), false));
        match api.patch_status(&name, &PatchParams::apply(REDIRECTION_WRITER).force(), &said).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                let context = format!("can't take the annotation {REDIRECTION} off pod {namespace}/{name}");
                return Err(anyhow::Error::from(error).context(context));
            }
        }
    }
    Ok(ours.len())
}

fn is_ours(pod: &impl ResourceExt) -> bool {
    let managers = pod.managed_fields().iter().map(|field| field.manager.as_deref());
    pod.annotations().contains_key(REDIRECTION)
        && managers.into_iter().any(|it| it == Some(REDIRECTION_WRITER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_istio_cni_wrote_stays() {
        let of = |annotation: &str, manager: &str| {
            let metadata =
                json!({"annotations": {annotation: "enabled"}, "managedFields": [{"manager": manager}]});
            is_ours(&serde_json::from_value::<Pod>(json!({"metadata": metadata})).unwrap())
        };
        assert!(of("ambient.istio.io/redirection", "mesh-agent"));
        assert!(!of("ambient.istio.io/redirection", "istio-cni"));
        assert!(!of("other", "mesh-agent"));
    }
}
