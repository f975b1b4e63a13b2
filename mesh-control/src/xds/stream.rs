//! One agent's stream, from its first request to its end.

use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::wire::type_url;
use mesh_api::wire::xds::{CONTINUES, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, PARTS};
use prost_types::value;
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Sleep, sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::agents::Registration;
use super::subscription::{Answer, Delta, Part, Subscription};
use crate::config::{Configuration, Resources};
use crate::metrics::{Metrics, TypeLabel};
use crate::nodes::Nodes;

/// Of what an agent says about itself, this much is logged and shown.
const LONGEST_TEXT: usize = 2000;

/// Whoever opens a stream knows what to ask for.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

type Outgoing = Result<DeltaDiscoveryResponse, Status>;

/// What a stream task works with.
pub(super) struct Stream {
    pub registration: Registration,
    pub configuration: watch::Receiver<Arc<Configuration>>,
    pub credentials: Credentials,
    /// Turns to true when the server stops.
    pub stopping: watch::Receiver<bool>,
    pub metrics: Arc<Metrics>,
    pub outbound: mpsc::Sender<Outgoing>,
    pub types: Types,
    /// How long it lasts at most.
    pub stay: Duration,
}

/// So long a stream lasts: `about` that, and another time for each.
///
/// After a roll-out of the control plane all agents would be with the replica that was there first, for good;
/// whoever connects again is dealt out by the Service. That they came together shall not have them come
/// together again.
pub(super) fn stay(about: Duration) -> Duration {
    about.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// Bytes of resources that a response has at most, for agents that take a state in parts. It is what a slow
/// agent costs while it gets the whole of a large mesh.
const PART: usize = 256 << 10;

/// What the agent showed to open the stream, to be looked at again when tokens change.
pub(super) struct Credentials {
    /// Address that they came from.
    pub sender: IpAddr,
    pub metadata: MetadataMap,
    pub tokens: Arc<Nodes>,
    pub changed: watch::Receiver<()>,
}

/// The resource types that are served.
#[derive(Default)]
pub(super) struct Types {
    addresses: Option<Subscription>,
    authorizations: Option<Subscription>,
    responses: u64,
    /// The agent takes a state in parts.
    in_parts: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Address,
    Authorization,
}

/// What a stream task waits for.
#[allow(clippy::large_enum_variant)] // there is one at a time, on the stack
enum Event<'a> {
    /// The agent said something, or ended the stream.
    Request(Result<Option<DeltaDiscoveryRequest>, Status>),
    /// There is a new configuration.
    Changed,
    /// The server stops.
    Stopping,
    /// Node tokens may have changed.
    Tokens,
    /// The agent takes more.
    Ready(mpsc::Permit<'a, Outgoing>),
    /// The agent's connection has ended.
    Gone,
    /// The agent is to find itself a replica again.
    Stayed,
}

/// Order of what is sent for one change. A policy is there before the first workload that names it, and goes
/// after the last: a workload that names a policy which is missing is closed to everybody.
const ORDER: [(Kind, Part); 3] =
    [(Kind::Authorization, Part::Upserts), (Kind::Address, Part::All), (Kind::Authorization, Part::All)];

impl Stream {
    /// Serves until either side ends it.
    pub async fn serve(mut self, mut inbound: Streaming<DeltaDiscoveryRequest>) {
        let node = Arc::clone(&self.registration.agent.node);
        let peer = self.registration.agent.address;
        let reason = match self.open(&mut inbound).await {
            Ok(()) => self.exchange(&mut inbound).await,
            Err(status) => {
                warn!(%node, %peer, reason = status.message(), "discovery refused");
                self.refuse(status)
            }
        };
        info!(%node, %peer, reason, "agent disconnected");
    }

    async fn open(&mut self, inbound: &mut Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let first = tokio::select! {
            first = timeout(FIRST_REQUEST, inbound.message()) => first,
            _ = self.stopping.wait_for(|stopping| *stopping) => {
                return Err(Status::unavailable("shutting down"));
            }
        };
        let first = first.map_err(|_| Status::deadline_exceeded("no request was sent"))??;
        let first = first.ok_or_else(|| Status::cancelled("closed by the agent"))?;
        let agent = &self.registration.agent;
        let id = check_node(&agent.node, first.node.as_ref())?;
        let metadata = first.node.as_ref().and_then(|node| node.metadata.as_ref());
        self.types.in_parts = metadata.is_some_and(|metadata| metadata.fields.contains_key(PARTS));
        info!(node = %agent.node, peer = %agent.address, id, "agent connected");
        self.take(first)
    }

    async fn exchange(&mut self, inbound: &mut Streaming<DeltaDiscoveryRequest>) -> String {
        let outbound = self.outbound.clone();
        let mut pending = true;
        let mut end = pin!(sleep(self.stay));
        loop {
            match self.event(inbound, &outbound, pending, end.as_mut()).await {
                Event::Request(Ok(Some(request))) => match self.take(request) {
                    Ok(()) => pending = true,
                    Err(status) => return self.refuse(status),
                },
                Event::Request(Ok(None)) => return "closed by the agent".to_owned(),
                Event::Request(Err(status)) => return status.message().to_owned(),
                Event::Changed => pending = true,
                Event::Stopping => return self.refuse(Status::unavailable("shutting down")),
                Event::Tokens => {
                    if self.credentials.are_stale(&self.registration.agent.node).await {
                        return self
                            .refuse(Status::unauthenticated("the node's token is not valid any more"));
                    }
                }
                Event::Ready(slot) => match self.respond() {
                    Some(response) => slot.send(Ok(response)),
                    None => pending = false,
                },
                Event::Gone => return "the connection is gone".to_owned(),
                // The agent sees an end without an error.
                Event::Stayed => return "it is to choose a replica again".to_owned(),
            }
        }
    }

    async fn event<'a>(
        &mut self,
        inbound: &mut Streaming<DeltaDiscoveryRequest>,
        outbound: &'a mpsc::Sender<Outgoing>,
        pending: bool,
        end: Pin<&mut Sleep>,
    ) -> Event<'a> {
        // In this order, so that a type that was asked for by now is seen before the next answer is chosen.
        tokio::select! {
            biased;
            _ = self.stopping.wait_for(|stopping| *stopping) => Event::Stopping,
            Ok(()) = self.credentials.changed.changed() => Event::Tokens,
            request = inbound.message() => Event::Request(request),
            changed = self.configuration.changed() => changed.map_or(Event::Stopping, |()| Event::Changed),
            // Only when the agent's connection has taken the last response is the next one made.
            slot = outbound.reserve(), if pending => slot.map_or(Event::Gone, Event::Ready),
            // Last, and only between two changes: nobody is sent away with half a state.
            () = end, if !pending => Event::Stayed,
        }
    }

    /// Ends the stream with `status`, if the agent still listens.
    fn refuse(&self, status: Status) -> String {
        let reason = status.message().to_owned();
        // A full channel means an agent that does not read: it will see the stream end, without a reason.
        let _ = self.outbound.try_send(Err(status));
        reason
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let (node, peer) = (&self.registration.agent.node, self.registration.agent.address);
        let Some((slot, label)) = self.types.of(&request.type_url) else {
            warn!(%node, %peer, type_url = request.type_url, "an unknown resource type was asked for");
            return Ok(());
        };
        let answer = if let Some(subscription) = slot {
            subscription.update(request).map_err(too_many)?
        } else {
            *slot = Some(Subscription::first(request).map_err(too_many)?);
            Answer::None
        };
        match answer {
            Answer::None => {}
            Answer::Ack => {
                self.metrics.acks.get_or_create(&label).inc();
            }
            Answer::Nack(text) => {
                let text: String = text.chars().take(LONGEST_TEXT).collect();
                self.metrics.nacks.get_or_create(&label).inc();
                warn!(%node, %peer, r#type = label.r#type, reason = text, "the agent rejected resources");
                self.registration.agent.note_nack(&text);
            }
        }
        self.registration.agent.note_unacknowledged(self.types.unacknowledged());
        Ok(())
    }

    fn respond(&mut self) -> Option<DeltaDiscoveryResponse> {
        let configuration = Arc::clone(&self.configuration.borrow_and_update());
        let (kind, delta, nonce) = self.types.next(&configuration)?;
        let count = delta.resources.len() + delta.removed.len();
        let label = kind.label();
        self.metrics.responses.get_or_create(&label).inc();
        self.metrics.resources.get_or_create(&label).inc_by(count as u64);
        if let (Some(built), false) = (configuration.built, delta.asked) {
            self.metrics.propagation.observe(built.elapsed().as_secs_f64());
        }
        let generation = configuration.generation;
        debug!(node = %self.registration.agent.node, r#type = label.r#type, count, generation, "sent");
        self.registration.agent.note_unacknowledged(self.types.unacknowledged());
        Some(response(kind, delta, nonce, generation))
    }
}

impl Credentials {
    async fn are_stale(&self, node: &str) -> bool {
        self.tokens.authenticate(self.sender, &self.metadata).await.as_deref() != Ok(node)
    }
}

impl Types {
    fn of(&mut self, type_url: &str) -> Option<(&mut Option<Subscription>, TypeLabel)> {
        match type_url {
            type_url::ADDRESS => Some((&mut self.addresses, Kind::Address.label())),
            type_url::AUTHORIZATION => Some((&mut self.authorizations, Kind::Authorization.label())),
            _ => None,
        }
    }

    /// The first part of what the agent lacks.
    fn next(&mut self, configuration: &Configuration) -> Option<(Kind, Delta, String)> {
        let nonce = (self.responses + 1).to_string();
        let most = if self.in_parts { PART } else { usize::MAX };
        let found = ORDER.into_iter().find_map(|(kind, part)| {
            let (slot, resources): (_, &Resources) = match kind {
                Kind::Address => (&mut self.addresses, &configuration.addresses),
                Kind::Authorization => (&mut self.authorizations, &configuration.authorizations),
            };
            Some((kind, slot.as_mut()?.next(resources, part, &nonce, most)?))
        });
        let (kind, delta) = found?;
        self.responses += 1;
        Some((kind, delta, nonce))
    }

    fn unacknowledged(&self) -> usize {
        let both = [&self.addresses, &self.authorizations];
        both.into_iter().flatten().map(Subscription::unacknowledged).sum()
    }
}

impl Kind {
    fn label(self) -> TypeLabel {
        TypeLabel {
            r#type: match self {
                Self::Address => "Address",
                Self::Authorization => "Authorization",
            },
        }
    }

    fn type_url(self) -> &'static str {
        match self {
            Self::Address => type_url::ADDRESS,
            Self::Authorization => type_url::AUTHORIZATION,
        }
    }
}

fn response(kind: Kind, delta: Delta, nonce: String, generation: u64) -> DeltaDiscoveryResponse {
    let mut system_version_info = generation.to_string();
    if delta.continues {
        system_version_info.push(CONTINUES);
    }
    DeltaDiscoveryResponse {
        system_version_info,
        resources: delta.resources,
        type_url: kind.type_url().to_owned(),
        nonce,
        removed_resources: delta.removed,
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` takes
fn too_many(error: super::subscription::TooManyNames) -> Status {
    Status::resource_exhausted(error.to_string())
}

/// The id that the agent gives itself. A node named in its metadata must be the one that the token is for.
fn check_node<'a>(node: &str, described: Option<&'a Node>) -> Result<&'a str, Status> {
    let described = described.filter(|described| (1..=LONGEST_TEXT).contains(&described.id.len()));
    let described = described
        .ok_or_else(|| Status::invalid_argument("the first request of a stream must have node.id"))?;
    let named = described.metadata.as_ref().and_then(|metadata| metadata.fields.get("NODE_NAME"));
    match named.and_then(|value| value.kind.as_ref()) {
        Some(value::Kind::StringValue(named)) if named != node => {
            let text = format!("the token is node {node}'s, but the agent says that it runs on {named}");
            Err(Status::permission_denied(text))
        }
        _ => Ok(&described.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_came_together_do_not_leave_together() {
        let one = || stay(Duration::from_mins(10));
        let stays: std::collections::BTreeSet<_> = std::iter::repeat_with(one).take(100).collect();
        let (Some(&first), Some(&last)) = (stays.first(), stays.last()) else { panic!("none") };
        assert!(first >= Duration::from_mins(8) && last <= Duration::from_mins(12), "{stays:?}");
        assert!(stays.len() > 90 && last > first + Duration::from_mins(2), "{stays:?}");
    }
}
