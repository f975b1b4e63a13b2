//! A gateway of some sixty lines, imports left out: takes connections on a plain socket and carries them to a
//! pod over mutual TLS. No keeper, no eBPF; the pod's node has its policy decide, as for any client of the
//! mesh.
//!
//! ```text
//! echo_gateway LISTEN POD PEER CONTROL ROOT-CERT TOKEN IDENTITY
//! ```
//!
//! `LISTEN` and `POD` are addresses with ports, `PEER` the pod's SPIFFE ID; `CONTROL` is the control plane's
//! `https://HOST:PORT`, which signs for `IDENTITY`, a SPIFFE ID too, if the node's `TOKEN` may have it.

use std::cell::Cell;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::identity::SpiffeId;
use mesh_common::HBONE_PORT;
use mesh_proxy::certs::{CaClient, Certificates, WorkloadCertificate, peer_spiffe_id};
use mesh_proxy::inheritance::BequestSender;
use mesh_proxy::mux::PodReceiveBudget;
use mesh_proxy::relay::{ByteMeter, SocketSide};
use mesh_proxy::tls;
use mesh_proxy::tunnel::{AllowedFraming, EarlyData, StreamRequest, Tunnel};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

type Failure = Box<dyn Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, pod, peer, control, root, token, id] = &arguments[..] else {
        return Err("see the source".into());
    };
    let (pod, peer, id) = (pod.parse()?, peer.parse()?, id.parse()?);
    let name = "mesh-control".to_owned();
    let ca = CaClient::new(control.clone(), name, root.into(), token.into(), "Kubernetes".to_owned());
    let framing = AllowedFraming::default();
    let certificates = Certificates::new(ca, "cluster.local", framing, BequestSender::without_successor());
    certificates.retain_identity(&id);
    let identity =
        certificates.wait_for_certificate(&id, Duration::from_secs(10)).await.ok_or("no certificate")?;
    let listener = TcpListener::bind(listen).await?;
    LocalSet::new().run_until(serve(listener, (pod, peer), identity)).await
}

/// Where connections go, and who has to be there.
type Server = (SocketAddr, SpiffeId);

async fn serve(
    listener: TcpListener,
    server: Server,
    identity: Arc<WorkloadCertificate>,
) -> Result<(), Failure> {
    loop {
        let (socket, client) = listener.accept().await?;
        let (identity, server) = (Arc::clone(&identity), server.clone());
        spawn_local(async move {
            if let Err(error) = carry(socket, client, &server, &identity).await {
                eprintln!("{client}: {error}");
            }
        });
    }
}

async fn carry(
    client: TcpStream,
    from: SocketAddr,
    server: &Server,
    own: &WorkloadCertificate,
) -> Result<(), Failure> {
    let (pod, expected) = server;
    let tcp = TcpStream::connect((pod.ip(), HBONE_PORT)).await?;
    let session = tls::client_handshake_unverified_name(tcp, Arc::clone(&own.client)).await?;
    let peer = peer_spiffe_id(session.peer_certificates().unwrap_or_default())?;
    if peer != *expected {
        return Err(format!("the pod is {peer}").into());
    }
    let connection = Tunnel::start(session, &PodReceiveBudget::new(1 << 20, None), || ()).await?;
    let (service, workload, exposed) = (None, None, &Cell::new(false));
    let early = EarlyData::Socket(&client);
    let opening = StreamRequest { client: from, destination: *pod, service, workload, early, exposed };
    let stream = connection.open_stream(&opening).await?;
    Ok(stream.relay(client, SocketSide::Client, &ByteMeter::default()).await?)
}
