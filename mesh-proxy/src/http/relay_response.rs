//! The response of an endpoint, on its way to the client.

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::AsyncWriteExt;

use super::answer_request::Next;
use super::body_pump::BodyPump;
use super::client_connection::ClientConnection;
use super::downstream_client::{Client, OutgoingResponse};
use super::forward::MatchedForward;
use super::grpc;
use super::h1::{
    BodyFraming, ConnectionWord, RequestHead, ResponseHead, ResponseLine, Version, write_response_head,
};
use super::header_edits::apply_route_edits;
use super::http_connection_context::HttpConnection;
use super::local_response::{LocalResponse, connection_word};
use super::outgoing_request::OutgoingRequest;
use super::retry_loop::Reached;
use super::send_request::{ResponseEnd, Timers, relay_response};
use super::upstream_connection::UpstreamConnection;
use super::upstream_connections::UpstreamKey;
use super::upstream_exchange::UpstreamExchange;
use crate::outbound;
use crate::relay::{ByteMeter, reset_on_drop};
use crate::telemetry::{RequestFlag, RequestRecord};
use crate::worker::Worker;

/// A request that an endpoint has begun to answer.
pub(super) struct Answered {
    pub outgoing: OutgoingRequest,
    pub response: ResponseHead,
    pub timers: Timers,
    /// A cookie that the client gets beside those of the server.
    pub set_cookie: Option<String>,
    /// Whether the client's connection takes another request.
    pub stays: bool,
}

/// Relays a response to the client. Returns what follows there.
pub(super) async fn relay_to_client(
    connection: &HttpConnection,
    (reached, mut client): (Reached, Client),
    mut answered: Answered,
    (request, forwarding): (&RequestHead, &MatchedForward<'_>),
    mut record: RequestRecord,
) -> Next {
    answered.timers.end_attempt();
    edit(&mut answered.response, forwarding);
    if let Some(cookie) = &answered.set_cookie {
        answered.response.fields.push("set-cookie", cookie.as_bytes());
    }
    let status = answered.response.status;
    let Reached { key, mut upstream, active } = reached;
    if changes_protocol(request, status) {
        match (client, upstream) {
            (Client::Http1(client), UpstreamExchange::Http1(upstream)) => {
                // Boxed, since few requests become one.
                return Box::pin(tunnel(*upstream, client, &answered.response, record)).await;
            }
            (other, stream) => (client, upstream) = (other, stream),
        }
    }
    if status == StatusCode::SWITCHING_PROTOCOLS || request.is_connect() && status.is_success() {
        let response = LocalResponse::with_text(StatusCode::BAD_GATEWAY, "");
        let reason = "nobody asked for another protocol";
        response.end_record(request, record, Some(RequestFlag::UpstreamProtocolError), reason);
        response.send(&mut client, request, false).await;
        return Next::Close(client);
    }
    let framing = framing_for_client(answered.response.body, request.version);
    let stays = answered.stays && framing != BodyFraming::UntilClose;
    let Answered { mut outgoing, response, mut timers, .. } = answered;
    let reader = upstream.body_reader(response.body);
    let begun = client.begin_response(&OutgoingResponse {
        status,
        reason: &response.reason,
        fields: &response.fields,
        body: framing,
        announced_length: response.announced_length,
        connection: connection_word(request.version, stays),
        is_end: reader.is_done(),
    });
    let (writer, head) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            record.end(status, Some(RequestFlag::ClientGone), &error.to_string());
            return Next::Reset(client);
        }
    };
    let mut pump = BodyPump::new(reader, writer, head);
    let end = relay_response(&mut upstream, &mut client, &mut outgoing, &mut pump, &mut timers).await;
    drop(active);
    record.set_body_bytes(outgoing.body_bytes(), pump.content_bytes_read());
    if request.is_grpc() {
        record.set_grpc_status(pump.trailers().grpc_status.or_else(|| grpc::status_in_head(&response)));
    }
    let (flag, reason) = match end {
        ResponseEnd::Complete => {
            record.end(status, None, "");
            let may_follow = stays && outgoing.has_read_all();
            keep_or_close_upstream(
                &connection.worker,
                key,
                upstream,
                outgoing.is_sent() && response.keeps_alive,
            );
            return if may_follow { Next::Request(client) } else { Next::Close(client) };
        }
        ResponseEnd::Late(reason) => (RequestFlag::Timeout, reason),
        ResponseEnd::UpstreamBroke(reason) => (RequestFlag::UpstreamReset, reason),
        ResponseEnd::ClientGone(reason) => (RequestFlag::ClientGone, reason),
    };
    record.end(status, Some(flag), &reason);
    Next::Reset(client)
}

/// Keeps an endpoint's connection for the next request, or closes it; of HTTP/2, its stream is over.
pub(super) fn keep_or_close_upstream(
    worker: &Worker,
    key: UpstreamKey,
    upstream: UpstreamExchange,
    is_reusable: bool,
) {
    match upstream {
        UpstreamExchange::Http1(upstream) if is_reusable => worker.http_connections.keep(key, upstream),
        UpstreamExchange::Http1(upstream) => upstream.close_in_order(),
        UpstreamExchange::Http2(_) => {}
    }
}

/// Whether client and server change to another protocol.
fn changes_protocol(request: &RequestHead, status: StatusCode) -> bool {
    request.upgrade.is_some() && status == StatusCode::SWITCHING_PROTOCOLS
        || request.is_connect() && status.is_success()
}

/// Changes the response's fields: those of the route last, or first if it has one destination. What browsers
/// are told comes after them, as in Envoy.
fn edit(response: &mut ResponseHead, forwarding: &MatchedForward<'_>) {
    let MatchedForward { forward, destination, permission, .. } = forwarding;
    let of_destination = destination.map(|destination| &destination.response_edits);
    let is_only = forward.destinations.len() == 1;
    apply_route_edits(is_only, &forward.response_edits, of_destination, &mut response.fields);
    permission.iter().for_each(|permission| permission.add_to(&mut response.fields));
}

/// Returns how a client gets a body that came framed so. Where the length is not known HTTP/1.0 has only the
/// end of the connection.
fn framing_for_client(framing: BodyFraming, version: Version) -> BodyFraming {
    match (framing, version) {
        (BodyFraming::Chunked | BodyFraming::UntilClose, Version::Http11 | Version::Http2) => {
            BodyFraming::Chunked
        }
        (BodyFraming::Chunked | BodyFraming::UntilClose, Version::Http10) => BodyFraming::UntilClose,
        (other, _) => other,
    }
}

/// Relays bytes from here on: client and server have changed to another protocol.
async fn tunnel(
    mut upstream: UpstreamConnection,
    mut client: ClientConnection,
    response: &ResponseHead,
    mut record: RequestRecord,
) -> Next {
    let line = ResponseLine {
        status: response.status,
        reason: &response.reason,
        body: BodyFraming::None,
        announced_length: None,
        connection: response.upgrade.as_deref().map_or(ConnectionWord::Nothing, ConnectionWord::Upgrade),
    };
    let mut out = BytesMut::new();
    write_response_head(&line, &response.fields, &mut out);
    out.extend_from_slice(&upstream.input);
    let opened = async {
        client.socket.write_all(&out).await?;
        upstream.io.write_all(&client.input).await
    };
    if let Err(error) = opened.await {
        record.end(response.status, Some(RequestFlag::ClientGone), &error.to_string());
        return Next::Reset(Client::Http1(client));
    }
    let meter = ByteMeter::default();
    reset_on_drop(&client.socket);
    let (upstream, slot) = upstream.into_upstream();
    let outcome = outbound::join(client.socket, upstream, &meter).await;
    drop(slot);
    let (from_client, to_client) = meter.bytes_from_and_to_client();
    record.set_body_bytes(from_client, to_client);
    record.end_tunnel(response.status, &outcome);
    Next::Closed
}
