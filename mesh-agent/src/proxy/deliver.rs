//! The last step to an application: a connection inside its pod, over loopback, that shows the real client.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use mesh_api::plan::policy::Permit;
use tokio::net::{TcpSocket, TcpStream};

use super::core::{Core, LocalPod};
use super::flow::{ClientAddress, UpstreamAddress};
use crate::sys;

/// How long an application may take to accept (its queue may be full).
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why an application could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The application does not listen there, or its queue is full.
    #[error("the application: {0}")]
    Connect(io::Error),
    /// No socket could be opened in the pod.
    #[error("opening a socket in the pod: {0}")]
    Socket(io::Error),
    /// The client's address could not be filed; the application would have taken the proxy for its client.
    #[error("filing the client's address: {0}")]
    File(#[from] sys::ebpf::Error),
}

/// Connects to the application of `pod` that listens on `to`. Takes the policy's yes: there is no other way to it.
pub async fn deliver(
    core: &Rc<Core>,
    pod: &LocalPod,
    client: ClientAddress,
    to: UpstreamAddress,
    _allowed: &Permit,
) -> Result<TcpStream, Error> {
    let socket = sys::delivery_socket(&pod.netns, to.ip()).map_err(Error::Socket)?;
    socket.set_tcp_nodelay(true).map_err(Error::Socket)?;
    core.flows.borrow_mut().deliver_as(&socket, client.address())?;
    let connect = TcpSocket::from_std_stream(socket.into()).connect(to.address());
    tokio::time::timeout(TIMEOUT, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Error::Connect)
}
