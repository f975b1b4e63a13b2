//! Room three: a connection that an enrolled pod opened. Decide, then act, then record.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::outbound::{self, Reject, Route};
use mesh_api::plan::{PortPolicy, Service, Snapshot, Target, Workload};
use tokio::net::TcpStream;

use super::accept::Place;
use super::flow::{ClientAddress, OriginalDestination, UpstreamAddress};
use super::relay::{self, Meter, SocketIs};
use super::upstream::{self, Options, Origin, Upstream};
use super::worker::{Core, LocalPod};

/// Endpoints that are tried before the client hears of a failure.
const TRIES: usize = 5;

/// How long a new pod's connection waits for the control plane to tell of the pod (wire reference 6.4).
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// Connect timeout where no policy sets one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the mesh does not know this pod (yet)")]
    UnknownPod,
    #[error("{0}")]
    Rejected(Reject),
    #[error("port {0} belongs to the mesh")]
    MeshPort(u16),
    #[error("no endpoint of {0} is ready")]
    NoEndpoint(Arc<str>),
    #[error("{service} has its {limit} connections already")]
    TooMany { service: Arc<str>, limit: u32 },
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
}

/// Serves one connection that was accepted on a pod's outbound listener.
pub async fn serve(core: Rc<Core>, pod: Rc<LocalPod>, client: TcpStream, peer: SocketAddr, _place: Place) {
    let original = match core.flows.borrow().original_destination(&client) {
        Ok(Some(original)) => OriginalDestination::new(original),
        Ok(None) => return refuse_stranger(&core, &pod, client, peer),
        Err(error) => {
            tracing::error!(pod = %pod, %error, "can't read a connection's destination: refused");
            return relay::reset_on_drop(&client);
        }
    };
    let client_address = ClientAddress::new(SocketAddr::new(pod.address_like(original.ip()), peer.port()));
    let record = core.record_outbound(&pod, client_address, original);
    let meter = Meter::default();
    let result = connect_and_relay(&core, &pod, &client, client_address, original, &record, &meter).await;
    if let Err(failure) = &result {
        relay::reset_on_drop(&client);
        record.fail(failure.flag(), &failure.to_string());
    }
    record.finish(&meter);
}
