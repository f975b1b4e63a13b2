//! Responses of the proxy's own.

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::AsyncWriteExt;

use super::READ_SIZE;
use super::client_connection::ClientConnection;
use super::downstream_client::Client;
use super::grpc;
use super::h1::{
    BodyFraming, ConnectionWord, Fields, RequestHead, ResponseLine, Version, write_response_head,
};
use super::h2::{ClientStream, http2_response};
use crate::telemetry::{RequestFlag, RequestRecord};

/// A response of the proxy's own.
#[derive(Debug, Default)]
pub(super) struct LocalResponse<'a> {
    pub status: StatusCode,
    pub fields: Fields,
    pub body: &'a [u8],
}

impl<'a> LocalResponse<'a> {
    /// Sends it to what was no request.
    pub async fn send_announcing_close(self, client: &mut ClientConnection) {
        self.send_http1(client, &RequestHead::default(), false).await;
    }

    /// Creates the response that tells of a failure.
    pub fn of_failure(status: StatusCode, flag: RequestFlag) -> Self {
        let mut response = Self::with_text(status, flag.body_text());
        if flag == RequestFlag::Overflow {
            // As Envoy's, so that clients hold back.
            response.fields.push("x-envoy-overloaded", b"true");
        }
        response
    }

    /// Creates a response with a text.
    pub fn with_text(status: StatusCode, text: &'a str) -> Self {
        let mut response = Self { status, body: text.as_bytes(), ..Self::default() };
        if !text.is_empty() {
            response.fields.push("content-type", b"text/plain");
        }
        response
    }

    /// Returns the outcome that gRPC gets instead; none: the request is not of gRPC.
    fn grpc_status(&self, request: &RequestHead) -> Option<u32> {
        request.is_grpc().then(|| grpc::status_for(self.status))
    }

    /// Records that a request ends with it: with the status that the client sees, which is 200 for a call of
    /// gRPC, whose outcome is told beside it.
    pub fn end_record(
        &self,
        request: &RequestHead,
        mut record: RequestRecord,
        flag: Option<RequestFlag>,
        reason: &str,
    ) {
        let outcome = self.grpc_status(request);
        record.set_grpc_status(outcome);
        record.end(if outcome.is_some() { StatusCode::OK } else { self.status }, flag, reason);
    }

    /// Sends it. `stays` is whether a client of HTTP/1 is told that its connection takes another request.
    /// Returns whether it was sent.
    pub async fn send(self, client: &mut Client, request: &RequestHead, stays: bool) -> bool {
        match client {
            Client::Http1(connection) => self.send_http1(connection, request, stays).await,
            Client::Http2(stream) => self.send_http2(stream, request).await.is_ok(),
            Client::Nobody(_) => true,
        }
    }

    async fn send_http2(mut self, stream: &mut ClientStream, request: &RequestHead) -> std::io::Result<()> {
        if let Some(outcome) = self.grpc_status(request) {
            // All of it is in the head (gRPC over HTTP/2, TrailersSummary-Only).
            let message = String::from_utf8_lossy(self.body).into_owned();
            self.fields.remove("content-type");
            self.fields.push("content-type", b"application/grpc");
            self.fields.push("grpc-status", outcome.to_string().as_bytes());
            if !message.is_empty() {
                self.fields.push("grpc-message", grpc::escape_message(&message).as_bytes());
            }
            return stream
                .send_head(http2_response(StatusCode::OK, &self.fields, BodyFraming::None, None), true);
        }
        let length = self.body.len() as u64;
        let has_body = self.has_body(request);
        let framing = if has_body { BodyFraming::Length(length) } else { BodyFraming::None };
        let announced = self.announced_length(request);
        let is_end = !has_body || length == 0;
        stream.send_head(http2_response(self.status, &self.fields, framing, announced), is_end)?;
        if is_end { Ok(()) } else { stream.send_body(self.body).await }
    }

    fn has_body(&self, request: &RequestHead) -> bool {
        request.method != "HEAD" && !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }

    fn announced_length(&self, request: &RequestHead) -> Option<u64> {
        let is_said = request.method == "HEAD" && self.status != StatusCode::NO_CONTENT;
        is_said.then_some(self.body.len() as u64)
    }

    async fn send_http1(self, client: &mut ClientConnection, request: &RequestHead, stays: bool) -> bool {
        let has_body = self.has_body(request);
        let length = self.body.len() as u64;
        let line = ResponseLine {
            status: self.status,
            reason: "",
            body: if has_body { BodyFraming::Length(length) } else { BodyFraming::None },
            announced_length: self.announced_length(request),
            connection: connection_word(request.version, stays),
        };
        let mut out = BytesMut::new();
        write_response_head(&line, &self.fields, &mut out);
        if has_body && self.body.len() <= READ_SIZE {
            out.extend_from_slice(self.body);
        }
        if client.socket.write_all(&out).await.is_err() {
            return false;
        }
        // A large one is not copied: it belongs to the configuration.
        !has_body || self.body.len() <= READ_SIZE || client.socket.write_all(self.body).await.is_ok()
    }
}

/// Returns what a client is told of its connection.
pub(super) fn connection_word(version: Version, stays: bool) -> ConnectionWord<'static> {
    match (version, stays) {
        (_, false) => ConnectionWord::Close,
        (Version::Http10, true) => ConnectionWord::KeepAlive,
        (Version::Http11 | Version::Http2, true) => ConnectionWord::Nothing,
    }
}
