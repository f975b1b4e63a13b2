//! What the data path needs of the place it runs in: sockets in the pods' networks, and the original
//! destinations of their connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mesh_common::deferred_accept::DeferredSyn;
use mesh_common::direct::NOTE_NOT_DIRECT;
use mesh_common::maps::AddressPort;
use socket2::Socket;
use tokio::net::TcpStream;

use super::local_pod_identity::LocalPod;

/// The surroundings of one worker, used by its thread alone.
///
/// Methods without a default are what every place has to provide. By default connections between pods of the
/// node are encrypted and no SYN can be released; the other defaults do nothing.
pub trait Surroundings {
    /// Returns a TCP socket in the pod's network, to connect from the pod to `to`. Errors: none can be had.
    fn outbound_socket(&self, pod: &LocalPod, to: IpAddr) -> LocalBoxFuture<'_, io::Result<Socket>>;

    /// Returns a TCP socket in the pod's network, bound where connections to its application come from that
    /// show `client`. Errors: none can be had; of kind `AddrNotAvailable` if the pod has no address for it in
    /// the family of `to`: then the other family is tried.
    fn delivery_socket(
        &self,
        pod: &LocalPod,
        to: IpAddr,
        client: SocketAddr,
    ) -> LocalBoxFuture<'_, io::Result<Socket>>;

    /// Returns where the client of an accepted connection wanted to go; none if it wanted to go to the proxy.
    /// Errors: it can't be read.
    fn original_destination(&self, accepted: &TcpStream) -> io::Result<Option<RequestedDestination>>;

    /// Has the application that takes the connection which `socket` is about to open see `client` as its
    /// peer. Errors: it would see the proxy.
    fn show_client_address(&self, socket: &Socket, client: SocketAddr) -> io::Result<()>;

    /// Whether the pod may not connect to a destination that the mesh does not know (strict egress).
    fn strict_egress_refuses(&self, pod: &LocalPod, destination: SocketAddr) -> bool;

    /// Whether connections between two pods of this node are encrypted, as between nodes. By default they
    /// are.
    fn encrypts_same_node(&self, _client: &LocalPod, _server: &LocalPod) -> bool {
        true
    }

    /// Notes that the pod's next connection to `destination` may go without the proxy, since an endpoint is
    /// on this node.
    fn suggest_direct_connection(&self, _pod: &LocalPod, _destination: SocketAddr) {}

    /// Notes the result of a connection of the pod, for the next ones to the same destination.
    fn note_connect_result(&self, _pod: &LocalPod, _destination: SocketAddr, _note: ConnectOutcome) {}

    /// Has the pod's kernel take a SYN again that was held back ([`mesh_common::deferred_accept`]), and
    /// refuse it or let it through. Errors: the kernel can't be told, as by default.
    fn release_deferred_syn(
        &self,
        _pod: &LocalPod,
        _syn: &DeferredSyn,
        _refused: bool,
    ) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    /// Forgets a pod that is gone.
    fn forget_pod(&self, _pod: &LocalPod) {}

    /// Frees what was not used lately. Called every 30 seconds.
    fn free_unused(&self) {}
}

/// The destination that the client of an accepted connection asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedDestination {
    /// Address and port.
    pub destination: SocketAddr,
    /// Whether the kernel has direct routes to some endpoints of the destination, and its draw fell on
    /// another.
    pub not_direct: bool,
}

/// What is noted of a connect to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// An endpoint took the connection.
    Taken,
    /// Every endpoint that there is was tried, and refused.
    Refused,
    /// The kernel could not be told in time: the next connections are not deferred, for that long.
    SkipDeferral(Duration),
}

impl From<&AddressPort> for RequestedDestination {
    /// Converts the note that the eBPF programs have left of it.
    fn from(noted: &AddressPort) -> Self {
        Self { destination: (*noted).into(), not_direct: noted.note == NOTE_NOT_DIRECT }
    }
}
