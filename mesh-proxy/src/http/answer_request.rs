//! One request: which route it takes, and what becomes of it there.

use std::sync::Arc;

use http::StatusCode;
use mesh_api::plan::http_routes::{DirectResponse, Fault, HttpAction, HttpForward, HttpRoutes, RouteMatch};
use mesh_api::plan::{Snapshot, Workload};
use rand::RngExt;

use super::cors::{self, CorsVerdict};
use super::downstream_client::Client;
use super::forward::{MatchedForward, forward_request};
use super::h1::RequestHead;
use super::http_connection_context::HttpConnection;
use super::local_response::LocalResponse;
use crate::telemetry::{RequestFlag, RequestRecord};
use crate::worker::DrainSignal;

/// Shares of requests are in parts of this.
const MILLION: u32 = 1_000_000;

/// A request to be answered.
pub(super) struct Asked<'a> {
    pub head: &'a mut RequestHead,
    /// Whether the worker drains, so that the connection ends with it, though the client wants to go on.
    pub draining: &'a DrainSignal,
    /// The configuration in force when it came.
    pub snapshot: &'a Snapshot,
    /// The client's workload then.
    pub workload: &'a Arc<Workload>,
}

impl Asked<'_> {
    /// Whether the connection takes another request after this one, as it is now. What comes after the head
    /// of a CONNECT is none.
    pub fn stays(&self) -> bool {
        self.head.keeps_alive && !self.draining.has_begun() && !self.head.is_connect()
    }
}

/// What follows a request on its connection.
pub(super) enum Next {
    /// Another request.
    Request(Client),
    /// Nothing: the response said that the connection ends with it.
    Close(Client),
    /// Nothing, at once: the client is gone, or must not take what it got for a whole response.
    Reset(Client),
    /// Nothing: both ends have closed it.
    Closed,
}

/// Answers one request, by the configuration in force.
pub(super) async fn answer_request(
    connection: &HttpConnection,
    client: Client,
    head: &mut RequestHead,
) -> Next {
    let snapshot = connection.worker.snapshot();
    let workload = snapshot.workload(&connection.workload.uid);
    let workload = workload.as_ref().unwrap_or(&connection.workload);
    let original = connection.original.address();
    let mut record = connection.new_record(workload);
    record.details.labels.source_identity = Some(connection.pod.identity.clone());
    record.set_request(&head.method, &head.authority, &head.path);
    record.set_is_grpc(head.is_grpc());
    let draining = &connection.worker.draining;
    let asked = Asked { head, draining, snapshot: &snapshot, workload };
    let routes = HttpRoutes::find(&snapshot, workload, original);
    if let Some(routes) = &routes {
        record.details.labels.service = Some(Arc::clone(&routes.service));
    }
    let Some(table) = routes.and_then(|routes| routes.table) else {
        // There are none for it, or they are gone since the connection was made.
        let forward = HttpForward::default();
        let forwarding =
            MatchedForward { forward: &forward, matched: None, destination: None, permission: None };
        return forward_request(connection, client, asked, &forwarding, record).await;
    };
    let Some(found) = table.find_route(asked.head, workload, original.port()) else {
        let response = LocalResponse::with_text(StatusCode::NOT_FOUND, "");
        response.end_record(asked.head, record, Some(RequestFlag::NoRoute), "no route matches the request");
        return respond(response, client, &asked).await;
    };
    record.set_route(&found.route.name);
    follow_route(connection, client, asked, found, record).await
}

/// Does with a request what its route says.
async fn follow_route(
    connection: &HttpConnection,
    client: Client,
    asked: Asked<'_>,
    RouteMatch { route, matched }: RouteMatch<'_>,
    mut record: RequestRecord,
) -> Next {
    let permission = match cors::judge(route.cors.as_ref(), asked.head) {
        CorsVerdict::Answer(response) => {
            response.end_record(asked.head, record, None, "");
            return respond(response, client, &asked).await;
        }
        CorsVerdict::Allow(permission) => Some(permission),
        CorsVerdict::Nothing => None,
    };
    match &route.action {
        HttpAction::DirectResponse(DirectResponse { status, body }) => {
            let mut response = LocalResponse { status: *status, body, ..LocalResponse::default() };
            if !body.is_empty() {
                response.fields.push("content-type", b"text/plain");
            }
            permission.iter().for_each(|permission| permission.add_to(&mut response.fields));
            response.end_record(asked.head, record, None, "");
            respond(response, client, &asked).await
        }
        HttpAction::Redirect(redirect) => {
            let mut response = LocalResponse { status: redirect.status, ..LocalResponse::default() };
            let location = redirect.location(asked.head, matched, connection.original.port());
            response.fields.push("location", location.as_bytes());
            permission.iter().for_each(|permission| permission.add_to(&mut response.fields));
            response.end_record(asked.head, record, None, "");
            respond(response, client, &asked).await
        }
        HttpAction::Forward(forward) => {
            if let Some(status) = inject_fault(&forward.fault, &mut record).await {
                let response = LocalResponse::of_failure(status, RequestFlag::FaultInjected);
                let reason = "`fault.abort` of the route";
                response.end_record(asked.head, record, Some(RequestFlag::FaultInjected), reason);
                return respond(response, client, &asked).await;
            }
            let ticket = rand::rng().random_range(0..forward.total_weight().max(1));
            let Some(destination) = forward.destination_for_ticket(ticket) else {
                let response = LocalResponse::with_text(StatusCode::SERVICE_UNAVAILABLE, "");
                let reason = "the route has no destination";
                response.end_record(asked.head, record, Some(RequestFlag::NoCluster), reason);
                return respond(response, client, &asked).await;
            };
            if let Some(status) = destination.status {
                let mut response = LocalResponse::with_text(status, "");
                permission.iter().for_each(|permission| permission.add_to(&mut response.fields));
                let reason = format!("{} is no destination that requests may go to", destination.host);
                response.end_record(asked.head, record, Some(RequestFlag::NoCluster), &reason);
                return respond(response, client, &asked).await;
            }
            let forwarding = MatchedForward { forward, matched, destination: Some(destination), permission };
            forward_request(connection, client, asked, &forwarding, record).await
        }
    }
}

/// Delays a request, and returns the status that it ends with, if the route says so of it.
async fn inject_fault(fault: &Fault, record: &mut RequestRecord) -> Option<StatusCode> {
    if let Some((delay, share)) = fault.delay
        && is_drawn(share)
    {
        record.set_delayed();
        tokio::time::sleep(delay).await;
    }
    fault.abort.filter(|(_, share)| is_drawn(*share)).map(|(status, _)| status)
}

/// Draws whether a request is one of those of a share, in parts per million.
pub(super) fn is_drawn(share: u32) -> bool {
    rand::rng().random_range(0..MILLION) < share
}

/// Answers a request of which only the head was read.
pub(super) async fn respond(response: LocalResponse<'_>, mut client: Client, asked: &Asked<'_>) -> Next {
    let head = &*asked.head;
    // A client that expects 100-continue sends its body or does not, as it likes (RFC 9110, 10.1.1).
    let is_end_known = !head.has_body() || !head.fields.contains("expect");
    let stays = asked.stays() && is_end_known;
    if response.send(&mut client, head, stays).await && stays && client.discard_body(head.body).await {
        Next::Request(client)
    } else {
        Next::Close(client)
    }
}
