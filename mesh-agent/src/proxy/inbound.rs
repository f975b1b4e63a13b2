//! Room five: a connection that arrives at an enrolled pod. Who is it, may it, then deliver.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::header::HeaderMap;
use mesh_api::identity::SpiffeId;
use mesh_api::plan::Workload;
use mesh_common::is_mesh_port;
use tokio::net::TcpStream;

use super::accept::Place;
use super::admission::{Admission, Request};
use super::core::{Core, LocalPod};
use super::deliver::deliver;
use super::flow::{ClientAddress, UpstreamAddress};
use super::hbone::{self, Server, headers};
use super::relay::{self, Meter, SocketIs, reset_on_drop};
use super::tls;
use crate::certs::peer_id;
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
    async fn carry_tunnel(mut self, mut tunnel: hbone::Tunnel, meter: &Meter) -> Ended {
        tokio::select! {
            result = relay::relay_tunnel(&mut self.socket, &mut tunnel, SocketIs::Server, meter) => result.into(),
            denial = self.admission.revoked() => {
                reset_on_drop(&self.socket);
                // Dropping an unfinished stream resets it.
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
    let ended = match admit(&core, &pod, &arrival, &mut record).await {
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

/// Serves one HBONE connection: each of its streams becomes a task.
pub async fn serve_hbone(
    core: Rc<Core>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    _place: Place,
) {
    let peer = ClientAddress::new(peer);
    if came_from_inside(&pod, peer) {
        tracing::warn!(%pod, %peer, "a program connected to the mesh's port 15008 itself: refused");
        return reset_on_drop(&socket);
    }
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
    let identity = match peer_id(tls.peer_certificates().unwrap_or_default()) {
        Ok(identity) => identity,
        Err(error) => return tracing::warn!(%pod, %peer, %error, "HBONE connection refused"),
    };
    let server = match Server::start(tls).await {
        Ok(server) => server,
        Err(error) => return tracing::warn!(%pod, %peer, %identity, %error, "HBONE connection refused"),
    };
    let drain = Rc::clone(&core.draining);
    let handle =
        move |request| serve_stream(Rc::clone(&core), Arc::clone(&pod), identity.clone(), peer, request);
    if let Err(error) = server.serve(drain, handle).await {
        tracing::debug!(%peer, %error, "HBONE connection ended");
    }
}

async fn serve_stream(
    core: Rc<Core>,
    pod: Arc<LocalPod>,
    identity: SpiffeId,
    peer: ClientAddress,
    request: hbone::Request,
) {
    let client = ClientAddress::new(headers::client(&request.headers, peer.address()));
    let to = target(&request, &pod);
    let destination = to.as_ref().map_or(peer.address(), |to| to.address());
    let start = Start { reporter: Reporter::Destination, client: client.address(), destination };
    let mut record = Record::new(&core.metrics, start);
    record.transport = "hbone";
    record.labels.source_identity = Some(identity.clone());
    record.labels.destination_identity = Some(pod.identity.clone());
    record.labels.source = core.snapshot().workload_by_address(client.ip()).cloned();
    record.labels.service = headers::service(&request.headers, &core.snapshot()).cloned();
    let result = match to {
        Ok(to) => {
            record.upstream = Some(to.address());
            let arrival = Arrival { identity: Some(identity), client, to };
            admit(&core, &pod, &arrival, &mut record).await
        }
        Err(error) => Err(error),
    };
    let meter = Meter::default();
    let ended = match result {
        Ok(delivered) => match request.accept(answer_headers(record.labels.destination.as_deref())) {
            Ok(tunnel) => {
                meter.report_to(record.open());
                delivered.carry_tunnel(tunnel, &meter).await
            }
            Err(error) => Ended::Broken(format!("client: {error}")),
        },
        Err(error) => {
            request.refuse(error.status());
            error.into()
        }
    };
    record.end(&ended, meter.bytes());
}

/// The address and port that a request asks for, if it may be asked for here.
fn target(request: &hbone::Request, pod: &LocalPod) -> Result<UpstreamAddress, Error> {
    let to = UpstreamAddress::new(headers::target(&request.method, request.authority.as_deref())?);
    if pod.addresses.contains(&to.ip()) {
        Ok(to)
    } else {
        Err(Error::NotThisPod { asked: to.ip(), pod: pod.to_string() })
    }
}

async fn admit(
    core: &Rc<Core>,
    pod: &LocalPod,
    arrival: &Arrival,
    record: &mut Record,
) -> Result<Delivered, Error> {
    if record.labels.source.is_none() {
        record.labels.source = core.snapshot().workload_by_address(arrival.client.ip()).cloned();
    }
    let workload = core.workload_of(pod).await.ok_or(Error::UnknownPod)?;
    record.destination(&workload);
    let delivered = take(core, pod, &workload, arrival).await?;
    record.policy = delivered.policy();
    Ok(delivered)
}

/// Whether a connection came from the pod's own programs and not over its network.
fn came_from_inside(pod: &LocalPod, client: ClientAddress) -> bool {
    client.ip().is_loopback() || pod.addresses.contains(&client.ip())
}

fn answer_headers(workload: Option<&Workload>) -> HeaderMap {
    workload.map(headers::baggage).into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

impl Error {
    /// The status that a peer gets (wire reference 6.3).
    fn status(&self) -> StatusCode {
        match self {
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            Self::MeshPort(_) | Self::BadRequest(_) | Self::NotThisPod { .. } => StatusCode::BAD_REQUEST,
            Self::UnknownPod | Self::Deliver(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        let flag = match error {
            Error::Denied(_) => "DENY",
            Error::UnknownPod => "IDENTITY_ERROR",
            _ => "CONNECT",
        };
        if !matches!(error, Error::Denied(_)) {
            tracing::warn!(%error, "inbound connection refused");
        }
        Self::Failed(flag, error.to_string())
    }
}
