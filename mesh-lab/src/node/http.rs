//! The little HTTP that a node speaks: a probe's GET, and questions to admin sockets.

use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, body::Bytes, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// A request without a body.
pub type Get = Request<Empty<Bytes>>;

/// Asks an admin socket for something.
pub async fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, String> {
    let stream =
        UnixStream::connect(socket).await.map_err(|error| format!("{}: {error}", socket.display()))?;
    let request = Request::get(path).header("host", "admin").body(Empty::new()).map_err(|e| e.to_string())?;
    let response = send(stream, request).await?;
    if !response.status().is_success() {
        return Err(format!("{path} answered {}", response.status()));
    }
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| format!("{path}: {error}"))
}

/// Sends a request over a fresh connection, which is closed when the response is dropped.
pub async fn send<S>(stream: S, request: Get) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        // Its error is the request's as well.
        let _ = connection.await;
    });
    sender.send_request(request).await.map_err(|error| error.to_string())
}
