//! `envoy.service.discovery.v3.AggregatedDiscoveryService`: who may open a stream.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::identity::SpiffeId;
use mesh_api::wire::xds::aggregated_discovery_service_server::AggregatedDiscoveryService;
use mesh_api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::agents::Agents;
use super::stream::{Credentials, Stream, Types, stay};
use crate::ca::Authority;
use crate::config::Configuration;
use crate::metrics::Metrics;
use crate::nodes::{AuthenticationError, Nodes};
use crate::tls::Peer;

/// The service.
pub struct DiscoveryService {
    /// Knows which identity agents have.
    pub authority: Arc<Authority>,
    /// Say which node is calling.
    pub tokens: Arc<Nodes>,
    /// What is served.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// Who is connected.
    pub agents: Arc<Agents>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Turns to true when the server stops.
    pub stopping: watch::Receiver<bool>,
    /// How long an agent stays, about.
    pub stay: Duration,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = Peer::of(&request);
        let node = self.authenticate(&peer, request.metadata()).await.map_err(|refusal| {
            warn!(%peer, identity = ?peer.identity, reason = %refusal, "discovery refused");
            Status::from(refusal)
        })?;
        peer.prove(&node)?;
        // One response in the making; the next is made when this one was taken.
        let (outbound, responses) = mpsc::channel(1);
        let stream = Stream {
            credentials: Credentials {
                sender: peer.address.ip(),
                metadata: request.metadata().clone(),
                changed: self.tokens.changes(),
                tokens: Arc::clone(&self.tokens),
            },
            registration: self.agents.register(node, peer.address),
            configuration: self.configuration.clone(),
            stopping: self.stopping.clone(),
            metrics: Arc::clone(&self.metrics),
            outbound,
            types: Types::default(),
            stay: stay(self.stay),
        };
        // The answer's headers must not wait for the first request, so that is read by the task.
        tokio::spawn(stream.serve(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

impl DiscoveryService {
    /// The certificate proves that it is an agent, the token which node's.
    async fn authenticate(&self, peer: &Peer, metadata: &MetadataMap) -> Result<Arc<str>, Refusal> {
        let identity = peer.identity.as_ref().ok_or(Refusal::NoCertificate)?;
        if identity != self.authority.agent_identity() {
            return Err(Refusal::NotAgent { identity: identity.clone() });
        }
        Ok(self.tokens.authenticate(peer.address.ip(), metadata).await?)
    }
}

/// Why a stream is not opened.
#[derive(Debug, Error)]
enum Refusal {
    #[error("no client certificate was sent; fetch one with CreateCertificate first")]
    NoCertificate,
    #[error("the client certificate is for {identity}, which is not an agent")]
    NotAgent { identity: SpiffeId },
    #[error(transparent)]
    Node(#[from] AuthenticationError),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NoCertificate => Self::unauthenticated(text),
            Refusal::Node(error) => error.into(),
            Refusal::NotAgent { .. } => Self::permission_denied(text),
        }
    }
}
