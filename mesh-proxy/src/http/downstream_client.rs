//! The client's side of one request, whatever protocol it speaks.

use std::io;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::{AsyncWriteExt, Sink, sink};

use super::body_pump::{BodyFramer, BodySink, BodySource, BodyUnframer, EndStreamState};
use super::client_connection::ClientConnection;
use super::h1::{
    BodyDecoder, BodyEncoder, BodyFraming, ConnectionWord, Fields, ResponseHead, ResponseLine, Version,
    write_response_head,
};
use super::h2::{ClientStream, http2_response};

/// Where a request comes from and its response goes.
pub(super) enum Client {
    /// HTTP/1: a connection with one request at a time.
    Http1(ClientConnection),
    /// HTTP/2: one stream of a connection.
    Http2(Box<ClientStream>),
    /// A copy of a request, whose response nobody waits for.
    Nobody(MirroredContent),
}

/// What is left of the content of a copied request.
pub(super) struct MirroredContent {
    content: BytesMut,
    end: tokio::io::Empty,
    response: Sink,
}

/// The head of a response to a client.
pub(super) struct OutgoingResponse<'a> {
    pub status: StatusCode,
    /// Reason phrase; empty: the usual one of the status.
    pub reason: &'a str,
    pub fields: &'a Fields,
    pub body: BodyFraming,
    /// Length that is said although there is no body.
    pub announced_length: Option<u64>,
    /// What is said of a connection of HTTP/1.
    pub connection: ConnectionWord<'a>,
    /// Whether neither a body nor trailers follow.
    pub is_end: bool,
}

impl MirroredContent {
    pub fn new(content: &[u8]) -> Self {
        Self { content: BytesMut::from(content), end: tokio::io::empty(), response: sink() }
    }
}

impl Client {
    /// Returns what takes the body of its request out of its framing.
    pub fn body_reader(&self, framing: BodyFraming) -> BodyUnframer {
        match self {
            Self::Http1(_) => BodyUnframer::Http1(BodyDecoder::new(framing)),
            Self::Http2(stream) => BodyUnframer::Http2 { is_done: stream.receive.is_end_stream() },
            Self::Nobody(copied) => {
                BodyUnframer::Http1(BodyDecoder::new(BodyFraming::Length(copied.content.len() as u64)))
            }
        }
    }

    /// Returns where the body of its request comes from.
    pub fn body_source(&mut self) -> BodySource<'_> {
        match self {
            Self::Http1(client) => BodySource::Http1(&mut client.socket, &mut client.input),
            Self::Http2(stream) => BodySource::Http2(&mut stream.receive),
            Self::Nobody(copied) => BodySource::Http1(&mut copied.end, &mut copied.content),
        }
    }

    /// Returns where the body of its response goes, after [`Client::begin_response`].
    pub fn sink(&mut self) -> Option<BodySink<'_>> {
        match self {
            Self::Http1(client) => Some(BodySink::Http1(&mut client.socket)),
            Self::Http2(stream) => stream.sink().map(BodySink::Http2),
            Self::Nobody(copied) => Some(BodySink::Http1(&mut copied.response)),
        }
    }

    /// Begins a response. Returns what puts its body into its framing, and what is to be written before that.
    /// Errors: the client is gone.
    pub fn begin_response(&mut self, response: &OutgoingResponse<'_>) -> io::Result<(BodyFramer, BytesMut)> {
        let mut head = BytesMut::new();
        if let Self::Http2(stream) = self {
            let OutgoingResponse { status, fields, body, announced_length, is_end, .. } = *response;
            stream.send_head(http2_response(status, fields, body, announced_length), is_end)?;
            let end = if is_end { EndStreamState::Written } else { EndStreamState::Open };
            return Ok((BodyFramer::Http2(end), head));
        }
        let line = ResponseLine {
            status: response.status,
            reason: response.reason,
            body: response.body,
            announced_length: response.announced_length,
            connection: response.connection,
        };
        write_response_head(&line, response.fields, &mut head);
        Ok((BodyFramer::Http1(BodyEncoder::new(response.body, true)), head))
    }

    /// Passes an interim response on. Errors: the client is gone.
    pub async fn send_interim(&mut self, version: Version, response: &ResponseHead) -> io::Result<()> {
        match self {
            Self::Http2(stream) => stream.send_interim(http2_response(
                response.status,
                &response.fields,
                BodyFraming::None,
                None,
            )),
            Self::Http1(client) if version == Version::Http11 => {
                let line = ResponseLine {
                    status: response.status,
                    reason: &response.reason,
                    body: BodyFraming::None,
                    announced_length: None,
                    connection: ConnectionWord::Nothing,
                };
                let mut out = BytesMut::new();
                write_response_head(&line, &response.fields, &mut out);
                client.socket.write_all(&out).await
            }
            // HTTP/1.0 has none.
            Self::Http1(_) | Self::Nobody(_) => Ok(()),
        }
    }

    /// Returns once the client of a stream has reset it, or is gone.
    pub fn poll_stream_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Http2(stream) => stream.poll_stream_gone(context),
            Self::Http1(_) | Self::Nobody(_) => Poll::Pending,
        }
    }

    /// Waits until the client has reset its stream or connection; one that sends no more is still there.
    pub async fn wait_until_reset(&mut self) -> io::Error {
        match self {
            Self::Http1(client) => client.wait_until_reset().await,
            Self::Http2(stream) => std::future::poll_fn(|context| stream.poll_stream_gone(context)).await,
            Self::Nobody(_) => std::future::pending().await,
        }
    }

    /// Checks that the client has not gone. Errors: it has.
    pub async fn check_is_there(&mut self) -> io::Result<()> {
        match self {
            Self::Http1(client) => client.check_is_there(),
            Self::Http2(stream) => {
                std::future::poll_fn(|context| match stream.poll_stream_gone(context) {
                    Poll::Ready(error) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Ready(Ok(())),
                })
                .await
            }
            Self::Nobody(_) => Ok(()),
        }
    }

    /// Reads the rest of a request's body and throws it away. Returns whether it came to its end, so that
    /// another request can follow on a connection of HTTP/1.
    pub async fn discard_body(&mut self, framing: BodyFraming) -> bool {
        match self {
            Self::Http1(client) => client.discard_body(framing).await,
            // The other streams do not depend on it.
            Self::Http2(_) | Self::Nobody(_) => false,
        }
    }
}
