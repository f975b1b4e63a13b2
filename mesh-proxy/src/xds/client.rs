//! Keeps a stream to the control plane open, with back-off between tries (docs/wire.md, Reconnecting).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::wire::xds::{Node, PARTS};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rand::RngExt;
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::XdsConfig;
use super::control_plane_status::ControlPlaneStatus;
use super::delta_stream::DeltaStream;
use super::response_applier::ResponseApplier;
use crate::certs::{Certificates, ControlPlaneConnectError, ControlPlaneConnector};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Largest message that is taken, bytes. A control plane that does not divide it sends the whole
/// configuration of a large mesh as one message.
const LARGEST_MESSAGE: usize = 200 << 20;
/// Timeout for headers of the answer, which come before any request is read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const NAMESPACE: &str = "nodemesh-system";

/// Keeps the agent connected.
pub(super) struct XdsClient {
    pub control_plane: ControlPlaneConnector,
    pub config: XdsConfig,
    pub certificates: Certificates,
    pub status: Arc<ControlPlaneStatus>,
    pub publisher: ResponseApplier,
    /// Notified when the control plane could not be reached.
    pub unreachable: Arc<Notify>,
}

/// Why a stream ended or could not be opened.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Connect(#[from] ControlPlaneConnectError),
    #[error("{} ({:?})", .0.message(), .0.code())]
    Status(#[from] Status),
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    #[error("the control plane closed the stream")]
    Closed,
}

impl XdsClient {
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.wait_for_certificate().await;
            let responses_before = self.publisher.responses;
            let Err(end) = self.follow().await;
            if matches!(end, StreamEnd::Closed) && self.publisher.responses > responses_before {
                // It does so from time to time, so that agents spread over its replicas.
                self.status.set_closed_by_server();
            } else {
                self.status.set_disconnected(&end.to_string());
                self.unreachable.notify_one();
            }
            if self.publisher.responses > responses_before {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause.mul_f64(random_between(0.8, 1.2))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for the agent's own certificate, which the control plane asks for.
    async fn wait_for_certificate(&self) {
        let mut own = self.certificates.subscribe_agent_certificate();
        let valid = |own: &Option<crate::certs::AgentCertificate>| {
            own.as_ref().is_some_and(|own| SystemTime::now() < own.not_after)
        };
        if !valid(&own.borrow()) {
            self.status.set_disconnected("the agent has no certificate yet");
        }
        // Ends only with the agent.
        let _ = own.wait_for(valid).await;
    }

    /// Follows one stream until it ends. Errors: why it ended.
    async fn follow(&mut self) -> Result<std::convert::Infallible, StreamEnd> {
        let own =
            self.certificates.subscribe_agent_certificate().borrow().as_ref().map(|own| own.identity.clone());
        let channel = self.control_plane.open_channel(&self.certificates.control_plane_roots(), own).await?;
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let (stream, requests) = DeltaStream::with_initial_requests(&self.node(), &self.publisher);
        let mut request = Request::new(ReceiverStream::new(requests));
        self.control_plane.add_auth_headers(&mut request)?;
        let answer = client.delta_aggregated_resources(request);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| StreamEnd::Silent)?;
        let mut responses = answer?.into_inner();
        self.status.set_connected();
        self.certificates.retry_failed_requests();
        let mut resuming = true;
        while let Some(response) = responses.message().await? {
            if !stream.apply_and_answer(&mut self.publisher, response).await {
                break;
            }
            if std::mem::take(&mut resuming) {
                // The list of everything that is held took as much memory as holding it.
                (self.config.release_memory)();
            }
        }
        Err(StreamEnd::Closed)
    }

    /// Returns who asks (docs/wire.md, Node).
    fn node(&self) -> Node {
        let XdsConfig { node_name, instance_ip, .. } = &self.config;
        let name = format!("mesh-agent-{node_name}");
        let id = format!("ztunnel~{instance_ip}~{name}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local");
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let facts = [
            ("NAME", name.as_str()),
            ("NAMESPACE", NAMESPACE),
            ("INSTANCE_IPS", instance_ip),
            ("NODE_NAME", node_name),
            (PARTS, "true"),
        ];
        let fields: BTreeMap<_, _> =
            facts.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
        Node { id, metadata: Some(Struct { fields }), ..Node::default() }
    }
}

fn random_between(low: f64, high: f64) -> f64 {
    rand::rng().random_range(low..high)
}
