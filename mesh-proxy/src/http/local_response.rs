//! Responses of the proxy's own.

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::AsyncWriteExt;

use super::READ_SIZE;
use super::client_connection::ClientConnection;
use super::h1::{
    BodyFraming, ConnectionWord, Fields, RequestHead, ResponseLine, Version, write_response_head,
};

/// A response of the proxy's own.
#[derive(Debug, Default)]
pub(super) struct LocalResponse<'a> {
    pub status: StatusCode,
    pub fields: Fields,
    pub body: &'a [u8],
}

impl<'a> LocalResponse<'a> {
    /// Sends it to what was no request.
    pub async fn send_and_close(self, client: &mut ClientConnection) {
        self.send(client, &RequestHead::default(), false).await;
    }

    /// Creates a response with a text.
    pub fn with_text(status: StatusCode, text: &'a str) -> Self {
        let mut response = Self { status, body: text.as_bytes(), ..Self::default() };
        if !text.is_empty() {
            response.fields.push("content-type", b"text/plain");
        }
        response
    }

    /// Sends it. `stays` is whether the client is told that its connection takes another request. Returns
    /// whether it was sent.
    pub async fn send(self, client: &mut ClientConnection, request: &RequestHead, stays: bool) -> bool {
        let has_body = request.method != "HEAD"
            && !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = self.body.len() as u64;
        let line = ResponseLine {
            status: self.status,
            reason: "",
            body: if has_body { BodyFraming::Length(length) } else { BodyFraming::None },
            announced_length: (request.method == "HEAD" && self.status != StatusCode::NO_CONTENT)
                .then_some(length),
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
        (Version::Http11, true) => ConnectionWord::Nothing,
    }
}
