//! Objects to the API server and away from it, by server-side apply: what others set in them stays.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::{self, ApiResource, Scope};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::inventory::{Entry, Inventory};
use super::title;
use crate::cluster::{Cluster, FIELD_MANAGER};

/// How long the API server may take to serve a new kind.
const ESTABLISHED: Duration = Duration::from_secs(30);

/// What became of an object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Its kind.
    pub kind: String,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// What was done.
    pub result: Outcome,
}

/// What was done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was there and is another now.
    Changed,
    /// It was there as it should be.
    Unchanged,
    /// It would be accepted.
    Accepted,
    /// Nobody can say: its namespace is yet to be made.
    Skipped,
    /// It is somebody else's.
    LeftAlone,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Accepted => "accepted",
            Self::Skipped => "skipped: its namespace is not there yet",
            Self::LeftAlone => "left alone: it is somebody else's",
        })
    }
}

/// Nothing is kept.
#[derive(Clone, Copy)]
struct Rehearsal {
    /// Whether the API server can look at what goes into the mesh's namespace.
    has_namespace: bool,
}

/// Applies objects; learns each kind's resource once.
pub struct Applier<'a> {
    cluster: &'a Cluster,
    rehearsal: Option<Rehearsal>,
    resources: HashMap<TypeMeta, (ApiResource, Scope)>,
}

impl<'a> Applier<'a> {
    /// One that applies.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, rehearsal: None, resources: HashMap::new() }
    }

    /// One that has the API server look at objects and keep none.
    pub async fn rehearsing(cluster: &'a Cluster) -> Result<Self> {
        let has_namespace = has_namespace(cluster).await?;
        Ok(Self { rehearsal: Some(Rehearsal { has_namespace }), ..Self::new(cluster) })
    }

    /// Applies one object. A definition of a kind is waited for until the kind is served.
    pub async fn apply(&mut self, object: &DynamicObject) -> Result<Applied> {
        let done = self.patch(object).await.with_context(|| format!("can't apply {}", title(object)))?;
        if done.kind == "CustomResourceDefinition" && self.rehearsal.is_none() {
            self.await_established(&done.name).await?;
        }
        Ok(done)
    }

    async fn patch(&mut self, object: &DynamicObject) -> Result<Applied> {
        let types = object.types.clone().context("it has no kind")?;
        let api = self.api(&types, object.metadata.namespace.as_deref()).await?;
        let name = object.name_any();
        if api.namespace().is_some() && self.rehearsal.is_some_and(|it| !it.has_namespace) {
            let namespace = api.namespace().map(ToOwned::to_owned);
            return Ok(Applied { kind: types.kind, namespace, name, result: Outcome::Skipped });
        }
        let before = api.get_metadata_opt(&name).await?.and_then(|it| it.metadata.resource_version);
        let mut how = PatchParams::apply(FIELD_MANAGER).force();
        how.dry_run = self.rehearsal.is_some();
        let after = api.patch(&name, &how, &Patch::Apply(object)).await?;
        let result = match before {
            _ if self.rehearsal.is_some() => Outcome::Accepted,
            None => Outcome::Created,
            Some(before) if after.metadata.resource_version.as_ref() == Some(&before) => Outcome::Unchanged,
            Some(_) => Outcome::Changed,
        };
        Ok(Applied { kind: types.kind, namespace: after.metadata.namespace, name, result })
    }

    async fn await_established(&self, name: &str) -> Result<()> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.cluster.client.clone());
        let established = await_condition(definitions, name, conditions::is_crd_established());
        tokio::time::timeout(ESTABLISHED, established).await.map_err(|_| {
            anyhow!("the API server does not serve {name} after {} s", ESTABLISHED.as_secs())
        })??;
        Ok(())
    }

    /// Deletes what `before` has and `now` has not, except definitions of kinds: people's resources go with
    /// those.
    pub async fn prune(&mut self, before: &Inventory, now: &Inventory) -> Result<()> {
        for entry in before.without(now).filter(|entry| !entry.is_definition()) {
            remark!("deleting {entry}, which is not part of it any more");
            self.delete(entry).await?;
        }
        Ok(())
    }

    /// Deletes an object, and tells whether it was there.
    pub async fn delete(&mut self, entry: &Entry) -> Result<bool> {
        let types = TypeMeta { api_version: entry.api_version.clone(), kind: entry.kind.clone() };
        let api = match self.api(&types, entry.namespace.as_deref()).await {
            Ok(api) => api,
            // Its kind went before it, and it with its kind.
            Err(error) if is_unknown_kind(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        // What an object owns goes before it, so once it is gone all is.
        match api.delete(&entry.name, &DeleteParams::foreground()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(anyhow!(error).context(format!("can't delete {entry}"))),
        }
    }

    async fn api(&mut self, types: &TypeMeta, namespace: Option<&str>) -> Result<Api<DynamicObject>> {
        let (resource, scope) = self.resource(types).await?;
        let client = self.cluster.client.clone();
        Ok(match scope {
            Scope::Cluster => Api::all_with(client, &resource),
            Scope::Namespaced => {
                Api::namespaced_with(client, namespace.unwrap_or(&self.cluster.namespace), &resource)
            }
        })
    }

    async fn resource(&mut self, types: &TypeMeta) -> Result<(ApiResource, Scope)> {
        if let Some(known) = self.resources.get(types) {
            return Ok(known.clone());
        }
        let kind = GroupVersionKind::try_from(types)?;
        let (resource, capabilities) = discovery::pinned_kind(&self.cluster.client, &kind)
            .await
            .with_context(|| format!("the API server does not serve {} {}", types.api_version, types.kind))?;
        let found = (resource, capabilities.scope);
        self.resources.insert(types.clone(), found.clone());
        Ok(found)
    }
}

fn is_unknown_kind(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Discovery(_)) => true,
        Some(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

/// Makes the mesh's namespace where it is missing, and tells whether it was.
pub async fn ensure_namespace(cluster: &Cluster) -> Result<bool> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let name = &cluster.namespace;
    if has_namespace(cluster).await? {
        return Ok(false);
    }
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.clone());
    namespace.metadata.labels = Some(super::inventory::namespace_labels());
    let how = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    namespaces
        .create(&how, &namespace)
        .await
        .with_context(|| format!("can't create the namespace {name}"))?;
    remark!("created Namespace {name}");
    Ok(true)
}

async fn has_namespace(cluster: &Cluster) -> Result<bool> {
    let (namespaces, name) = (Api::<Namespace>::all(cluster.client.clone()), &cluster.namespace);
    let found = namespaces.get_opt(name).await;
    Ok(found.with_context(|| format!("can't read the namespace {name}"))?.is_some())
}
