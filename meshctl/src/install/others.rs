//! What somebody else installed: definitions that are left alone, and installations that only their owner may
//! change.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ListParams, ObjectMeta};
use kube::{Api, ResourceExt};

use super::apply::{Applied, Outcome};
use super::has_helm_release;
use super::inventory::Entry;
use crate::cluster::{COMPONENT_AGENT, Cluster, selector};

/// Helm's annotations of what a release owns.
const HELM_RELEASE: &str = "meta.helm.sh/release-name";
const HELM_NAMESPACE: &str = "meta.helm.sh/release-namespace";
/// Name of the release unless another is given.
pub const RELEASE: &str = "nodemesh";

/// Takes definitions of kinds that are there already and not this mesh's out of `objects`, and says whose
/// they are.
pub async fn set_aside(cluster: &Cluster, objects: &mut Vec<DynamicObject>) -> Result<Vec<Applied>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut left = Vec::new();
    let all = std::mem::take(objects);
    for object in all {
        let name = object.name_any();
        let found = match Entry::of(&object).filter(Entry::is_definition) {
            Some(_) => definitions.get_metadata_opt(&name).await,
            None => Ok(None),
        };
        let found = found.with_context(|| format!("can't read the definition {name}"))?;
        match found.and_then(|it| owner(&it.metadata)) {
            Some(owner) => {
                remark!("CustomResourceDefinition {name} is left alone: it is {owner}");
                let kind = "CustomResourceDefinition".to_owned();
                left.push(Applied { kind, namespace: None, name, result: Outcome::LeftAlone });
            }
            None => objects.push(object),
        }
    }
    Ok(left)
}

/// Whose an object is, if it is not this mesh's.
pub fn owner(of: &ObjectMeta) -> Option<String> {
    let none = BTreeMap::new();
    let (labels, annotations) =
        (of.labels.as_ref().unwrap_or(&none), of.annotations.as_ref().unwrap_or(&none));
    if labels.get("app.kubernetes.io/part-of").is_some_and(|it| it == "nodemesh") {
        return None;
    }
    if let Some(release) = annotations.get(HELM_RELEASE) {
        let place = annotations.get(HELM_NAMESPACE).map(|it| format!(" in {it}")).unwrap_or_default();
        return Some(format!("of the helm release {release}{place}"));
    }
    let named = ["chart", "helm.sh/chart", "app.kubernetes.io/part-of", "app.kubernetes.io/name", "app"];
    if let Some(name) = named.iter().find_map(|key| labels.get(*key)) {
        return Some(format!("of {name}"));
    }
    Some("somebody else's, who did not label it".to_owned())
}

/// Why an installation would be refused: somebody else has to change what is there.
pub async fn refusal(cluster: &Cluster, release: &str) -> Result<Option<String>> {
    if has_helm_release(cluster, release).await? {
        return Ok(Some(of_helm(release, &cluster.namespace)));
    }
    let sets: Api<DaemonSet> = Api::all(cluster.client.clone());
    let agents = ListParams::default().labels(&selector(COMPONENT_AGENT));
    let sets = sets.list_metadata(&agents).await.context("can't look for other installations")?;
    Ok(sets.iter().find_map(|set| in_the_way(&set.metadata, &cluster.namespace)))
}

fn in_the_way(agents: &ObjectMeta, namespace: &str) -> Option<String> {
    let place = agents.namespace.as_deref().unwrap_or_default();
    let release = agents.annotations.as_ref().and_then(|all| all.get(HELM_RELEASE));
    match release {
        Some(release) if place == namespace => Some(of_helm(release, place)),
        _ if place != namespace => Some(format!(
            "there is a mesh in {place} already, and a cluster has one: --mesh-namespace {place} means that one, and \
             `meshctl uninstall --mesh-namespace {place}` or helm takes it away"
        )),
        _ => None,
    }
}

fn of_helm(release: &str, namespace: &str) -> String {
    format!(
        "{release} in {namespace} was installed by helm, which would not know of changes made here: use `helm upgrade -n \
         {namespace} {release} CHART`, or {} first",
        helm_uninstall(release, namespace)
    )
}

/// The command that takes a release of helm away and waits until the agents have cleaned up their nodes.
pub fn helm_uninstall(release: &str, namespace: &str) -> String {
    format!("`helm uninstall -n {namespace} {release} --wait --cascade foreground`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn meta(meta: &Value) -> ObjectMeta {
        serde_json::from_value(meta.clone()).unwrap()
    }

    #[test]
    fn whose_a_definition_is_its_labels_and_annotations_say() {
        let ours = json!({"labels": {"app.kubernetes.io/part-of": "nodemesh", "app.kubernetes.io/managed-by": "Helm"}});
        assert_eq!(owner(&meta(&ours)), None);
        for (istio, told) in [
            (
                json!({
                    "labels": {"app.kubernetes.io/managed-by": "Helm", "chart": "istio"},
                    "annotations": {"meta.helm.sh/release-name": "istio-base", "meta.helm.sh/release-namespace": "istio-system"},
                }),
                "of the helm release istio-base in istio-system",
            ),
            (json!({"labels": {"app": "istio-pilot", "chart": "istio", "heritage": "Tiller"}}), "of istio"),
            (json!({}), "somebody else's, who did not label it"),
        ] {
            assert_eq!(owner(&meta(&istio)).as_deref(), Some(told));
        }
    }

    #[test]
    fn an_installation_of_helms_or_elsewhere_is_in_the_way() {
        let set = |namespace: &str, annotations: Value| {
            meta(&json!({"name": "mesh-agent", "namespace": namespace, "annotations": annotations}))
        };
        let helms = set("mesh", json!({"meta.helm.sh/release-name": "other"}));
        let told = in_the_way(&helms, "mesh").unwrap();
        assert!(told.starts_with("other in mesh was installed by helm"), "{told}");
        assert!(told.contains("helm uninstall -n mesh other --wait --cascade foreground"), "{told}");
        let told = in_the_way(&set("elsewhere", json!({})), "mesh").unwrap();
        assert!(told.starts_with("there is a mesh in elsewhere already"), "{told}");
        assert_eq!(in_the_way(&set("mesh", json!({})), "mesh"), None, "meshctl's own");
    }
}
