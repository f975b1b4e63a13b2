//! `-l`: choosing by labels. Agents know none, so they are looked up where the objects are: at the API server
//! of a cluster, in the manifests of a lab.

mod parse;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::{GroupVersionKind, Selector, SelectorExt};
use mesh_api::kind::{Kind, ObjectKey, find_kind};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::source::Mesh;

pub use parse::parse;

/// Objects that have the labels. A `ServiceAccount` is among them if a pod has them that runs as it.
pub type Bearers = BTreeSet<ObjectKey>;

/// What of these kinds has the labels, in a namespace or in all.
pub async fn bearers(
    mesh: &Mesh,
    selector: &Selector,
    kinds: &[Kind],
    namespace: Option<&str>,
) -> Result<Bearers> {
    let mut all = Bearers::new();
    for &kind in kinds {
        let looked_at = if kind == Kind::ServiceAccount { Kind::Pod } else { kind };
        let found = match mesh {
            Mesh::Cluster(cluster) => of_cluster(cluster, selector, looked_at, namespace).await?,
            Mesh::Local { manifests: Some(directory), .. } => {
                of_lab(directory, selector, looked_at, namespace)?
            }
            Mesh::Local { manifests: None, .. } => bail!(
                "agents know no labels: -l needs a cluster (leave out --agent and --control) or a lab (--lab)"
            ),
        };
        all.extend(found.iter().map(|object| key(kind, object)));
    }
    Ok(all)
}

fn key(kind: Kind, object: &DynamicObject) -> ObjectKey {
    let metadata = &object.metadata;
    let name = if kind == Kind::ServiceAccount {
        let account = object.data["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty());
        account.unwrap_or("default").to_owned()
    } else {
        metadata.name.clone().unwrap_or_default()
    };
    ObjectKey { kind, namespace: metadata.namespace.clone().unwrap_or_default(), name }
}

async fn of_cluster(
    cluster: &Cluster,
    selector: &Selector,
    kind: Kind,
    namespace: Option<&str>,
) -> Result<Vec<DynamicObject>> {
    let known = kind.table_row();
    let version = known.api_versions[0].rsplit('/').next().unwrap_or_default();
    let gvk = GroupVersionKind::gvk(known.group(), version, known.name);
    let resource = ApiResource::from_gvk_with_plural(&gvk, known.plural);
    let client = cluster.client.clone();
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    match api.list(&ListParams::default().labels_from(selector)).await {
        Ok(found) => Ok(found.items),
        // A kind that is not defined has no objects. Where nothing of its group is defined the answer is
        // plain text, which has a code and no reason.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("can't list the {}", resource.plural)),
    }
}

/// A lab has a directory for each namespace, and in it a file for each object.
fn of_lab(
    directory: &Path,
    selector: &Selector,
    kind: Kind,
    namespace: Option<&str>,
) -> Result<Vec<DynamicObject>> {
    let mut found = Vec::new();
    for place in entries(directory)? {
        for file in entries(&place)? {
            // One may go while it is looked for.
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let Ok(value) = serde_json::from_str::<Value>(&text) else { continue };
            let Ok(object) = serde_json::from_value::<DynamicObject>(value) else { continue };
            let types = object.types.as_ref();
            let known = types.and_then(|types| find_kind(&types.api_version, &types.kind));
            let is_of_kind = known == Some(kind.table_row());
            let is_there = namespace.is_none_or(|it| object.metadata.namespace.as_deref() == Some(it));
            let labels = object.metadata.labels.clone().unwrap_or_default();
            if is_of_kind && is_there && selector.matches(&labels) {
                found.push(object);
            }
        }
    }
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("can't read the lab's manifests in {}", directory.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lab() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let put = |namespace: &str, kind: &str, name: &str, labels: Value, spec: Value| {
            let place = directory.path().join(namespace);
            fs::create_dir_all(&place).unwrap();
            let object = json!({
                "apiVersion": "v1", "kind": kind, "spec": spec,
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
            });
            fs::write(place.join(format!("{kind}-{name}.json")), object.to_string()).unwrap();
        };
        put("shop", "Pod", "web-1", json!({"app": "web"}), json!({"serviceAccountName": "seller"}));
        put("shop", "Pod", "db", json!({"app": "db"}), json!({}));
        put("shop", "Service", "web", json!({"app": "web"}), json!({}));
        put("bank", "Pod", "web-1", json!({"app": "web"}), json!({}));
        directory
    }

    async fn found(kind: Kind, selector: &str, namespace: Option<&str>) -> Vec<String> {
        let lab = lab();
        let mesh = Mesh::Local { agents: Vec::new(), control: None, manifests: Some(lab.path().to_owned()) };
        let found = bearers(&mesh, &parse(selector).unwrap(), &[kind], namespace).await.unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn labels_of_a_lab_are_those_of_its_manifests() {
        assert_eq!(found(Kind::Pod, "app=web", None).await, ["Pod bank/web-1", "Pod shop/web-1"]);
        assert_eq!(found(Kind::Pod, "app!=web", Some("shop")).await, ["Pod shop/db"]);
        assert_eq!(found(Kind::Service, "app", None).await, ["Service shop/web"]);
    }

    #[tokio::test]
    async fn an_account_has_the_labels_of_the_pods_that_run_as_it() {
        let accounts = found(Kind::ServiceAccount, "app=web", None).await;
        assert_eq!(accounts, ["ServiceAccount bank/default", "ServiceAccount shop/seller"]);
    }

    #[tokio::test]
    async fn where_labels_are_not_known_is_told() {
        let mesh = Mesh::Local { agents: Vec::new(), control: None, manifests: None };
        let error = bearers(&mesh, &parse("a=b").unwrap(), &[Kind::Pod], None).await.unwrap_err();
        assert!(error.to_string().contains("-l needs a cluster"), "{error}");
    }
}
