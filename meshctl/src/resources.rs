//! What became of what people wrote for the mesh, as the control plane says it.

use anyhow::{Context, Result, bail};
use mesh_api::admin::{ResourceReport, ResourceStatus};
use mesh_api::manifest::Kind;

use crate::ask::Endpoint;
use crate::cluster::OtherControl;
use crate::reason::reason;
use crate::source::Mesh;

/// Asks one replica after another; they all know the same.
pub async fn of(mesh: &Mesh) -> Result<ResourceReport> {
    let endpoints: Vec<Result<Endpoint, String>> = match mesh {
        Mesh::Local { control, .. } => {
            vec![Ok(control.clone().context("--control says where the control plane is")?)]
        }
        Mesh::Cluster(cluster) => cluster.control().await?.into_iter().map(|pod| pod.endpoint).collect(),
    };
    let mut last = None;
    for endpoint in endpoints {
        match ask(endpoint).await {
            Ok(resources) => return Ok(resources),
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        return Err(error);
    }
    if let Some(other) = other_control(mesh).await {
        bail!("{other}, which says nothing to meshctl");
    }
    bail!("there is no replica of the control plane; `meshctl status` says why")
}

/// The same, where an answer can do without: none, with a warning, if nobody answers.
pub async fn if_known(mesh: &Mesh) -> Option<ResourceReport> {
    if matches!(mesh, Mesh::Local { control: None, .. }) {
        return None;
    }
    match of(mesh).await {
        Ok(resources) => Some(resources),
        Err(error) => {
            remark!("warning: which policies are in force as written is not known: {}", reason(&error));
            None
        }
    }
}

async fn other_control(mesh: &Mesh) -> Option<OtherControl> {
    let Mesh::Cluster(cluster) = mesh else { return None };
    cluster.other_control().await.ok().flatten()
}

async fn ask(endpoint: Result<Endpoint, String>) -> Result<ResourceReport> {
    endpoint.map_err(anyhow::Error::msg)?.open().await?.json("/resources").await
}

/// The `PeerAuthentication`s of which one has the workloads of a namespace require mutual TLS: its own that
/// are STRICT, else the mesh's, which are in `root`.
pub fn strict_in<'a>(resources: &'a ResourceReport, namespace: &str, root: &str) -> Vec<&'a ResourceStatus> {
    let of = |namespace: &str| -> Vec<&ResourceStatus> {
        let all = resources.resources.iter().filter(|it| it.namespace == namespace);
        all.filter(|it| it.kind == Kind::PeerAuthentication && it.says.starts_with("STRICT")).collect()
    };
    let own = of(namespace);
    if own.is_empty() { of(root) } else { own }
}
