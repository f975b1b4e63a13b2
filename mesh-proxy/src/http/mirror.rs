//! Copies of requests for mirrors, whose responses nobody waits for. A slow or dead mirror costs a request
//! nothing: copies are sent when the whole request was read, in tasks of their own, and there is a bound.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mesh_api::plan::http_routes::HttpDestination;
use mesh_api::plan::outbound::Destination;
use mesh_api::plan::{Snapshot, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use super::READ_SIZE;
use super::exchange::HttpConnection;
use super::h1::{BodyDecoder, BodyPiece, MAX_HEAD, ResponseHead, find_head_end};
use super::upstream_connection::UpstreamConnection;
use super::upstream_connections::UpstreamKey;
use crate::address_roles::ClientAddress;
use crate::balance::EndpointPick;
use crate::local_pod::LocalPod;
use crate::tunnel::EarlyData;
use crate::upstream::{self, ClientContext, ConnectOptions};
use crate::worker::Worker;

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

/// What a copy is sent with.
struct Mirrored {
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    workload: Arc<Workload>,
    client: ClientAddress,
    destination: Destination,
    method: String,
    message: Bytes,
}

/// Sends a copy of a request, head and body, to a mirror.
pub(super) fn send_copy(
    connection: &HttpConnection,
    (snapshot, workload): (&Snapshot, &Arc<Workload>),
    mirror: &HttpDestination,
    method: &str,
    message: &Bytes,
) {
    let worker = &connection.worker;
    let Some(copy) = worker.copies.try_begin() else { return worker.metrics.count_copy(false) };
    let mirrored = Mirrored {
        worker: Rc::clone(worker),
        pod: Arc::clone(&connection.pod),
        workload: Arc::clone(workload),
        client: connection.client,
        destination: mirror.endpoints(snapshot, workload, connection.original.address()),
        method: method.to_owned(),
        message: message.clone(),
    };
    spawn_local(async move {
        let sent = tokio::time::timeout(COPY_TIME, mirrored.send()).await;
        mirrored.worker.metrics.count_copy(matches!(sent, Ok(Some(()))));
        drop(copy);
    });
}

impl Mirrored {
    /// Sends it to one endpoint and reads the response. None: that failed.
    async fn send(&self) -> Option<()> {
        let Destination::Service { service, port, policy, endpoints } = &self.destination else {
            return None;
        };
        let worker = &self.worker;
        let ejected = worker.shared.outliers.ejected_endpoints(endpoints, policy, Instant::now());
        let mut picks = worker.picker.pick_endpoints(endpoints, policy.lb, ejected, None);
        let EndpointPick { endpoint, active, .. } = picks.next()?;
        let _active = active;
        let slot = match policy.pool.max_connections {
            None => None,
            Some(limit) => {
                let key = (Arc::clone(&service.key), *port);
                Some(worker.shared.service_limits.try_take_slot(key, limit.get())?)
            }
        };
        let key = UpstreamKey::new(&self.pod, (service, *port), endpoint);
        let (mut upstream, sent) = match worker.http_connections.take(&key).await {
            Some(upstream) => (upstream, 0),
            None => {
                let origin = ClientContext {
                    worker,
                    pod: &self.pod,
                    workload: &self.workload,
                    client: self.client,
                    service: Some(&service.hostname),
                    early: EarlyData::Bytes(&self.message),
                    exposed: Cell::new(false),
                };
                let pool = &policy.pool;
                let options = ConnectOptions { timeout: pool.connect_timeout, keepalive: pool.keepalive };
                let opened = upstream::connect_to_endpoint(&origin, endpoint, options).await.ok()?;
                let sent = opened.early_bytes_sent();
                (UpstreamConnection::new(opened), sent)
            }
        };
        upstream.hold_slot(slot);
        upstream.io.write_all(&self.message[sent..]).await.ok()?;
        if self.read_response(&mut upstream).await? {
            worker.http_connections.keep(key, upstream);
        } else {
            upstream.close_in_order();
        }
        Some(())
    }

    /// Reads a response and throws it away. Returns whether the connection takes another request; none: it
    /// was no whole response.
    async fn read_response(&self, upstream: &mut UpstreamConnection) -> Option<bool> {
        let mut response = ResponseHead::default();
        loop {
            let mut searched = 0;
            let length = loop {
                let seen = &upstream.input[..upstream.input.len().min(MAX_HEAD + 1)];
                match find_head_end(seen, &mut searched).ok()? {
                    Some(length) => break length,
                    None => read_more(upstream).await.filter(|read| *read > 0)?,
                };
            };
            response.parse(&upstream.input.split_to(length), &self.method).ok()?;
            if !response.is_interim() {
                break;
            }
        }
        let mut decoder = BodyDecoder::new(response.body);
        loop {
            match decoder.decode(&mut upstream.input).ok()? {
                BodyPiece::Data(_) => {}
                BodyPiece::End(_) => return Some(response.keeps_alive),
                BodyPiece::Incomplete => {
                    let read = read_more(upstream).await?;
                    if read == 0 && !decoder.end_of_input() {
                        return None;
                    }
                }
            }
        }
    }
}

async fn read_more(upstream: &mut UpstreamConnection) -> Option<usize> {
    let input: &mut BytesMut = &mut upstream.input;
    input.reserve(READ_SIZE);
    upstream.io.read_buf(input).await.ok()
}

/// Returns a request, whose second line is its `Host`, with that marked as a copy's.
pub(super) fn marked_as_copy(message: &[u8]) -> Bytes {
    const HOST: &[u8] = b"\r\nHost: ";
    let parts = message.windows(HOST.len()).position(|at| at == HOST).and_then(|start| {
        let (line, rest) = message.split_at(start + HOST.len());
        let end = rest.windows(2).position(|at| at == b"\r\n")?;
        Some((line, std::str::from_utf8(&rest[..end]).ok()?, &rest[end..]))
    });
    // Every head that is written has one.
    let Some((line, authority, rest)) = parts else { return Bytes::copy_from_slice(message) };
    [line, shadow_authority(authority).as_bytes(), rest].concat().into()
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
        let message = b"GET /a HTTP/1.1\r\nHost: web:80\r\nX: \r\n\r\nHost: body";
        assert_eq!(
            marked_as_copy(message),
            &b"GET /a HTTP/1.1\r\nHost: web-shadow:80\r\nX: \r\n\r\nHost: body"[..]
        );
        assert_eq!(shadow_authority("web"), "web-shadow");
        assert_eq!(shadow_authority("web.shop:8080"), "web.shop-shadow:8080");
        assert_eq!(shadow_authority(""), "-shadow");
    }
}
