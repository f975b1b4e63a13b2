//! `istio.v1.auth.IstioCertificateService`: signs what a node may have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::identity::{InvalidSpiffeId, SpiffeId};
use mesh_api::wire::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::Value;
use prost_types::value::Kind;
use thiserror::Error;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::csr::{CertificateRequest, CsrError};
use super::pem;
use super::signer::{SignerError, Subject};
use crate::ca::Authority;
use crate::config::Configuration;
use crate::metrics::Metrics;
use crate::nodes::{AuthenticationError, Nodes};
use crate::tls::Peer;

/// How long a request waits for its pod to appear in the configuration: an agent may see a new pod before we
/// do.
const POD_GRACE: Duration = Duration::from_secs(1);

/// Of an identity that is refused, this much is logged.
const LONGEST_NAME: usize = 300;

/// The service.
pub struct CertificateService {
    /// Signs.
    pub authority: Arc<Authority>,
    /// Say which node is calling.
    pub tokens: Arc<Nodes>,
    /// Says which accounts have a pod on that node.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = Peer::of(&request);
        let asked = impersonated(request.get_ref()).unwrap_or_else(|| "the agent's own".to_owned());
        let node = self.tokens.authenticate(peer.address.ip(), request.metadata()).await;
        let result = match &node {
            Ok(node) => {
                peer.prove(node)?;
                self.sign(node, request.get_ref()).await
            }
            Err(error) => Err(Refusal::Node(error.clone())),
        };
        let node = node.as_deref().unwrap_or("unknown");
        match result {
            Ok(response) => {
                self.metrics.certificates_signed.inc();
                Ok(Response::new(response))
            }
            Err(refusal) => {
                self.metrics.refused(refusal.reason());
                let identity: String = asked.chars().take(LONGEST_NAME).collect();
                warn!(%peer, node, identity, reason = %refusal, "certificate refused");
                Err(refusal.into())
            }
        }
    }
}

impl CertificateService {
    async fn sign(
        &self,
        node: &str,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Refusal> {
        let csr = CertificateRequest::parse(&request.csr)?;
        let identity = match impersonated(request) {
            Some(identity) => identity.parse().map_err(Refusal::Identity)?,
            None => self.authority.agent_identity().clone(),
        };
        self.authorize(node, &identity).await?;
        if csr.identity != identity {
            return Err(Refusal::OtherIdentity { asked: identity, named: csr.identity });
        }
        let lifetime = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        let subject = Subject { identity: &identity, dns_names: &[], key: &csr.key };
        let issued = self.authority.issue(&subject, lifetime.map(Duration::from_secs))?;
        let expires = humantime::format_rfc3339_seconds(issued.expires);
        info!(node, %identity, %expires, "certificate signed");
        let mut cert_chain: Vec<_> = issued.chain.iter().map(pem::encode).collect();
        cert_chain.push(pem::encode_all(&self.authority.roots()));
        Ok(IstioCertificateResponse { cert_chain })
    }

    /// A node may have its agent's identity, and that of every account with a pod on it.
    async fn authorize(&self, node: &str, identity: &SpiffeId) -> Result<(), Refusal> {
        if identity.trust_domain() != self.authority.trust_domain() {
            let ours = self.authority.trust_domain().to_owned();
            return Err(Refusal::TrustDomain { identity: identity.clone(), ours });
        }
        if identity == self.authority.agent_identity() {
            return Ok(());
        }
        let mut configuration = self.configuration.clone();
        let runs =
            configuration.wait_for(|now| now.runs_on(node, identity.namespace(), identity.service_account()));
        match tokio::time::timeout(POD_GRACE, runs).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(Refusal::NotOnNode { identity: identity.clone(), node: node.to_owned() })
            }
        }
    }
}

/// The identity that the caller asks for on behalf of a workload.
fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    let fields: &BTreeMap<String, Value> = &request.metadata.as_ref()?.fields;
    match fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
        Kind::StringValue(identity) => Some(identity.clone()),
        _ => None,
    }
}

/// Why a certificate is not given.
#[derive(Debug, Error)]
enum Refusal {
    #[error(transparent)]
    Node(AuthenticationError),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("ImpersonatedIdentity: {0}")]
    Identity(InvalidSpiffeId),
    #[error("the certificate signing request names {named}, but {asked} was asked for")]
    OtherIdentity { asked: SpiffeId, named: SpiffeId },
    #[error("{identity} is not of the trust domain {ours}")]
    TrustDomain { identity: SpiffeId, ours: String },
    #[error("no pod on node {node} runs as {identity}")]
    NotOnNode { identity: SpiffeId, node: String },
    #[error(transparent)]
    Signer(#[from] SignerError),
}

impl Refusal {
    /// Label of the refusals metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Node(_) => "unauthenticated",
            Self::Csr(_) | Self::Identity(_) | Self::OtherIdentity { .. } => "bad_request",
            Self::TrustDomain { .. } => "trust_domain",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Signer(_) => "internal",
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Node(error) => error.into(),
            Refusal::Csr(_) | Refusal::Identity(_) | Refusal::OtherIdentity { .. } => {
                Self::invalid_argument(text)
            }
            Refusal::TrustDomain { .. } | Refusal::NotOnNode { .. } => Self::permission_denied(text),
            // Others may succeed later: an expired authority can be replaced.
            Refusal::Signer(_) => Self::unavailable(text),
        }
    }
}
