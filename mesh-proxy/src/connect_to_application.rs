//! Last part of step 5: connects to the application inside its pod, over loopback and with the real client's
//! address.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use mesh_api::plan::policy::Permit;
use socket2::Socket;
use tokio::net::{TcpSocket, TcpStream};

use super::connection_address_types::{ClientAddress, UpstreamAddress};
use super::local_pod_identity::LocalPod;
use super::worker::Worker;

/// Timeout for a socket in the pod and for the connect to the application, whose queue may be full.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which an application that is not connected is also tried from the pod's own address. One that
/// listens is connected before `connect()` returns; this one may not listen at all, or not to loopback.
const UNANSWERED: Duration = Duration::from_millis(5);

/// Why an application could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The application does not listen there, its queue is full, or the pod has no address in this family to
    /// come from.
    #[error("the application: {0}")]
    Connect(io::Error),
    /// No socket could be opened in the pod.
    #[error("opening a socket in the pod: {0}")]
    Socket(io::Error),
    /// The client's address could not be filed; the application would have taken the proxy for its client.
    #[error("filing the client's address: {0}")]
    File(io::Error),
}

/// Connects to the application of `pod` that listens on `to`. The permit shows that the policy has allowed
/// it: there is no other way to an application. Errors: see [`Error`].
pub async fn connect_to_application(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    client: ClientAddress,
    to: UpstreamAddress,
    _allowed: &Permit,
) -> Result<TcpStream, Error> {
    let taking = worker.surroundings.delivery_socket(pod, to.ip(), client.address());
    let taken = tokio::time::timeout(TIMEOUT, taking).await;
    let socket = taken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(no_socket)?;
    let connect = async {
        tokio::select! {
            biased;
            connected = open(worker, socket, client, to) => connected,
            connected = from_own_address(worker, pod, client, to) => connected,
        }
    };
    tokio::time::timeout(TIMEOUT, connect)
        .await
        .unwrap_or_else(|_| Err(Error::Connect(io::ErrorKind::TimedOut.into())))
}

/// Without an address to come from the application can't be reached in that family: a connect error, after
/// which the other family is tried.
fn no_socket(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => Error::Connect(error),
        _ => Error::Socket(error),
    }
}

async fn open(
    worker: &Rc<Worker>,
    socket: Socket,
    client: ClientAddress,
    to: UpstreamAddress,
) -> Result<TcpStream, Error> {
    socket.set_tcp_nodelay(true).map_err(Error::Socket)?;
    // The application gets a reset if the relay does not end well.
    socket.set_linger(Some(Duration::ZERO)).map_err(Error::Socket)?;
    worker.surroundings.show_client_address(&socket, client.address()).map_err(Error::File)?;
    TcpSocket::from_std_stream(socket.into()).connect(to.address()).await.map_err(Error::Connect)
}

/// Connects from the pod's own address when loopback has not answered for a moment. To `::1` the kernel has
/// no route from the pod's interface for the reset of a closed port, and to any loopback address none from
/// the interface that an application has bound its listener to. The application may also just be slow to
/// accept: the first connection counts.
async fn from_own_address(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    client: ClientAddress,
    to: UpstreamAddress,
) -> Result<TcpStream, Error> {
    tokio::time::sleep(UNANSWERED).await;
    let taken = worker.surroundings.outbound_socket(pod, to.ip()).await;
    open(worker, taken.map_err(Error::Socket)?, client, to).await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use super::*;
    use crate::authorized_connections::AccessRequest;
    use crate::fixture::{self, PlainSurroundings, UnansweredConnects, run_as_worker};

    const CLIENT: &str = "10.0.0.9:1000";

    /// A listener, where nobody waits for what comes.
    fn application() -> (std::net::TcpListener, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn delivered(surroundings: PlainSurroundings, to: SocketAddr) -> Result<TcpStream, Error> {
        let (worker, pod) = fixture::worker_and_pod(surroundings);
        let client = ClientAddress::new(CLIENT.parse().unwrap());
        let workload = worker.wait_for_workload(&pod).await.unwrap();
        let request = AccessRequest { identity: None, source: client.ip(), destination: to, workload };
        let (authorized, _) = worker.authorizations.authorize(request, || worker.snapshot()).unwrap();
        connect_to_application(&worker, &pod, client, UpstreamAddress::new(to), authorized.permit()).await
    }

    #[test]
    fn an_application_is_shown_its_client_before_it_is_connected() {
        run_as_worker(async {
            let (listener, to) = application();
            let surroundings = PlainSurroundings::default();
            let shown = Rc::clone(&surroundings.shown);
            let socket = delivered(surroundings, to).await.unwrap();
            assert_eq!(listener.accept().unwrap().1, socket.local_addr().unwrap());
            assert_eq!(*shown.borrow(), [(CLIENT.parse().unwrap(), false)]);
        });
    }

    #[test]
    fn an_application_that_cannot_be_shown_its_client_is_not_connected() {
        run_as_worker(async {
            let (listener, to) = application();
            let no_client = Some(io::ErrorKind::OutOfMemory);
            let error = delivered(PlainSurroundings { no_client, ..PlainSurroundings::default() }, to).await;
            assert!(matches!(error, Err(Error::File(_))), "{error:?}");
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        });
    }

    /// Over loopback, and where loopback has no way back for the reset.
    #[test]
    fn a_port_where_nobody_listens_is_refused_at_once() {
        run_as_worker(async {
            let (listener, to) = application();
            drop(listener);
            for unanswered in [UnansweredConnects::None, UnansweredConnects::Deliveries] {
                let began = Instant::now();
                let error =
                    delivered(PlainSurroundings { unanswered, ..PlainSurroundings::default() }, to).await;
                let Err(Error::Connect(error)) = error else { panic!("{unanswered:?}: {error:?}") };
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{unanswered:?}");
                assert!(began.elapsed() < TIMEOUT / 4, "{unanswered:?}: {:?}", began.elapsed());
            }
        });
    }

    #[test]
    fn an_application_that_does_not_answer_over_loopback_is_reached_from_the_pods_own_address() {
        run_as_worker(async {
            let (listener, to) = application();
            let unanswered = UnansweredConnects::Deliveries;
            let surroundings = PlainSurroundings { unanswered, ..PlainSurroundings::default() };
            let shown = Rc::clone(&surroundings.shown);
            let socket = delivered(surroundings, to).await.unwrap();
            assert_eq!(listener.accept().unwrap().1, socket.local_addr().unwrap());
            let client = (CLIENT.parse().unwrap(), false);
            assert_eq!(*shown.borrow(), [client, client], "it is shown the same client");
        });
    }

    #[test]
    fn that_a_pod_has_no_address_of_a_family_is_told_from_that_it_has_no_socket() {
        run_as_worker(async {
            let to = application().1;
            for (kind, of_family) in
                [(io::ErrorKind::AddrNotAvailable, true), (io::ErrorKind::OutOfMemory, false)]
            {
                let no_delivery = Some(kind);
                let error =
                    delivered(PlainSurroundings { no_delivery, ..PlainSurroundings::default() }, to).await;
                match error {
                    Err(Error::Connect(_)) => assert!(of_family, "{kind}"),
                    Err(Error::Socket(_)) => assert!(!of_family, "{kind}"),
                    other => panic!("{kind}: {other:?}"),
                }
            }
        });
    }
}
