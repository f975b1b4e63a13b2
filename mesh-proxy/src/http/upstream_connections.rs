//! Idle connections to endpoints, kept for the next request. None is shared between pods: a connection on
//! which one pod's requests went never carries another's.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::{Endpoint, EndpointId, Service, TunnelProtocol};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;

use super::h2::{CountedStream, Http2Connection};
use super::read_buffers;
use super::send_request::AttemptError;
use super::upstream_connection::{ConnectionUse, ServicePortSlot, UpstreamConnection};
use crate::local_pod_identity::LocalPod;

/// How long a connection waits for a request unless its policy says otherwise. Servers close theirs after
/// five seconds and more; one that is closed while a request is on its way to it would cost that request.
const IDLE_TIME: Duration = Duration::from_secs(4);
/// How often connections that have waited too long are looked for, while there are requests.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Most idle connections of one pod to one endpoint. A new one costs a stream, and no round trip.
const MAX_IDLE_EACH: usize = 64;
/// Most connections of HTTP/2 of one pod to one endpoint.
const MAX_SHARED_EACH: usize = 64;
/// Most idle connections of a worker, and as many of HTTP/2.
const MAX_IDLE: usize = 4096;

/// The idle connections of one worker.
#[derive(Default)]
pub struct UpstreamConnections {
    idle: RefCell<HashMap<UpstreamKey, Vec<Idle>>>,
    /// Number of all.
    count: Cell<usize>,
    swept: Cell<Option<Instant>>,
    /// Connections of HTTP/2, which carry several requests at a time.
    shared: RefCell<HashMap<UpstreamKey, Shared>>,
}

/// The connections of HTTP/2 of one pod to one endpoint.
#[derive(Default)]
struct Shared {
    connections: Vec<Http2Connection>,
    /// One is opened at a time: those who want one wait for it.
    opening: Rc<tokio::sync::Mutex<()>>,
    /// How often one could not be opened.
    failures: Rc<Cell<u64>>,
    /// That a stream of one of them has ended.
    stream_ended: Rc<Notify>,
}

/// For whom a connection was made, and where it leads.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct UpstreamKey {
    /// The client pod's uid.
    pod: Arc<str>,
    /// Key of the service, which the server's node is told, and its port.
    service: (Arc<str>, u16),
    endpoint: EndpointId,
    /// Whether it is reached over mutual TLS.
    is_encrypted: bool,
}

impl UpstreamKey {
    /// Creates the key of a pod's connections to an endpoint of a service's port.
    pub fn new(pod: &LocalPod, (service, port): (&Service, u16), endpoint: &Endpoint) -> Self {
        Self {
            pod: Arc::clone(&pod.uid),
            service: (Arc::clone(&service.key), port),
            endpoint: endpoint.key(),
            is_encrypted: endpoint.tunnel_protocol == TunnelProtocol::Hbone,
        }
    }
}

struct Idle {
    connection: Box<UpstreamConnection>,
    since: Instant,
}

impl Idle {
    fn is_expired(&self) -> bool {
        self.since.elapsed() >= self.connection.idle_timeout().unwrap_or(IDLE_TIME)
    }
}

impl UpstreamConnections {
    /// Takes the connection that was used last; none if there is none that can take a request.
    pub(super) async fn take(&self, key: &UpstreamKey) -> Option<Box<UpstreamConnection>> {
        loop {
            let idle = self.idle.borrow_mut().get_mut(key)?.pop()?;
            self.count.set(self.count.get() - 1);
            let (is_expired, mut connection) = (idle.is_expired(), idle.connection);
            if !is_expired && connection.is_usable().await {
                return Some(connection);
            }
            connection.close_in_order();
        }
    }

    /// Keeps a connection whose last response is complete.
    pub(super) fn keep(&self, key: UpstreamKey, mut connection: Box<UpstreamConnection>) {
        drop(connection.take_slot());
        if !connection.input.is_empty() || connection.is_used_up() {
            // What follows a response belongs to none.
            return connection.close_in_order();
        }
        // An idle connection holds no buffer.
        read_buffers::give_back(&mut connection.input);
        if self.swept.get().is_none_or(|swept| swept.elapsed() > SWEEP_EVERY) {
            self.close_idle();
        }
        let mut all = self.idle.borrow_mut();
        let idle = all.entry(key).or_default();
        if idle.len() < MAX_IDLE_EACH && self.count.get() < MAX_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
            self.count.set(self.count.get() + 1);
        } else {
            connection.close_in_order();
        }
    }

    /// Returns a place on a connection of HTTP/2, which is opened if there is none with room. `take_slot`
    /// takes a slot below the service's limit, for a connection that has no request. Errors: it can't be
    /// opened, or there is no slot.
    pub(super) async fn get_or_open_shared<Opening>(
        &self,
        key: &UpstreamKey,
        usage: ConnectionUse,
        take_slot: impl Fn() -> Result<Option<ServicePortSlot>, AttemptError>,
        open: impl FnOnce() -> Opening,
    ) -> Result<(CountedStream, SendRequest<Bytes>), AttemptError>
    where
        Opening: Future<Output = Result<Http2Connection, AttemptError>>,
    {
        if self.swept.get().is_none_or(|swept| swept.elapsed() > SWEEP_EVERY) {
            self.close_idle();
        }
        if let Some(found) = self.find_shared(key, usage, &take_slot)? {
            return Ok(found);
        }
        let (opening, failures) = {
            let mut all = self.shared.borrow_mut();
            let shared = all.entry(key.clone()).or_default();
            (Rc::clone(&shared.opening), Rc::clone(&shared.failures))
        };
        let failed_before = failures.get();
        let is_alone = usage.most_requests.is_some_and(|most| most.get() == 1);
        // Nobody shares one that has a single request.
        let mut only_one = if is_alone { None } else { Some(opening.lock().await) };
        if let Some(found) = self.find_shared(key, usage, &take_slot)? {
            return Ok(found);
        }
        if failures.get() != failed_before {
            // Who waited for one that failed does not wait for another.
            only_one = None;
        }
        if self.has_too_many_shared(key) {
            return Err(AttemptError::Refused("the endpoint takes no more streams".to_owned()));
        }
        let opened = open().await.inspect_err(|_| failures.set(failures.get() + 1))?;
        drop(only_one);
        let taken = (opened.count_stream(None, usage), opened.request_sender());
        let mut all = self.shared.borrow_mut();
        let connections = &mut all.entry(key.clone()).or_default().connections;
        // Those that take no more requests end with their last one.
        connections.retain(|it| !it.is_done());
        connections.push(opened);
        drop(all);
        Ok(taken)
    }

    /// Returns what tells that a stream of the connections of HTTP/2 has ended.
    pub(super) fn stream_ended(&self, key: &UpstreamKey) -> Rc<Notify> {
        Rc::clone(&self.shared.borrow_mut().entry(key.clone()).or_default().stream_ended)
    }

    /// Waits for a place on a connection of HTTP/2 that has streams, and so a slot below the service's limit.
    pub(super) async fn wait_for_room(
        &self,
        key: &UpstreamKey,
        usage: ConnectionUse,
    ) -> (CountedStream, SendRequest<Bytes>) {
        let stream_ended = self.stream_ended(key);
        loop {
            let next = stream_ended.notified();
            if let Ok(Some(found)) = self.find_shared(key, usage, || Err(AttemptError::NoConnection(0))) {
                return found;
            }
            next.await;
        }
    }

    /// Whether no further connection of HTTP/2 is opened for one pod and endpoint, or for all.
    fn has_too_many_shared(&self, key: &UpstreamKey) -> bool {
        let all = self.shared.borrow();
        let count = |shared: &Shared| shared.connections.iter().filter(|it| !it.is_done()).count();
        all.get(key).is_some_and(|shared| count(shared) >= MAX_SHARED_EACH)
            || all.values().map(count).sum::<usize>() >= MAX_IDLE
    }

    fn find_shared(
        &self,
        key: &UpstreamKey,
        usage: ConnectionUse,
        take_slot: impl Fn() -> Result<Option<ServicePortSlot>, AttemptError>,
    ) -> Result<Option<(CountedStream, SendRequest<Bytes>)>, AttemptError> {
        let all = self.shared.borrow();
        let Some(shared) = all.get(key) else { return Ok(None) };
        let usable = || shared.connections.iter().filter(|it| it.has_room());
        let Some(found) = usable().find(|it| !it.needs_slot()).or_else(|| usable().next()) else {
            return Ok(None);
        };
        let slot = if found.needs_slot() { take_slot()? } else { None };
        Ok(Some((found.count_stream(slot, usage), found.request_sender())))
    }

    /// Closes connections that have waited too long.
    pub fn close_idle(&self) {
        self.swept.set(Some(Instant::now()));
        self.shared.borrow_mut().retain(|_, shared| {
            shared.connections.retain(|it| !it.is_done() && !it.is_idle_too_long());
            let is_awaited =
                Rc::strong_count(&shared.opening) > 1 || Rc::strong_count(&shared.stream_ended) > 1;
            !shared.connections.is_empty() || is_awaited
        });
        self.idle.borrow_mut().retain(|_, idle| {
            let expired: Vec<_> = idle.extract_if(.., |idle| idle.is_expired()).collect();
            self.count.set(self.count.get() - expired.len());
            expired.into_iter().for_each(|idle| idle.connection.close_in_order());
            !idle.is_empty()
        });
    }

    /// Returns the number of idle connections.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether there is no idle connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
