//! Whether whoever asks may install.

use anyhow::{Context, Result};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use super::Finding;
use crate::cluster::Cluster;
use crate::source::each;

const CHECK: &str = "permissions";

/// Something that the installation does: verb, API group, resource, and whether in the mesh's namespace.
type Deed = (&'static str, &'static str, &'static str, bool);

const DEEDS: &[Deed] = &[
    ("create", "", "namespaces", false),
    ("get", "apiextensions.k8s.io", "customresourcedefinitions", false),
    ("patch", "apiextensions.k8s.io", "customresourcedefinitions", false),
    ("patch", "rbac.authorization.k8s.io", "clusterroles", false),
    ("patch", "rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicies", false),
    ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicybindings", false),
    ("patch", "rbac.authorization.k8s.io", "roles", true),
    ("patch", "rbac.authorization.k8s.io", "rolebindings", true),
    ("patch", "", "serviceaccounts", true),
    ("patch", "", "services", true),
    ("patch", "", "configmaps", true),
    ("list", "", "secrets", true),
    ("patch", "apps", "deployments", true),
    ("patch", "apps", "daemonsets", true),
    ("patch", "policy", "poddisruptionbudgets", true),
    ("list", "", "pods", true),
    ("list", "", "nodes", false),
    ("list", "apps", "daemonsets", false),
];

/// Asks the API server for each deed.
pub async fn to_install(cluster: &Cluster) -> Result<Finding> {
    let asked = each(DEEDS.to_vec(), |deed| async move { (deed, is_allowed(cluster, deed).await) }).await;
    let mut refused = Vec::new();
    for (deed, answer) in asked {
        if !answer? {
            refused.push(in_words(deed, &cluster.namespace));
        }
    }
    Ok(if refused.is_empty() {
        Finding::ok(CHECK, "you may do all that an installation does")
    } else {
        let fix = "install as somebody who may, such as a member of the ClusterRole cluster-admin";
        Finding::fail(CHECK, format!("you may not {}", refused.join(", ")), fix)
    })
}

/// Whether the mesh's pods can be asked through the API server.
pub async fn to_forward(cluster: &Cluster) -> Result<Finding> {
    let allowed = is_allowed(cluster, ("get", "", "pods/portforward", true)).await?;
    Ok(if allowed {
        Finding::ok("port-forward", "you may ask agents and control plane")
    } else {
        let fix = format!(
            "allow `get` and `create` on pods/portforward in {}; no other verb works without",
            cluster.namespace
        );
        Finding::warn("port-forward", "you may not ask agents and control plane", fix)
    })
}

async fn is_allowed(cluster: &Cluster, (verb, group, resource, in_namespace): Deed) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: Some(subresource.to_owned()),
        namespace: in_namespace.then(|| cluster.namespace.clone()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let answer =
        reviews.create(&PostParams::default(), &review).await.context("can't ask for permissions")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn in_words((verb, group, resource, in_namespace): Deed, namespace: &str) -> String {
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let place = if in_namespace { format!(" in {namespace}") } else { String::new() };
    format!("{verb} {resource}{group}{place}")
}
