//! One connection to an endpoint that requests are sent on, one after the other.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::task::spawn_local;

use crate::authorized_connections::AuthorizedConnection;
use crate::balance::{ServicePortKey, ServiceSlot};
use crate::connect_to_endpoint::Upstream;
use crate::inbound::AuthorizedApplicationSocket;
use crate::stream::{LOCAL_TRANSPORT, Stream};

/// Time for a server to close its end.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A slot below the limit of a service's port.
pub(super) type ServicePortSlot = ServiceSlot<ServicePortKey>;

/// How long a connection is of use, by the policy for its service's port.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionUse {
    /// Time without a request; none: the usual one of its protocol.
    pub idle_timeout: Option<Duration>,
    /// Most requests; none: no limit.
    pub most_requests: Option<NonZeroU32>,
}

/// A connection to an endpoint.
pub(super) struct UpstreamConnection {
    pub io: Stream,
    /// What was read and not used yet.
    pub input: BytesMut,
    /// The policy's permit, if the endpoint is a pod of this node.
    authorized: Option<AuthorizedConnection>,
    /// Counts the connection against the service's limit.
    slot: Option<ServicePortSlot>,
    /// Requests that went on it.
    requests: u32,
    /// By the policy when the last of them did.
    usage: ConnectionUse,
    /// Transport as the access log names it.
    pub transport: &'static str,
}

impl UpstreamConnection {
    pub fn new(upstream: Upstream) -> Self {
        let (io, authorized, transport) = match upstream {
            Upstream::Stream(stream) => {
                let transport = stream.transport_name();
                (stream, None, transport)
            }
            Upstream::Local(local) => {
                let (socket, authorized) = local.into_parts();
                (Stream::from_socket(socket), Some(authorized), LOCAL_TRANSPORT)
            }
        };
        let usage = ConnectionUse { idle_timeout: None, most_requests: None };
        Self { io, input: BytesMut::new(), authorized, slot: None, requests: 0, usage, transport }
    }

    /// Returns the policy that allowed it, if it is this node's to know, and one had to.
    pub fn policy_that_allowed_it(&self) -> Option<&Arc<str>> {
        self.authorized.as_ref()?.permit().policy_name()
    }

    /// Returns the way itself, and its slot below the service's limit.
    pub fn into_upstream(self) -> (Upstream, Option<ServicePortSlot>) {
        let upstream = match (self.io, self.authorized) {
            (Stream::Socket(socket), Some(authorized)) => {
                Upstream::Local(AuthorizedApplicationSocket::from_parts(socket, authorized))
            }
            (stream, _) => Upstream::Stream(stream),
        };
        (upstream, self.slot)
    }

    /// Returns what carries its bytes, and the policy's permit, which whoever moves bytes has to watch.
    pub fn into_stream(self) -> (Stream, Option<AuthorizedConnection>) {
        (self.io, self.authorized)
    }

    /// Counts another request on it, and it against the limit of its service's port from now on.
    pub fn begin_request(&mut self, slot: Option<ServicePortSlot>, usage: ConnectionUse) {
        self.slot = slot;
        self.requests = self.requests.saturating_add(1);
        self.usage = usage;
    }

    /// Whether it has had as many requests as it may.
    pub fn is_used_up(&self) -> bool {
        self.usage.most_requests.is_some_and(|most| self.requests >= most.get())
    }

    /// Returns the time that it may have no request, if its policy says so.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.usage.idle_timeout
    }

    /// Counts it no longer: it is idle, or about to end. Returns its slot below the service's limit.
    pub fn take_slot(&mut self) -> Option<ServicePortSlot> {
        self.slot.take()
    }

    /// Splits it into what carries bytes, the bytes that were read, and the policy's permit.
    pub fn parts(&mut self) -> (&mut Stream, &mut BytesMut, Option<&AuthorizedConnection>) {
        (&mut self.io, &mut self.input, self.authorized.as_ref())
    }

    /// Closes it so that the server sees an end and no reset, which it might log as a fault.
    pub fn close_in_order(mut self) {
        drop(self.take_slot());
        spawn_local(async move {
            let close = async {
                self.io.shutdown().await?;
                // What the server still sends is of no use; its end is waited for.
                tokio::io::copy(&mut self.io, &mut tokio::io::sink()).await
            };
            let _closed_or_late = tokio::time::timeout(CLOSE_TIME, close).await;
        });
    }

    /// Whether it can take another request: the server has neither closed it nor sent what nobody asked for,
    /// and the policy still allows it.
    pub async fn is_usable(&mut self) -> bool {
        if self.authorized.as_ref().is_some_and(AuthorizedConnection::is_revoked) || !self.input.is_empty() {
            return false;
        }
        let mut byte = [0; 1];
        // Any answer of the read is the end of the connection, or bytes too many.
        let looking = poll_fn(|context| {
            let mut into = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut self.io).poll_read(context, &mut into).is_pending())
        });
        // A task that has had its turn would be told that nothing is there.
        tokio::task::unconstrained(looking).await
    }
}
