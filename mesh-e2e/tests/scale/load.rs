//! The objects, made and deleted many at a time.

use std::cell::Cell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How many there are.
pub const PODS: usize = 2000;
/// How many Services they are shared between.
pub const SERVICES: usize = 200;
const NODES: usize = 20;
/// Requests under way at a time.
const AT_ONCE: usize = 32;
/// Kubelets renew theirs as often; without it a node's pods count as not ready after 40 seconds.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Nodes without kubelets, and what is on them, until it is dropped.
pub struct Load {
    runtime: Runtime,
    client: Client,
    namespace: String,
    last_write: Cell<Instant>,
}

impl Load {
    /// Makes the nodes, which go on to look alive.
    pub fn new(namespace: &str) -> Result<Self> {
        // Whoever starts first has installed the same.
        let _installed_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = Runtime::new()?;
        let client = runtime.block_on(Client::try_default())?;
        let namespace = namespace.to_owned();
        let load = Self { runtime, client, namespace, last_write: Cell::new(Instant::now()) };
        load.runtime.block_on(load.make_nodes())?;
        load.runtime.spawn(keep_alive(load.client.clone()));
        Ok(load)
    }

    /// Makes every Service and every Pod, and says of each Pod that it is ready.
    pub fn make_all(&self) -> Result<()> {
        self.run(async {
            self.account().await?;
            let services = self.api::<Service>();
            self.each(0..SERVICES, |number| create(services.clone(), service(number))).await?;
            self.each(0..PODS, |number| self.make_pod(number)).await
        })
    }

    /// Deletes the first `count` Pods and makes as many others.
    pub fn replace(&self, count: usize) -> Result<()> {
        let pods = self.api::<Pod>();
        self.run(async {
            self.each(0..count, |number| delete(pods.clone(), pod_name(number))).await?;
            self.each(PODS..PODS + count, |number| self.make_pod(number)).await
        })
    }

    /// Deletes the Pods.
    pub fn delete_all(&self) -> Result<()> {
        let pods = self.api::<Pod>();
        let at_once = DeleteParams::default().grace_period(0);
        self.run(async { Ok(pods.delete_collection(&at_once, &ListParams::default()).await.map(drop)?) })
    }

    /// When the last of these was done.
    pub fn last_write(&self) -> Instant {
        self.last_write.get()
    }

    fn run(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        self.runtime.block_on(work)?;
        self.last_write.set(Instant::now());
        Ok(())
    }

    async fn each<F>(&self, numbers: std::ops::Range<usize>, work: impl Fn(usize) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        stream::iter(numbers).map(work).buffer_unordered(AT_ONCE).try_collect().await
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// No Pod can be made before its account, which the cluster makes in a moment.
    async fn account(&self) -> Result<()> {
        let accounts = self.api::<ServiceAccount>();
        let wait = async {
            while accounts.get_opt("default").await?.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.context("no service account")?
    }

    async fn make_pod(&self, number: usize) -> Result<()> {
        let pods = self.api::<Pod>();
        create(pods.clone(), pod(number)).await?;
        let status = Patch::Merge(ready(number));
        pods.patch_status(&pod_name(number), &PatchParams::default(), &status).await?;
        Ok(())
    }

    async fn make_nodes(&self) -> Result<()> {
        let (nodes, leases) = (Api::all(self.client.clone()), leases(&self.client));
        for number in 0..NODES {
            create::<Node>(nodes.clone(), node(number)).await?;
            create::<Lease>(leases.clone(), lease(number)).await?;
        }
        Ok(())
    }

    async fn delete_nodes(&self) -> Result<()> {
        let (nodes, leases): (Api<Node>, _) = (Api::all(self.client.clone()), leases(&self.client));
        for number in 0..NODES {
            delete(nodes.clone(), node_name(number)).await?;
            delete(leases.clone(), node_name(number)).await?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let pods = self.delete_all();
        let nodes = self.runtime.block_on(self.delete_nodes());
        if let Err(error) = pods.and(nodes) {
            eprintln!("not everything was deleted: {error:#}");
        }
    }
}

async fn keep_alive(client: Client) {
    let leases = leases(&client);
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        for number in 0..NODES {
            let patch = Patch::Merge(json!({"spec": {"renewTime": now()}}));
            // The next one may go through, and a node that is late for once is none that is lost.
            let _missed = leases.patch(&node_name(number), &PatchParams::default(), &patch).await;
        }
    }
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), "kube-node-lease")
}

async fn create<K>(api: Api<K>, object: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + Debug + serde::Serialize,
{
    let object = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await.map(drop)?)
}

async fn delete<K>(api: Api<K>, name: String) -> Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    Ok(api.delete(&name, &DeleteParams::default().grace_period(0)).await.map(drop)?)
}

fn node_name(number: usize) -> String {
    format!("scale-{}", number % NODES)
}

fn pod_name(number: usize) -> String {
    format!("pod-{number}")
}

/// Without the label that says which system it runs, so that no `DaemonSet` wants a pod there.
fn node(number: usize) -> Value {
    json!({
        "metadata": {"name": node_name(number)},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "Made", "message": "there is no kubelet",
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        }]},
    })
}

fn lease(number: usize) -> Value {
    let name = node_name(number);
    json!({
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now()},
    })
}

fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

fn service(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("service-{number}")},
        "spec": {"selector": {"app": format!("app-{number}")}, "ports": [{"name": "http", "port": 80}]},
    })
}

fn pod(number: usize) -> Value {
    json!({
        "metadata": {"name": pod_name(number), "labels": {"app": format!("app-{}", number % SERVICES)}},
        "spec": {
            "nodeName": node_name(number),
            "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": "nodemesh.io/none"}],
        },
    })
}

/// What a kubelet would say. The addresses are those that benchmarks may use (RFC 2544).
fn ready(number: usize) -> Value {
    let address = format!("198.18.{}.{}", number / 250, number % 250 + 1);
    json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }})
}
