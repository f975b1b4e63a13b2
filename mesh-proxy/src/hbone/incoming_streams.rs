//! The server's end of an HBONE connection.

use std::future::{Future, poll_fn};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::header::HeaderMap;
use http::{Method, Response, StatusCode};
use mesh_calm::{FLOOD, Guarded, Role};
use rustls::server::UnbufferedServerConnection;
use tokio::task::spawn_local;

use super::batched_tls::BatchedTls;
use super::{
    DATA_OVERHEAD, MAX_FRAME, PEER_STREAMS, SEND_BUFFER, SERVER_HEADERS, STREAM_WINDOW, Stream,
    connection_window,
};
use crate::tls::TlsStream;

/// Time for the HTTP/2 preface to arrive.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);

/// An HBONE connection on which a peer opens streams.
pub struct ServerConnection {
    tls: BatchedTls<UnbufferedServerConnection>,
    connection: server::Connection<Guarded<BatchedTls<UnbufferedServerConnection>>, Bytes>,
}

/// A stream that a peer asks for, neither accepted nor refused yet.
pub struct IncomingStream {
    /// Method; refuse anything but `CONNECT`.
    pub method: Method,
    /// Target as the peer wrote it, `host:port`; none if it wrote none.
    pub authority: Option<String>,
    /// The request's headers.
    pub headers: HeaderMap,
    receive: RecvStream,
    respond: SendResponse<Bytes>,
}

impl ServerConnection {
    /// Starts HTTP/2 on a TLS session. Errors: the preface is late or wrong.
    pub async fn start(tls: TlsStream<UnbufferedServerConnection>) -> io::Result<Self> {
        let tls = BatchedTls::new(tls);
        let mut handshake = Box::pin(
            server::Builder::new()
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(connection_window(PEER_STREAMS))
                .max_frame_size(MAX_FRAME)
                .max_header_list_size(SERVER_HEADERS)
                .max_send_buffer_size(SEND_BUFFER)
                .max_concurrent_streams(PEER_STREAMS)
                .data_frame_budget(DATA_OVERHEAD)
                // Streams reset before they were seen are paid for too; many may come in one turn.
                .max_pending_accept_reset_streams(PEER_STREAMS as usize)
                .handshake::<_, Bytes>(Guarded::new(tls.clone(), Role::Server)),
        );
        let started =
            poll_fn(|context| tls.poll_then_send(context, |context| handshake.as_mut().poll(context)));
        let connection = tokio::time::timeout(PREFACE_TIMEOUT, started)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
            .map_err(connection_error)?;
        Ok(Self { tls, connection })
    }

    /// Serves the connection: spawns a task from `handle` for each stream. Once `drain` is over no new
    /// streams are taken, and the connection ends with its last stream. Errors: the connection broke; of kind
    /// [`FLOOD`] if the peer was cut off for a flood; what the library found is told of when its goodbye is
    /// written.
    pub async fn serve<F>(
        mut self,
        drain: impl Future<Output = ()>,
        handle: impl Fn(IncomingStream) -> F,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + 'static,
    {
        tokio::pin!(drain);
        let mut told = false;
        loop {
            let next = poll_fn(|context| {
                if !told && drain.as_mut().poll(context).is_ready() {
                    told = true;
                    self.connection.graceful_shutdown();
                }
                self.tls.poll_then_send(context, |context| self.connection.poll_accept(context))
            });
            match next.await? {
                Some(Ok((request, respond))) => {
                    spawn_local(handle(IncomingStream::new(request, respond)));
                }
                Some(Err(error)) => return Err(connection_error(error)),
                None => break,
            }
        }
        drop(self.connection);
        let _in_time = tokio::time::timeout(Duration::from_secs(1), self.tls.flush_and_close()).await;
        Ok(())
    }
}

/// Returns why a connection broke: of kind [`FLOOD`] if the peer was cut off for one, by [`Guarded`] or by
/// what the library counts itself: data in too small pieces, heads without end, and, over the whole life of a
/// connection, streams that we had to reset or refuse, to which an honest peer can come as well.
fn connection_error(error: h2::Error) -> io::Error {
    let by_guard = error.get_io().is_some_and(|error| error.kind() == FLOOD);
    let by_library = error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    if by_guard || by_library { io::Error::new(FLOOD, error) } else { io::Error::other(error) }
}

impl IncomingStream {
    fn new(request: http::Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        let (parts, receive) = request.into_parts();
        let authority = parts.uri.authority().map(ToString::to_string);
        Self { method: parts.method, authority, headers: parts.headers, receive, respond }
    }

    /// Answers 200: from here on the stream carries raw bytes. Errors: the stream is over already.
    pub fn into_accepted_stream(mut self, headers: HeaderMap) -> Result<Stream, h2::Error> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, false)?;
        Ok(Stream::new(send, self.receive, None))
    }

    /// Answers with an error status. A peer that is gone does not get it.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if self.respond.send_response(response, true).is_err() {
            self.respond.send_reset(Reason::CANCEL);
        }
    }
}
