//! Questions to an admin endpoint: HTTP over TCP, over a Unix socket, or over a port-forward to a pod.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use futures_util::future::BoxFuture;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::PodPort;

/// Longest wait for a connection or an answer. The endpoints answer from memory; a port-forward has three
/// more hops.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a failure the reason, which comes on a channel of its own, is waited for.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// Where an agent or the control plane answers.
#[derive(Clone)]
pub enum Endpoint {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// A port on a pod's loopback, through the API server.
    Pod(PodPort),
}

/// A connection to an endpoint, for several questions.
pub struct Session {
    endpoint: Endpoint,
    sender: http1::SendRequest<Empty<Bytes>>,
    reason: Option<BoxFuture<'static, Option<String>>>,
}

impl Endpoint {
    /// Connects.
    pub async fn open(&self) -> Result<Session> {
        let (sender, reason) = self.in_time(self.connect()).await?;
        Ok(Session { endpoint: self.clone(), sender, reason })
    }

    async fn connect(
        &self,
    ) -> Result<(http1::SendRequest<Empty<Bytes>>, Option<BoxFuture<'static, Option<String>>>)> {
        Ok(match self {
            Self::Tcp(address) => (handshake(TcpStream::connect(address).await?).await?, None),
            Self::Unix(socket) => (handshake(UnixStream::connect(socket).await?).await?, None),
            Self::Pod(port) => {
                let (stream, reason) = port.forward().await?;
                (handshake(stream).await?, Some(reason))
            }
        })
    }

    async fn in_time<T>(&self, asking: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(TIMEOUT, asking)
            .await
            .with_context(|| format!("{self} did not answer within {} s", TIMEOUT.as_secs()))?
            .with_context(|| format!("can't ask {self}"))
    }
}

impl Session {
    /// `GET path`, as JSON.
    pub async fn json<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let bytes = self.bytes(path).await?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{}{path} answered what is not of this version", self.endpoint))
    }

    /// `GET path`, as it came.
    pub async fn bytes(&mut self, path: &str) -> Result<Bytes> {
        let endpoint = self.endpoint.clone();
        endpoint.in_time(self.exchange(Method::GET, path)).await
    }

    /// `POST path`, which does something there; the answer as JSON.
    pub async fn order<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let endpoint = self.endpoint.clone();
        let bytes = endpoint.in_time(self.exchange(Method::POST, path)).await?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{endpoint}{path} answered what is not of this version"))
    }

    async fn exchange(&mut self, method: Method, path: &str) -> Result<Bytes> {
        let request = Request::builder().method(method.clone()).uri(path);
        let request = request.header(header::HOST, "nodemesh").body(Empty::<Bytes>::new())?;
        let response = match self.sender.send_request(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.explained(error).await),
        };
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status}: {}", String::from_utf8_lossy(&body).trim());
        Ok(body)
    }

    /// What the node said of a forward that broke, instead of that it broke.
    async fn explained(&mut self, error: hyper::Error) -> Error {
        let Some(reason) = self.reason.take() else { return error.into() };
        match tokio::time::timeout(REASON_TIMEOUT, reason).await {
            // The runtime's text names its sockets and sandboxes at length.
            Ok(Some(reason)) if reason.contains("connection refused") => {
                anyhow!("nothing listens there (connection refused)")
            }
            Ok(Some(reason)) => anyhow!(reason.trim().to_owned()),
            _ => error.into(),
        }
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<http1::SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors come out of the request as well.
    tokio::spawn(connection);
    Ok(sender)
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("a path has to follow `unix:`".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.into()))
            }
            _ => Err("neither HOST:PORT nor unix:PATH".into()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Pod(port) => port.fmt(f),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_paths_and_nothing_else() {
        for text in ["unix:/run/a.sock", "[::1]:15000", "node1:15000"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert!(matches!("unix:/run/a.sock".parse(), Ok(Endpoint::Unix(_))));
        for wrong in ["unix:", "node1", ":15000", "node1:http", ""] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_failure_names_the_endpoint() {
        let endpoint = Endpoint::Unix("/nonexistent/admin.sock".into());
        let error = endpoint.open().await.err().unwrap();
        assert_eq!(error.to_string(), "can't ask unix:/nonexistent/admin.sock");
    }
}
