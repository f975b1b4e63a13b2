//! Copies of requests for mirrors, whose responses nobody waits for. A slow or dead mirror costs a request
//! nothing: copies are sent when the whole request was read, in tasks of their own, and there is a bound.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mesh_api::plan::http_routes::{HttpDestination, HttpForward, Retries};
use mesh_api::plan::{Snapshot, Workload};
use tokio::task::spawn_local;

use super::answer_request::{Asked, is_drawn};
use super::body_pump::{BodyFramer, BodyPump};
use super::downstream_client::{Client, MirroredContent};
use super::h1::{BodyEncoder, BodyFraming, RequestHead, ResponseHead};
use super::http_connection_context::HttpConnection;
use super::kept_body::KeptBody;
use super::outgoing_head::{RequestLine, write_head};
use super::outgoing_request::OutgoingRequest;
use super::relay_response::keep_or_close_upstream;
use super::retry_loop::{RequestSlots, RetryLoop};
use super::send_request::{ResponseEnd, Timers, relay_response};
use super::upstream_target::TargetService;
use crate::balance::{EndpointPick, PickBy};

/// Most copies under way on a worker. Further ones are dropped, and counted.
const MAX_COPIES: usize = 256;
/// Time for a copy and its response.
const COPY_TIME: Duration = Duration::from_secs(15);

/// The copies that are under way on a worker.
#[derive(Default)]
pub struct Copies(Rc<Cell<usize>>);

/// One of them, until it is dropped.
struct Copy(Rc<Cell<usize>>);

impl Copies {
    fn try_begin(&self) -> Option<Copy> {
        let count = self.0.get();
        (count < MAX_COPIES).then(|| {
            self.0.set(count + 1);
            Copy(Rc::clone(&self.0))
        })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Draws the mirrors that get a copy of a request. What becomes a tunnel is not copied.
pub(super) fn chosen_mirrors<'a>(head: &RequestHead, forward: &'a HttpForward) -> Vec<&'a HttpDestination> {
    if head.is_connect() || head.upgrade.is_some() {
        return Vec::new();
    }
    let chosen = forward.mirrors.iter().filter(|(_, share)| is_drawn(*share));
    chosen.map(|(destination, _)| destination).collect()
}

/// A copy of a request.
pub(super) struct Mirrored {
    connection: HttpConnection,
    workload: Arc<Workload>,
    head: RequestHead,
    line: RequestLine<'static>,
    content: BytesMut,
}

impl Mirrored {
    /// Copies a request that was read to its end.
    pub fn new(
        connection: &HttpConnection,
        asked: &Asked<'_>,
        line: &RequestLine<'_>,
        content: &[u8],
    ) -> Self {
        let target = line.target.clone().into_owned().into();
        let authority = shadow_authority(&line.authority).into();
        Self {
            connection: connection.clone(),
            workload: Arc::clone(asked.workload),
            head: asked.head.clone(),
            line: RequestLine { target, authority },
            content: BytesMut::from(content),
        }
    }

    /// Sends it to a mirror, in a task of its own.
    pub fn send_to(self, mirror: &HttpDestination, snapshot: &Snapshot) {
        let worker = Rc::clone(&self.connection.worker);
        let original = self.connection.original.address();
        let target = TargetService::find(Some(mirror), (snapshot, &self.workload), original, &self.head);
        let (Some(copy), Ok(target)) = (worker.copies.try_begin(), target) else {
            return worker.metrics.count_copy(false);
        };
        spawn_local(async move {
            let sent = tokio::time::timeout(COPY_TIME, self.send(&target)).await;
            worker.metrics.count_copy(matches!(sent, Ok(Some(()))));
            drop(copy);
        });
    }

    /// Sends it to one endpoint, and throws the response away. None: that failed.
    async fn send(&self, target: &TargetService) -> Option<()> {
        let worker = &self.connection.worker;
        let ejected =
            worker.shared.outliers.ejected_endpoints(&target.endpoints, &target.policy, Instant::now());
        let by = PickBy::key_or_balancer(None, &target.policy);
        let mut picks = worker.picker.pick_endpoints(&target.endpoints, by, ejected, None);
        let EndpointPick { endpoint, active, .. } = picks.next()?;
        let mut client = Client::Nobody(MirroredContent::new(&self.content));
        let reader = client.body_reader(self.head.body);
        let kept = KeptBody::new(worker.receive_budget(&self.connection.pod), false);
        let head = write_head(&self.head, &self.line, target.protocol)?;
        let mut attempt = RetryLoop {
            connection: &self.connection,
            workload: &self.workload,
            head: &self.head,
            retries: &Retries::default(),
            target,
            key: None,
            outgoing: OutgoingRequest::new(head, self.head.body, reader, kept),
            response: ResponseHead::default(),
            timers: Timers::new(None, None),
            slots: RequestSlots::default(),
        };
        let key = target.upstream_key(&self.connection, endpoint);
        let mut upstream = attempt.attempt(&key, endpoint, &mut client).await.ok()?;
        let RetryLoop { mut outgoing, response, mut timers, .. } = attempt;
        let writer = BodyFramer::Http1(BodyEncoder::new(BodyFraming::UntilClose, false));
        let mut pump = BodyPump::new(upstream.body_reader(response.body), writer, BytesMut::new());
        let end = relay_response(&mut upstream, &mut client, &mut outgoing, &mut pump, &mut timers).await;
        drop(active);
        let is_whole = matches!(end, ResponseEnd::Complete);
        keep_or_close_upstream(worker, key, upstream, is_whole && outgoing.is_sent() && response.keeps_alive);
        is_whole.then_some(())
    }
}

/// Returns the authority of a copy, as Envoy marks it: the host ends in `-shadow`.
fn shadow_authority(authority: &str) -> String {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => {
            format!("{host}-shadow:{port}")
        }
        _ => format!("{authority}-shadow"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_marked_in_its_host() {
        assert_eq!(shadow_authority("web"), "web-shadow");
        assert_eq!(shadow_authority("web.shop:8080"), "web.shop-shadow:8080");
        assert_eq!(shadow_authority(""), "-shadow");
    }
}
