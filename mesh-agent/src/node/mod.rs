//! The node as the data path's [`Surroundings`]: sockets in pods that the keeper opened, and what the eBPF
//! programs tell and are told.

mod syn_packet;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mesh_common::deferred_accept::DeferredSyn;
use mesh_common::maps::Endpoint;
use mesh_common::steer;
use mesh_common::veth::{self, Wanted, Way};
use mesh_proxy::pod::LocalPod;
use mesh_proxy::surroundings::{Asked, ConnectOutcome, Surroundings};
use socket2::Socket;
use tokio::net::TcpStream;

use self::syn_packet::Packet;
use crate::config::SameNode;
use crate::direct::DirectHandle;
use crate::egress::Strict;
use crate::keeper_client::SocketPool;
use crate::sys::SocketKind;
use crate::sys::ebpf::{Decisions, PeerMap, PodLinkMap, RecentResults};

/// The node, shared by all workers.
pub struct Node {
    /// Decides on direct connections between pods of this node.
    pub direct: DirectHandle,
    /// Pods with strict egress.
    pub strict_egress: Strict,
    /// Tells the kernel of destinations that take or refuse connections.
    pub recent: RecentResults,
    /// Tells the kernel whether deferred connections are accepted or refused.
    pub decisions: Decisions,
    /// How connections between pods of this node should go.
    pub same_node: SameNode,
    /// How the pods are connected.
    pub links: PodLinkMap,
}

impl Node {
    /// Returns which direct connections are wanted; none if there should be none.
    pub fn same_node_wanted(&self) -> Option<Wanted> {
        (self.same_node != SameNode::Mtls).then(|| self.same_node.wanted())
    }
}

/// One worker's part of the node.
pub struct NodeWorker {
    node: Arc<Node>,
    /// The original destinations and clients of sockets.
    peers: RefCell<PeerMap>,
    /// Sockets in pods.
    sockets: SocketPool,
}

impl NodeWorker {
    /// Creates a worker's part, which gets sockets in pods through a channel and follows it on the current
    /// runtime, the worker's. Errors: the channel can't be polled.
    pub fn start(node: Arc<Node>, peers: PeerMap, sockets: OwnedFd) -> io::Result<Self> {
        Ok(Self { node, peers: RefCell::new(peers), sockets: SocketPool::start(sockets)? })
    }
}

impl Surroundings for NodeWorker {
    fn outbound_socket(&self, pod: &LocalPod, to: IpAddr) -> LocalBoxFuture<'_, io::Result<Socket>> {
        let netns = pod.netns;
        Box::pin(async move { Ok(self.sockets.take(netns, SocketKind::outbound(to)).await?.into()) })
    }

    fn delivery_socket(
        &self,
        pod: &LocalPod,
        to: IpAddr,
        client: SocketAddr,
    ) -> LocalBoxFuture<'_, io::Result<Socket>> {
        let netns = pod.netns;
        Box::pin(async move {
            let socket = Socket::from(self.sockets.take(netns, SocketKind::delivery(to)).await?);
            let shown = Endpoint::new(client.ip().into(), client.port());
            let source = steer::delivery_source(to.into(), &shown);
            socket.bind(&SocketAddr::new(source.into(), 0).into())?;
            Ok(socket)
        })
    }

    fn original_destination(&self, accepted: &TcpStream) -> io::Result<Option<Asked>> {
        let noted = self.peers.borrow().original_destination(accepted).map_err(io::Error::other)?;
        Ok(noted.as_ref().map(Asked::from))
    }

    fn show_client(&self, socket: &Socket, client: SocketAddr) -> io::Result<()> {
        self.peers.borrow_mut().deliver_as(socket, client).map_err(io::Error::other)
    }

    fn is_encrypted(&self, client: &LocalPod, server: &LocalPod) -> bool {
        let Node { links, .. } = &*self.node;
        let way = |wanted| veth::way(wanted, links.of(client.netns), links.of(server.netns));
        self.node.same_node_wanted().is_none_or(|wanted| way(wanted) == Way::Proxy)
    }

    fn suggest_direct(&self, pod: &LocalPod, destination: SocketAddr) {
        if self.node.same_node != SameNode::Mtls {
            self.node.direct.ask(pod, destination);
        }
    }

    fn refuses_unknown(&self, pod: &LocalPod, destination: SocketAddr) -> bool {
        self.node.strict_egress.refuses(pod.netns, destination)
    }

    fn note_outcome(&self, pod: &LocalPod, destination: SocketAddr, outcome: ConnectOutcome) {
        let recent = &self.node.recent;
        match outcome {
            ConnectOutcome::Taken => recent.taken(pod.netns, destination),
            ConnectOutcome::Refused => recent.refused(pod.netns, destination),
            ConnectOutcome::Untold(lasts) => recent.let_through(pod.netns, destination, nanoseconds(lasts)),
        }
    }

    fn decide(&self, pod: &LocalPod, syn: &DeferredSyn, refused: bool) -> LocalBoxFuture<'_, io::Result<()>> {
        let (netns, syn) = (pod.netns, *syn);
        Box::pin(async move {
            let to = SocketAddr::from(syn.connection.server);
            let kind = SocketKind::loopback(to.ip());
            let socket = Socket::from(self.sockets.take(netns, kind).await?);
            // It counts from here.
            self.node.decisions.decide(&syn.connection, refused).map_err(io::Error::other)?;
            let sent = socket.send_to(Packet::of(&syn).bytes(), &SocketAddr::new(to.ip(), 0).into());
            self.sockets.give_back(netns, kind, socket.into());
            sent.map(drop)
        })
    }

    fn forget(&self, pod: &LocalPod) {
        self.sockets.forget(pod.netns);
    }

    fn trim_idle(&self) {
        self.sockets.sweep();
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
