//! What the data path knows of where it runs: sockets in its pods' networks, and where their connections were
//! going.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mesh_common::deferred_accept::DeferredSyn;
use mesh_common::direct::NOTE_NOT_DIRECT;
use mesh_common::maps::Endpoint;
use socket2::Socket;
use tokio::net::TcpStream;

use super::pod::LocalPod;

/// The surroundings of one worker, used by its thread alone.
///
/// What a connection is known by, and what it may do, every place has to say; the others do nothing where
/// there is nothing to do.
pub trait Surroundings {
    /// Returns a TCP socket in the pod's network, to connect from the pod to `to`. Errors: none can be had.
    fn outbound_socket(&self, pod: &LocalPod, to: IpAddr) -> LocalBoxFuture<'_, io::Result<Socket>>;

    /// Returns a TCP socket in the pod's network, bound where connections to its application come from that
    /// show `client`. Errors: none can be had.
    fn delivery_socket(
        &self,
        pod: &LocalPod,
        to: IpAddr,
        client: SocketAddr,
    ) -> LocalBoxFuture<'_, io::Result<Socket>>;

    /// Returns where the client of an accepted connection wanted to go; none if it wanted to go to the proxy.
    /// Errors: it can't be read.
    fn original_destination(&self, accepted: &TcpStream) -> io::Result<Option<Asked>>;

    /// Has the application that takes the connection which `socket` is about to open see `client` as its
    /// peer. Errors: it would see the proxy.
    fn show_client(&self, socket: &Socket, client: SocketAddr) -> io::Result<()>;

    /// Whether the pod may not go to a destination that the mesh does not know.
    fn refuses_unknown(&self, pod: &LocalPod, destination: SocketAddr) -> bool;

    /// Whether a connection between two pods of this node is encrypted, as between nodes.
    fn is_encrypted(&self, _client: &LocalPod, _server: &LocalPod) -> bool {
        true
    }

    /// The pod's next connection to `destination` may go without the proxy, since an endpoint is near.
    fn suggest_direct(&self, _pod: &LocalPod, _destination: SocketAddr) {}

    /// What came of a connection of the pod, for those that follow.
    fn note_outcome(&self, _pod: &LocalPod, _destination: SocketAddr, _outcome: ConnectOutcome) {}

    /// Has the pod's kernel take a SYN again that has waited ([`mesh_common::deferred_accept`]), and refuse
    /// it or let it through. Errors: it can't be told.
    fn decide(
        &self,
        _pod: &LocalPod,
        _syn: &DeferredSyn,
        _refused: bool,
    ) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    /// The pod is gone.
    fn forget(&self, _pod: &LocalPod) {}

    /// Gives back what was not used lately. Called twice a minute.
    fn trim_idle(&self) {}
}

/// What the client of an accepted connection asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Address and port.
    pub destination: SocketAddr,
    /// The kernel has direct ways to some of its endpoints, and the draw fell on another.
    pub not_direct: bool,
}

/// What came of a connection to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// Somebody took it.
    Taken,
    /// Whoever of its endpoints was asked refused.
    Refused,
    /// It could not be told in time: the next ones wait for nothing, for so long.
    Untold(Duration),
}

impl From<&Endpoint> for Asked {
    /// What the eBPF programs have noted of it.
    fn from(noted: &Endpoint) -> Self {
        Self { destination: (*noted).into(), not_direct: noted.note == NOTE_NOT_DIRECT }
    }
}
