//! The client's end of an HBONE connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Request, StatusCode};
use mesh_calm::{Guarded, Role};
use rustls::client::UnbufferedClientConnection;
use tokio::task::spawn_local;

use super::batched_tls::BatchedTls;
use super::stream::OpenStreamCount;
use super::{
    CLIENT_HEADERS, DATA_OVERHEAD, MAX_FRAME, OWN_STREAMS, SEND_BUFFER, STREAM_WINDOW, Stream,
    connection_window,
};
use crate::tls::TlsStream;

/// Interval of pings, and how long the peer has to answer one (docs/wire.md, Keep-alive).
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection is closed, closing, or full of streams.
    #[error("HBONE connection: {0}")]
    Connection(#[from] h2::Error),
    /// The request could not be built.
    #[error("no request for a stream: {0}")]
    Request(#[from] http::Error),
    /// The destination's policy denies it.
    #[error("denied by the destination's policy (401)")]
    Denied,
    /// The destination could not reach its application.
    #[error("destination unavailable (503)")]
    Unavailable,
    /// The destination refused for another reason.
    #[error("refused by the destination ({0})")]
    Refused(StatusCode),
}

/// An HBONE connection to one destination. It closes when the last handle and the last stream are gone.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    streams: OpenStreamCount,
}

impl Connection {
    /// Starts HTTP/2 on a TLS session and a task that drives it; `ended` runs when the connection is over.
    /// Errors: HTTP/2 can't be started.
    pub async fn start(
        tls: TlsStream<UnbufferedClientConnection>,
        ended: impl FnOnce() + 'static,
    ) -> Result<Self, OpenError> {
        let tls = BatchedTls::new(tls);
        let handshake = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window(OWN_STREAMS))
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(CLIENT_HEADERS)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(OWN_STREAMS as usize)
            .enable_push(false)
            .data_frame_budget(DATA_OVERHEAD)
            .handshake::<_, Bytes>(Guarded::new(tls.clone(), Role::Client));
        let (requests, mut connection) = handshake.await?;
        let pings = connection.ping_pong();
        spawn_local(async move {
            let run = poll_fn(|context| {
                tls.poll_then_send(context, |context| Pin::new(&mut connection).poll(context))
            });
            let reason = tokio::select! {
                result = run => describe(result),
                () = unanswered(pings) => "no answer to a ping".to_owned(),
            };
            tracing::debug!(%reason, "HBONE connection closed");
            ended();
            drop(connection);
            let _in_time = tokio::time::timeout(Duration::from_secs(1), tls.flush_and_close()).await;
        });
        Ok(Self { requests, streams: OpenStreamCount::default() })
    }

    /// Whether another stream fits: fewer than 64 are open, and than the peer takes.
    pub fn has_room(&self) -> bool {
        let limit = self.requests.current_max_send_streams().min(OWN_STREAMS as usize);
        self.streams.get() < limit
    }

    /// Returns the number of open streams.
    pub fn stream_count(&self) -> usize {
        self.streams.get()
    }

    /// Opens a stream and waits for the destination's answer. Errors: see [`OpenError`].
    pub async fn open_stream(self, request: Request<()>) -> Result<Stream, OpenError> {
        // Counted from here on, so that a burst does not find room that is already taken.
        let counted = self.streams.count_stream();
        let mut ready = self.requests.ready().await?;
        let (response, send) = ready.send_request(request, false)?;
        let response = response.await?;
        match response.status() {
            StatusCode::OK => Ok(Stream::new(send, response.into_body(), Some(counted))),
            StatusCode::UNAUTHORIZED => Err(OpenError::Denied),
            StatusCode::SERVICE_UNAVAILABLE => Err(OpenError::Unavailable),
            other => Err(OpenError::Refused(other)),
        }
    }
}

fn describe(result: io::Result<Result<(), h2::Error>>) -> String {
    match result {
        Ok(Ok(())) => "finished".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Returns when a ping has not been answered in time.
async fn unanswered(pings: Option<h2::PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match tokio::time::timeout(PING_TIMEOUT, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection itself ends with the error.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
