//! What an installation consists of, kept in the cluster, so that all of it and nothing else can be taken
//! away.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams, ObjectMeta, Patch, PatchParams};
use serde::{Deserialize, Serialize};

use super::manifests::rank;
use crate::cluster::{Cluster, FIELD_MANAGER, INSTANCE_LABEL};

const KEY: &str = "inventory.json";

/// The objects of an installation, in the order of their application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    made_namespace: bool,
    objects: Vec<Entry>,
}

/// An object of an installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace, if the manifest says one.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl Inventory {
    /// Of these objects.
    pub fn of(objects: &[DynamicObject], made_namespace: bool) -> Self {
        Self { made_namespace, objects: objects.iter().filter_map(Entry::of).collect() }
    }

    /// What is recorded of a release; empty if nothing is.
    pub async fn read(cluster: &Cluster, release: &str) -> Result<Self> {
        let record = cluster.api::<ConfigMap>().get_opt(&name(release)).await;
        let record = record.with_context(|| format!("can't read the ConfigMap {}", name(release)))?;
        match record.and_then(|record| record.data).and_then(|mut data| data.remove(KEY)) {
            None => Ok(Self::default()),
            Some(text) => serde_json::from_str(&text)
                .with_context(|| format!("the ConfigMap {} has no inventory of this version", name(release))),
        }
    }

    /// Records it.
    pub async fn write(&self, cluster: &Cluster, release: &str) -> Result<()> {
        let name = name(release);
        let record = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels(release)),
                ..ObjectMeta::default()
            },
            data: Some([(KEY.to_owned(), serde_json::to_string_pretty(self)?)].into()),
            ..ConfigMap::default()
        };
        let how = PatchParams::apply(FIELD_MANAGER).force();
        let written = cluster.api::<ConfigMap>().patch(&name, &how, &Patch::Apply(&record)).await;
        written.with_context(|| format!("can't write the ConfigMap {name}"))?;
        Ok(())
    }

    /// Whether the installation made the namespace that it is in.
    pub fn made_namespace(&self) -> bool {
        self.made_namespace
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects, those first that were applied last.
    pub fn backwards(&self) -> impl Iterator<Item = &Entry> {
        self.objects.iter().rev()
    }

    /// With what another has besides.
    pub fn and(mut self, other: &Self) -> Self {
        self.objects.extend(other.clone().without(&self.clone()).cloned());
        self.sort();
        self
    }

    /// What this has and `other` has not, whatever the version of the kind.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Entry> {
        self.objects.iter().filter(|entry| !other.objects.iter().any(|it| it.is_same(entry)))
    }

    /// Puts the objects into the order of application.
    pub fn sort(&mut self) {
        self.objects.sort_by_key(|entry| rank(&entry.kind));
    }
}

impl Entry {
    /// What is recorded of an object.
    pub fn of(object: &DynamicObject) -> Option<Self> {
        let types = object.types.as_ref()?;
        Some(Self {
            api_version: types.api_version.clone(),
            kind: types.kind.clone(),
            namespace: object.metadata.namespace.clone(),
            name: object.name_any(),
        })
    }

    /// Whether it defines a kind.
    pub fn is_definition(&self) -> bool {
        self.kind == "CustomResourceDefinition"
    }

    fn is_same(&self, other: &Self) -> bool {
        let group = |it: &Self| it.api_version.split_once('/').map(|(group, _)| group.to_owned());
        (group(self), &self.kind, &self.namespace, &self.name)
            == (group(other), &other.kind, &other.namespace, &other.name)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Whether helm has a record of a release.
pub async fn has_helm_release(cluster: &Cluster, release: &str) -> Result<bool> {
    let selector = ListParams::default().labels(&format!("owner=helm,name={release}")).limit(1);
    let records = cluster.api::<Secret>().list_metadata(&selector).await;
    Ok(!records.context("can't look for helm's records")?.items.is_empty())
}

/// Labels of a namespace that the agents' pods, with host network and host paths, are let into.
pub fn namespace_labels() -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/part-of", "nodemesh"),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
        ("pod-security.kubernetes.io/enforce", "privileged"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Name of the record of a release.
pub fn name(release: &str) -> String {
    format!("{release}-installed-by-meshctl")
}

fn labels(release: &str) -> BTreeMap<String, String> {
    [
        (INSTANCE_LABEL, release),
        ("app.kubernetes.io/name", "nodemesh"),
        ("app.kubernetes.io/part-of", "nodemesh"),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(api_version: &str, kind: &str, name: &str) -> Entry {
        Entry { api_version: api_version.into(), kind: kind.into(), namespace: None, name: name.into() }
    }

    fn inventory(objects: &[Entry]) -> Inventory {
        Inventory { made_namespace: false, objects: objects.to_vec() }
    }

    #[test]
    fn an_object_of_a_newer_version_is_the_same_object() {
        let old =
            inventory(&[entry("policy/v1beta1", "PodDisruptionBudget", "a"), entry("v1", "Service", "b")]);
        let new = inventory(&[entry("policy/v1", "PodDisruptionBudget", "a")]);
        let gone: Vec<_> = old.without(&new).map(ToString::to_string).collect();
        assert_eq!(gone, ["Service b"]);
    }

    #[test]
    fn what_failed_halfway_is_recorded_with_what_was_there() {
        let old = inventory(&[entry("v1", "ServiceAccount", "old")]);
        let new = inventory(&[entry("apps/v1", "DaemonSet", "new")]);
        let both: Vec<_> = new.and(&old).backwards().map(ToString::to_string).collect();
        assert_eq!(both, ["DaemonSet new", "ServiceAccount old"]);
    }
}
