//! The lab's daemon: makes the lab, then answers questions about it until it is killed.

mod serve;

use std::{
    io::{self, Write},
    sync::Arc,
};

use futures_util::future::try_join_all;
use rustix::process::setsid;
use tokio::net::UnixListener;

use crate::{
    cluster::{self, Placement, Store},
    host::{During, HostError, cgroup, files, limits, mounts, netns},
    launch::{LabOptions, READY},
    layout::{FABRIC, Layout, NodeNumber},
    mesh::{self, MeshError, Program},
    node::{self, Node},
};

/// A running lab.
#[derive(Debug)]
pub struct Daemon {
    layout: Layout,
    store: Arc<Store>,
    placement: Arc<Placement>,
    nodes: Vec<LabNode>,
    control: Option<Arc<Program>>,
}

#[derive(Debug)]
struct LabNode {
    node: Arc<Node>,
    agent: Option<Arc<Program>>,
}

/// Why the lab did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine refused something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The mesh did not start.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The first objects could not be stored.
    #[error(transparent)]
    Store(#[from] cluster::StoreError),
}

/// Makes the lab, says so on standard output, and serves it for good. Returns only if it could not be made.
pub async fn run(layout: Layout, options: LabOptions) -> Result<(), StartError> {
    become_daemon(&layout)?;
    let daemon = Arc::new(Daemon::start(layout, &options).await?);
    let socket =
        UnixListener::bind(daemon.layout.socket()).during(|| "listen for the command line".to_owned())?;
    tokio::spawn(cluster::run_controllers(daemon.store.clone(), daemon.placement.clone()));
    say_ready();
    serve::serve(daemon, socket).await;
    Ok(())
}

fn become_daemon(layout: &Layout) -> Result<(), HostError> {
    // A process that leads its group already cannot; then it is in nobody's way either.
    let _ = setsid();
    let daemon = layout.cgroup().join("daemon");
    cgroup::create(&daemon)?;
    cgroup::join(&daemon)?;
    limits::raise_open_files()
}

/// Who waits for this line may have gone; the lab is up all the same.
fn say_ready() {
    let mut output = io::stdout();
    let _ = writeln!(output, "{READY}").and_then(|()| output.flush());
}

impl Daemon {
    async fn start(layout: Layout, options: &LabOptions) -> Result<Self, StartError> {
        let numbers: Vec<NodeNumber> = NodeNumber::all(options.nodes).collect();
        make_directories(&layout, &numbers)?;
        let store = Arc::new(Store::new(layout.control().config()));
        for object in cluster::machine_objects(&numbers) {
            store.put(object, None)?;
        }
        make_fabric(&layout, &numbers, options.nodes)?;
        let control = match &options.mesh {
            Some(mesh) => {
                mounts::bpf()?;
                mesh::write_tokens(&layout, &numbers)?;
                Some(Arc::new(Program::control(&layout, mesh)))
            }
            None => None,
        };
        let nodes: Vec<LabNode> = numbers
            .iter()
            .map(|number| LabNode {
                node: Arc::new(Node::new(
                    *number,
                    layout.clone(),
                    store.clone(),
                    options.nodes,
                    options.mesh.is_some(),
                )),
                agent: options
                    .mesh
                    .as_ref()
                    .map(|mesh| Arc::new(Program::agent(&layout, &number.name(), mesh))),
            })
            .collect();
        try_join_all(nodes.iter().map(|node| node::start(node.node.clone()))).await?;
        let placement = Arc::new(Placement::new(numbers));
        let daemon = Self { layout, store, placement, nodes, control };
        daemon.start_mesh().await?;
        Ok(daemon)
    }

    async fn start_mesh(&self) -> Result<(), StartError> {
        let Some(control) = &self.control else { return Ok(()) };
        mesh::start_control(control, &self.layout).await?;
        let agents = self.nodes.iter().filter_map(|node| Some((node.agent.as_ref()?, &node.node.name)));
        try_join_all(agents.map(|(agent, node)| mesh::start_agent(agent, node, &self.layout))).await?;
        Ok(())
    }
}

fn make_directories(layout: &Layout, nodes: &[NodeNumber]) -> Result<(), HostError> {
    files::directory(&layout.control().config())?;
    files::directory(&layout.control().state())?;
    for node in nodes {
        let paths = layout.node(&node.name());
        files::directory(&paths.pods())?;
        cgroup::create(&paths.system_cgroup())?;
    }
    Ok(())
}

/// The namespaces of the fabric and the nodes, and the links between them.
fn make_fabric(layout: &Layout, nodes: &[NodeNumber], count: u8) -> Result<(), HostError> {
    let members = std::iter::once(FABRIC.to_owned()).chain(nodes.iter().map(|node| node.name()));
    netns::create(&members.map(|member| layout.netns_name(&member)).collect::<Vec<_>>())?;
    let script = node::fabric_script(count) + &node::node_links_script(layout, count);
    let fabric = layout.netns(FABRIC);
    let thread = std::thread::spawn(move || {
        netns::enter(&fabric)?;
        node::configure_fabric(&script)
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
