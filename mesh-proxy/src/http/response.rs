//! The response of an endpoint, on its way to the client.

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::AsyncWriteExt;

use super::attempt::{OutgoingRequest, ResponseEnd, Timers, relay_response};
use super::body_pump::BodyPump;
use super::client_connection::ClientConnection;
use super::exchange::Next;
use super::forward::Forwarding;
use super::h1::{
    BodyDecoder, BodyEncoder, BodyFraming, ConnectionWord, RequestHead, ResponseHead, ResponseLine, Version,
    write_response_head,
};
use super::header_edits::apply_route_edits;
use super::local_response::{LocalResponse, connection_word};
use super::upstream_connection::UpstreamConnection;
use crate::outbound;
use crate::relay::{ByteMeter, reset_on_drop};
use crate::telemetry::{RequestFlag, RequestRecord};

/// A request that an endpoint has begun to answer.
pub(super) struct Answered {
    pub outgoing: OutgoingRequest,
    pub response: ResponseHead,
    pub timers: Timers,
    /// Whether the client's connection takes another request.
    pub stays: bool,
}

/// Relays a response to the client. Returns what follows there, and the endpoint's connection if that takes
/// another request.
pub(super) async fn relay_to_client(
    (mut upstream, mut client): (UpstreamConnection, ClientConnection),
    mut answered: Answered,
    (request, forwarding): (&RequestHead, &Forwarding<'_>),
    mut record: RequestRecord,
) -> (Next, Option<UpstreamConnection>) {
    answered.timers.end_attempt();
    edit(&mut answered.response, forwarding);
    let status = answered.response.status;
    let changes = request.upgrade.is_some() && status == StatusCode::SWITCHING_PROTOCOLS
        || request.is_connect() && status.is_success();
    if changes {
        return (tunnel(upstream, client, &answered.response, record).await, None);
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let status = StatusCode::BAD_GATEWAY;
        record.end(status, Some(RequestFlag::UpstreamProtocolError), "nobody asked for another protocol");
        LocalResponse::with_text(status, "").send(&mut client, request, false).await;
        return (Next::Close(client), None);
    }
    let framing = framing_for_client(answered.response.body, request.version);
    let stays = answered.stays && framing != BodyFraming::UntilClose;
    let line = ResponseLine {
        status,
        reason: &answered.response.reason,
        body: framing,
        announced_length: answered.response.announced_length,
        connection: connection_word(request.version, stays),
    };
    let mut head = BytesMut::new();
    write_response_head(&line, &answered.response.fields, &mut head);
    let pump = BodyPump::new(BodyDecoder::new(answered.response.body), BodyEncoder::new(framing, true), head);
    let Answered { mut outgoing, response, mut timers, .. } = answered;
    let (end, bytes) = relay_response(&mut upstream, &mut client, &mut outgoing, pump, &mut timers).await;
    record.set_body_bytes(outgoing.body_bytes(), bytes);
    match end {
        ResponseEnd::Complete => {
            record.end(status, None, "");
            let next =
                if stays && outgoing.has_read_all() { Next::Request(client) } else { Next::Close(client) };
            if outgoing.is_sent() && response.keeps_alive {
                return (next, Some(upstream));
            }
            if outgoing.is_sent() {
                upstream.close_in_order();
            }
            (next, None)
        }
        ResponseEnd::Late(reason) => {
            record.end(status, Some(RequestFlag::Timeout), &reason);
            (Next::Reset(client.socket), None)
        }
        ResponseEnd::UpstreamBroke(reason) => {
            record.end(status, Some(RequestFlag::UpstreamReset), &reason);
            (Next::Reset(client.socket), None)
        }
        ResponseEnd::ClientGone(reason) => {
            record.end(status, Some(RequestFlag::ClientGone), &reason);
            (Next::Reset(client.socket), None)
        }
    }
}

/// Changes the response's fields: those of the route last, or first if it has one destination.
fn edit(response: &mut ResponseHead, forwarding: &Forwarding<'_>) {
    let Forwarding { forward, destination, permission, .. } = forwarding;
    permission.iter().for_each(|permission| permission.add_to(&mut response.fields));
    let of_destination = destination.map(|destination| &destination.response_edits);
    let is_only = forward.destinations.len() == 1;
    apply_route_edits(is_only, &forward.response_edits, of_destination, &mut response.fields);
}

/// Returns how a client gets a body that came framed so. Where the length is not known HTTP/1.0 has only the
/// end of the connection.
fn framing_for_client(framing: BodyFraming, version: Version) -> BodyFraming {
    match (framing, version) {
        (BodyFraming::Chunked | BodyFraming::UntilClose, Version::Http11) => BodyFraming::Chunked,
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
        return Next::Reset(client.socket);
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
