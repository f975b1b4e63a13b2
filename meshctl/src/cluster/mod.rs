//! A Kubernetes cluster, as the kubeconfig leads to it: its client, and the mesh's own pods in it.

mod exec;
mod forward;
mod names;
mod other_control;
mod pods;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::ask::Endpoint;
use crate::reason::of_client;

pub use forward::PodPort;
pub use names::{COMPONENT_AGENT, COMPONENT_CONTROL, FIELD_MANAGER, INSTANCE_LABEL, selector};
pub use other_control::OtherControl;
pub use pods::{is_ready, refused, trouble};

/// Port of the admin endpoints on the pods' loopback.
const ADMIN_PORT: u16 = 15000;
/// Lease of the control plane's leader.
const LEASE: &str = "nodemesh-control";
/// Marks a program that runs in a pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// How to reach a cluster.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// File instead of `KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Context in it instead of the current one.
    pub context: Option<String>,
}

/// A cluster, and the namespace that the mesh is installed in.
#[derive(Clone)]
pub struct Cluster {
    /// Client of the API server.
    pub client: Client,
    /// Namespace of the mesh.
    pub namespace: String,
    /// Version of the API server, such as `v1.34.2`.
    pub version: String,
}

/// A pod of the mesh itself.
pub struct MeshPod {
    /// Name of the pod.
    pub name: String,
    /// Node that it runs on; empty if it has none yet.
    pub node: String,
    /// Whether Kubernetes calls it ready.
    pub ready: bool,
    /// Its admin endpoint, or why it can't be asked.
    pub endpoint: Result<Endpoint, String>,
}

impl Access {
    /// Whether there is a cluster to reach without being told of one.
    pub fn is_there() -> bool {
        let variable = env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
        let home = env::home_dir().is_some_and(|home| home.join(".kube/config").is_file());
        variable || home || env::var_os(IN_CLUSTER).is_some()
    }

    /// The cluster, with a mesh in `namespace`. An error if its API server does not answer.
    pub async fn cluster(&self, namespace: &str) -> Result<Cluster> {
        let config = self.config().await?;
        let url = config.cluster_url.clone();
        let client = Client::try_from(config)
            .with_context(|| format!("can't make a client of the API server {url}"))?;
        let version = client.apiserver_version().await.map_err(|error| {
            let error = of_client(&error);
            anyhow!("can't use the API server {url}: {error}. --context or --kubeconfig lead to another")
        })?;
        Ok(Cluster { client, namespace: namespace.to_owned(), version: version.git_version })
    }

    async fn config(&self) -> Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        match &self.kubeconfig {
            Some(path) => from_file(path, &options).await,
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.context("can't use the kubeconfig")
            }
            None => Config::infer().await.context("can't use the kubeconfig"),
        }
    }
}

async fn from_file(path: &Path, options: &KubeConfigOptions) -> Result<Config> {
    let using = || format!("can't use the kubeconfig {}", path.display());
    let file = Kubeconfig::read_from(path).with_context(using)?;
    Config::from_custom_kubeconfig(file, options).await.with_context(using)
}

impl Cluster {
    /// The pods of the agents, by node.
    pub async fn agents(&self) -> Result<Vec<MeshPod>> {
        self.mesh_pods(COMPONENT_AGENT).await
    }

    /// The pods of the control plane, by name.
    pub async fn control(&self) -> Result<Vec<MeshPod>> {
        self.mesh_pods(COMPONENT_CONTROL).await
    }

    /// The holder of the control plane's lease, if one holds it.
    pub async fn leader(&self) -> Result<Option<String>> {
        let lease =
            self.api::<Lease>().get_opt(LEASE).await.context("can't read the control plane's lease")?;
        let holder = lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
        Ok(holder.filter(|holder| !holder.is_empty()))
    }

    /// The agents' `DaemonSet`, if the mesh is installed.
    pub async fn daemon_set(&self) -> Result<Option<DaemonSet>> {
        let all = self.of_component::<DaemonSet>(COMPONENT_AGENT).await?;
        Ok(all.into_iter().next())
    }

    /// The control plane that the agents use, if it is not this mesh's own.
    pub async fn other_control(&self) -> Result<Option<OtherControl>> {
        Ok(self.daemon_set().await?.as_ref().and_then(OtherControl::of))
    }

    /// The control plane's `Deployment`, if the mesh is installed.
    pub async fn deployment(&self) -> Result<Option<Deployment>> {
        let all = self.of_component::<Deployment>(COMPONENT_CONTROL).await?;
        Ok(all.into_iter().next())
    }

    /// All nodes of the cluster.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await;
        Ok(nodes.context("can't list the nodes")?.items)
    }

    /// The pods of a component as they are.
    pub async fn pods(&self, component: &str) -> Result<Vec<Pod>> {
        self.of_component::<Pod>(component).await
    }

    /// Anybody's pod. An error if there is none.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let pod = pods.get_opt(name).await.context("can't read the pod")?;
        pod.with_context(|| format!("there is no pod {namespace}/{name}"))
    }

    /// Objects of a kind in the mesh's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn mesh_pods(&self, component: &str) -> Result<Vec<MeshPod>> {
        let mut pods: Vec<_> =
            self.pods(component).await?.into_iter().map(|pod| self.mesh_pod(&pod)).collect();
        pods.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        Ok(pods)
    }

    fn mesh_pod(&self, pod: &Pod) -> MeshPod {
        let name = pod.name_any();
        let port = PodPort {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            pod: name.clone(),
            port: ADMIN_PORT,
        };
        let endpoint = match trouble(pod) {
            Some(trouble) => Err(format!("pod {}/{name}: {trouble}", self.namespace)),
            None => Ok(Endpoint::Pod(port)),
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        MeshPod { name, node, ready: is_ready(pod), endpoint }
    }

    async fn of_component<K>(&self, component: &str) -> Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let labelled = ListParams::default().labels(&selector(component));
        let listed = self.api::<K>().list(&labelled).await;
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        Ok(listed
            .with_context(|| format!("can't list the {kind}s of {component} in {}", self.namespace))?
            .items)
    }
}
