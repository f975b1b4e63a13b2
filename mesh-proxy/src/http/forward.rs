//! Forwards a request: attempts at endpoints until one answers, then the response to the client.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mesh_api::plan::http_routes::{HttpDestination, HttpForward, HttpMatch};

use super::answer_request::{Asked, Next, respond};
use super::cors::CorsPermission;
use super::downstream_client::Client;
use super::grpc;
use super::h1::ResponseHead;
use super::http_connection_context::HttpConnection;
use super::kept_body::KeptBody;
use super::local_response::LocalResponse;
use super::mirror::{Mirrored, chosen_mirrors};
use super::outgoing_head::{RequestLine, edit_fields, request_line, write_head};
use super::outgoing_request::OutgoingRequest;
use super::relay_response::{Answered, relay_to_client};
use super::request_key::RequestKey;
use super::retry_loop::{RequestSlots, RetryLoop};
use super::send_request::{AttemptError, Timers};
use super::upstream_target::TargetService;
use crate::telemetry::{RequestFlag, RequestRecord};

/// How a request goes to its destination.
pub(super) struct MatchedForward<'a> {
    pub forward: &'a HttpForward,
    /// The condition that the request fits; none: the route is for all.
    pub matched: Option<&'a HttpMatch>,
    /// None: the service that the client addresses.
    pub destination: Option<&'a HttpDestination>,
    /// That the page which sent it may read the response.
    pub permission: Option<CorsPermission<'a>>,
}

/// Forwards a request, and the response to the client.
pub(super) async fn forward_request(
    connection: &HttpConnection,
    mut client: Client,
    asked: Asked<'_>,
    forwarding: &MatchedForward<'_>,
    mut record: RequestRecord,
) -> Next {
    let original = connection.original.address();
    let target =
        TargetService::find(forwarding.destination, (asked.snapshot, asked.workload), original, asked.head);
    let target = match target {
        Ok(target) => target,
        Err((flag, reason)) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let response = LocalResponse::with_text(status, "no healthy upstream");
            response.end_record(asked.head, record, Some(flag), &reason);
            return respond(response, client, &asked).await;
        }
    };
    record.details.labels.service = Some(Arc::clone(&target.service));
    let key = RequestKey::of(target.policy.hash.as_ref(), asked.head, connection.client.address().ip());
    edit_fields(asked.head, forwarding);
    let line = request_line(asked.head, forwarding);
    let written = line.as_ref().and_then(|line| write_head(asked.head, line, target.protocol));
    let Some((line, outgoing_head)) = line.zip(written) else {
        let status = StatusCode::BAD_REQUEST;
        let reason = "the rewritten path or the changed head can't be sent";
        let response = LocalResponse::with_text(status, reason);
        response.end_record(asked.head, record, Some(RequestFlag::ClientProtocolError), reason);
        return respond(response, client, &asked).await;
    };
    let HttpForward { retries, timeout, .. } = forwarding.forward;
    let budget = connection.worker.receive_budget(&connection.pod);
    let mirrors = chosen_mirrors(asked.head, forwarding.forward);
    let kept = KeptBody::new(budget, retries.attempts > 0 || !mirrors.is_empty());
    let reader = client.body_reader(asked.head.body);
    let timeout = shorter(*timeout, grpc::timeout(asked.head));
    let mut attempts = RetryLoop {
        connection,
        workload: asked.workload,
        head: asked.head,
        retries,
        target: &target,
        key: key.hash,
        outgoing: OutgoingRequest::new(outgoing_head, asked.head.body, reader, kept),
        response: ResponseHead::default(),
        timers: Timers::new(timeout, retries.per_try_timeout),
        slots: RequestSlots::default(),
    };
    let found = attempts.run(&mut client, &mut record).await;
    if !mirrors.is_empty() {
        send_copies(connection, &asked, &line, &mirrors, attempts.outgoing.whole_content());
    }
    let stays = asked.stays();
    let RetryLoop { outgoing, response, timers, slots, .. } = attempts;
    // What goes on is counted by what was reached.
    drop(slots);
    match found {
        Ok(reached) => {
            let answered = Answered { outgoing, response, timers, set_cookie: key.set_cookie, stays };
            relay_to_client(connection, (reached, client), answered, (asked.head, forwarding), record).await
        }
        Err(failed) => {
            record.set_body_bytes(outgoing.body_bytes(), 0);
            let (status, flag) = status_and_flag(&failed);
            let response = LocalResponse::of_failure(status, flag);
            response.end_record(asked.head, record, Some(flag), &failed.to_string());
            if matches!(failed, AttemptError::ClientGone(_)) {
                return Next::Reset(client);
            }
            // What is left of the body can't be told from the next request.
            let stays = stays && outgoing.has_read_all();
            if response.send(&mut client, asked.head, stays).await && stays {
                Next::Request(client)
            } else {
                Next::Close(client)
            }
        }
    }
}

fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// Sends copies of a request that was read to its end; of another one, or one that was too large to keep,
/// none.
fn send_copies(
    connection: &HttpConnection,
    asked: &Asked<'_>,
    line: &RequestLine<'_>,
    mirrors: &[&HttpDestination],
    content: Option<&[u8]>,
) {
    let Some(content) = content else {
        return mirrors.iter().for_each(|_| connection.worker.metrics.count_copy(false));
    };
    for mirror in mirrors {
        Mirrored::new(connection, asked, line, content).send_to(mirror, asked.snapshot);
    }
}

/// Returns the status that the client gets for a failure, and the flag in log and metrics.
fn status_and_flag(error: &AttemptError) -> (StatusCode, RequestFlag) {
    match error {
        AttemptError::AllEjected => (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::NoHealthyUpstream),
        AttemptError::Overflow(..) | AttemptError::NoConnection(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::Overflow)
        }
        AttemptError::Connect(error) if error.stops_retries() => {
            (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::Denied)
        }
        AttemptError::Connect(_) => (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::ConnectFailure),
        AttemptError::Reset(_) | AttemptError::Refused(_) | AttemptError::Revoked(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::UpstreamReset)
        }
        AttemptError::Malformed(_) => (StatusCode::BAD_GATEWAY, RequestFlag::UpstreamProtocolError),
        AttemptError::TryTimeout(_) | AttemptError::RouteTimeout(_) | AttemptError::NoConnectionInTime(_) => {
            (StatusCode::GATEWAY_TIMEOUT, RequestFlag::Timeout)
        }
        AttemptError::ClientGone(_) => (StatusCode::BAD_REQUEST, RequestFlag::ClientGone),
        AttemptError::ClientMalformed(_) => (StatusCode::BAD_REQUEST, RequestFlag::ClientProtocolError),
    }
}
