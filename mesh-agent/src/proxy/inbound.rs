//! Room five: a connection that arrives at an enrolled pod. Who is it, may it, then deliver.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::Workload;
use mesh_common::is_mesh_port;
use tokio::net::TcpStream;

use super::accept::{Caps, Place};
use super::admission::{Admission, Request};
use super::core::{Core, LocalPod};
use super::deliver::deliver;
use super::flow::{ClientAddress, UpstreamAddress};
use super::handshakes::Handshakes;
use super::hbone::{self, headers};
use super::mux;
use super::relay::{self, Meter, SocketIs, reset_on_drop};
use super::tls;
use super::tunnel::{self, Refusal, Tunnel};
use crate::certs::Proof;
use crate::telemetry::{Ended, Record, Reporter, Start};

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control plane has not told of the pod.
    #[error("the control plane has not told of this pod yet")]
    UnknownPod,
    /// The policy denies it.
    #[error("{0}")]
    Denied(String),
    /// It asks for one of the mesh's own ports: a loop.
    #[error("port {0} is the mesh's own")]
    MeshPort(u16),
    /// Not a request to open a stream, or not one that can be understood.
    #[error("bad request: {0}")]
    BadRequest(#[from] headers::BadTarget),
    /// It asks for an address that is not the pod's.
    #[error("{asked} is not an address of {pod}")]
    NotThisPod {
        /// Address that it asks for.
        asked: IpAddr,
        /// The pod that it asks.
        pod: String,
    },
    /// The pod has as many connections as it may.
    #[error("the pod has its connections already")]
    Crowded,
    /// The application could not be reached.
    #[error(transparent)]
    Deliver(#[from] super::deliver::Error),
}

/// A connection to a pod of this node, ready to carry bytes.
pub struct Delivered {
    socket: TcpStream,
    admission: Admission,
}

/// What arrives: from whom, to which port of which pod.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who connects, if mutual TLS (or this very node) proved it.
    pub identity: Option<SpiffeId>,
    /// The client.
    pub client: ClientAddress,
    /// The pod's address and port.
    pub to: UpstreamAddress,
}

/// Admits a connection and reaches the application: the one way to it, whatever it came through.
pub async fn take(
    core: &Rc<Core>,
    pod: &LocalPod,
    workload: &Arc<Workload>,
    arrival: &Arrival,
) -> Result<Delivered, Error> {
    if is_mesh_port(arrival.to.port()) {
        return Err(Error::MeshPort(arrival.to.port()));
    }
    let request = Request {
        identity: arrival.identity.clone(),
        source: arrival.client.ip(),
        destination: arrival.to.address(),
        workload: Arc::clone(workload),
    };
    let (admission, notes) = core.admissions.admit(request, || core.snapshot()).map_err(|decision| {
        let reason = decision.verdict.to_string();
        let from = arrival.identity.as_ref().map_or_else(|| "plaintext".to_owned(), ToString::to_string);
        tracing::warn!(%from, client = %arrival.client, %pod, port = arrival.to.port(), "{reason}");
        Error::Denied(reason)
    })?;
    for policy in notes.audited {
        tracing::info!(%policy, client = %arrival.client, %pod, port = arrival.to.port(), "audited");
    }
    for dry_run in notes.dry_run {
        let (policy, effect) = (dry_run.policy, dry_run.would);
        tracing::info!(%policy, client = %arrival.client, %pod, port = arrival.to.port(), "dry run: would {effect}");
    }
    let socket = deliver(core, pod, arrival.client, arrival.to, admission.permit()).await?;
    Ok(Delivered { socket, admission })
}

impl Delivered {
    /// Policy that allowed it, if one had to.
    pub fn policy(&self) -> Option<Arc<str>> {
        self.admission.permit().policy().cloned()
    }

    /// Carries bytes from and to another socket, until both are done or the policy changes its mind.
    pub async fn carry(mut self, client: &mut TcpStream, meter: &Meter) -> Ended {
        tokio::select! {
            result = relay::relay_plain(client, &mut self.socket, meter) => result.into(),
            denial = self.admission.revoked() => {
                reset_on_drop(client);
                reset_on_drop(&self.socket);
                Ended::Broken(format!("policy changed: {denial}"))
            }
        }
    }

    /// The same from and to a stream.
    async fn carry_tunnel(self, mut tunnel: Tunnel, meter: &Meter) -> Ended {
        let Self { socket, admission } = self;
        tokio::select! {
            result = tunnel.carry(socket, SocketIs::Server, meter) => result.into(),
            denial = admission.revoked() => {
                tunnel.revoke();
                Ended::Broken(format!("policy changed: {denial}"))
            }
        }
    }
}

/// Serves one connection that came without mutual TLS.
pub async fn serve_plaintext(
    core: Rc<Core>,
    pod: Arc<LocalPod>,
    mut socket: TcpStream,
    peer: SocketAddr,
    _place: Place,
) {
    let Ok(local) = socket.local_addr() else { return };
    let (client, to) = (ClientAddress::new(peer), UpstreamAddress::new(local));
    if came_from_inside(&pod, client) {
        tracing::warn!(%pod, %client, "a program connected to the mesh's port 15006 itself: refused");
        return reset_on_drop(&socket);
    }
    let start =
        Start { reporter: Reporter::Destination, client: client.address(), destination: to.address() };
    let mut record = Record::new(&core.metrics, start);
    record.upstream = Some(to.address());
    let meter = Meter::default();
    let arrival = Arrival { identity: None, client, to };
    let ended = match Box::pin(admit(&core, &pod, &arrival, &mut record)).await {
        Ok(delivered) => {
            meter.report_to(record.open());
            delivered.carry(&mut socket, &meter).await
        }
        Err(error) => {
            reset_on_drop(&socket);
            error.into()
        }
    };
    record.end(&ended, meter.bytes());
}

/// What a connection of another node needs places for.
pub struct Places {
    /// The connection itself.
    pub session: Place,
    /// Its handshake, until the peer has proved who it is.
    pub handshakes: Handshakes,
    /// Its streams.
    pub streams: Caps,
}

/// Serves one connection over mutual TLS: each of its streams becomes a task.
pub async fn serve_hbone(
    core: Rc<Core>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    places: Places,
) {
    let Places { session: _session, handshakes, streams } = places;
    let peer = ClientAddress::new(peer);
    if came_from_inside(&pod, peer) {
        tracing::warn!(%pod, %peer, "a program connected to the mesh's port 15008 itself: refused");
        return reset_on_drop(&socket);
    }
    let Some(handshake) = handshakes.try_place(peer.ip()) else {
        core.metrics.unproven();
        tracing::debug!(%pod, %peer, "too many handshakes under way: HBONE connection refused");
        return reset_on_drop(&socket);
    };
    let Some(own) = core.identity(&pod.identity).await else {
        tracing::warn!(%pod, %peer, identity = %pod.identity, "no valid certificate: HBONE connection refused");
        return reset_on_drop(&socket);
    };
    let started = Instant::now();
    let tls = match tls::accept(socket, Arc::clone(&own.server)).await {
        Ok(tls) => tls,
        Err(error) => return tracing::warn!(%pod, %peer, %error, "HBONE connection refused"),
    };
    core.metrics.handshake(started.elapsed());
    let proof = match Proof::new(&core.shared.certificates, tls.peer_certificates().unwrap_or_default()) {
        Ok(proof) => proof,
        Err(error) => return tracing::warn!(%pod, %peer, %error, "HBONE connection refused"),
    };
    drop(handshake);
    let identity = proof.id().clone();
    let (draining, budget) = (Rc::clone(&core.draining), core.budget(&pod));
    // Whoever could not connect any more opens no streams either.
    let drain = async move {
        tokio::select! {
            () = draining.has_begun() => {}
            () = proof.over() => {}
        }
    };
    let handle = move |request| {
        let place = streams.try_place();
        serve_stream(Rc::clone(&core), Arc::clone(&pod), identity.clone(), peer, place, request)
    };
    let served = if tls.alpn_protocol() == Some(mux::ALPN) {
        mux::Server::new(tls, &budget).serve(drain, |request| handle(tunnel::Request::Mesh(request))).await
    } else {
        match hbone::Server::start(tls).await {
            Ok(server) => server.serve(drain, |request| handle(tunnel::Request::Hbone(request))).await,
            Err(error) => return tracing::warn!(%peer, %error, "HBONE connection refused"),
        }
    };
    match served {
        Err(error) if error.kind() == std::io::ErrorKind::Other => {
            tracing::warn!(%peer, %error, "connection over mutual TLS cut off");
        }
        Err(error) => tracing::debug!(%peer, %error, "connection over mutual TLS ended"),
        Ok(()) => {}
    }
}

async fn serve_stream(
    core: Rc<Core>,
    pod: Arc<LocalPod>,
    identity: SpiffeId,
    peer: ClientAddress,
    place: Option<Place>,
    request: tunnel::Request,
) {
    let destination = request.destination();
    let to = destination.as_ref().map_or(peer.address(), |to| *to);
    let client = ClientAddress::new(headers::client(request.client(), peer.address()));
    let start = Start {
        reporter: Reporter::Destination,
        client: client.address(),
        destination: UpstreamAddress::new(to).address(),
    };
    let mut record = Record::new(&core.metrics, start);
    record.transport = request.transport();
    record.labels.source_identity = Some(identity.clone());
    record.labels.destination_identity = Some(pod.identity.clone());
    let meter = Meter::default();
    let admitted = match &place {
        Some(_) => Box::pin(admit_stream(&core, &pod, identity, client, &request, &mut record)).await,
        None => {
            core.crowded(&pod);
            Err(Error::Crowded)
        }
    };
    let ended = match admitted {
        Ok(delivered) => match request.accept(record.labels.destination.as_deref()) {
            Ok(tunnel) => {
                meter.report_to(record.open());
                delivered.carry_tunnel(tunnel, &meter).await
            }
            Err(error) => Ended::Broken(format!("client: {error}")),
        },
        Err(error) => {
            request.refuse(error.refusal());
            error.into()
        }
    };
    record.end(&ended, meter.bytes());
}

async fn admit_stream(
    core: &Rc<Core>,
    pod: &LocalPod,
    identity: SpiffeId,
    client: ClientAddress,
    request: &tunnel::Request,
    record: &mut Record,
) -> Result<Delivered, Error> {
    record.labels.source = core.snapshot().workload_by_address(client.ip());
    record.labels.service = request.host().and_then(|host| headers::service(&host, &core.snapshot()));
    let to = UpstreamAddress::new(request.destination()?);
    if !is_of_this_pod(core, pod, to.ip()).await {
        return Err(Error::NotThisPod { asked: to.ip(), pod: pod.to_string() });
    }
    record.upstream = Some(to.address());
    let arrival = Arrival { identity: Some(identity), client, to };
    admit(core, pod, &arrival, record).await
}

async fn admit(
    core: &Rc<Core>,
    pod: &LocalPod,
    arrival: &Arrival,
    record: &mut Record,
) -> Result<Delivered, Error> {
    if record.labels.source.is_none() {
        record.labels.source = core.snapshot().workload_by_address(arrival.client.ip());
    }
    let workload = core.workload_of(pod).await.ok_or(Error::UnknownPod)?;
    record.destination(&workload);
    let delivered = take(core, pod, &workload, arrival).await?;
    record.policy = delivered.policy();
    Ok(delivered)
}

/// Whether the mesh knows a pod by an address. Not all of those that it has need have been there when it was enrolled.
async fn is_of_this_pod(core: &Rc<Core>, pod: &LocalPod, address: IpAddr) -> bool {
    let told =
        async { core.workload_of(pod).await.is_some_and(|workload| workload.addresses.contains(&address)) };
    pod.addresses.contains(&address) || told.await
}

/// Whether a connection came from the pod's own programs and not over its network.
fn came_from_inside(pod: &LocalPod, client: ClientAddress) -> bool {
    client.ip().is_loopback() || pod.addresses.contains(&client.ip())
}

impl Error {
    /// What a peer is told.
    fn refusal(&self) -> Refusal {
        match self {
            Self::Denied(_) => Refusal::Denied,
            Self::MeshPort(_) | Self::BadRequest(_) | Self::NotThisPod { .. } => Refusal::BadRequest,
            Self::UnknownPod | Self::Crowded | Self::Deliver(_) => Refusal::Unavailable,
        }
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        let flag = match error {
            Error::Denied(_) => "DENY",
            Error::UnknownPod => "IDENTITY_ERROR",
            Error::Crowded => "UO",
            _ => "CONNECT",
        };
        if !matches!(error, Error::Denied(_)) {
            tracing::warn!(%error, "inbound connection refused");
        }
        Self::Failed(flag, error.to_string())
    }
}
