//! The node as the data path's [`Surroundings`]: sockets in pods that the keeper opened, and what the eBPF
//! programs tell and are told.

mod deferred_syn_packet;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mesh_common::deferred_accept::DeferredSyn;
use mesh_common::maps::AddressPort;
use mesh_common::redirect_rules;
use mesh_common::veth::{self, DirectPathMode, SameNodePath};
use mesh_proxy::local_pod_identity::LocalPod;
use mesh_proxy::surroundings::{ConnectOutcome, RequestedDestination, Surroundings};
use socket2::Socket;
use tokio::net::TcpStream;

use self::deferred_syn_packet::ReplayedSyn;
use crate::config::SameNodeMode;
use crate::direct::DirectHandle;
use crate::keeper_client::SocketPool;
use crate::strict_egress::StrictPods;
use crate::sys::SocketKind;
use crate::sys::ebpf::{PodLinkMap, RecentConnectResults, SocketAddressMap, SynDecisions};

/// The node, shared by all workers.
pub struct NodeShared {
    /// Decides on direct connections between pods of this node.
    pub direct: DirectHandle,
    /// Pods with strict egress.
    pub strict_egress: StrictPods,
    /// Tells the kernel of destinations that take or refuse connections.
    pub recent: RecentConnectResults,
    /// Tells the kernel whether deferred connections are accepted or refused.
    pub decisions: SynDecisions,
    /// How connections between pods of this node should go.
    pub same_node: SameNodeMode,
    /// How the pods are connected.
    pub links: PodLinkMap,
}

impl NodeShared {
    /// Returns which direct connections are wanted; none if there should be none.
    pub fn wanted_direct_path_mode(&self) -> Option<DirectPathMode> {
        (self.same_node != SameNodeMode::Mtls).then(|| self.same_node.to_kernel_mode())
    }
}

/// One worker's part of the node.
pub struct NodeSurroundings {
    node: Arc<NodeShared>,
    /// The original destinations and clients of sockets.
    peers: RefCell<SocketAddressMap>,
    /// Sockets in pods.
    sockets: SocketPool,
}

impl NodeSurroundings {
    /// Creates a worker's part, which gets sockets in pods through a channel and follows it on the current
    /// runtime, the worker's. Errors: the channel can't be polled.
    pub fn start(node: Arc<NodeShared>, peers: SocketAddressMap, sockets: OwnedFd) -> io::Result<Self> {
        Ok(Self { node, peers: RefCell::new(peers), sockets: SocketPool::start(sockets)? })
    }
}

impl Surroundings for NodeSurroundings {
    fn outbound_socket(&self, pod: &LocalPod, to: IpAddr) -> LocalBoxFuture<'_, io::Result<Socket>> {
        let netns = pod.netns;
        Box::pin(async move {
            Ok(self.sockets.take_socket(netns, SocketKind::outbound_kind_for(to)).await?.into())
        })
    }

    fn delivery_socket(
        &self,
        pod: &LocalPod,
        to: IpAddr,
        client: SocketAddr,
    ) -> LocalBoxFuture<'_, io::Result<Socket>> {
        let netns = pod.netns;
        Box::pin(async move {
            let socket =
                Socket::from(self.sockets.take_socket(netns, SocketKind::delivery_kind_for(to)).await?);
            let shown = AddressPort::new(client.ip().into(), client.port());
            let source = redirect_rules::delivery_source_address(to.into(), &shown);
            socket.bind(&SocketAddr::new(source.into(), 0).into())?;
            Ok(socket)
        })
    }

    fn original_destination(&self, accepted: &TcpStream) -> io::Result<Option<RequestedDestination>> {
        let noted = self.peers.borrow().original_destination(accepted).map_err(io::Error::other)?;
        Ok(noted.as_ref().map(RequestedDestination::from))
    }

    fn show_client_address(&self, socket: &Socket, client: SocketAddr) -> io::Result<()> {
        self.peers.borrow_mut().set_client_address(socket, client).map_err(io::Error::other)
    }

    fn encrypts_same_node(&self, client: &LocalPod, server: &LocalPod) -> bool {
        let NodeShared { links, .. } = &*self.node;
        let way =
            |wanted| veth::same_node_path(wanted, links.link_of(client.netns), links.link_of(server.netns));
        self.node.wanted_direct_path_mode().is_none_or(|wanted| way(wanted) == SameNodePath::Proxy)
    }

    fn suggest_direct_connection(&self, pod: &LocalPod, destination: SocketAddr) {
        if self.node.same_node != SameNodeMode::Mtls {
            self.node.direct.request_route(pod, destination);
        }
    }

    fn strict_egress_refuses(&self, pod: &LocalPod, destination: SocketAddr) -> bool {
        self.node.strict_egress.refuses(pod.netns, destination)
    }

    fn note_connect_result(&self, pod: &LocalPod, destination: SocketAddr, outcome: ConnectOutcome) {
        let recent = &self.node.recent;
        match outcome {
            ConnectOutcome::Taken => recent.note_accepted(pod.netns, destination),
            ConnectOutcome::Refused => recent.note_refused(pod.netns, destination),
            ConnectOutcome::SkipDeferral(lasts) => {
                recent.skip_deferral(pod.netns, destination, nanoseconds(lasts));
            }
        }
    }

    fn release_deferred_syn(
        &self,
        pod: &LocalPod,
        syn: &DeferredSyn,
        refused: bool,
    ) -> LocalBoxFuture<'_, io::Result<()>> {
        let (netns, syn) = (pod.netns, *syn);
        Box::pin(async move {
            let to = SocketAddr::from(syn.connection.server);
            let kind = SocketKind::packet_kind_for(to.ip());
            let socket = Socket::from(self.sockets.take_socket(netns, kind).await?);
            // It counts from here.
            self.node.decisions.set_decision(&syn.connection, refused).map_err(io::Error::other)?;
            let sent = socket
                .send_to(ReplayedSyn::from_deferred(&syn).as_bytes(), &SocketAddr::new(to.ip(), 0).into());
            self.sockets.put_back(netns, kind, socket.into());
            sent.map(drop)
        })
    }

    fn forget_pod(&self, pod: &LocalPod) {
        self.sockets.close_pod_sockets(pod.netns);
    }

    fn free_unused(&self) {
        self.sockets.trim_unused();
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
