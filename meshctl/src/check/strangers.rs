//! Other meshes in the cluster: what both would redirect goes astray.

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::Finding;
use crate::cluster::Cluster;
use crate::install;

const CHECK: &str = "other meshes";

/// Labels of namespaces by which other meshes take pods in, the value that does it, and whose they are.
const LABELS: &[(&str, &str, &str)] = &[
    ("istio.io/dataplane-mode", "ambient", "Istio's ambient mode, and nodemesh takes this label for its own"),
    ("istio-injection", "enabled", "Istio's sidecars"),
    ("linkerd.io/inject", "enabled", "Linkerd's sidecars"),
    ("kuma.io/sidecar-injection", "enabled", "Kuma's sidecars"),
];

/// `DaemonSets` that redirect pods' connections, and whose they are.
const REDIRECTORS: &[(&str, &str)] = &[
    ("ztunnel", "Istio's ambient mode"),
    ("istio-cni-node", "Istio"),
    ("linkerd-cni", "Linkerd"),
    ("kuma-cni-node", "Kuma"),
    ("consul-cni", "Consul"),
];

/// Other meshes: the name, the end of their definitions' groups, and namespaces that they are usually
/// installed in.
const MESHES: &[(&str, &str, &[&str])] = &[
    ("Istio", "istio.io", &["istio-system"]),
    ("Linkerd", "linkerd.io", &["linkerd", "linkerd-cni", "linkerd-viz"]),
    ("Cilium", "cilium.io", &["cilium", "cilium-system"]),
    ("Kuma", "kuma.io", &["kuma-system", "kong-mesh-system"]),
    ("Consul", "consul.hashicorp.com", &["consul"]),
    ("Open Service Mesh", "openservicemesh.io", &["osm-system"]),
];

/// A finding for each sign of another mesh, or one that says that there is none.
pub async fn check(cluster: &Cluster) -> Result<Vec<Finding>> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespaces = namespaces.list(&ListParams::default()).await.context("can't list the namespaces")?;
    let sets: Api<DaemonSet> = Api::all(cluster.client.clone());
    let sets = sets.list_metadata(&ListParams::default()).await.context("can't list the DaemonSets")?;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let definitions = definitions.list_metadata(&ListParams::default()).await;
    let definitions = definitions.context("can't list the definitions of kinds")?;
    let others = definitions.iter().filter(|it| install::owner(&it.metadata).is_some());
    let definitions: Vec<_> = others.map(ResourceExt::name_any).collect();
    let names: Vec<_> = namespaces.iter().map(ResourceExt::name_any).collect();
    let mut found: Vec<_> = MESHES.iter().filter_map(|mesh| installed(mesh, &definitions, &names)).collect();
    found.extend(namespaces.iter().filter_map(of_namespace));
    found.extend(sets.iter().filter_map(|set| of_daemon_set(&set.name_any(), &set.namespace()?)));
    if found.is_empty() {
        found.push(Finding::ok(CHECK, "none"));
    }
    Ok(found)
}

/// A mesh that its definitions or its namespace show.
fn installed(
    (mesh, group, places): &(&str, &str, &[&str]),
    definitions: &[String],
    namespaces: &[String],
) -> Option<Finding> {
    let is_of_group = |name: &&String| name.ends_with(&format!(".{group}"));
    let own: Vec<_> = definitions.iter().filter(is_of_group).collect();
    let mut signs: Vec<_> = namespaces.iter().filter(|it| places.contains(&it.as_str())).cloned().collect();
    signs.iter_mut().for_each(|sign| sign.insert_str(0, "namespace "));
    if let Some(first) = own.first() {
        signs.push(format!("{} definitions such as {first}", own.len()));
    }
    let fix = match *mesh {
        "Istio" => {
            "its definitions are left alone by `meshctl install`, and read; enrol only namespaces that it does not have"
        }
        "Cilium" => {
            "as a network it needs cni.exclusive=false; as a mesh, enrol only namespaces that it does not have"
        }
        _ => "enrol only namespaces that it does not have",
    };
    (!signs.is_empty()).then(|| Finding::warn(CHECK, format!("{mesh}: {}", signs.join(", ")), fix))
}

fn of_namespace(namespace: &Namespace) -> Option<Finding> {
    let has = |key: &str, value: &str| {
        let held = namespace.labels().get(key).or_else(|| namespace.annotations().get(key));
        held.is_some_and(|held| held == value)
    };
    let (key, value, whose) = LABELS.iter().find(|(key, value, _)| has(key, value))?;
    let found = format!("namespace {} has {key}={value}: {whose}", namespace.name_any());
    Some(Finding::warn(
        CHECK,
        found,
        "let one mesh have the namespace: remove that label, or do not enrol it here",
    ))
}

fn of_daemon_set(name: &str, namespace: &str) -> Option<Finding> {
    let (_, whose) = REDIRECTORS.iter().find(|(redirector, _)| *redirector == name)?;
    let found = format!("DaemonSet {namespace}/{name} is {whose}");
    Some(Finding::warn(CHECK, found, "enrol only namespaces that it does not have"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn others_are_known_by_label_annotation_and_daemon_set() {
        let namespace = |meta: &serde_json::Value| -> Namespace {
            serde_json::from_value(json!({"metadata": meta})).unwrap()
        };
        let ambient = namespace(&json!({"name": "a", "labels": {"istio.io/dataplane-mode": "ambient"}}));
        assert!(of_namespace(&ambient).unwrap().detail.contains("takes this label for its own"));
        let linkerd = namespace(&json!({"name": "b", "annotations": {"linkerd.io/inject": "enabled"}}));
        assert!(of_namespace(&linkerd).is_some());
        assert!(of_namespace(&namespace(&json!({"name": "c"}))).is_none());
        assert!(of_daemon_set("ztunnel", "istio-system").is_some());
        assert!(of_daemon_set("mesh-agent", "nodemesh-system").is_none());
    }

    #[test]
    fn others_are_known_by_their_definitions_and_their_namespace() {
        let texts = |all: &[&str]| all.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let definitions =
            texts(&["gateways.networking.istio.io", "meshes.kuma.io", "routes.example.notistio.io"]);
        let namespaces = texts(&["default", "istio-system", "consul"]);
        let found: Vec<_> =
            MESHES.iter().filter_map(|mesh| installed(mesh, &definitions, &namespaces)).collect();
        let told: Vec<_> = found.iter().map(|finding| finding.detail.as_str()).collect();
        assert_eq!(
            told,
            [
                "Istio: namespace istio-system, 1 definitions such as gateways.networking.istio.io",
                "Kuma: 1 definitions such as meshes.kuma.io",
                "Consul: namespace consul",
            ]
        );
    }
}
