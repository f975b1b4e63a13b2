//! A node: a thread in the node's network namespace, with a runtime of its own.
//!
//! Every socket that the thread opens and every program that it starts is in the node's namespace, so names
//! are served where pods look for them, with no switching to and fro.
//!
//! Reading order: `network` (addresses and routes), `kubelet` (which pods), `pod` (one pod's life),
//! `sandbox`, `container`, `probe`, `prober`, `status`; beside them `services` (packet rules), `dns`,
//! `pod_source` (what the agent reads).

mod container;
mod dns;
mod environment;
mod http;
mod kubelet;
mod network;
mod pod;
mod pod_source;
mod probe;
mod prober;
mod sandbox;
mod services;
mod status;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use http::get_json;
use mesh_api::resource::Pod;
pub use network::{configure_fabric, fabric_script, node_links_script};
pub use prober::serve as serve_probes;
use tokio::sync::{oneshot, watch};

use crate::{
    api::PodEntry,
    cluster::Store,
    host::{HostError, netns},
    layout::{Layout, NodeLayout, NodeNumber},
};

/// What a node's thread works with.
#[derive(Debug)]
pub struct Node {
    /// Its number, and the addresses that follow from it.
    pub number: NodeNumber,
    /// Its name.
    pub name: String,
    /// Its paths.
    pub paths: NodeLayout,
    /// The lab's paths.
    pub layout: Layout,
    /// The objects.
    pub store: Arc<Store>,
    /// How many nodes the lab has, for the routes between them.
    pub nodes: u8,
    /// Whether an agent runs here, for which a pod's first program waits.
    pub has_agent: bool,
    prober: prober::Prober,
    asked: Mutex<Option<prober::Asked>>,
    entries: Mutex<HashMap<String, Vec<(String, PodEntry)>>>,
}

impl Node {
    /// A node of a lab.
    pub fn new(number: NodeNumber, layout: Layout, store: Arc<Store>, nodes: u8, has_agent: bool) -> Self {
        let name = number.name();
        let paths = layout.node(&name);
        let (prober, asked) = prober::Prober::new();
        let (asked, entries) = (Mutex::new(Some(asked)), Mutex::default());
        Self { number, name, paths, layout, store, nodes, has_agent, prober, asked, entries }
    }

    /// How to enter a container (the first, if none is named) of the pod with that uid, if its sandbox is up.
    pub fn entry(&self, uid: &str, container: Option<&str>) -> Option<PodEntry> {
        let entries = self.lock();
        let containers = entries.get(uid)?;
        let found = containers.iter().find(|(name, _)| container.is_none_or(|wanted| wanted == name));
        found.map(|(_, entry)| entry.clone())
    }

    fn set_entries(&self, uid: &str, containers: Vec<(String, PodEntry)>) {
        self.lock().insert(uid.to_owned(), containers);
    }

    fn remove_entries(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<(String, PodEntry)>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory for the pod's own files, gone with the pod.
    fn scratch(&self, pod: &Pod) -> PathBuf {
        self.pod_directory(&pod.metadata.namespace, &pod.metadata.name).join("scratch")
    }

    fn pod_directory(&self, namespace: &str, name: &str) -> PathBuf {
        self.layout.pod(namespace, name)
    }
}

/// Starts the node's thread; returns once the node's network is up and its names are served.
pub async fn start(node: Arc<Node>) -> Result<(), HostError> {
    let (ready, is_ready) = oneshot::channel();
    std::thread::spawn(move || {
        let started = netns::enter(node.paths.netns())
            .and_then(|()| network::configure(&node))
            .and_then(|()| runtime())
            .and_then(|runtime| Ok((runtime.block_on(dns::Sockets::bind(node.number))?, runtime)));
        match started {
            Err(error) => drop(ready.send(Err(error))),
            Ok((names, runtime)) => {
                let _ = ready.send(Ok(()));
                runtime.block_on(run(node, names));
            }
        }
    });
    is_ready.await.unwrap_or_else(|_| unreachable!("the thread sends before it ends"))
}

fn runtime() -> Result<tokio::runtime::Runtime, HostError> {
    use crate::host::During;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.during(|| "start a node's runtime".to_owned())
}

async fn run(node: Arc<Node>, names: dns::Sockets) {
    names.serve(&node.store);
    let asked = node.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    let probe = async {
        if let Some(asked) = asked {
            prober::keep(&node, asked).await;
        }
    };
    tokio::join!(kubelet::run(node.clone()), services::run(&node), pod_source::run(&node), probe);
}

/// Returns when a pod is to end.
async fn asked_to_stop(stopped: &watch::Receiver<bool>) {
    let mut stopped = stopped.clone();
    // The sender lives as long as the pod's task, so an error cannot come before the request.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Does `work`, which may block, on a fresh thread in another network namespace.
async fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let netns = netns.to_owned();
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || {
        // The receiver is gone if the pod was given up meanwhile.
        let _ = done.send(netns::enter(&netns).and_then(|()| work()));
    });
    result.await.unwrap_or_else(|_| unreachable!("the thread sends before it ends"))
}
