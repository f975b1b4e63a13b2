//! Rendered manifests as objects, in the order in which they can be applied.

use anyhow::{Context, Result, ensure};
use kube::api::DynamicObject;

/// What has to be there before what: kinds in the order of their application. Other kinds come last.
const ORDER: &[&str] = &[
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "NetworkPolicy",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
];

/// The objects, in order.
pub fn parse(text: &str) -> Result<Vec<DynamicObject>> {
    // As the API server and helm read them: 0644 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let mut objects: Vec<DynamicObject> = serde_saphyr::from_multiple_with_options(text, options)
        .context("the rendered chart can't be read")?;
    for object in &objects {
        ensure!(
            object.types.is_some() && object.metadata.name.is_some(),
            "the rendered chart has a document without apiVersion, kind or name"
        );
    }
    objects.sort_by_key(|object| object.types.as_ref().map_or(usize::MAX, |types| rank(&types.kind)));
    Ok(objects)
}

/// Place of a kind in the order.
pub fn rank(kind: &str) -> usize {
    ORDER.iter().position(|it| *it == kind).unwrap_or(ORDER.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "---
# a comment only
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: d}, spec: {mode: 0644, word: \"yes\"}}
---
{apiVersion: monitoring.coreos.com/v1, kind: ServiceMonitor, metadata: {name: m}}
---
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: c}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: s, namespace: n}}
";

    #[test]
    fn what_others_need_comes_first() {
        let objects = parse(TEXT).unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| object.types.clone().unwrap().kind).collect();
        assert_eq!(kinds, ["CustomResourceDefinition", "ServiceAccount", "DaemonSet", "ServiceMonitor"]);
    }

    #[test]
    fn numbers_and_strings_are_what_the_api_server_takes_them_for() {
        let objects = parse(TEXT).unwrap();
        let set = objects.iter().find(|object| object.metadata.name.as_deref() == Some("d")).unwrap();
        assert_eq!(set.data["spec"]["mode"], 0o644);
        assert_eq!(set.data["spec"]["word"], "yes");
    }

    #[test]
    fn a_document_that_is_no_object_is_refused() {
        assert!(parse("{kind: Service}").is_err());
    }
}
